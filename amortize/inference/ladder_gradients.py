"""Draws of a gradient of one program by one estimator, and the exact gradient to compare them with.

The program stands still meanwhile, in eval mode: its parameters are never stepped. An estimator's own - networks of
baselines, of control variates - are trained in a warm-up first, and then stand still too; running averages, which know
nothing of the draw to come, go on. Letters: R draws, N datapoints of a batch, K particles, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.infer import ELBO
from torch import Tensor

from amortize.inference.exact_elbo import ExactELBO
from amortize.inference.ladder_moments import Bias, Moments
from amortize.inference.objective import BatchLoss, Objective
from amortize.inference.objectives import loss_of
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.program.program import Program
from amortize.random import pyro_rng, stream_seed

__all__ = ["Measured", "exact_gradient", "measure_gradients"]

WARMUP = 100
WARMUP_RATE = 1e-2


@dataclass(frozen=True)
class Measured:
    """What R draws say of an estimator.

    Attributes
    ----------
    bias
        Against the exact gradient.
    variance
        Trace of the covariance of one datapoint's gradient, mean over datapoints.
    num_nonfinite
        Draws that were left out.
    rows
        Of the program, that a step takes for each datapoint.
    """

    bias: Bias
    variance: float
    num_nonfinite: int
    rows: int


class _Gradient:
    """Draws (P,) of the gradient of a loss in the program's parameters, float64 on the CPU."""

    def __init__(self, program: Program, data: Data, objective: ELBO | Objective, seed: int) -> None:
        self.program, self.data, self.objective = program, data, objective
        self.parameters = [p for p in program.parameters() if p.requires_grad]
        self.loss: BatchLoss | None = None
        if isinstance(objective, Objective):
            self.loss = objective.on(program, data, seed=seed)
            self.loss.train()
        self.own = [] if self.loss is None else list(self.loss.own_parameters())
        self.full_size = program.structure(data).full_size or data.num_datapoints

    def draw(self) -> Tensor:
        """One, from the global generators."""
        for parameter in (*self.parameters, *self.own):
            parameter.grad = None
        self._value().backward()  # type: ignore[no-untyped-call]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([part.flatten().double().cpu() for part in parts])
        for parameter in self.parameters:
            parameter.grad = None
        return flat

    def warm_up(self, num_draws: int) -> None:
        """Train what the estimator has of its own, the program held."""
        optimiser = torch.optim.Adam(self.own, lr=WARMUP_RATE) if self.own else None
        for _ in range(num_draws):
            self.draw()
            if optimiser is not None:
                optimiser.step()

    @property
    def rows_per_datapoint(self) -> int:
        """Of the program, in a draw."""
        if self.loss is not None:
            return self.loss.rows_per_datapoint
        assert isinstance(self.objective, ELBO)
        return int(self.objective.num_particles)

    def _value(self) -> Tensor:
        if self.loss is not None:
            loss: Tensor = self.loss(self.data).loss
            return loss
        assert isinstance(self.objective, ELBO)
        return loss_of(self.objective, self.program, self.data) / self.full_size


def measure_gradients(
    program: Program, data: Data, objective: ELBO | Objective, exact: Tensor | None, *, num_draws: int, seed: int
) -> Measured:
    """Draw R gradients on all of the data at once, and compare their mean with the ``exact`` one (P,).

    Datapoints have draws of their own, so that the variance of the batch's mean gradient is 1 / N of a datapoint's.
    """
    with program.evaluating(), pyro_rng(seed, "ladder", "gradients"), unvalidated():
        gradient = _Gradient(program, data, objective, stream_seed(seed, "ladder", "own"))
        first = gradient.draw()
        moments = Moments(len(first), exact, seed=seed)
        if not isinstance(objective, ExactELBO):
            gradient.warm_up(min(WARMUP, num_draws))
        for _ in range(2 if isinstance(objective, ExactELBO) else num_draws):
            moments.add(gradient.draw())
    rows = gradient.rows_per_datapoint
    return Measured(moments.bias(), data.num_datapoints * moments.trace, moments.num_nonfinite, rows)


def exact_gradient(program: Program, data: Data, num_particles: int) -> Tensor:
    """Of the bound of K draws, by enumeration: (P,), in the sense of descent.

    Raises
    ------
    DiscreteLatentError
        Where the configurations can't be summed.
    """
    with program.evaluating(), unvalidated():
        return _Gradient(program, data, ExactELBO(num_particles=num_particles), 0).draw()
