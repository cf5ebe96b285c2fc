r"""Weighted particles along a path of tempered densities, every datapoint at a temperature of its own.

One step: the weight takes in the change of temperature, at the particle as it is; particles are resampled where the
weights have become too uneven; a kernel that leaves the new density invariant moves them (Del Moral, Doucet and Jasra
2006, "Sequential Monte Carlo samplers", section 3.3.2). After resampling every weight is the mean of those before, so
that the mean weight estimates the evidence all along.

Letters: C particles, N datapoints, D continuous latents, M sampled discrete variables, B = C * N rows (particle-major).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.annealing import Movers
from amortize.inference.gibbs import gibbs
from amortize.inference.kernels import Parameters, Target
from amortize.inference.path import Point
from amortize.inference.resampling import effective_share, rows_of, systematic
from amortize.program.density import Latents

__all__ = ["Moved", "Particles", "begin", "move", "ratios", "resample", "reweigh", "spread_of_ratio"]


class Particles(NamedTuple):
    """Particles with their log weights (C, N) float64, ``founders`` (C, N), and the count of lost ones (N,).

    A particle is lost, with weight zero, when the log ratio there is NaN or +inf.
    """

    state: Point
    choices: Tensor
    log_weights: Tensor
    founders: Tensor
    num_lost: Tensor


class Moved(NamedTuple):
    """Particles after a move, their mean acceptance (N,), and the count of proposals that were not finite (N,)."""

    particles: Particles
    acceptance: Tensor
    num_nonfinite: Tensor


def begin(movers: Movers, latents: Latents, num: int) -> Particles:
    """Particles of weight one from exact draws of the start, each the founder of a family."""
    extra = () if movers.conditionals is None else (latents.choices,)
    state = movers.path.evaluate(latents.u, *extra)
    count, device = len(latents.u) // num, latents.u.device
    founders = torch.arange(count, device=device).unsqueeze(-1).expand(count, num)
    weights = torch.zeros(count, num, dtype=torch.float64, device=device)
    return Particles(state, latents.choices, weights, founders, torch.zeros(num, dtype=torch.long, device=device))


def reweigh(particles: Particles, step: Tensor) -> Particles:
    """Take in a step in inverse temperature, (N,); where it is 0, nothing happens."""
    weights, ratio = particles.log_weights, ratios(particles)
    lost = (step > 0) & (torch.isnan(ratio) | (ratio == torch.inf)) & (weights > -torch.inf)
    gain = torch.where(step > 0, step * ratio, 0)
    log_weights = torch.where(lost | (weights == -torch.inf), -torch.inf, weights + gain)
    return particles._replace(log_weights=log_weights, num_lost=particles.num_lost + lost.sum(0))


def resample(particles: Particles, threshold: float, noise: torch.Generator) -> Particles:
    """Resample the datapoints whose effective sample size is below ``threshold`` times C."""
    weights = particles.log_weights
    count, num = weights.shape
    uneven = effective_share(weights) < threshold  # False for NaN: nothing is left to resample
    uniform = torch.rand(num, generator=noise, device=weights.device, dtype=torch.float64)
    if not bool(uneven.any()):
        return particles
    same = torch.arange(count, device=weights.device).unsqueeze(-1)
    parents = torch.where(uneven, systematic(torch.where(uneven, weights, 0), uniform), same)
    rows = rows_of(parents)
    mean = weights.logsumexp(0) - math.log(count)
    return particles._replace(
        state=Point(*(part[rows] for part in particles.state)),
        choices=particles.choices[rows],
        log_weights=torch.where(uneven, mean, weights),
        founders=particles.founders.gather(0, parents),
    )


def move(
    particles: Particles, movers: Movers, parameters: Parameters, noise: torch.Generator, *, active: Tensor
) -> Moved:
    """One transition of the kernel and one Gibbs sweep; the weights of datapoints not ``active`` (N,) stay."""
    count, num = particles.log_weights.shape
    state, choices, weights = particles.state, particles.choices, particles.log_weights
    acceptance = weights.new_full((num,), math.nan)
    nonfinite = torch.zeros_like(particles.num_lost)
    if state.u.shape[-1]:
        target: Target = movers.path if movers.conditionals is None else movers.path.held(choices)
        state, info = movers.kernel.transition(state, target, parameters, noise)
        acceptance = info.acceptance.reshape(count, num).mean(0).double()
        nonfinite = (~info.finite).reshape(count, num).sum(0)
        weights = weights + torch.where(active, info.log_correction.reshape(count, num), 0)
    if movers.conditionals is not None:
        choices = gibbs(Latents(state.u, choices), movers.conditionals, parameters.beta.squeeze(-1), noise).choices
        state = movers.path.evaluate(state.u, choices)
    lost = torch.isnan(weights)
    weights = torch.where(lost, -torch.inf, weights)
    num_lost = particles.num_lost + lost.sum(0)
    moved = Particles(state, choices, weights, particles.founders, num_lost)
    return Moved(moved, acceptance, nonfinite)


def ratios(particles: Particles) -> Tensor:
    """Log ratios of the particles, (C, N) float64."""
    return particles.state.ratio.reshape(particles.log_weights.shape).double()


def spread_of_ratio(particles: Particles) -> Tensor:
    """Standard deviation of the log ratio under the weights, leaving out particles of weight zero, (N,)."""
    share = particles.log_weights.softmax(0)
    ratio = torch.where(share > 0, ratios(particles), 0)
    centred = ratio - (share * ratio).sum(0)
    return (share * centred.square()).sum(0).sqrt()
