r"""Objectives whose guide learns by the score function, so that it may sample discrete latents.

.. math:: \nabla_\phi E_{q_\phi}[f(z)] = E_{q_\phi}\left[ (f(z) - b) \, \nabla_\phi \log q_\phi(z | x) \right],
          \qquad f(z) = \log p(x, z) - \log q(z | x)

holds for any b that knows nothing of z, since the score has mean zero; for the same reason the slope of log q inside f
adds nothing. What an estimator is, is its choice of b: the weight of each draw's score. Draws are hard, what is scored
is the discrete model, and gradients stop at the draws; continuous sites of the guide get their score too.

Letters: K particles, N datapoints. Source: Williams (1992), "Simple statistical gradient-following algorithms for
connectionist reinforcement learning".
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from amortize.inference.objective import BatchLoss, Terms
from amortize.program.data import Data
from amortize.program.program import Program

__all__ = ["ScoreLoss", "Shares"]


class Shares(NamedTuple):
    """Of each datapoint's bound, nats: its value (N,), and what its gradient makes of each draw, (K, N).

    ``model`` weighs the slope of log p(x, z_k) in the model's parameters, ``guide`` that of log q(z_k | x) in the
    guide's.
    """

    bound: Tensor
    model: Tensor
    guide: Tensor


class ScoreLoss(BatchLoss):
    """A loss that weighs the scores of K draws.

    Parameters
    ----------
    program, data
        As a loss takes them.
    num_particles
        K.
    """

    def __init__(self, program: Program, data: Data, num_particles: int) -> None:
        super().__init__(program, data, pathwise=False)
        self.num_particles = num_particles

    @property
    def rows_per_datapoint(self) -> int:
        """K."""
        return self.num_particles

    @abstractmethod
    def shares(self, batch: Data, log_weights: Tensor) -> Shares:
        """Of the log weights f (K, N) of the draws, which have no gradient."""

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""
        particles = self.trained.particles(batch, self.num_particles, cut=True)
        shares = self.shares(batch, (particles.log_joint - particles.log_q).detach())
        ascended = (shares.model * particles.log_joint + shares.guide * particles.log_q).sum(0)
        return self.terms(shares.bound, ascended, particles.outside, particles.auxiliary)
