r"""The ELBO with another price on the rate, and with whatever else is asked of the codes.

.. math:: L_\beta(x_n) = -E_q[D_n] - \beta \sum_d \max(\lambda, R_d)
          - \text{penalties}, \qquad D_n = -\log p(x_n | z_n)

With :math:`\beta = 1` and nothing else it is the ELBO, its divergence in closed form where there is one. With
:math:`\beta = 0` and a guide that is a point it is a deterministic autoencoder's reconstruction error. Letters: K
particles, N datapoints of a batch, B = K * N rows (particle-major), V variables of a site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.inference.penalty import Penalty
from amortize.program.data import Data
from amortize.program.points import point_sites
from amortize.program.program import Program
from amortize.program.rates import RatedRun, require_rates

__all__ = ["BetaELBO"]


@dataclass(frozen=True)
class BetaELBO(Objective):
    """Distortion plus beta times rate; it takes guides that are points (Delta), too.

    Parameters
    ----------
    beta
        Price of a nat of rate, 0 or more; above 1 codes are cheap and coarse, below 1 long and exact.
    warmup
        Share of the optimiser's steps, 0 to 1, over which beta climbs from 0 in a straight line (KL annealing).
    free_bits
        Nats of each latent variable's rate, mean over the batch, below which nothing is charged.
    num_particles
        K, draws of the guide for each datapoint.
    penalties
        Further terms of the loss, such as ``am.MMD``.

    Notes
    -----
    Only beta = 1 without free bits and penalties is a bound on log p(x); ``Fitted.bound`` says which it was. What the
    history holds is -distortion - beta rate at the full price, while beta still climbs too, and without what free bits
    and penalties add to the loss. Sources:
    Higgins et al. (2017), "beta-VAE"; Bowman et al. (2016), "Generating sentences from a continuous space", for the
    warm-up; Kingma et al. (2016), "Improved variational inference with inverse autoregressive flow", equation 15, for
    free bits, https://arxiv.org/abs/1606.04934.

    Examples
    --------
    >>> import torch, amortize as am
    >>> vae = am.models.BernoulliVAE(data_dim=6, latent_dim=2, hidden=(8,))
    >>> fitted = am.fit(vae.program(), torch.eye(6), objective=am.BetaELBO(beta=4.0, warmup=0.2), num_steps=20)
    >>> fitted.bound
    'distortion + 4 rate, no bound'
    """

    name: ClassVar[str] = "beta-elbo"
    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0
    num_particles: int = 1
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self) -> None:
        check_number("BetaELBO beta", self.beta, "[0, inf)")
        check_number("BetaELBO warmup", self.warmup, "[0, 1]")
        check_number("BetaELBO free_bits", self.free_bits, "[0, inf)")
        check_count("BetaELBO num_particles", self.num_particles)
        if not isinstance(self.penalties, tuple) or not all(isinstance(p, Penalty) for p in self.penalties):
            raise ArgumentError(
                f"BetaELBO penalties: expected a tuple of penalties, as (am.MMD(),), got {shown(self.penalties)}"
            )

    @property
    def bound(self) -> str:
        """In words."""
        if self.beta == 1.0 and not self.free_bits and not self.penalties:
            return "ELBO"
        named = [f"distortion + {self.beta:g} rate", *(penalty.name for penalty in self.penalties)]
        free = f" above {self.free_bits:g} nats a latent" if self.free_bits else ""
        return " + ".join(named) + f"{free}, no bound"

    def settings(self) -> dict[str, Any]:
        """What to write down."""
        plain = {name: getattr(self, name) for name in ("beta", "warmup", "free_bits", "num_particles")}
        return {"name": self.name, **plain, "penalties": [penalty.settings() for penalty in self.penalties]}

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:
        """The loss on a program."""
        return _Loss(self, program, data, seed)


class _Loss(BatchLoss):
    def __init__(self, settings: BetaELBO, program: Program, data: Data, seed: int) -> None:
        points = bool(point_sites(program, data))
        super().__init__(program, data, pathwise=True, points=points)
        self.settings, self._program = settings, [program]  # in a list: its parameters are not the objective's own
        require_rates(program, self.trained.structure)
        self.penalties = nn.ModuleList(penalty.on(program, data, seed=seed) for penalty in settings.penalties)

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_particles

    @property
    def beta(self) -> float:
        """Now: while training, on its way up."""
        warmup = self.settings.warmup if self.training else 0.0
        return self.settings.beta * (min(1.0, self.progress / warmup) if warmup else 1.0)

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""
        num, beta = batch.num_datapoints, self.beta
        run = RatedRun.of(self._program[0], self.trained.structure, batch, self.settings.num_particles)
        bound, priced = (
            (-run.distortion - price * run.rate).reshape(-1, num).mean(0) for price in (self.settings.beta, beta)
        )
        extra = beta * self._charged_for_nothing(run)
        if self.training or torch.is_grad_enabled():  # what is only measured is the bound, which has no penalties
            for penalty in self.penalties:
                extra = extra + penalty(batch, run)
        terms = self.terms(bound, priced, run.outside, run.auxiliary)
        return Terms(terms.bound, terms.loss + extra)

    def _charged_for_nothing(self, run: RatedRun) -> Tensor:
        """What free bits add to the loss where a variable's rate is below them, so that its slope is zero."""
        total = torch.zeros_like(run.outside)
        if self.settings.free_bits:
            for rate in run.rates.values():
                total = total + (self.settings.free_bits - rate.mean(0)).clamp(min=0).sum()
        return total
