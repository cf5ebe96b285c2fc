r"""The ELBO by the score function, with a baseline that a network learns from the data.

.. math:: \nabla_\phi L \approx \frac1K \sum_k \sum_i \frac{f_{ik} - C_i - c_i}{s_i} \,
          \nabla_\phi \log q(z_{ik} | z_{<ik}, x), \quad
          f_{ik} = \log p(x, z_k) - \sum_{j \ge i} \log q(z_{jk} | z_{<jk}, x)

The networks C_i(x, z_<i) descend the square of the numerator; c and v are running averages over past batches of the
mean and the variance of f - C, and s = max(1, sqrt(v)). Letters: S sites, K particles, N datapoints; f in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from amortize.errors import check_count, check_number
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.inference.score_baselines import Inputs, check_widths, quiet_network
from amortize.program.data import Data
from amortize.program.guide import TracedGuide
from amortize.program.guide_contract import guide_messages
from amortize.program.guide_runs import frozen_statistics
from amortize.program.options import check_flag
from amortize.program.probes import head_of
from amortize.program.program import Program
from amortize.program.trained import Particles, TrainedProgram
from amortize.random import pyro_rng

__all__ = ["NVIL"]


@dataclass(frozen=True)
class NVIL(Objective):
    r"""The ELBO; networks trained along guess each datapoint's f, and what they can't guess is the draws' credit.

    Parameters
    ----------
    num_particles
        K, draws of the guide for each datapoint.
    hidden
        Widths of the networks' hidden layers (tanh), the paper's one of 100 by default; () is a linear baseline.
    decay
        Share of the running averages that a step keeps, from 0 to below 1.
    normalise
        Whether the guide's gradient is divided by s.

    Notes
    -----
    .. math:: \frac1K \sum_k \sum_i \frac{f_{ik} - C_i(x, z_{<ik}) - c_i}{s_i} \,
              \nabla_\phi \log q(z_{ik} | z_{<ik}, x), \qquad s_i = \max(1, \sqrt{v_i})

    where c and v are running averages of the mean and the variance of f - C. Each site i of the guide has a learning
    signal of its own, f without log q of what was drawn before it, and a network that reads those draws beside the
    data; where no site reads another's draw, f without log q of all others, and a network of the data alone.

    **What the normalisation does.** The baselines know nothing of the draws that they are taken from - the running
    averages are those of *past* batches -, so that the numerator's mean is the ELBO's gradient exactly. Its division by
    s, one number a site, leaves the direction of the site's part right and its length not: a batch's gradient is that
    of the ELBO over s. Adam, which goes by the ratio of gradients to their own running size, sees only how s moves;
    plain gradient descent, weight decay and clipping see a guide that learns s times more slowly, and parameters that
    sites share see the sites' parts weighed anew. With ``normalise=False`` the gradient is unbiased in length, too.
    The model's gradient is never touched.

    Averages start at those of a first set of draws that is used for nothing else. Networks read every argument of
    the program that has an entry a datapoint, centred and scaled by its moments over the training data, missing
    numbers at the mean; where there is none, they are constants. Their answer is in units of the first draws' standard
    deviation (of a nat, where that is more). Source: Mnih and Gregor (2014), "Neural variational inference and learning
    in belief networks", section 2.3, https://arxiv.org/abs/1402.0030.

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
        """The loss on a program, its networks begun from the seed."""
        with pyro_rng(seed, "nvil"):
            return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: NVIL, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=False)
        self.settings = settings
        self.sites = _drawn_in_order(self.trained, data)
        self.chained = bool(self.sites) and not self.trained.reads_no_draws
        like = torch.zeros((), dtype=program.dtype, device=data.index.device)
        self.inputs = Inputs(data, like)
        self.networks = nn.ModuleList(quiet_network((width, *settings.hidden, 1), like) for width in self._widths())
        self.unit: Tensor
        self.signal_mean: Tensor
        self.signal_variance: Tensor
        for name in ("unit", "signal_mean", "signal_variance"):
            self.register_buffer(name, like.new_full((len(self.networks), 1, 1), torch.nan))

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_particles

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""
        particles = self._drawn(batch)
        bound = (particles.log_joint - particles.log_q).detach().mean(0)
        if not torch.is_grad_enabled():  # measured, not trained
            return self.terms(bound, bound, particles.outside, particles.auxiliary)
        if torch.isnan(self.unit).any():
            self._start(batch)
        log_qs = self._log_qs(particles)
        signal = self._worth(particles, log_qs) - self.unit * self._expected(batch, particles)
        left = signal - self.signal_mean
        own = -0.5 * (left / self.unit).square().sum(0)
        scale = self.signal_variance.sqrt().clamp(min=1.0) if self.settings.normalise else 1.0
        guide = (left.detach() / scale * log_qs).sum(0)
        if self.training:
            self._follow(signal.detach())
        ascended = (particles.log_joint + guide + own).mean(0)
        return self.terms(bound, ascended, particles.outside, particles.auxiliary)

    def _drawn(self, batch: Data) -> Particles:
        return self.trained.particles(batch, self.settings.num_particles, cut=True)

    def _widths(self) -> list[int]:
        """What each site's network reads: the data and, where sites read draws, those of earlier sites."""
        if not self.chained:
            return [self.inputs.width] * max(1, len(self.sites))
        sizes = [math.prod(self.trained.structure.sites[name].shape) for name in self.sites]
        return [self.inputs.width + before for before in accumulate(sizes[:-1], initial=0)]

    def _log_qs(self, particles: Particles) -> Tensor:
        """Of each site, (S, K, N) nats, or of all latents at once, (1, K, N)."""
        if not self.sites:
            return particles.log_q.unsqueeze(0)
        found = particles.drawn.log_qs
        return torch.stack([found[name].reshape(particles.log_q.shape) for name in self.sites])

    def _worth(self, particles: Particles, log_qs: Tensor) -> Tensor:
        """F of each site, (S, K, N) nats: without what its draw has no part in."""
        later = log_qs.flip(0).cumsum(0).flip(0) if self.chained else log_qs
        return (particles.log_joint - later).detach()

    def _expected(self, batch: Data, particles: Particles) -> Tensor:
        """What the networks say, (S, K, N), in units."""
        num, count = particles.log_q.shape[1], particles.log_q.shape[0]
        seen = [self.inputs(batch).repeat(count if self.chained else 1, 1)]
        said = []
        for place, network in enumerate(self.networks):
            if place and self.chained:
                seen.append(self._numbers(self.sites[place - 1], particles))
            said.append(network(torch.cat(seen, -1)).reshape(-1, num).expand(count, num))
        return torch.stack(said)

    def _numbers(self, name: str, particles: Particles) -> Tensor:
        """Draws at a site as numbers in a row, (K * N, V)."""
        value = particles.drawn.values[name].movedim(self.trained.structure.sites[name].front, 0)
        return value.reshape(len(value), -1).to(self.unit)

    @torch.no_grad()
    def _start(self, batch: Data) -> None:
        """From draws of their own, so that the first step's baseline knows nothing of the step's draws."""
        with frozen_statistics(self.trained.program):
            particles = self._drawn(batch)
        worth = self._worth(particles, self._log_qs(particles))
        self.signal_mean.copy_(worth.mean((1, 2), keepdim=True))
        self.signal_variance.copy_(worth.var((1, 2), correction=0, keepdim=True))
        self.unit.copy_(self.signal_variance.sqrt().clamp(min=1.0))

    def _follow(self, signal: Tensor) -> None:
        """The running averages take the batch in; one that isn't finite is left to training to report."""
        if torch.isfinite(signal).all():
            keep = self.settings.decay
            self.signal_mean.mul_(keep).add_((1 - keep) * signal.mean((1, 2), keepdim=True))
            self.signal_variance.mul_(keep).add_((1 - keep) * signal.var((1, 2), correction=0, keepdim=True))


def _drawn_in_order(trained: TrainedProgram, data: Data) -> tuple[str, ...]:
    """The sites of a guide that runs as a program; none of one that draws u as a whole."""
    if not isinstance(trained.guide, TracedGuide):
        return ()
    with trained.program.evaluating():
        messages = guide_messages(trained.program, head_of(data))
    return tuple(name for name in messages if name in trained.guide.sites)
