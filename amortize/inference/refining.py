r"""Steps from an amortized guide towards the best posterior of each datapoint: ascent of the ELBO in affine maps.

Each step is a share of the natural gradient on draws of the guide (see ``affine``), the same draws at every step or
fresh ones. Other draws check it: a datapoint whose ELBO on these has not risen goes back, with half the rate. A third
set guards the guide: only maps whose gain over it, on this set, is beyond noise are handed out, and until there is one,
the identity is. Ascent and check may overfit their draws, so each has its own, and what is reported is measured on
draws of which none of them knows.

Letters: S draws, N datapoints, D latents, M sampled discrete variables, K steps.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortize.inference.affine import Affine, Frame, ascent, identity, limited, log_det, moved, push
from amortize.inference.chunks import slices
from amortize.inference.method import VALUE_COST
from amortize.inference.starts import Start
from amortize.program.compile import Compiled
from amortize.program.data import Data
from amortize.program.density import Latents

__all__ = ["MAX_ROWS", "Ascent", "Path", "beyond_noise", "drawn", "frame_of", "log_weights"]

MAX_ROWS = 2**15
MOMENT_DRAWS, CHECK_DRAWS, GUARD_DRAWS = 512, 64, 128
FIRST_RATE, MOST_RATE = 0.4, 0.6  # of a natural gradient: 1 would go to the optimum of a Gaussian posterior at once
RISE, CUT = 1.2, 0.5
LONGEST_STEP = 3.0  # in the frame of the posterior as it stands, over all its dimensions
NOISE, LEAST_GAIN = 3.0, 0.01
"""Standard errors, and nats, that a gain on the guarding draws must exceed to be believed."""


class Path(NamedTuple):
    """The way: ``maps``, ``seconds`` and ``num_gradients`` a datapoint after each of 0 to K steps."""

    frame: Frame
    maps: list[Affine]
    seconds: np.ndarray
    num_gradients: np.ndarray


class _State(NamedTuple):
    """Where the ascent stands: the maps, the values on the checking draws (S, N), and the rate (N,)."""

    maps: Affine
    values: Tensor
    rate: Tensor


@dataclass(frozen=True)
class Ascent:
    """K steps of ``num_draws`` draws each: ``fresh`` ones, or the same every time; of ``full`` or diagonal maps."""

    fresh: bool
    full: bool
    num_steps: int
    num_draws: int

    def run(self, start: Start, data: Data, *, seed: int) -> Path:
        """Step from the identity."""
        begin = time.perf_counter()
        sizes = (self.num_draws, CHECK_DRAWS, GUARD_DRAWS)
        pool = drawn(start, data, max(MOMENT_DRAWS, sum(sizes)), seed=seed, stream="pool")
        frame = frame_of(pool.u.reshape(-1, data.num_datapoints, pool.u.shape[-1]))
        common, *others = _parted(pool, [size * data.num_datapoints for size in sizes])
        check, guard = (_Check(start, data, frame, draws) for draws in others)
        slopes = _slopes(start, data, frame, common)
        begun = identity(frame, full=self.full)
        state = _State(begun, check(begun), torch.full_like(frame.loc[:, 0], FIRST_RATE))
        guarded = guard(begun)
        maps, seconds = [begun], [0.0]
        for step in range(self.num_steps):
            draws = drawn(start, data, self.num_draws, seed=seed, stream=f"step-{step}") if self.fresh else common
            state = self._step(state, frame, draws, slopes, check)
            safe = beyond_noise(guard(state.maps) - guarded)
            maps.append(state.maps.where(safe, maps[-1]))
            seconds.append(time.perf_counter() - begin)
        looks = VALUE_COST * (CHECK_DRAWS + GUARD_DRAWS)
        each = self.num_draws * (1 + VALUE_COST * self.fresh) + looks
        before = VALUE_COST * (len(pool.u) // data.num_datapoints) + looks
        cost = np.array([0.0, *(before + each * (step + 1) for step in range(self.num_steps))])
        return Path(frame, maps, np.array(seconds), cost)

    @torch.no_grad()
    def _step(self, state: _State, frame: Frame, draws: Latents, slopes: Compiled, check: _Check) -> _State:
        white = frame.white(draws.u.reshape(self.num_draws, *frame.loc.shape))
        slope = slopes(push(frame, state.maps, white).flatten(0, 1), draws.choices).reshape(white.shape)
        step = ascent(frame, state.maps, white, slope)
        if step.lower is not None:  # D numbers of a row add up, each with noise of its own
            step = step._replace(lower=step.lower * frame.loc.shape[-1] ** -0.5)
        tried = moved(state.maps, limited(step.times(state.rate), LONGEST_STEP))
        values = check(tried)
        rose = (values.mean(0) >= state.values.mean(0)) | ~torch.isfinite(state.values.mean(0))
        rose &= torch.isfinite(values.mean(0))
        rate = torch.where(rose, (RISE * state.rate).clamp(max=MOST_RATE), CUT * state.rate)
        return _State(tried.where(rose, state.maps), torch.where(rose, values, state.values), rate)


class _Check:
    """Log p(x, u') + log |det L| (S, N) of maps, on draws of their own; the guide's density is the same for all."""

    def __init__(self, start: Start, data: Data, frame: Frame, draws: Latents) -> None:
        self._frame, self._choices = frame, draws.choices
        self._white = frame.white(draws.u.reshape(-1, *frame.loc.shape))
        folded, log_joint = data.fold(len(self._white)), start.log_joint

        def value(u: Tensor, choices: Tensor) -> Tensor:
            with torch.no_grad():
                return log_joint.terms(folded, u=u, choices=choices).joint.detach()

        self._value = Compiled(value, (draws.u, draws.choices), (draws.u + 0.1, draws.choices))

    def __call__(self, maps: Affine) -> Tensor:
        u = push(self._frame, maps, self._white)
        value: Tensor = self._value(u.flatten(0, 1), self._choices)
        return value.reshape(u.shape[:2]).double() + log_det(maps).double()


def _slopes(start: Start, data: Data, frame: Frame, draws: Latents) -> Compiled:
    """The gradient of log p (S * N, D) at u (S * N, D)."""
    folded = data.fold(len(draws.u) // data.num_datapoints)

    def slope(u: Tensor, choices: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = start.log_joint.terms(folded, u=u, choices=choices).joint
            (gradient,) = torch.autograd.grad(value.sum(), u)
        return gradient.detach()

    probe = draws.u + 0.1 * frame.scale.repeat(len(draws.u) // data.num_datapoints, 1)
    return Compiled(slope, (draws.u, draws.choices), (probe, draws.choices))


def _parted(draws: Latents, sizes: list[int]) -> list[Latents]:
    """Consecutive rows, so many in each part; what is left over is left out."""
    ends = np.cumsum(sizes)
    places = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [Latents(draws.u[rows], draws.choices[rows]) for rows in places]


def drawn(start: Start, data: Data, num_draws: int, *, seed: int, stream: str) -> Latents:
    """``num_draws`` draws of the start for each datapoint, draw-major, in pieces that fit in memory."""
    size = max(1, MAX_ROWS // (data.num_datapoints * start.log_joint.num_tiles))
    parts = [
        start.draw(data.fold(block.stop - block.start), seed, f"{stream}-{block.start}")
        for block in slices(num_draws, size)
    ]
    return Latents(*(torch.cat(column) for column in zip(*parts, strict=True)))


def frame_of(u: Tensor) -> Frame:
    """Moments of draws u (S, N, D); where a dimension does not vary, or is not finite, its unit is 1."""
    loc, scale = u.mean(0).nan_to_num(0.0, 0.0, 0.0), u.std(0)
    return Frame(loc, torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale)))


def beyond_noise(gain: Tensor, noise: float = NOISE) -> Tensor:
    """Whether the mean of each datapoint's gains (S, N) is above zero by more than its noise, and worth having: (N,).

    Where the value was -inf before, any finite one is a gain.
    """
    mean = gain.mean(0)
    se = gain.std(0) / math.sqrt(len(gain))
    return (mean > noise * se) & (mean > LEAST_GAIN) | torch.isposinf(mean)


@torch.no_grad()
def log_weights(start: Start, data: Data, path: Path, num_draws: int, *, seed: int) -> np.ndarray:
    """Log p(x, u') - log q'(u') of each step's posterior on fresh draws, the same for all: (K + 1, S, N) nats."""
    size = max(1, MAX_ROWS // (data.num_datapoints * start.log_joint.num_tiles))
    parts = []
    for block in slices(num_draws, size):
        folded = data.fold(block.stop - block.start)
        latents = start.draw(folded, seed, f"measured-{block.start}")
        log_q, ratio = start.terms(folded, *latents)
        white = path.frame.white(latents.u.reshape(-1, *path.frame.loc.shape))
        steps = [ratio.double().reshape(white.shape[:2])]
        for maps in path.maps[1:]:
            u = push(path.frame, maps, white).flatten(0, 1)
            joint = start.log_joint.terms(folded, u=u, choices=latents.choices).joint
            values = (joint.double() - log_q.double()).reshape(white.shape[:2]) + log_det(maps).double()
            still = maps.square_norm() == 0  # where nothing moved, rounding is no gain
            steps.append(torch.where(still, steps[0], values))
        parts.append(torch.stack(steps).cpu().numpy())
    return np.concatenate(parts, 1)
