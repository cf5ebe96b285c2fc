r"""Annealed importance sampling of each datapoint's evidence (Neal 2001, "Annealed importance sampling").

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \, r(u_{t-1}), \qquad E[w_n] = p(x_n)

A pilot run of its own random stream adapts step sizes and whitening (tables over temperature and datapoint) and
places the temperatures; all are then frozen, because adapting inside the weighted run would void E[w] = p(x). The mean
of the log weights and the log of their mean are lower bounds on log p(x) in expectation.

Step sizes aim at an acceptance of 0.8 but never go beyond a quarter of a period, L * step = pi / 2 in whitened
coordinates: there a Gaussian's u forgets where it was, while at the acceptance alone it may come back to it, and the
log ratios of neighbouring temperatures add up instead of averaging out.

The chains of a datapoint share their velocities' strata (see ``hmc``): each weight is unbiased as ever and their mean
varies less, by less than the reported standard error, which takes chains for independent, and so errs upward.

Sampled discrete variables move by Gibbs sweeps, one after each Hamiltonian move.

Letters: C chains, N datapoints, D continuous latents, M sampled discrete variables, B = C * N rows (chain-major), T
temperatures, L leapfrog steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.errors import ArgumentError, check_count
from amortize.inference import schedule as schedules
from amortize.inference import whitening
from amortize.inference.gibbs import Conditionals, gibbs
from amortize.inference.hmc import HMC, HMCParameters, hmc
from amortize.inference.path import GeometricPath, HeldPath, Point
from amortize.inference.starts import Start, scale_of
from amortize.program.compile import check_backend
from amortize.program.data import Data
from amortize.program.density import Latents
from amortize.program.options import check_flag
from amortize.random import generator, stream_seed

__all__ = ["AIS", "Annealed", "Kernels", "Plan", "anneal", "make_conditionals", "make_path", "run_ais", "run_pilot"]

PILOT_CHAINS = 4
PILOT_TEMPERATURES = 50
TARGET_ACCEPTANCE = 0.8
PILOT_PASSES = 2
PILOT_POWER = 3.0  # the first pass crowds its temperatures near the start, where most happens
FIRST_STEP, SMALLEST_STEP = 0.1, 1e-4
WINDOW = 25  # temperatures over which the pilot's spread in u is averaged
ADAPTATION_RATE = 0.3
SCHEDULES = ("pilot", "linear")


@dataclass(frozen=True)
class AIS:
    """Settings of annealed importance sampling.

    Parameters
    ----------
    num_chains
        C, chains a datapoint.
    num_temperatures
        T, annealing steps.
    kernel
        The transition kernel.
    schedule
        "pilot" (equal thermodynamic length from the pilot run) or "linear".
    pilot
        Adapt step sizes in a pilot run and freeze them; False takes ``step_size`` and a linear schedule.
    step_size
        Step size in whitened coordinates where there is no pilot.
    backend
        How the densities are computed: "fx", a traced graph; "inductor", that graph as machine code, which takes up to
        a minute to make; "eager"; or "auto", Inductor where the run is long enough to pay for it and else "fx".
    """

    num_chains: int = 16
    num_temperatures: int = 100
    kernel: HMC = field(default_factory=HMC)
    schedule: str = "pilot"
    pilot: bool = True
    step_size: float = FIRST_STEP
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures"):
            check_count(f"AIS {name}", getattr(self, name))
        if not isinstance(self.kernel, HMC):
            raise ArgumentError(f"AIS kernel: expected am.HMC(...), got {self.kernel!r}")
        if self.schedule not in SCHEDULES:
            raise ArgumentError(f"AIS schedule: expected one of {SCHEDULES}, got {self.schedule!r}")
        if not self.step_size > 0:
            raise ArgumentError(f"AIS step_size: expected a positive number, got {self.step_size!r}")
        check_backend(self.backend)
        check_flag("AIS pilot", self.pilot)

    @property
    def num_calls(self) -> tuple[int, int]:
        """How often the path of the weighted run is evaluated, and its gradient."""
        return self.num_temperatures, self.num_temperatures * (self.kernel.num_leapfrog - 1)


class Plan(NamedTuple):
    """What the pilot leaves behind, frozen: betas (T + 1,), step sizes (T, N), whitening (T, N, D) or (T, N, D, D)."""

    betas: Tensor
    step_sizes: Tensor
    scales: Tensor


class Annealed(NamedTuple):
    """A run: log weights (C, N), acceptance (T, N), non-finite proposals (N,), and what a pilot learns from.

    ``spread`` (T + 1,) is that of the log ratio, ``variance`` (T, N, D) or (T, N, D, D) that of u over chains (empty
    where the run doesn't adapt).
    """

    log_weights: Tensor
    acceptance: Tensor
    num_nonfinite: Tensor
    spread: Tensor
    step_sizes: Tensor
    variance: Tensor
    state: Point


def make_path(
    start: Start, data: Data, seed: int, *, backend: str = "auto", num_calls: tuple[int, int] = (0, 0)
) -> GeometricPath:
    """The path from ``start`` to the posterior for the B rows of ``data``, compiled where that works."""
    first, second = _examples(start, data, seed)
    extra = ((first.choices,), (second.choices,)) if first.choices.shape[-1] else ((), ())

    def terms(u: Tensor, *choices: Tensor) -> tuple[Tensor, Tensor]:
        nothing = u[:, :0].sum(-1)  # so that there is a gradient, if an empty one, without continuous latents
        base, ratio = start.terms(data, u, *choices)
        return base + nothing, ratio + nothing

    return GeometricPath(terms, (first.u, second.u), extra=extra, backend=backend, num_calls=num_calls)


def make_conditionals(start: Start, data: Data, seed: int) -> Conditionals | None:
    """Of the sampled discrete variables, None where there are none."""
    structure = start.log_joint.structure
    if not structure.sampled:
        return None
    sites = [structure.sites[name] for name in structure.sampled]
    counts = [site.cardinality for site in sites for _ in range(site.num_variables)]
    return Conditionals(start, data, counts, _examples(start, data, seed))


def _examples(start: Start, data: Data, seed: int) -> tuple[Latents, Latents]:
    return start.draw(data, seed, "example-0"), start.draw(data, seed, "example-1")


def run_ais(start: Start, data: Data, settings: AIS, *, seed: int) -> Annealed:
    """Pilot, freeze, anneal: log weights for the N datapoints of ``data``."""
    plan = run_pilot(start, data, settings, seed=seed)
    folded = data.fold(settings.num_chains)
    path = make_path(start, folded, seed, backend=settings.backend, num_calls=settings.num_calls)
    kernels = Kernels(path, make_conditionals(start, folded, seed), settings.kernel)
    latents = start.draw(folded, seed, "chains")
    return anneal(kernels, latents, plan, generator(seed, "chains", "noise", device=latents.u.device))


def run_pilot(start: Start, data: Data, settings: AIS, *, seed: int) -> Plan:
    """Step sizes, whitening and schedule, from runs with seed streams of their own."""
    scale = scale_of(start, data, seed)
    steps = settings.num_temperatures
    if not settings.pilot:
        return _flat_plan(schedules.linear(steps), scale, settings.step_size)
    count = max(steps, PILOT_TEMPERATURES)
    plan = _flat_plan(schedules.linear(count) ** PILOT_POWER, scale, _first_step(settings.kernel))
    folded = data.fold(PILOT_CHAINS)
    pilot = stream_seed(seed, "pilot")
    backend = "eager" if settings.backend == "eager" else "fx"  # a pilot is short
    kernels = Kernels(
        make_path(start, folded, pilot, backend=backend), make_conditionals(start, folded, pilot), settings.kernel
    )
    for turn in range(PILOT_PASSES):
        latents = start.draw(folded, seed, f"pilot-{turn}")
        noise = generator(seed, "pilot-noise", turn, device=latents.u.device)
        run = anneal(kernels, latents, plan, noise, adapt=True)
        wanted = steps if turn == PILOT_PASSES - 1 else count
        plan = _refine(plan, run, scale, wanted, settings)
    return plan


def _flat_plan(betas: Tensor, scale: Tensor, step_size: float) -> Plan:
    steps = len(betas) - 1
    return Plan(betas, scale.new_full((steps, len(scale)), step_size), scale.expand(steps, *scale.shape))


def _first_step(kernel: HMC) -> float:
    return min(FIRST_STEP, _largest_step(kernel))


def _largest_step(kernel: HMC) -> float:
    return math.pi / (2 * kernel.num_leapfrog)


def _refine(plan: Plan, run: Annealed, scale: Tensor, num_temperatures: int, settings: AIS) -> Plan:
    """The next plan: betas at equal length, whitening by the pilot's spread, step sizes carried over in its units."""
    betas = schedules.linear(num_temperatures)
    if settings.schedule == "pilot":
        betas = schedules.equal_length(plan.betas, run.spread, num_temperatures)
    if not scale.shape[-1]:  # discrete latents alone: Gibbs moves need neither step size nor whitening
        return _flat_plan(betas, scale, settings.step_size)
    at, wanted = plan.betas[1:], betas[1:]
    spread = schedules.smooth(run.variance, WINDOW)
    num_draws = WINDOW * (PILOT_CHAINS - 1)
    change = whitening.log_size(plan.scales) - whitening.log_size(whitening.learn(spread, scale, num_draws))
    size = (run.step_sizes * change.exp()).clamp(SMALLEST_STEP, _largest_step(settings.kernel))
    learned = whitening.learn(schedules.interpolate(at, spread, wanted), scale, num_draws)
    return Plan(betas, schedules.interpolate(at, size, wanted), learned)


class Kernels(NamedTuple):
    """What moves the chains: HMC along the path, and Gibbs where there are sampled discrete variables."""

    path: GeometricPath
    conditionals: Conditionals | None
    hmc: HMC


@torch.no_grad()
def anneal(kernels: Kernels, latents: Latents, plan: Plan, noise: torch.Generator, *, adapt: bool = False) -> Annealed:
    """Move B rows from the start to the posterior and weigh them.

    With ``adapt``, step sizes follow the acceptance, as factors on the plan's: that is the pilot run, whose weights are
    not used. Otherwise the plan is taken as it is, and the weights are exact.
    """
    steps, num = plan.step_sizes.shape
    (u, choices), kernel = latents, kernels.hmc
    chains, moves = len(u) // num, u.shape[-1] > 0
    strata = 1 if adapt else chains  # a pilot estimates variances over chains, which strata would inflate
    betas = plan.betas.to(u)
    factor = u.new_ones(num)
    state = _evaluate(kernels, latents)
    log_weights = torch.zeros_like(state.ratio)
    acceptance, sizes = u.new_zeros(steps, num), u.new_zeros(steps, num)
    variance: list[Tensor] = []
    nonfinite = torch.zeros(num, dtype=torch.long, device=u.device)
    spread = [_spread(state.ratio, chains)]
    for t in tqdm(range(steps), desc="pilot" if adapt else "annealing", leave=False, disable=None):
        sizes[t] = plan.step_sizes[t]
        if adapt:
            sizes[t] = (sizes[t] * factor).clamp(SMALLEST_STEP, _largest_step(kernel))
        log_weights = log_weights + (betas[t + 1] - betas[t]) * state.ratio
        column = sizes[t].repeat(chains).unsqueeze(-1)
        beta = betas[t + 1].expand(len(u), 1)
        if moves:
            target: GeometricPath | HeldPath = (
                kernels.path if kernels.conditionals is None else kernels.path.held(choices)
            )
            state, info = hmc(state, target, HMCParameters(beta, column, plan.scales[t], kernel, strata), noise)
            acceptance[t] = info.acceptance.reshape(chains, num).mean(0)
            nonfinite += (~info.finite).reshape(chains, num).sum(0)
        if kernels.conditionals is not None:
            moved = Latents(state.u, choices)
            choices = gibbs(moved, kernels.conditionals, beta.squeeze(-1), noise).choices
            state = _evaluate(kernels, Latents(state.u, choices))
        spread.append(_spread(state.ratio, chains))
        if adapt and moves:
            variance.append(whitening.spread_over_chains(state.u, num))
            rise = torch.exp(ADAPTATION_RATE * (acceptance[t] - TARGET_ACCEPTANCE))
            factor = sizes[t] * rise / plan.step_sizes[t]
    weights = log_weights.reshape(chains, num)
    learned = torch.stack(variance) if variance else u.new_zeros(0)
    return Annealed(weights, acceptance, nonfinite, torch.stack(spread), sizes, learned, state)


def _evaluate(kernels: Kernels, latents: Latents) -> Point:
    extra = () if kernels.conditionals is None else (latents.choices,)
    return kernels.path.evaluate(latents.u, *extra)


def _spread(ratio: Tensor, chains: int) -> Tensor:
    """Root mean over datapoints of the variance over chains, leaving out rows that are not finite."""
    variance = ratio.reshape(chains, -1).var(0, correction=1 if chains > 1 else 0)
    good = torch.isfinite(variance)
    return torch.where(good, variance, 0).sum().div(good.sum().clamp_min(1)).sqrt()
