r"""The importance-weighted bound of each datapoint, with doubly reparametrised gradients.

.. math:: L_K(x_n) = E\left[ \log \frac1K \sum_k w_{kn} \right] \le \log p(x_n), \qquad
          w_{kn} = \frac{p(x_n, z_{kn})}{q(z_{kn} | x_n)}

L_1 is the ELBO, and L_K grows with K. With normalised weights v_k, the gradient is

.. math:: \nabla_\theta = \sum_k v_k \nabla_\theta \log p(x, z_k), \qquad
          \nabla_\phi = \sum_k v_k^2 \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}

for the model and, doubly reparametrised, for the guide: unbiased like the plain one, but its signal-to-noise ratio
grows with K where the plain one's falls. Letters: K particles, N datapoints, B = K * N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_count
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.program.data import Data
from amortize.program.guide_runs import Gate
from amortize.program.program import Program
from amortize.program.trained import Particles

__all__ = ["IWAE", "ImportanceWeighted", "log_mean_exp"]

GRADIENTS = ("dreg", "standard")


@dataclass(frozen=True)
class ImportanceWeighted(Objective):
    """Objectives whose value is the importance-weighted bound of K draws of the guide for each datapoint."""

    num_particles: int = 5

    def __post_init__(self) -> None:
        check_count(f"{type(self).__name__} num_particles", self.num_particles)

    @property
    def bound(self) -> str:
        """In words."""
        return f"importance-weighted bound, {self.num_particles} particles" if self.num_particles > 1 else "ELBO"


@dataclass(frozen=True)
class IWAE(ImportanceWeighted):
    """The importance-weighted bound, a lower bound on each log p(x_n) that tightens with the particles.

    Parameters
    ----------
    num_particles
        K, draws of the guide for each datapoint; 1 is the ELBO.
    gradient
        Of the guide: "dreg" (doubly reparametrised), or "standard". Both are unbiased; the model's is the plain one.

    Notes
    -----
    Sources: Burda et al. (2016), "Importance weighted autoencoders", https://arxiv.org/abs/1509.00519; Tucker et al.
    (2019), "Doubly reparameterized gradient estimators for Monte Carlo objectives", equation 8,
    https://arxiv.org/abs/1810.04152.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.IWAE(num_particles=8), num_steps=20)
    >>> fitted.bound
    'importance-weighted bound, 8 particles'
    """

    name: ClassVar[str] = "iwae"
    gradient: str = "dreg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient not in GRADIENTS:
            raise ArgumentError(f"IWAE gradient: expected one of {GRADIENTS}, got {self.gradient!r}")

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: IWAE, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=True)
        self.settings = settings

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_particles

    def forward(self, batch: Data) -> Terms:
        dreg = self.settings.gradient == "dreg"
        gate = Gate() if dreg and torch.is_grad_enabled() else None
        particles = self.trained.particles(batch, self.settings.num_particles, cut=dreg, gate=gate)
        log_weights = particles.log_joint - particles.log_q
        bound = log_mean_exp(log_weights)
        surrogate = bound if gate is None else _doubly_reparametrised(particles, gate)
        return self.terms(bound, surrogate, particles.outside, particles.auxiliary)


def _doubly_reparametrised(particles: Particles, gate: Gate) -> Tensor:
    """What has the model's plain gradient and the guide's doubly reparametrised one, (N,)."""
    drawn, log_weights = particles.drawn, particles.log_joint - particles.log_q
    share = log_weights.detach().softmax(0)
    gate.shares = share.flatten()
    model = (share * particles.log_joint).sum(0)
    rest = log_weights if drawn.chained else -particles.log_q  # the model's part goes through the gate
    slopes = torch.autograd.grad(
        (share.square() * rest).sum(),
        list(drawn.values.values()),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    guide = drawn.through(dict(zip(drawn.values, slopes, strict=True)))
    return model + guide / len(model)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Log of the mean over particles, of (K, N): (N,)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))
