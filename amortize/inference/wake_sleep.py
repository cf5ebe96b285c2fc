r"""Reweighted wake-sleep, for each datapoint by itself.

.. math::
    \nabla_\theta = \sum_k v_k \nabla_\theta \log p(x, z_k), \quad
    \nabla_\phi^{\text{wake}} = \sum_k v_k \nabla_\phi \log q(z_k | x), \quad
    \nabla_\phi^{\text{sleep}} = \nabla_\phi \log q(z' | x'), \; (x', z') \sim p

with z_k from the guide and v_k the normalised weights p(x, z_k) / q(z_k | x) of the datapoint. The model ascends the
importance-weighted bound; the guide descends the divergence KL(p(z | x) || q(z | x)), so that it covers the posterior,
and needs no gradient through its draws: it may sample discrete latents.

Letters: K particles, N datapoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import check_number
from amortize.inference.iwae import ImportanceWeighted, log_mean_exp
from amortize.inference.objective import BatchLoss, Terms
from amortize.program.data import Data
from amortize.program.dreams import dream, require_dreams
from amortize.program.handlers import unvalidated
from amortize.program.program import Program

__all__ = ["WakeSleep"]


@dataclass(frozen=True)
class WakeSleep(ImportanceWeighted):
    """Reweighted wake-sleep. Its value is the importance-weighted bound, a lower bound on each log p(x_n).

    The weights are normalised for each datapoint; Pyro's ``ReweightedWakeSleep`` multiplies them over the data plate
    first, which leaves one particle for all datapoints together and a lower value.

    Parameters
    ----------
    num_particles
        K, draws of the guide for each datapoint.
    sleep
        Share of the guide's gradient that comes from data simulated by the model, from 0 (wake-phi alone) to 1.

    Notes
    -----
    The guide's gradient is that of a self-normalised estimate: its bias falls as 1 / K. Sources: Bornschein and Bengio
    (2015), "Reweighted wake-sleep", https://arxiv.org/abs/1406.2751; Le et al. (2019), "Revisiting reweighted
    wake-sleep", https://arxiv.org/abs/1805.10469.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.WakeSleep(num_particles=8), num_steps=20)
    >>> fitted.objective
    'wake-sleep'
    """

    name: ClassVar[str] = "wake-sleep"
    sleep: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("WakeSleep sleep", self.sleep, "[0, 1]")

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: WakeSleep, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=False)
        self.settings = settings
        if settings.sleep > 0:
            require_dreams(self.trained, data)

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_particles

    def forward(self, batch: Data) -> Terms:
        particles = self.trained.particles(batch, self.settings.num_particles, cut=True)
        log_weights = (particles.log_joint - particles.log_q).detach()
        share = log_weights.softmax(0)
        model = (share * particles.log_joint).sum(0)
        guide = (share * particles.log_q).sum(0)
        sleep = self.settings.sleep
        if sleep > 0:
            guide = (1 - sleep) * guide + sleep * self._dreamt(batch)
        return self.terms(log_mean_exp(log_weights), model + guide, particles.outside, particles.auxiliary)

    def _dreamt(self, batch: Data) -> Tensor:
        """Log q of the latents behind simulated data, (N,)."""
        simulated, values = dream(self.trained, batch, seed=int(torch.randint(2**62, ())))
        with self.trained.filled(), unvalidated():
            return self.trained.run_guide(simulated).log_q(simulated, values)
