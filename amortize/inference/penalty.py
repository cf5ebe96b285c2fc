"""What an objective adds to distortion and rate: a term that asks something more of the codes.

Letters: K particles, N datapoints of a batch, B = K * N rows (particle-major).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from amortize.program.data import Data
from amortize.program.program import Program
from amortize.program.rates import RatedRun

__all__ = ["Penalty", "PenaltyTerm"]


class PenaltyTerm(nn.Module, ABC):
    """A penalty on one program. Its own parameters, where it has any, are trained along with the program's."""

    @abstractmethod
    def forward(self, batch: Data, run: RatedRun) -> Tensor:
        """A scalar to be added to the loss, in nats a datapoint; draws from the global generators of torch."""


class Penalty(ABC):
    """Settings of a penalty: a frozen dataclass."""

    name: ClassVar[str]

    @abstractmethod
    def on(self, program: Program, data: Data, *, seed: int) -> PenaltyTerm:
        """The penalty on a program, tried on data."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What to write down."""
