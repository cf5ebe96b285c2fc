r"""Adaptive sequential Monte Carlo for each datapoint's evidence.

.. math:: \hat Z = \prod_{\text{generations}} \tfrac1C \sum_c w_c, \qquad E[\hat Z_n] = p(x_n)

Annealing whose particles are resampled when their weights have become uneven: what would have gone into particles that
no longer count goes into those that do (Del Moral, Doucet and Jasra 2006, "Sequential Monte Carlo samplers"). A pilot
of its own random stream chooses each datapoint's temperatures, step sizes and whitening (see ``smc_pilot``); all are
then frozen. *Whether* a datapoint is resampled is still decided by its weights during the reported run. Given all that
came before, the mean weight is the same before resampling and, in expectation, after it, whatever made the decision:
the estimate stays unbiased (Whiteley, Lee and Heine 2016, "On the role of interaction in sequential Monte Carlo
algorithms", section 3; Del Moral, Doucet and Jasra 2012, "On adaptive resampling strategies"). Its logarithm is a lower
bound on log p(x) in expectation.

The reported log weights are those of *families*, the descendants of one particle of the first generation (see
``resampling``). Their mean is the estimate; they are as good as independent, so that standard error, effective sample
size and k-hat mean what they do for independent weights. Where nearly everything descends from one founder, the
effective sample size says so and the error is unknown.

Datapoints with much fewer temperatures than others are run apart, so that they don't pay for them.

Letters: C particles, N datapoints, D continuous latents, B = C * N rows (particle-major), T temperatures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.inference.annealing import Movers, Plan, make_movers, most_planned, move_cost
from amortize.inference.hmc import HMC
from amortize.inference.kernels import Kernel, Parameters
from amortize.inference.method import AnnealingPath, Estimate, Method, concatenate, estimate_of, most_rows
from amortize.inference.particles import Particles, begin, move, resample, reweigh, spread_of_ratio
from amortize.inference.resampling import family_weights
from amortize.inference.smc_pilot import DENSE_DIM, MOVES, Aims, plan_by_particles
from amortize.inference.starts import Start, scale_of
from amortize.program.compile import check_backend
from amortize.program.data import Data
from amortize.program.density import Latents
from amortize.random import generator, stream_seed

__all__ = ["SMC", "Finished", "run_smc"]

TYPICAL_TEMPERATURES = 50  # how many there are going to be is not known when datapoints are chunked
MOST_ALIKE = 0.8  # a datapoint with less than this share of a group's temperatures may go to another
WORTH_A_GROUP = 2**20  # gradients: a second or so of a small program


@dataclass(frozen=True)
class SMC(Method):
    """Settings of adaptive sequential Monte Carlo.

    Parameters
    ----------
    num_particles
        C, particles a datapoint.
    kernel
        The transition kernel: ``am.HMC(...)``, ``am.MALA()`` or ``am.ULA()``.
    num_moves
        Transitions at each temperature.
    conditional_ess
        Share of the particles that a step in temperature leaves effective: nearer to 1, more temperatures.
    ess_threshold
        Resample a datapoint when its effective sample size falls below this share of its particles; 0 never does.
    pilot_particles
        Particles of the pilot run.
    max_temperatures
        Most temperatures the pilot may choose; a datapoint that needs more leaps to the posterior, with a warning.
    backend
        As for ``AIS``.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(__import__("torch").zeros(8, 4))[1]["x"]
    >>> result = am.evidence(analysis.program(), x, method=am.SMC(num_particles=64), start="prior")
    >>> result.log_evidence.shape
    (8,)
    """

    num_particles: int = 512
    kernel: Kernel = field(default_factory=HMC)
    num_moves: int = 1
    conditional_ess: float = 0.9
    ess_threshold: float = 0.5
    pilot_particles: int = 128
    max_temperatures: int = 500
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("num_particles", 2), ("num_moves", 1), ("pilot_particles", 2), ("max_temperatures", 1)):
            check_count(f"SMC {name}", getattr(self, name), least)
        if not isinstance(self.kernel, Kernel):
            raise ArgumentError(f"SMC kernel: expected am.HMC(...), am.MALA() or am.ULA(), got {shown(self.kernel)}")
        check_number("SMC conditional_ess", self.conditional_ess, "(0, 1)")
        check_number("SMC ess_threshold", self.ess_threshold, "[0, 1]")
        check_backend(self.backend)

    @property
    def aims(self) -> Aims:
        """What the pilot is to plan for."""
        return Aims(self.conditional_ess, self.ess_threshold, self.num_moves, self.max_temperatures)

    def chunk_size(self, start: Start) -> int:
        """As many datapoints as memory allows, fewer where the run is long."""
        count = max(self.num_particles, self.pilot_particles)
        rows = most_rows(TYPICAL_TEMPERATURES * self.num_moves * self.kernel.num_gradients) // count
        room = most_planned(start, TYPICAL_TEMPERATURES, DENSE_DIM)
        return max(1, min(rows // start.log_joint.num_tiles, room))

    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """Pilot, freeze, run the particles; datapoints of like length together."""
        plan, lengths = _pilot(start, data, self, seed=seed)
        groups = _groups(lengths, self.num_particles * self.num_moves * self.kernel.num_gradients)
        parts = []
        for turn, index in enumerate(groups):
            of_all = len(groups) == 1
            some, rows = (start, data) if of_all else (start.rows(index), data.rows(index))
            parts.append(_estimated(some, rows, self, _cut(plan, index), seed=stream_seed(seed, "group", turn)))
        return _in_order(concatenate(parts), torch.cat(groups).argsort().cpu().numpy())


class Finished(NamedTuple):
    """Particles at the posterior; acceptance (T, N), non-finite proposals (N,), spread of the log ratio (T + 1, N)."""

    particles: Particles
    acceptance: Tensor
    num_nonfinite: Tensor
    spread: Tensor


@torch.no_grad()
def run_smc(movers: Movers, latents: Latents, plan: Plan, aims: Aims, noise: torch.Generator) -> Finished:
    """Take exact draws of the start to the posterior by a frozen plan."""
    steps, num = plan.step_sizes.shape
    particles, betas = begin(movers, latents, num), plan.betas
    count = len(particles.log_weights)
    nonfinite = torch.zeros_like(particles.num_lost)
    acceptance, spread = [], [spread_of_ratio(particles)]
    for t in tqdm(range(steps), desc="particles", leave=False, disable=None):
        particles = resample(reweigh(particles, betas[t + 1] - betas[t]), aims.ess_threshold, noise)
        rows = betas[t + 1].repeat(count).to(latents.u).unsqueeze(-1)
        parameters = Parameters(rows, plan.step_sizes[t].repeat(count).unsqueeze(-1), plan.scales[t], movers.kernel)
        accepted, active = [], betas[t] < 1  # a step may be 0 by rounding, its moves are not
        for _ in range(aims.num_moves):
            particles, share, failed = move(particles, movers, parameters, noise, active=active)
            accepted.append(share)
            nonfinite = nonfinite + failed
        acceptance.append(torch.stack(accepted).mean(0))
        spread.append(spread_of_ratio(particles))
    return Finished(particles, torch.stack(acceptance), nonfinite, torch.stack(spread))


def _pilot(start: Start, data: Data, settings: SMC, *, seed: int) -> tuple[Plan, Tensor]:
    folded, pilot = data.fold(settings.pilot_particles), stream_seed(seed, "pilot")
    backend = "eager" if settings.backend == "eager" else "fx"  # a pilot is short
    movers = make_movers(start, folded, settings.kernel, seed=pilot, backend=backend)
    latents = start.draw(folded, seed, "pilot")
    noise = generator(seed, "pilot-noise", device=latents.u.device)
    return plan_by_particles(movers, latents, scale_of(start, data, seed), settings.aims, noise)


def _groups(lengths: Tensor, gradients: int) -> list[Tensor]:
    """Datapoints (N,) in groups of like numbers of temperatures, longest first.

    A group takes time to compile: it is made where the ``gradients`` saved at each temperature left out are many.
    """
    order = lengths.argsort(descending=True, stable=True)
    groups: list[list[int]] = []
    longest = 0
    for place, (n, length) in enumerate(zip(order.tolist(), lengths[order].tolist(), strict=True)):
        saved = (longest - length) * gradients * (len(order) - place)
        if not groups or (length < MOST_ALIKE * longest and saved > WORTH_A_GROUP):
            groups.append([])
            longest = length
        groups[-1].append(n)
    return [torch.tensor(sorted(group), device=lengths.device) for group in groups]


def _cut(plan: Plan, index: Tensor) -> Plan:
    """The plan of some datapoints, without the temperatures at which all of them wait."""
    betas = plan.betas[:, index]
    steps = int((betas < 1).any(1).sum())
    return Plan(betas[: steps + 1], plan.step_sizes[:steps, index], plan.scales[:steps, index])


def _estimated(start: Start, data: Data, settings: SMC, plan: Plan, *, seed: int) -> Estimate:
    folded, steps = data.fold(settings.num_particles), len(plan.step_sizes)
    calls = (steps * settings.num_moves, steps * settings.num_moves * (settings.kernel.num_gradients - 1))
    movers = make_movers(start, folded, settings.kernel, seed=seed, backend=settings.backend, num_calls=calls)
    latents = start.draw(folded, seed, "particles")
    noise = generator(seed, "particles", "noise", device=latents.u.device)
    run = run_smc(movers, latents, plan, settings.aims, noise)
    particles = run.particles
    log_weights = family_weights(particles.log_weights, particles.founders)
    dead = (particles.num_lost > 0) & torch.isneginf(log_weights).all(0)
    log_weights = torch.where(dead, math.nan, log_weights)
    return estimate_of(
        log_weights.cpu().numpy(),
        name="SMC",
        num_gradients=_num_gradients(start, settings, steps),
        acceptance=_numpy(run.acceptance).mean(0),
        num_nonfinite=(run.num_nonfinite + particles.num_lost).cpu().numpy(),
        path=AnnealingPath(_numpy(plan.betas), _numpy(run.acceptance), _numpy(run.spread)),
    )


def _num_gradients(start: Start, settings: SMC, steps: int) -> float:
    """Gradients a datapoint, the pilot's too, and the values of Gibbs sweeps."""
    pilot = settings.pilot_particles * max(MOVES, settings.num_moves) * steps
    moves = settings.num_particles * settings.num_moves * steps + pilot
    first = settings.num_particles + settings.pilot_particles
    return first + moves * move_cost(start, settings.kernel)


def _in_order(estimate: Estimate, order: np.ndarray) -> Estimate:
    """The datapoints of an estimate in another order."""
    columns = {
        item.name: getattr(estimate, item.name)[..., order]
        for item in fields(estimate)
        if isinstance(getattr(estimate, item.name), np.ndarray)
    }
    path = estimate.path
    assert path is not None
    tables = AnnealingPath(path.betas[:, order], path.acceptance[:, order], path.spread[:, order])
    return replace(estimate, **columns, path=tables)


def _numpy(table: Tensor) -> np.ndarray:
    result: np.ndarray = table.double().cpu().numpy()
    return result
