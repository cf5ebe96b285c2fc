r"""Langevin steps from an amortized guide towards the posterior of each datapoint, with the bound that they have.

.. math:: L_k(x_n) = E[\log w_n] \le \log p(x_n), \qquad L_0 = E_q[\log p(x, u) - \log q(u)]

with w the weight of k unadjusted steps along q^(1 - beta) p^beta, evenly spaced in beta (see ``bridge``, "ula", tamed:
a lagging guide has draws far out, from which whole drifts can throw a chain further at every step). Steps
of size 0 leave the draws and their weights as they are, so that L_k with the best step size is no less than L_0. That
size is searched for on trial runs, for each datapoint by itself; the bound is measured on fresh runs.

Letters: S draws, N datapoints, D latents, k steps.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortize.inference.affine import Frame
from amortize.inference.bridge import Bridged, Steps, bridge
from amortize.inference.chunks import slices
from amortize.inference.method import MAX_ROWS
from amortize.inference.path import GeometricPath
from amortize.inference.refining import MOMENT_DRAWS, beyond_noise, drawn, frame_of
from amortize.inference.starts import Start
from amortize.program.data import Data
from amortize.program.density import Latents
from amortize.random import generator

__all__ = ["LangevinPath", "langevin_path", "looks", "run_langevin"]

STEP_SIZES = (0.1, 0.2, 0.35, 0.5, 0.7)
"""Tried, in units of the guide's standard deviations."""
TRIAL_NOISE = 2.0
"""Standard errors by which a trial must gain: less than for maps, as a few step sizes can't overfit their draws."""


class LangevinPath(NamedTuple):
    """At each look: ``step_sizes`` (N,), log weights (R, S, N) of fresh runs, and what it took."""

    frame: Frame
    step_sizes: list[Tensor]
    log_weights: np.ndarray
    seconds: np.ndarray
    num_gradients: np.ndarray


def looks(num_steps: int) -> list[int]:
    """The numbers of steps at which the bound is measured: each is a run of its own, so that they double.

    Examples
    --------
    >>> looks(20)
    [0, 1, 2, 4, 8, 16, 20]
    """
    doubled = [2**power for power in range(num_steps.bit_length()) if 2**power < num_steps]
    return [0, *doubled, num_steps]


def langevin_path(
    start: Start, data: Data, num_steps: int, num_draws: int, num_measured: int, *, seed: int
) -> LangevinPath:
    """Search a step size for each number of steps on ``num_draws`` trial runs, then measure ``num_measured`` others."""
    begin = time.perf_counter()
    pool = drawn(start, data, MOMENT_DRAWS, seed=seed, stream="pool")
    frame = frame_of(pool.u.reshape(-1, data.num_datapoints, pool.u.shape[-1]))
    sizes, seconds, cost = [torch.zeros_like(frame.loc[:, 0])], [0.0], [0.0]
    for steps in looks(num_steps)[1:]:
        sizes.append(_searched(start, data, frame, steps, num_draws, seed=seed))
        seconds.append(time.perf_counter() - begin)
        cost.append(MOMENT_DRAWS / 3 + float(num_draws * (steps + 1) * (len(STEP_SIZES) + 1)))
    measured = [
        _measured(start, data, frame, steps, size, num_measured, seed=seed)
        for steps, size in zip(looks(num_steps), sizes, strict=True)
    ]
    return LangevinPath(frame, sizes, np.stack(measured), np.array(seconds), np.array(cost))


@torch.no_grad()
def run_langevin(  # noqa: PLR0913 (what a run is made of)
    start: Start, data: Data, frame: Frame, step_sizes: Tensor, latents: Latents, *, num_steps: int, seed: int
) -> Bridged:
    """Move draws of the guide, S * N rows, by ``num_steps`` steps of each datapoint's size (N,)."""
    folded = data.fold(len(latents.u) // data.num_datapoints)
    path = GeometricPath(lambda u: start.terms(folded, u, latents.choices))
    noise = generator(seed, "langevin", num_steps, device=latents.u.device)
    each = step_sizes.repeat(len(latents.u) // data.num_datapoints)[:, None]
    betas = torch.linspace(0, 1, num_steps + 1, dtype=latents.u.dtype, device=latents.u.device)
    steps = Steps(betas, each.expand(num_steps, -1, -1), scale=frame.scale, tamed=True)
    return bridge("ula", path.evaluate, latents.u, steps, noise)


def _searched(start: Start, data: Data, frame: Frame, num_steps: int, num_draws: int, *, seed: int) -> Tensor:
    """The step size with the highest mean log weight, 0 where none is better than none at all beyond noise."""
    latents = drawn(start, data, num_draws, seed=seed, stream="trial")
    best = torch.zeros_like(frame.loc[:, 0])
    shape = (num_draws, data.num_datapoints)
    with torch.no_grad():
        still = start.terms(data.fold(num_draws), *latents)[1].double().reshape(shape)
    highest = still.mean(0)
    for size in STEP_SIZES:
        tried = torch.full_like(best, size)
        run = run_langevin(start, data, frame, tried, latents, num_steps=num_steps, seed=seed)
        values = run.log_weights.double().reshape(shape)
        better = (values.mean(0) > highest) | ~torch.isfinite(highest) & torch.isfinite(values.mean(0))
        better &= beyond_noise(values - still, TRIAL_NOISE)
        best = torch.where(better, tried, best)
        highest = torch.where(better, values.mean(0), highest)
    return best


@torch.no_grad()
def _measured(  # noqa: PLR0913 (what a run is made of)
    start: Start, data: Data, frame: Frame, num_steps: int, step_sizes: Tensor, num_draws: int, *, seed: int
) -> np.ndarray:
    """Log weights (S, N) of fresh runs; the draws they begin at are the same for every number of steps."""
    size = max(1, MAX_ROWS // (data.num_datapoints * start.log_joint.num_tiles))
    parts = []
    for block in slices(num_draws, size):
        folded = data.fold(block.stop - block.start)
        latents = start.draw(folded, seed, f"measured-{block.start}")
        if num_steps:
            run_seed = seed + 1 + block.start
            run = run_langevin(start, data, frame, step_sizes, latents, num_steps=num_steps, seed=run_seed)
            values = run.log_weights
        else:
            values = start.terms(folded, *latents)[1]
        parts.append(values.double().reshape(-1, data.num_datapoints).cpu().numpy())
    return np.concatenate(parts)
