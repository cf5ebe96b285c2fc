r"""The ELBO by the score function, with a baseline that a network learns from the data.

.. math:: \nabla_\phi L \approx \frac1K \sum_k \frac{f_k - C_\psi(x) - c}{s} \, \nabla_\phi \log q(z_k | x), \qquad
          \psi \text{ descends } \sum_k (f_k - C_\psi(x) - c)^2

c and v are running averages over past batches of the mean and the variance of f - C(x), and s = max(1, sqrt(v)).
Letters: K particles, N datapoints; f_k = log p(x, z_k) - log q(z_k | x), nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import check_count, check_number
from amortize.inference.objective import BatchLoss, Objective
from amortize.inference.score import ScoreLoss, Shares
from amortize.inference.score_baselines import Inputs, check_widths, quiet_network
from amortize.program.data import Data
from amortize.program.guide_runs import frozen_statistics
from amortize.program.options import check_flag
from amortize.program.program import Program
from amortize.random import pyro_rng

__all__ = ["NVIL"]


@dataclass(frozen=True)
class NVIL(Objective):
    r"""The ELBO; a network trained along guesses each datapoint's f, and what it can't guess is the draws' credit.

    Parameters
    ----------
    num_particles
        K, draws of the guide for each datapoint.
    hidden
        Widths of the network's hidden layers (tanh), the paper's one of 100 by default; () is a linear baseline.
    decay
        Share of the running averages that a step keeps, from 0 to below 1.
    normalise
        Whether the guide's gradient is divided by s.

    Notes
    -----
    .. math:: \frac1K \sum_k \frac{f_k - C_\psi(x) - c}{s} \, \nabla_\phi \log q(z_k | x), \qquad
              s = \max(1, \sqrt{v})

    where c and v are running averages of the mean and the variance of :math:`f - C_\psi(x)`.

    **What the normalisation does.** The baselines know nothing of the draws that they are taken from - the running
    averages are those of *past* batches -, so that the numerator's mean is the ELBO's gradient exactly. Its division by
    s, one number for all parameters of the guide, leaves the direction right and the length not: a batch's gradient is
    that of the ELBO over s. Adam, which goes by the ratio of gradients to their own running size, sees only how s
    moves; plain gradient descent, weight decay and clipping see a guide that learns s times more slowly. With
    ``normalise=False`` the gradient is unbiased in length, too. The model's gradient is never touched.

    Averages start at those of a first set of draws that is used for nothing else. The network reads every argument of
    the program that has an entry a datapoint, centred and scaled by its moments over the training data, missing
    numbers at the mean; where there is none, it is a constant. Its answer is in units of the first draws' standard
    deviation (of a nat, where that is more). All sites of the guide share one learning signal. Source: Mnih and Gregor
    (2014), "Neural variational inference and learning in belief networks", section 2.3,
    https://arxiv.org/abs/1402.0030.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.NVIL(hidden=(16,)), num_steps=20)
    >>> fitted.bound, "signal_mean" in fitted.extra
    ('ELBO', True)
    """

    name: ClassVar[str] = "nvil"
    num_particles: int = 1
    hidden: tuple[int, ...] = (100,)
    decay: float = 0.8
    normalise: bool = True

    def __post_init__(self) -> None:
        check_count("NVIL num_particles", self.num_particles)
        check_widths("NVIL hidden", self.hidden)
        check_number("NVIL decay", self.decay, "[0, 1)")
        check_flag("NVIL normalise", self.normalise)

    @property
    def bound(self) -> str:
        """In words."""
        return "ELBO"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:
        """The loss on a program, its network begun from the seed."""
        with pyro_rng(seed, "nvil"):
            return _Loss(self, program, data)


class _Loss(ScoreLoss):
    def __init__(self, settings: NVIL, program: Program, data: Data) -> None:
        super().__init__(program, data, settings.num_particles)
        self.settings = settings
        like = torch.zeros((), dtype=program.dtype, device=data.index.device)
        self.inputs = Inputs(data, like)
        self.network = quiet_network((self.inputs.width, *settings.hidden, 1), like)
        self.unit: Tensor
        self.signal_mean: Tensor
        self.signal_variance: Tensor
        for name in ("unit", "signal_mean", "signal_variance"):
            self.register_buffer(name, like.new_full((), torch.nan))

    def shares(self, batch: Data, log_weights: Tensor) -> Shares:
        bound, model = log_weights.mean(0), torch.full_like(log_weights, 1 / len(log_weights))
        if not torch.is_grad_enabled():  # measured, not trained
            return Shares(bound, model, torch.zeros_like(model))
        if torch.isnan(self.unit):
            self._start(batch)
        signal = log_weights - self.unit * self.network(self.inputs(batch)).squeeze(-1)
        left = signal - self.signal_mean
        own = -0.5 * (left / self.unit).square().mean(0)
        scale = self.signal_variance.sqrt().clamp(min=1.0) if self.settings.normalise else 1.0
        guide = left.detach() / scale / len(log_weights)
        if self.training:
            self._follow(signal.detach())
        return Shares(bound, model, guide, own)

    @torch.no_grad()
    def _start(self, batch: Data) -> None:
        """From draws of their own, so that the first step's baseline knows nothing of the step's draws."""
        with frozen_statistics(self.trained.program):
            drawn = self.trained.particles(batch, self.num_particles, cut=True)
        signal = drawn.log_joint - drawn.log_q
        self.signal_mean.copy_(signal.mean())
        self.signal_variance.copy_(signal.var(correction=0))
        self.unit.copy_(self.signal_variance.sqrt().clamp(min=1.0))

    def _follow(self, signal: Tensor) -> None:
        """The running averages take the batch in; one that isn't finite is left to training to report."""
        if torch.isfinite(signal).all():
            keep = self.settings.decay
            self.signal_mean.mul_(keep).add_((1 - keep) * signal.mean())
            self.signal_variance.mul_(keep).add_((1 - keep) * signal.var(correction=0))
