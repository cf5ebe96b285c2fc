r"""Annealed Monte Carlo VAE: annealed importance sampling from the guide, with accepted and rejected moves, trained.

.. math:: L(x_n) = E\left[ \sum_{t=1}^{K+1} (\beta_t - \beta_{t-1}) \, r(u_{t-1}) \right] \le \log p(x_n), \qquad
          r(u) = \log \frac{p(x, u)}{q(u | x)},

with u_0 from the guide and u_t a Metropolis-adjusted Langevin move at the temperature beta_t. Decisions a_t to accept
have no path for a gradient: with P(a_t) their probability and F_t the part of log w that comes after them,

.. math:: \nabla L = E\left[ \nabla \log w + \sum_t (F_t - \bar F_t) \nabla \log P(a_t) \right],

where the control variate is the mean of F_t over the other chains of the same datapoint, which know nothing of a_t.
Source: Thin et al. (2021), "Monte Carlo variational auto-encoders", section 4, https://arxiv.org/abs/2106.15921; that
each decision answers for what comes after it alone is Schulman et al. (2015), "Gradient estimation using stochastic
computation graphs".

Letters: C chains, N datapoints, B = C * N rows (chain-major), D latents, K moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from amortize.errors import check_count, check_number
from amortize.inference.annealed_objectives import require_continuous
from amortize.inference.bridge import Evaluate, differentiable
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.inference.path import Point
from amortize.inference.whitening import pull, push
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.program.program import Program
from amortize.program.reach import Reach
from amortize.random import generator

__all__ = ["AMCVAE"]

ADAPTATION = 0.05
LARGEST_STEP = 2.0**0.5


@dataclass(frozen=True)
class AMCVAE(Objective):
    """Annealed Monte Carlo VAE: K Metropolis-adjusted Langevin moves, a lower bound on each log p(x_n).

    Parameters
    ----------
    num_steps
        K moves; each costs a gradient of the log joint, and training differentiates through it.
    num_chains
        C chains a datapoint, at least 2: each is the others' control variate.
    step_size
        Of every move at first, in units of the guide's standard deviation where that is known. It then follows the
        acceptance, which makes no bound less of a bound.
    target_acceptance
        Share of moves to accept.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.AMCVAE(num_steps=3), num_steps=10)
    >>> sorted(fitted.extra)
    ['log_increments', 'log_step_sizes']
    """

    name: ClassVar[str] = "a-mcvae"
    num_steps: int = 5
    num_chains: int = 2
    step_size: float = 0.4
    target_acceptance: float = 0.8

    def __post_init__(self) -> None:
        check_count("AMCVAE num_steps", self.num_steps)
        check_count("AMCVAE num_chains", self.num_chains, 2)
        check_number("AMCVAE step_size", self.step_size)
        check_number("AMCVAE target_acceptance", self.target_acceptance, "(0, 1)")

    @property
    def bound(self) -> str:
        """In words."""
        return f"annealed Monte Carlo VAE bound, {self.num_steps} steps"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(self, program, data)


class _Loss(BatchLoss):
    log_step_sizes: Tensor

    def __init__(self, settings: AMCVAE, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=True)
        require_continuous(settings.name, self.trained.structure.dim)
        like = self.trained.log_joint.like
        self.settings = settings
        self.log_increments = nn.Parameter(like.new_zeros(settings.num_steps + 1))
        self.register_buffer("log_step_sizes", like.new_full((settings.num_steps,), settings.step_size).log())

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_chains

    def forward(self, batch: Data) -> Terms:
        chains = self.settings.num_chains
        noise = generator(int(torch.randint(2**62, ())), "moves", device=batch.index.device)
        with self.trained.filled(), unvalidated():
            reach = Reach(self.trained, batch, chains)
            increments = self.log_increments.softmax(0)
            betas, step_sizes = increments.cumsum(0)[:-1], self.log_step_sizes.exp()
            evaluate = differentiable(reach.terms)
            here, ratios, decisions, accepted = evaluate(reach.u), [], [], []
            ratios.append(here.ratio)
            for beta, step_size in zip(betas, step_sizes, strict=True):
                here, decision, accept = _move(evaluate, here, (beta, step_size), reach.scale, noise)
                ratios.append(here.ratio)
                decisions.append(decision)
                accepted.append(accept.to(decision).mean())
        shape = (chains, batch.num_datapoints)
        parts = (increments.unsqueeze(-1) * torch.stack(ratios)).reshape(-1, *shape)
        log_weights = parts.sum(0)
        surrogate = log_weights + _score_term(parts.detach(), torch.stack(decisions).reshape(-1, *shape))
        if self.training:
            self._adapt(torch.stack(accepted))
        return self.terms(log_weights.mean(0), surrogate.mean(0), reach.outside, reach.auxiliary)

    def _adapt(self, acceptance: Tensor) -> None:
        with torch.no_grad():
            change = ADAPTATION * (acceptance - self.settings.target_acceptance)
            self.log_step_sizes.add_(change).clamp_(max=torch.log(change.new_tensor(LARGEST_STEP)))


def _move(
    evaluate: Evaluate, here: Point, setting: tuple[Tensor, Tensor], scale: Tensor, noise: torch.Generator
) -> tuple[Point, Tensor, Tensor]:
    """One move: where rows are then, the log probability (B,) of each decision, and the decisions (B,)."""
    beta, step = setting
    xi = torch.randn(here.u.shape, generator=noise, device=here.u.device, dtype=here.u.dtype)
    uniform = torch.rand(len(xi), generator=noise, device=xi.device, dtype=xi.dtype)
    velocity = xi + 0.5 * step * pull(scale, here.gradient(beta))
    there = evaluate(here.u + push(scale, step * velocity))
    velocity = velocity + 0.5 * step * pull(scale, there.gradient(beta))
    before = here.log_density(beta) - 0.5 * xi.square().sum(-1)
    change = there.log_density(beta) - 0.5 * velocity.square().sum(-1) - before
    accept = uniform.log() < change  # never where it is NaN
    parts = [torch.where(accept.reshape(-1, *[1] * (new.dim() - 1)), new, old) for new, old in zip(there, here)]  # noqa: B905
    return Point(*parts), _log_probability(change, accept), accept


def _log_probability(change: Tensor, accept: Tensor) -> Tensor:
    """Log probability of each decision, given the log Metropolis ratio; 0 where a proposal was not finite."""
    doubtful = torch.isfinite(change) & (change < 0)
    below = torch.where(doubtful, change, -torch.ones_like(change))
    log_probability = torch.where(accept, below, (-below.expm1()).log())
    return torch.where(doubtful, log_probability, torch.zeros_like(change))


def _score_term(parts: Tensor, decisions: Tensor) -> Tensor:
    """What has the gradient of the decisions (K, C, N), given the parts of log w (K + 1, C, N): (C, N)."""
    after = parts.flip(0).cumsum(0).flip(0)[1:]
    chains = after.shape[1]
    others = (after.sum(1, keepdim=True) - after) / (chains - 1)
    return ((after - others) * decisions).sum(0)
