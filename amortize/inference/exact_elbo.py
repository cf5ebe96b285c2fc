r"""The bound of a guide that samples discrete latents, every configuration summed with the guide's own weight.

.. math:: L_1(x_n) = \sum_k q(k | x_n) \log w_k, \qquad
          L_K(x_n) = \sum_{k_1 \ldots k_K} q(k_1) \cdots q(k_K) \log \frac1K \sum_i w_{k_i}, \qquad
          w_k = \frac{p(x_n, k)}{q(k | x_n)}

There is no noise in it, nor in its gradient: what estimators of either are measured by. For K > 1 the P^K terms are one
integral, since log s is one (Frullani):

.. math:: L_K = \int_0^\infty \Big( e^{-t} - \big( \textstyle\sum_k q(k) e^{-t w_k / K} \big)^K \Big) \frac{dt}{t}

Letters: P configurations of a datapoint's discrete latents, K particles, N datapoints of a batch, S nodes.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from amortize.errors import ArgumentError, DiscreteLatentError
from amortize.inference.chunks import slices
from amortize.inference.iwae import ImportanceWeighted
from amortize.inference.objective import MAX_ROWS, BatchLoss, Terms
from amortize.program.data import Data
from amortize.program.enumerate import Placement, configurations
from amortize.program.guide import TracedGuide
from amortize.program.guide_runs import GuideRun, frozen_statistics
from amortize.program.handlers import unvalidated
from amortize.program.program import Program
from amortize.program.sites import Structure
from amortize.program.traced_runs import CapturedRun
from amortize.program.trained import TrainedProgram

__all__ = ["MOST_CONFIGURATIONS", "ExactELBO", "Slopes", "exact_bound", "num_configurations"]

MOST_CONFIGURATIONS = 4096
"""Of a datapoint: what is summed at every step."""
STEP = 0.25  # in log t: the trapezoid rule's error on this integrand falls as exp(-pi^2 / step), here 1e-17
MARGIN = 40.0  # nats beyond which the integrand is below exp(-40) of what counts
MAX_ENTRIES = 2**22


@dataclass(frozen=True)
class ExactELBO(ImportanceWeighted):
    """The guide's ELBO with its discrete draws summed out exactly, or the importance-weighted bound of K of them.

    Every discrete latent that the guide samples is summed over; those that it leaves out are summed out of the model,
    as everywhere. There may be no continuous latents, and at most 4096 configurations a datapoint: a step runs the
    model on all of them.

    Parameters
    ----------
    num_particles
        K; 1 is the ELBO. A larger K costs hardly more.

    Raises
    ------
    DiscreteLatentError
        When training begins: there are continuous latents, too many configurations, or nothing that the guide samples.

    Notes
    -----
    Its gradient is the one of which "reinforce", ``am.LeaveOneOut``, ``am.VIMCO`` and others are estimates, and which
    relaxations replace by another; ``am.gradient_ladder`` measures them by it.

    Examples
    --------
    >>> import pyro, torch, amortize as am
    >>> import pyro.distributions as dist
    >>> weights, encoder = torch.nn.Linear(3, 6), torch.nn.Linear(6, 3)
    >>> def model(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
    ...         pyro.sample("x", dist.Bernoulli(logits=weights(z)).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))
    >>> fitted = am.fit(am.Program(model, guide), torch.eye(6), objective=am.ExactELBO(), num_steps=20)
    >>> fitted.bound
    'ELBO'
    """

    name: ClassVar[str] = "exact-elbo"
    num_particles: int = 1

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn)
        """The loss on a program."""
        return _Loss(program, data, self.num_particles)


class _Loss(BatchLoss):
    def __init__(self, program: Program, data: Data, num_particles: int) -> None:
        super().__init__(program, data, pathwise=False)
        self.num_particles, self.num_configurations = num_particles, num_configurations(self.trained)

    @property
    def rows_per_datapoint(self) -> int:
        return self.num_configurations

    def forward(self, batch: Data) -> Terms:
        """Draws nothing."""
        found = _Summed.of(self.trained, batch)
        if self.num_particles == 1:
            possible = found.log_q > -torch.inf
            log_q = torch.where(possible, found.log_q, 0.0)  # a gradient through -inf times 0 would be NaN
            terms = torch.where(possible, log_q.exp() * (found.log_joint - log_q), 0.0)
            bound = surrogate = terms.sum(0)
        else:
            slopes = exact_bound(found.log_joint, found.log_q, self.num_particles)
            bound, surrogate = slopes.bound, slopes.ascended(found.log_joint, found.log_q)
        return self.terms(bound, surrogate, found.outside, found.auxiliary)


def num_configurations(trained: TrainedProgram) -> int:
    """P, where the bound can be summed.

    Raises
    ------
    DiscreteLatentError, ArgumentError
        Where it can't, and the way out.
    """
    structure, ways = trained.structure, "am.LeaveOneOut(), am.VIMCO() or am.ConcreteELBO()"
    if not isinstance(trained.guide, TracedGuide):
        raise ArgumentError(
            "objective: ExactELBO sums over what an amortized guide samples; AutoGuides and whole=True train by "
            "objective='elbo'"
        )
    if not structure.sampled:
        raise DiscreteLatentError(
            "the guide samples no discrete latent, so there is nothing for ExactELBO to sum over. Train by "
            "objective='auto', which sums out those that the guide leaves out"
        )
    if structure.dim:
        raise DiscreteLatentError(
            f"latent site {structure.continuous[0]!r} is continuous, and ExactELBO can only sum. Train by {ways}, or "
            "leave the discrete latents out of the guide, objective='enum-elbo'"
        )
    count = _count(structure)
    if count > MOST_CONFIGURATIONS:
        raise DiscreteLatentError(
            f"the discrete latents of a datapoint have {count:.6g} configurations, and ExactELBO sums over at most "
            f"{MOST_CONFIGURATIONS}. Train by {ways}"
        )
    return count


def _count(structure: Structure) -> int:
    sites = [structure.sites[name] for name in structure.sampled]
    return math.prod(site.cardinality**site.num_variables for site in sites)


class _Summed(NamedTuple):
    """Log p(x_n, k) and log q(k | x_n) of every configuration, (P, N) nats, and the scalars of the batch as a whole."""

    log_joint: Tensor
    log_q: Tensor
    outside: Tensor
    auxiliary: Tensor

    @classmethod
    def of(cls, trained: TrainedProgram, batch: Data) -> _Summed:
        """Model and guide on all of them."""
        structure, num = trained.structure, batch.num_datapoints
        table = configurations(structure.sites, structure.sampled, batch.index.device)
        choices = torch.cat([table[name] for name in structure.sampled], -1)
        with trained.filled(), unvalidated():
            run = trained.run_guide(batch)
        blocks = slices(len(choices), max(1, MAX_ROWS // num))
        again = len(blocks) > 1 and torch.is_grad_enabled() and batch.index.device.type == "cpu"
        parts = []
        for place, rows in enumerate(blocks):
            block = _Block(trained, run, batch, choices[rows], first=place == 0)
            parts.append(checkpoint(block, use_reentrant=False) if again else block())
        log_joint, log_q = (torch.cat([part[place] for part in parts]) for place in (0, 1))
        auxiliary = torch.stack([part[3] for part in parts]).sum()
        if isinstance(run, CapturedRun):
            auxiliary = auxiliary + run.auxiliary
        return cls(log_joint, log_q, parts[0][2], auxiliary)


class _Block:
    """Some of the configurations. It may be run again on the way back, in place of keeping all that it computed.

    Running statistics follow the first run of the first block alone.
    """

    def __init__(self, trained: TrainedProgram, run: GuideRun, batch: Data, choices: Tensor, *, first: bool) -> None:
        self.trained, self.run, self.batch, self.choices, self.fresh = trained, run, batch, choices, first

    def __call__(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log p and log q, (P, N) each; what stands outside the plate, and the guide's terms of the loss alone."""
        trained, num = self.trained, self.batch.num_datapoints
        followed = nullcontext() if self.fresh else frozen_statistics(trained.program)
        self.fresh = False
        with trained.filled(), unvalidated(), followed:
            folded = self.batch.fold(len(self.choices))
            model = trained.log_joint.terms(folded, choices=self.choices.repeat_interleave(num, 0))
            if isinstance(self.run, CapturedRun):
                log_q, auxiliary = self.run.log_q(folded, model.values), torch.zeros_like(trained.log_joint.like)
            else:
                log_q, auxiliary = _scored(trained, folded, model.values)
        return model.joint.reshape(-1, num), log_q.reshape(-1, num), model.outside, auxiliary


def _scored(trained: TrainedProgram, folded: Data, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """By a run of a guide that reads its own draws: log q (B,), and its terms of the loss alone, weighed by q."""
    assert isinstance(trained.guide, TracedGuide)
    terms = trained.guide.runner.rows(folded, Placement(values=values))
    return terms.prior, (terms.prior.exp() * terms.likelihood).sum()


class Slopes(NamedTuple):
    """The bound (N,) in nats, and its slopes in each log weight and each log q, (P, N), the latter up to q's sum."""

    bound: Tensor
    log_weight: Tensor
    log_q: Tensor

    def ascended(self, log_joint: Tensor, log_q: Tensor) -> Tensor:
        """What has the bound's gradient in model and guide, (N,)."""
        possible = log_q > -torch.inf
        log_q = torch.where(possible, log_q, 0.0)
        log_weight = torch.where(possible, log_joint - log_q, 0.0)
        return (self.log_weight * log_weight + self.log_q * log_q).sum(0)


@torch.no_grad()
def exact_bound(log_joint: Tensor, log_q: Tensor, num_particles: int) -> Slopes:
    """The importance-weighted bound of K draws, all P^K sets of them summed, by quadrature to about 14 digits.

    Parameters
    ----------
    log_joint, log_q
        (P, N) nats, of every configuration; q sums to one.
    num_particles
        K.

    Returns
    -------
    Slopes
        float64 inside, in the inputs' own type outside. Where q has weight on what the model rules out, -inf.

    Examples
    --------
    >>> import torch
    >>> log_joint, log_q = torch.tensor([[[0.1], [0.3]], [[0.5], [0.5]]], dtype=torch.float64).log()
    >>> by_hand = 0.2**0.25 * 0.4**0.5 * 0.6**0.25  # weights 0.2 and 0.6, and the mean of one of each
    >>> bool((exact_bound(log_joint, log_q, 2).bound.exp() - by_hand).abs() < 1e-12)
    True
    """
    q = log_q.double().exp()
    weights = torch.where(q > 0, log_joint.double() - log_q.double(), -torch.inf)
    scale = weights.max(0).values
    lost = (~torch.isfinite(weights) & (q > 0)).any(0)  # the whole bound is then -inf, or NaN
    ratios = torch.where((q > 0) & ~lost, weights - scale, 0.0)
    columns = [_integral(ratios[:, n], q[:, n], num_particles) for n in range(ratios.shape[1])]
    bound, slope_weight, slope_q = (torch.stack(parts, -1) for parts in zip(*columns, strict=True))
    bound = torch.where(lost, torch.where(q > 0, weights, 0.0).sum(0), bound + scale)
    return Slopes(*(part.to(log_joint) for part in (bound, slope_weight, slope_q)))


def _integral(log_ratio: Tensor, q: Tensor, num_particles: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one datapoint, weights as ratios (P,) to the largest: the bound, its slopes in log weights and in log q.

    Moving q by a factor moves its sum, too; that part of the slope, which would grow with the range of integration, is
    taken off at each node.
    """
    count = num_particles
    last = MARGIN / 10 + math.log(MARGIN * count) - float(log_ratio.min())
    nodes = torch.arange(-MARGIN, last, STEP, dtype=q.dtype, device=q.device)
    bound, slope_weight, slope_q = q.new_zeros(()), torch.zeros_like(q), torch.zeros_like(q)
    for part in slices(len(nodes), max(1, MAX_ENTRIES // len(q))):
        share = (nodes[part].unsqueeze(-1) + log_ratio).exp() / count  # t w_k / K, (S, P)
        decay = (-share).exp()
        mean = decay @ q
        falling = (-nodes[part].exp()).exp()
        bound = bound + (falling - mean.pow(count)).sum()
        rest = mean.pow(count - 1)
        slope_weight = slope_weight + rest @ (share * decay).nan_to_num(0.0)
        slope_q = slope_q - (rest.unsqueeze(-1) * decay - falling.unsqueeze(-1)).sum(0)
    return STEP * bound, STEP * count * q * slope_weight, STEP * count * q * slope_q
