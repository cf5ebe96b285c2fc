"""What ``am.gaps`` is given beside the program and its data, checked against both before anything is measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amortize.errors import ArgumentError, DataError, shown
from amortize.inference.fitted import Fitted
from amortize.program.data import Data
from amortize.program.program import Program

__all__ = ["read_training_data", "require_fit_of"]


def read_training_data(program: Program, x_train: Any, data: Data, *, device: str | None = None) -> Data:
    """``x_train`` as the program takes it.

    Raises
    ------
    DataError
        If its datapoints are shaped otherwise than those of ``data``, and the program does not take them.
    """
    train = program.prepare(x_train, device=device)
    expected, got = _datapoint(data), _datapoint(train)
    if got != expected:  # as sequences of another length may be
        try:
            with program.evaluating():
                program.guide_density(train.rows(slice(0, 2)), points=True)
        except Exception as error:  # whatever a user's program raises on data that are not its own
            raise DataError(
                f"x_train: expected datapoints as those of x, {expected}, got {got}, on which the program fails "
                f"({' '.join(str(error).split())})"
            ) from error
    return train


def require_fit_of(program: Program, fitted: object) -> None:
    """See that ``fitted`` is the program's own: of this object, or of one with the same parameters.

    Raises
    ------
    ArgumentError
        If it is not what ``am.fit`` gave, or is of another program.
    """
    if not isinstance(fitted, Fitted):
        raise ArgumentError(f"fitted: expected what am.fit gave, got {shown(fitted)}")
    if fitted.program is not program and not _same(fitted.program.state(), program.state()):
        raise ArgumentError(
            "fitted: expected the fit of this program, got that of another, whose parameters are others; pass the "
            "program that was fitted, am.gaps(fitted.program, x, fitted=fitted)"
        )


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def _datapoint(data: Data) -> str:
    """One datapoint in words: the type and shape of its part of each argument."""
    words = []
    for key, leaf, own in zip(data.keys, data.leaves, data.per_datapoint, strict=True):
        kind = type(leaf).__name__
        if isinstance(leaf, Tensor):
            kind = f"{leaf.dtype} of shape {tuple(leaf.shape[1:] if own else leaf.shape)}"
        words.append(kind if len(data.keys) == 1 else f"{key!r}: {kind}")
    return "; ".join(words)
