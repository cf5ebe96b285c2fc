"""What a member of the zoo is, and its line in the catalogue.

Letters: N datapoints, X features, D latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from torch import Tensor, nn

from amortize.inference.objective import Objective
from amortize.program.program import Program

__all__ = ["DataKind", "ModelEntry", "ZooModel"]

DataKind = Literal["binary", "unit", "real", "counts", "labelled"]
"""Zeros and ones; grey values from 0 to 1; any numbers; counts; numbers ``x`` with a response ``y``."""


class ZooModel(nn.Module, ABC):
    """A generative model, its guide and how they are trained: a *program* and an *objective*.

    Networks are attributes, and registered with Pyro in ``model`` and ``guide`` by ``networks.register``.
    """

    @classmethod
    @abstractmethod
    def from_data(cls, x: Any, *, seed: int = 0) -> Self:
        """A model of the size of its training data (N, X), begun well; members add settings of their own."""

    @property
    @abstractmethod
    def objective(self) -> str | Objective:
        """What ``am.fit`` should maximise: a name or its settings."""

    @abstractmethod
    def model(self, x: Tensor) -> None:
        """The generative model."""

    @abstractmethod
    def guide(self, x: Tensor) -> None:
        """The amortized posterior."""

    def program(self) -> Program:
        """Model and guide as an `amortize.Program`, which ``am.fit`` trains by the model's objective."""
        program = Program(self.model, self.guide)
        program.objective = self.objective
        return program


@dataclass(frozen=True)
class ModelEntry:
    """A line of the catalogue.

    Parameters
    ----------
    description
        What it is, in one line.
    constructor
        The class; its ``from_data`` makes one for training data.
    data
        What kind of data it takes.
    fit
        Settings of ``[fit]`` with which a study of it begins, where they are not a study's own.
    evidence
        Those of ``[evidence]``.
    """

    description: str
    constructor: type[Any]
    data: DataKind = "binary"
    fit: Mapping[str, object] = field(default_factory=dict)
    evidence: Mapping[str, object] = field(default_factory=dict)

    @property
    def has_exact_evidence(self) -> bool:
        """Whether the model knows log p(x) in closed form, or by an exact sum or quadrature."""
        return callable(getattr(self.constructor, "log_evidence", None))

    @property
    def from_data(self) -> Callable[..., Any]:
        """Makes a model from training data and settings."""
        made: Callable[..., Any] = self.constructor.from_data
        return made
