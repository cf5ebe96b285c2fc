r"""The mode of each datapoint's density: L-BFGS on all datapoints at once, each with a memory and a step of its own.

Steps are made in units of the start's scale. A step is taken once it raises the value by a share of what its slope
promised (Armijo), or is within rounding of that; else it is halved. A datapoint stops where half its slope along the
step, the gain that the quadratic model still promises, is below a tolerance; one that can't move, or that only runs
on, is not ``stopped``. Source: Nocedal and Wright (2006), "Numerical optimization", algorithms 7.4 and 7.5.

Letters: N datapoints, D latents, M pairs of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference.families.family import Problem, Trace
from amortize.inference.families.watch import Watch
from amortize.program.compile import Compiled

__all__ = ["Mode", "Value", "climb"]

Value = Callable[[Tensor], Tensor]
"""What is raised: maps u (N, D), a row a datapoint of the problem, to nats (N,)."""

MEMORY, FIRST_DRAWS = 10, 16
TOLERANCE = 1e-6  # nats; so near a mode that it is off by a thousandth of its standard deviation
SHARE = 1e-4  # of the promised gain that a step must bring
LONGEST, SHORTEST = 4.0, 1e-12  # steps: in units of the start's scale, and of a whole one
CURVED = 1e-10  # least cosine of a step and its change of slope
LOOK = 10


class Mode(NamedTuple):
    """``u`` (N, D), the ``value`` there (N,), ``stopped`` (N,) bool, ``num_steps`` (N,), and the way there."""

    u: Tensor
    value: Tensor
    stopped: Tensor
    num_steps: Tensor
    trace: Trace


def climb(problem: Problem, value: Value, *, name: str) -> Mode:
    """Climb ``value`` from the better of the start's mean and its best draw, to ``problem.num_steps`` evaluations."""
    loc, scale = problem.moments()
    both = _compiled(value, loc, scale)
    run = _Climb(_begin(problem, both, loc), scale, both)
    watch = Watch(len(loc))
    every = torch.arange(len(loc), device=loc.device)
    with tqdm(total=problem.num_steps, desc=f"local {name}", leave=False, disable=None) as bar:
        for step in range(1, problem.num_steps + 1):
            run.step()
            bar.update()
            if step % LOOK == 0:
                watch.look(every, run.value, LOOK)
                if not bool(run.active.any()):
                    break
    return Mode(run.u, run.value, run.stopped, run.num_steps, watch.trace())


def _compiled(value: Value, loc: Tensor, scale: Tensor) -> Compiled:
    def value_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            total = value(u)
            (slope,) = torch.autograd.grad(total.sum(), u)
        return total.detach(), slope.detach()

    return Compiled(value_and_gradient, (loc.contiguous(),), (loc + 0.5 * scale,))


def _begin(problem: Problem, both: Compiled, loc: Tensor) -> Tensor:
    """Where each begins, (N, D)."""
    with torch.no_grad():
        flat = problem.start.draw(problem.data.fold(FIRST_DRAWS), problem.seed, "climb").u
    draws = torch.cat([loc.unsqueeze(0), flat.reshape(FIRST_DRAWS, *loc.shape)])
    found = torch.stack([torch.nan_to_num(both(u)[0], -torch.inf, -torch.inf, -torch.inf) for u in draws])
    return draws[found.argmax(0), torch.arange(len(loc), device=loc.device)]


class _Climb:
    """State of all datapoints: where they are, the memory, the step that is tried next."""

    def __init__(self, u: Tensor, scale: Tensor, both: Compiled) -> None:
        self._both, self._scale, self.u = both, scale, u
        self.value, slope = both(u)
        self._slope = slope * scale
        num, dim = u.shape
        self._steps, self._bends = u.new_zeros(MEMORY, num, dim), u.new_zeros(MEMORY, num, dim)
        self._weights, self._unit, self._fresh = u.new_zeros(MEMORY, num), u.new_ones(num), u.new_ones(num).bool()
        self.num_steps = torch.zeros(num, dtype=torch.long, device=u.device)
        self.active = torch.isfinite(self.value) & torch.isfinite(self._slope).all(-1)
        self.stopped = torch.zeros_like(self.active)
        self._direction, self._length, self._promise = torch.zeros_like(u), u.new_ones(num), u.new_zeros(num)
        self._aim(torch.ones_like(self.active))

    def step(self) -> None:
        """Try a step of each datapoint that still moves."""
        trial = self.u + self._scale * self._length.unsqueeze(-1) * self._direction
        value, slope = self._both(trial)
        slope = slope * self._scale
        finite = torch.isfinite(value) & torch.isfinite(slope).all(-1)
        rounding = 4 * torch.finfo(value.dtype).eps * (1 + self.value.abs())
        enough = value >= self.value + SHARE * self._length * self._promise - rounding
        taken = self.active & finite & enough
        self.num_steps += self.active
        wide = taken.unsqueeze(-1)
        bend = torch.where(wide, self._slope - slope, 0)
        moved = torch.where(wide, self._length.unsqueeze(-1) * self._direction, 0)
        self.u, self._slope = torch.where(wide, trial, self.u), torch.where(wide, slope, self._slope)
        self.value = torch.where(taken, value, self.value)
        self._remember(moved, bend)
        self._length = torch.where(taken, self._length, 0.5 * self._length)
        self._aim(taken | self._stuck())

    def _remember(self, moved: Tensor, bend: Tensor) -> None:
        """Put pairs in whose curvature is that of a maximum; others stay out."""
        curvature = (moved * bend).sum(-1)
        good = curvature > CURVED * moved.norm(dim=-1) * bend.norm(dim=-1)
        if not bool(good.any()):
            return
        wide = good.unsqueeze(-1)
        for memory, new in ((self._steps, moved), (self._bends, bend)):
            memory.copy_(torch.where(wide, torch.cat([memory[1:], new.unsqueeze(0)]), memory))
        weight = torch.where(good, 1 / torch.where(good, curvature, 1), 0)
        self._weights.copy_(torch.where(good, torch.cat([self._weights[1:], weight.unsqueeze(0)]), self._weights))
        unit = curvature / bend.square().sum(-1)
        self._unit = torch.where(good, unit, self._unit)
        self._fresh = self._fresh & ~good

    def _stuck(self) -> Tensor:
        """Steps that have become too short: they are tried once more along the slope, from an empty memory."""
        short = self.active & (self._length < SHORTEST)
        self.active = self.active & ~(short & self._fresh)
        again = short & self.active
        self._weights[:, again] = 0
        self._fresh = self._fresh | again
        return again

    def _aim(self, fresh: Tensor) -> None:
        """A new direction for some, of the inverse curvature that the memory knows; stop where it promises nothing."""
        direction = self._newton()
        longest = direction.abs().amax(-1).clamp_min(torch.finfo(direction.dtype).tiny)
        length = (torch.where(self._fresh, 1.0, LONGEST) / longest).clamp(max=1.0)
        promise = (self._slope * direction).sum(-1)
        done = fresh & self.active & (0.5 * promise < TOLERANCE)
        self.stopped, self.active = self.stopped | done, self.active & ~done
        self._direction = torch.where(fresh.unsqueeze(-1), direction, self._direction)
        self._length = torch.where(fresh, length, self._length)
        self._promise = torch.where(fresh, promise, self._promise)

    def _newton(self) -> Tensor:
        """The two loops."""
        q, shares = self._slope, []
        for step, bend, weight in zip(self._steps.flip(0), self._bends.flip(0), self._weights.flip(0), strict=True):
            share = weight * (step * q).sum(-1)
            q = q - share.unsqueeze(-1) * bend
            shares.append(share)
        q = torch.where(self._fresh, 1, self._unit).unsqueeze(-1) * q
        pairs = zip(self._steps, self._bends, self._weights, reversed(shares), strict=True)
        for step, bend, weight, share in pairs:
            back = weight * (bend * q).sum(-1)
            q = q + (share - back).unsqueeze(-1) * step
        result: Tensor = q
        return result
