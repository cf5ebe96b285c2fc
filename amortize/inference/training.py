"""How to train: the settings of ``am.fit`` beside the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.inference.aggressive import Aggressive
from amortize.program.data import Data
from amortize.program.options import check_flag

__all__ = ["Training"]

SCHEDULES = ("constant", "cosine", "exponential")


@dataclass(frozen=True)
class Training:
    """How to train.

    Parameters
    ----------
    learning_rate
        Of Adam.
    batch_size
        Datapoints a step; None takes all, or 128 where there are more than 256.
    schedule
        "constant", "cosine" (to 0) or "exponential" (to 1 % of the first rate).
    clip_norm
        Largest gradient norm; None clips nothing.
    validation
        Data on which the ELBO, or the bound that is trained, is measured every ``validate_every`` steps; None measures
        none.
    patience
        Stop after so many measurements without a better validation ELBO, and go back to the best; None never stops.
    progress
        Whether to show a bar; None shows one on a terminal.
    redraw
        Draws the values of each batch anew, as in dynamic binarisation: ``redraw(batch, stream)`` gives the data to
        train on, ``stream`` is a seeded generator on the CPU. None trains on the data as they are.
    aggressive
        Trains the guide alone, as ``am.Aggressive(...)`` says, before each step of the model, until it lags no more;
        ``num_steps`` counts the model's steps. None trains both in every step.
    """

    learning_rate: float = 1e-3
    batch_size: int | None = None
    schedule: str = "constant"
    clip_norm: float | None = None
    validation: Any = None
    validate_every: int = 100
    patience: int | None = None
    progress: bool | None = None
    redraw: Callable[[Data, torch.Generator], Data] | None = None
    aggressive: Aggressive | None = None

    def __post_init__(self) -> None:
        check_number("Training learning_rate", self.learning_rate)
        if self.schedule not in SCHEDULES:
            raise ArgumentError(f"Training schedule: expected one of {SCHEDULES}, got {self.schedule!r}")
        for name in ("batch_size", "validate_every", "patience"):
            if getattr(self, name) is not None or name == "validate_every":
                check_count(f"Training {name}", getattr(self, name))
        if self.clip_norm is not None:
            check_number("Training clip_norm", self.clip_norm)
        if self.progress is not None:
            check_flag("Training progress", self.progress)
        if self.patience is not None and self.validation is None:
            raise ArgumentError("Training patience: early stopping needs validation data, Training(validation=...)")
        if self.redraw is not None and not callable(self.redraw):
            raise ArgumentError(f"Training redraw: expected a function (batch, stream) -> data, got {self.redraw!r}")
        if self.aggressive is not None and not isinstance(self.aggressive, Aggressive):
            raise ArgumentError(
                f"Training aggressive: expected am.Aggressive(...) or None, got {shown(self.aggressive)}"
            )

    def settings(self) -> dict[str, Any]:
        """What to write down: everything but the data."""
        plain = {name: value for name, value in vars(self).items() if name not in {"validation", "progress", "redraw"}}
        plain["aggressive"] = None if self.aggressive is None else asdict(self.aggressive)
        return plain | {"validation": self.validation is not None, "redraw": self.redraw is not None}
