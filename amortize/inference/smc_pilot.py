r"""The pilot of sequential Monte Carlo: each datapoint's temperatures, step sizes and whitening, from its particles.

The next temperature is where the conditional effective sample size, as a share of the particles,

.. math:: \mathrm{CESS}(\beta') = \frac{(\sum_c W_c e^{(\beta' - \beta) r_c})^2}{\sum_c W_c e^{2 (\beta' - \beta) r_c}},

falls to the share asked for (Zhou, Johansen and Aston 2016, "Toward automatic model comparison: an adaptive sequential
Monte Carlo approach", section 3.2), found by bisection. Whitening is by the weighted spread of the particles there,
and step sizes follow the acceptance. A pilot has seed streams of its own and its weights are thrown away.

Letters: C particles, N datapoints, D continuous latents, T temperatures.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.errors import AmortizeWarning
from amortize.inference import whitening
from amortize.inference.annealing import SMALLEST_STEP, Movers, Plan
from amortize.inference.kernels import Parameters
from amortize.inference.particles import Particles, begin, move, ratios, resample, reweigh
from amortize.inference.resampling import effective_share
from amortize.program.density import Latents

__all__ = ["Aims", "next_beta", "plan_by_particles", "weighted_spread"]

FIRST_STEP = 0.1
MOVES = 3  # a temperature, at least: step sizes settle
ADAPTATION_RATE = 1.0
NUM_BISECTIONS = 50
DENSE_DIM = 64
"""Most latent dimensions for which correlations are learned."""
DRAWS_PER_DIM = 3  # fewer particles than this many a dimension, and correlations are left out


class Aims(NamedTuple):
    """What a plan is made for: see ``SMC``."""

    conditional_ess: float
    ess_threshold: float
    num_moves: int
    max_temperatures: int


@torch.no_grad()
def plan_by_particles(
    movers: Movers, latents: Latents, scale: Tensor, aims: Aims, noise: torch.Generator
) -> tuple[Plan, Tensor]:
    """Run particles to the posterior, choosing as they go: the plan, and each datapoint's number of temperatures (N,).

    ``scale`` (N, D) holds the start's standard deviations. A datapoint that has arrived waits at 1.
    """
    num, particles = len(scale), begin(movers, latents, len(scale))
    beta = torch.zeros(num, dtype=torch.float64, device=scale.device)
    size = scale.new_full((num,), min(FIRST_STEP, movers.kernel.largest_step))
    betas, sizes, scales = [beta], [], []
    bar = tqdm(desc="pilot", leave=False, disable=None)
    while bool((beta < 1).any()):
        arrived = beta >= 1
        following = next_beta(particles, beta, aims.conditional_ess)
        beta, before = following if len(betas) < aims.max_temperatures else torch.ones_like(beta), beta
        beta = beta.to(scale).double()  # as the kernel will see it
        _warn_of_a_leap(beta > following + 1e-6)
        particles = reweigh(particles, beta - before)
        scales.append(_learned(particles, scale))
        particles = resample(particles, aims.ess_threshold, noise)
        for _ in range(max(MOVES, aims.num_moves)):
            column = size.repeat(len(particles.log_weights)).unsqueeze(-1)
            rows = beta.repeat(len(particles.log_weights)).to(scale).unsqueeze(-1)
            parameters = Parameters(rows, column, scales[-1], movers.kernel)
            particles, acceptance, _ = move(particles, movers, parameters, noise, active=~arrived)
            size = _adapted(size, acceptance, movers, frozen=arrived)
        betas.append(beta)
        sizes.append(size)
        bar.update()
    bar.close()
    table = torch.stack(betas)
    return Plan(table, torch.stack(sizes), torch.stack(scales)), (table < 1).sum(0)


def next_beta(particles: Particles, beta: Tensor, wanted: float) -> Tensor:
    """The inverse temperature (N,) at which the conditional effective sample size falls to ``wanted``, 1 at most.

    Particles whose ratio isn't finite lose their weight at any temperature, and have no say.
    """
    ratio = ratios(particles)
    finite = torch.isfinite(ratio) & torch.isfinite(particles.log_weights)
    log_share = torch.where(finite, particles.log_weights, -torch.inf).log_softmax(0)
    ratio = torch.where(finite, ratio, 0)
    low, high = torch.zeros_like(beta), 1 - beta
    reached = ~(_conditional_ess(log_share, ratio, high) < wanted)  # so also where no particle is left
    low = torch.where(reached, high, low)
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        short = _conditional_ess(log_share, ratio, middle) < wanted
        low, high = torch.where(short, low, middle), torch.where(short, middle, high)
    return torch.where(reached, torch.ones_like(beta), beta + low)


def _conditional_ess(log_share: Tensor, ratio: Tensor, step: Tensor) -> Tensor:
    gain = step * ratio
    first, second = (log_share + gain).logsumexp(0), (log_share + 2 * gain).logsumexp(0)
    return (2 * first - second).exp()


def weighted_spread(particles: Particles, *, dense: bool) -> Tensor:
    """Variance of u under the weights (N, D), or its covariance (N, D, D)."""
    count, num = particles.log_weights.shape
    share = particles.log_weights.softmax(0).to(particles.state.u).unsqueeze(-1)
    u = particles.state.u.reshape(count, num, -1)
    u = torch.where(share > 0, u, 0)  # a lost particle may be anywhere
    centred = u - (share * u).sum(0)
    if dense:
        return torch.einsum("cni,cnj->nij", share * centred, centred)
    return (share * centred.square()).sum(0)


def _learned(particles: Particles, scale: Tensor) -> Tensor:
    """Whitening at the present temperature."""
    count, dim = len(particles.log_weights), scale.shape[-1]
    if not dim:
        return scale
    dense = dim <= DENSE_DIM and count >= DRAWS_PER_DIM * dim
    spread = weighted_spread(particles, dense=dense)
    share = effective_share(particles.log_weights)
    return whitening.learn(spread.unsqueeze(0), scale, int(count * share.nan_to_num(0).min()))[0]


def _adapted(size: Tensor, acceptance: Tensor, movers: Movers, *, frozen: Tensor) -> Tensor:
    """Step sizes nearer to the kernel's target acceptance."""
    rise = torch.exp(ADAPTATION_RATE * (acceptance - movers.kernel.target_acceptance)).to(size)
    wanted = (size * rise).clamp(SMALLEST_STEP, movers.kernel.largest_step)
    return torch.where(frozen | torch.isnan(rise), size, wanted)


def _warn_of_a_leap(leaps: Tensor) -> None:
    if bool(leaps.any()):
        warnings.warn(
            f"{int(leaps.sum())} of {len(leaps)} datapoints are not at the posterior after max_temperatures, and leap "
            "there in one step: their log evidence may be far too low. Take more temperatures, or start nearer",
            AmortizeWarning,
            stacklevel=2,
        )
