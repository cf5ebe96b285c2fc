r"""What a training objective of this package is: settings, and the loss on a batch that they make.

.. math:: \mathrm{loss} = -\frac1N \sum_n L(x_n) - \frac{1}{N_\mathrm{full}} \log p(\text{outside the plate}),
          \qquad L(x_n) \le \log p(x_n)

in nats a datapoint, the same for a minibatch as for all the data. Letters: K particles, N datapoints of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amortize.inference.chunks import slices
from amortize.program.data import Data
from amortize.program.program import Program
from amortize.program.trained import TrainedProgram
from amortize.random import pyro_rng

__all__ = ["BatchLoss", "Objective", "Terms"]

MAX_ROWS = 2**15


class Terms(NamedTuple):
    """On a batch: the bound of each datapoint (N,) in nats, a number, and a scalar to descend, nats a datapoint."""

    bound: Tensor
    loss: Tensor


class BatchLoss(nn.Module, ABC):
    """An objective on one program. Its own parameters, where it has any, are trained along.

    Parameters
    ----------
    program
        With a guide.
    data
        All datapoints.
    pathwise
        Whether gradients go through the guide's draws.
    points
        Whether the guide may be a point (Delta).

    Attributes
    ----------
    progress
        Share of the optimiser's steps that are done, 0 to 1, for what changes as training goes on; 1 outside of it.
    """

    def __init__(self, program: Program, data: Data, *, pathwise: bool, points: bool = False) -> None:
        super().__init__()
        self.trained = TrainedProgram(program, data, pathwise=pathwise, points=points)
        self.progress = 1.0

    @property
    @abstractmethod
    def rows_per_datapoint(self) -> int:
        """How many rows of the program a datapoint takes."""

    @abstractmethod
    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Its own parameters, the program's left out."""
        return (p for p in self.parameters() if p.requires_grad)

    def own_state(self) -> dict[str, Tensor]:
        """Copies of its own parameters and buffers by name."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def measured(self, data: Data, num_draws: int, *, seed: int) -> np.ndarray:
        """The bound of each datapoint (N,), the mean over ``num_draws`` fresh measurements; the same at every call."""
        size = max(1, MAX_ROWS // (self.rows_per_datapoint * self.trained.log_joint.num_tiles))
        parts, training = [], self.training
        self.eval()
        with pyro_rng(seed, "validation"), torch.no_grad():
            for rows in slices(data.num_datapoints, size):
                batch = data if size >= data.num_datapoints else data.rows(rows)
                draws = torch.stack([self(batch).bound for _ in range(num_draws)])
                parts.append(draws.double().mean(0).cpu().numpy())
        self.train(training)
        return np.concatenate(parts)

    def terms(self, bound: Tensor, surrogate: Tensor, outside: Tensor, auxiliary: Tensor) -> Terms:
        """The value of ``bound`` (N,) with the gradient of ``surrogate`` (N,), beside what stands outside the plate."""
        num = len(bound)
        full = self.trained.structure.full_size or num
        bound = bound.detach()
        ascended = surrogate + (bound - surrogate.detach())
        return Terms(bound, -ascended.mean() - outside / full + auxiliary / num)


@dataclass(frozen=True)
class Objective(ABC):
    """Settings of a training objective."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def bound(self) -> str:
        """What its value is, in words: a lower bound on log p(x)."""

    @abstractmethod
    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:
        """The loss on a program, tried on data."""

    def settings(self) -> dict[str, Any]:
        """What to write down."""
        return {"name": self.name, **asdict(self)}
