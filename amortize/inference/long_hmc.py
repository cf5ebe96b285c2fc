r"""Long Hamiltonian Monte Carlo on a few datapoints at once: the machine of the gold standard.

Warm-up has three stages, and all of it is thrown away. A pool of many chains is begun from draws of the prior (or of
the guide, spread out) and finds its way, with step sizes that follow the acceptance, in units that follow its spread.
It goes on and is looked at. What it has seen gives each datapoint its whitening (the covariance *within* chains, as
modes that are far apart would stretch the whole), the modes there are (``jumps``), and where the few chains that count
begin: in the places that are farthest apart. These run once more for their step sizes. Then all is frozen, so that the
draws that follow are those of a Markov chain.

Trajectories have a mean length of a quarter of a standard normal's period, at which a Gaussian forgets where it was,
and vary by half of it either way (uniformly, the same for all rows), so that no direction resonates (Neal 2011, "MCMC
using Hamiltonian dynamics", section 3.2). Where there are several modes, chains jump between
them after each trajectory, and in few dimensions are redrawn from a mixture (``independent``).

Letters: C chains, P chains of the pool, S draws, N datapoints, D latents, B = C * N rows (chain-major).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference import whitening
from amortize.inference.annealing import ADAPTATION_RATE, SMALLEST_STEP
from amortize.inference.hmc import HMC
from amortize.inference.independent import MOST_DIMENSIONS, fit_mixture, redraw
from amortize.inference.jumps import Modes, find_modes, jump
from amortize.inference.kernels import Parameters
from amortize.inference.leapfrog import metropolis, propose
from amortize.inference.path import GeometricPath, Point
from amortize.inference.starts import Start, scale_of
from amortize.program.data import Data
from amortize.random import generator, stream_seed

__all__ = ["LEAST_WARMUP", "Budget", "LongRun", "Pool", "explored", "long_hmc", "target_of"]

LEAST_POOL, POOL_A_CHAIN = 32, 4
WARM_LEAPFROG = 10
FIRST_STEP, LARGEST_STEP = 0.1, 1.2  # in whitened coordinates; beyond the latter a leapfrog is hardly stable
SHORTEST, LONGEST = 4, 64  # mean leapfrog steps of a trajectory
JITTER = 0.1
WORST_ERROR = 1000.0
"""Nats of energy lost along a trajectory that diverged, as in Stan."""
KEPT = 64  # looks at the pool
QUARTER = math.pi / 2
LEAST_WARMUP = 30
SPREAD = 2.0
NUM_TRIES = 10
NUM_JUMPS = 2  # a transition


Leap = Callable[[Point, GeometricPath, torch.Generator], tuple[Point, Tensor]]
"""A move besides trajectories: the state after it, and (B,) whether it was made."""


class Budget(NamedTuple):
    """How long to run: C chains, transitions of warm-up, S draws of each chain, and the target acceptance."""

    num_chains: int
    num_warmup: int
    num_draws: int
    target_acceptance: float


class LongRun(NamedTuple):
    """``u`` (C, S, N, D), ``log_joint`` (C, S, N) nats, and of each datapoint (N,): what the run was like.

    ``divergences`` counts transitions, ``acceptance`` and ``jump_rate`` (of the jumps proposed) are means, and
    ``num_gradients`` counts all there were, the warm-up's too.
    """

    u: Tensor
    log_joint: Tensor
    divergences: Tensor
    acceptance: Tensor
    jump_rate: Tensor
    step_size: Tensor
    num_gradients: Tensor


class Pool(NamedTuple):
    """What many chains found.

    Modes, where C chains begin far apart (C, N, D), units (N, D), the leaps that chains may make, gradients taken.
    """

    modes: Modes
    begin: Tensor
    scale: Tensor
    leaps: tuple[Leap, ...]
    num_gradients: int


class _Walk(NamedTuple):
    """Rows on their way: a state, the target they move on, whitening, step sizes (N,), mean steps a trajectory."""

    state: Point
    target: GeometricPath
    scale: Tensor
    size: Tensor
    num_leapfrog: int
    leaps: tuple[Leap, ...] = ()


class _Moved(NamedTuple):
    """After a transition: the state, and of each datapoint (N,) mean acceptance, what diverged, and jumps made."""

    state: Point
    acceptance: Tensor
    diverged: Tensor
    jumped: Tensor


class _Seen(NamedTuple):
    """Looks at rows on their way: ``u`` (Q, B, D), ``log_joint`` (Q, B)."""

    u: Tensor
    log_joint: Tensor


def long_hmc(start: Start, data: Data, budget: Budget, *, seed: int) -> LongRun:
    """Draws from the posterior of each of the N datapoints of ``data``."""
    noise = generator(seed, "long-hmc", device=data.index.device)
    stage = budget.num_warmup // 3
    pool = explored(start, data, budget, noise, seed=seed)
    target = target_of(start, data.fold(budget.num_chains), seed, num_calls=stage + budget.num_draws)
    walk = _Walk(
        target.evaluate(pool.begin.flatten(0, 1)),
        target,
        whitening.learn(pool.modes.within[None], pool.scale, LEAST_POOL * KEPT // 4)[0],
        torch.full_like(pool.scale[:, 0], FIRST_STEP),
        WARM_LEAPFROG,
        pool.leaps,
    )
    walk, _ = _adapted(walk, stage, noise, budget.target_acceptance)
    run = _sampled(_lengthened(walk), budget, noise)
    warm = pool.num_gradients + stage * budget.num_chains * (WARM_LEAPFROG + len(pool.leaps))
    return run._replace(num_gradients=run.num_gradients + warm)


def explored(start: Start, data: Data, budget: Budget, noise: torch.Generator, *, seed: int) -> Pool:
    """What a pool of chains from far apart finds in two thirds of the warm-up."""
    size, num, stage = max(LEAST_POOL, POOL_A_CHAIN * budget.num_chains), data.num_datapoints, budget.num_warmup // 3
    walk = _pool(start, data, size, num_calls=2 * stage, seed=seed)
    for _ in range(2):
        walk, _ = _adapted(walk, stage // 2, noise, budget.target_acceptance)
        walk = _rescaled(walk, size)
    walk, seen = _adapted(walk, stage, noise, budget.target_acceptance)
    u, value = seen.u.reshape(len(seen.u), size, num, -1), seen.log_joint.reshape(-1, size, num)
    modes = find_modes(u, value, budget.num_chains)
    begin = modes.begin(walk.state.u.reshape(size, num, -1), budget.num_chains)
    return Pool(
        modes, begin, walk.scale, _leaps(modes, u, walk.scale), WARM_LEAPFROG * (2 * (stage // 2) + stage) * size
    )


def _leaps(modes: Modes, u: Tensor, unit: Tensor) -> tuple[Leap, ...]:
    """What chains do between trajectories: nothing where there is one mode, else jumps, in few dimensions redraws too.

    ``u`` (Q, P, N, D) are looks at the pool.
    """
    if not modes.several:
        return ()

    def jumps(state: Point, target: GeometricPath, noise: torch.Generator) -> tuple[Point, Tensor]:
        return jump(state, target, modes, noise)

    if u.shape[-1] > MOST_DIMENSIONS:
        return (jumps,) * NUM_JUMPS
    mixture = fit_mixture(u, modes.alive, unit)

    def redraws(state: Point, target: GeometricPath, noise: torch.Generator) -> tuple[Point, Tensor]:
        return redraw(state, target, mixture, noise)

    return (jumps, redraws) * NUM_JUMPS


def target_of(start: Start, data: Data, seed: int, *, num_calls: int) -> GeometricPath:
    """The log joint of the B rows of ``data`` as a path that does not move: all of it is the base."""
    log_joint = start.log_joint

    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        return log_joint.terms(data, u=u).joint, u[:, :0].sum(-1)

    examples = (start.draw(data, seed, "example-0").u, start.draw(data, seed, "example-1").u)
    return GeometricPath(terms, examples, num_calls=(num_calls, num_calls * WARM_LEAPFROG))


@torch.no_grad()
def _spread_starts(start: Start, data: Data, num_chains: int, *, seed: int) -> Tensor:
    """Over-dispersed positions u (C, N, D): draws of the prior; those of a guide twice as far from their mean.

    Positions where the density is not finite are drawn anew, ten times at most.
    """
    folded, num = data.fold(num_chains), data.num_datapoints

    def drawn(attempt: int) -> tuple[Tensor, Tensor]:
        u = start.draw(folded, seed, f"begin-{attempt}").u.reshape(num_chains, num, -1)
        if start.name != "prior":
            u = u.mean(0) + SPREAD * (u - u.mean(0))
        value = start.log_joint.terms(folded, u=u.flatten(0, 1)).joint.reshape(num_chains, num)
        return u, torch.isfinite(value) & torch.isfinite(u).all(-1)

    u, good = drawn(0)
    for attempt in range(1, NUM_TRIES):
        if bool(good.all()):
            break
        other, fine = drawn(attempt)
        u, good = torch.where(good.unsqueeze(-1), u, other), good | fine
    return u


def _pool(start: Start, data: Data, pool_size: int, *, num_calls: int, seed: int) -> _Walk:
    """Many chains, begun far apart, in the units of the start."""
    target = target_of(start, data.fold(pool_size), seed, num_calls=num_calls)
    begin = _spread_starts(start, data, pool_size, seed=stream_seed(seed, "begin"))
    scale = scale_of(start, data, seed)
    return _Walk(
        target.evaluate(begin.flatten(0, 1)), target, scale, torch.full_like(scale[:, 0], FIRST_STEP), WARM_LEAPFROG
    )


def _rescaled(walk: _Walk, pool_size: int) -> _Walk:
    """In units of the standard deviations over the pool's finite chains, with steps as long as before.

    Chains that have not arrived make them too wide, for which the steps make up; what counts comes from within chains.
    """
    u = walk.state.u.reshape(pool_size, *walk.scale.shape)
    fine = torch.isfinite(walk.state.base).reshape(pool_size, -1, 1)
    count = fine.sum(0).clamp_min(2)
    centred = torch.where(fine, u - torch.where(fine, u, 0).sum(0) / count, 0)
    scale = whitening.learn(centred.square().sum(0)[None] / (count - 1), walk.scale, pool_size)[0]
    change = (walk.scale.log() - scale.log()).mean(-1).exp()
    return walk._replace(scale=scale, size=(walk.size * change).clamp(SMALLEST_STEP, LARGEST_STEP))


def _adapted(walk: _Walk, steps: int, noise: torch.Generator, acceptance: float) -> tuple[_Walk, _Seen]:
    """Run with step sizes that follow the acceptance, and look at the second half of the way.

    They end at their geometric mean over the second half.
    """
    half = steps // 2
    every = max(1, math.ceil((steps - half) / KEPT))
    total, looks, values = torch.zeros_like(walk.size), [], []
    for t in tqdm(range(steps), desc="warm-up", leave=False, disable=None):
        moved = _move(walk, noise)
        rise = torch.exp(ADAPTATION_RATE * (moved.acceptance - acceptance))
        walk = walk._replace(state=moved.state, size=(walk.size * rise).clamp(SMALLEST_STEP, LARGEST_STEP))
        if t >= half:
            total += walk.size.log()
            if (t - half) % every == 0:
                looks.append(walk.state.u)
                values.append(walk.state.base)
    return walk._replace(size=(total / (steps - half)).exp()), _Seen(torch.stack(looks), torch.stack(values))


def _lengthened(walk: _Walk) -> _Walk:
    """Steps a trajectory by the datapoint that needs most of them, among those that move at all."""
    moving = walk.size[walk.size > 2 * SMALLEST_STEP]
    shortest = float(moving.min()) if len(moving) else LARGEST_STEP
    steps = min(LONGEST, max(SHORTEST, math.ceil(QUARTER / shortest)))
    return walk._replace(num_leapfrog=steps, size=walk.size.clamp(max=QUARTER / steps))


def _sampled(walk: _Walk, budget: Budget, noise: torch.Generator) -> LongRun:
    """The draws that count, with everything frozen."""
    num = len(walk.size)
    draws = walk.state.u.new_empty(budget.num_draws, *walk.state.u.shape)
    values = walk.state.base.new_empty(budget.num_draws, len(walk.state.u))
    divergences, acceptance, jumped = (torch.zeros_like(walk.size) for _ in range(3))
    for t in tqdm(range(budget.num_draws), desc="long HMC", leave=False, disable=None):
        moved = _move(walk, noise)
        walk = walk._replace(state=moved.state)
        draws[t], values[t] = moved.state.u, moved.state.base
        acceptance += moved.acceptance
        divergences += moved.diverged
        jumped += moved.jumped
    gradients = budget.num_draws * budget.num_chains * (walk.num_leapfrog + len(walk.leaps))
    return LongRun(
        draws.reshape(budget.num_draws, -1, num, draws.shape[-1]).transpose(0, 1),
        values.reshape(budget.num_draws, -1, num).transpose(0, 1),
        divergences,
        acceptance / budget.num_draws,
        jumped / (budget.num_draws * budget.num_chains),
        walk.size,
        torch.full_like(walk.size, float(gradients)),
    )


@torch.no_grad()
def _move(walk: _Walk, noise: torch.Generator) -> _Moved:
    """One transition of each row: a trajectory, and leaps where there are several modes."""
    state, num = walk.state, len(walk.size)
    steps = _random_length(walk.num_leapfrog, noise)
    jitter = torch.rand(state.base.shape, generator=noise, device=state.u.device, dtype=state.u.dtype)
    size = walk.size.repeat(len(state.u) // num) * (1 + JITTER * (2 * jitter - 1))
    parameters = Parameters(state.u.new_ones(len(state.u), 1), size.unsqueeze(-1), walk.scale, HMC(walk.num_leapfrog))
    proposed = propose(state, walk.target, parameters, noise, num_steps=steps)
    known = torch.isfinite(state.base).reshape(-1, num)
    chance = torch.where(known, proposed.log_ratio.clamp(max=0).exp().reshape(-1, num), 0)
    diverged = ~(proposed.log_ratio > -WORST_ERROR).reshape(-1, num)
    state = metropolis(proposed, state, noise)
    leapt = torch.zeros_like(state.base)
    for leap in walk.leaps:
        state, made = leap(state, walk.target, noise)
        leapt = leapt + made.to(leapt) / len(walk.leaps)
    return _Moved(state, chance.sum(0) / known.sum(0).clamp_min(1), diverged.sum(0), leapt.reshape(-1, num).sum(0))


def _random_length(mean: int, noise: torch.Generator) -> int:
    """Uniform from half the mean to half as much again."""
    draw = torch.randint(math.ceil(mean / 2), mean + mean // 2 + 1, (), generator=noise, device=noise.device)
    return int(draw)
