r"""How flows are fitted: one in the frame of a Gaussian fit, one led there from the wide frame of the start.

The wide one follows :math:`q_0^{1-\beta} p^\beta`, with q0 the Gaussian of the start's moments, as beta rises.

Letters: S draws, N datapoints, D latents, P weights a datapoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from amortize.inference.families.ascent import Ascended, Drawn, ascend
from amortize.inference.families.density import GaussianDensity
from amortize.inference.families.family import Family, Fit, Problem, Trace
from amortize.inference.families.flow_density import FlowDensity, Frame
from amortize.inference.families.flow_map import FlowMap
from amortize.inference.families.flow_noise import even_normal
from amortize.inference.families.values import values
from amortize.inference.families.watch import chained

__all__ = ["FlowFit"]

BETAS, STAGE_STEPS = (0.01, 0.03, 0.1, 0.3), 100
"""The inverse temperatures that lead the wide flow to the posterior, and steps at each."""
RATE = 0.03


@dataclass(frozen=True)
class FlowFit:
    """A fit of flows to the datapoints of a problem.

    Attributes
    ----------
    problem, num_draws
        The datapoints, for the Gaussian fit; and draws a step of the flows.
    flow
        The maps.
    gaussian
        The family whose fit is the frame.
    name
        What to show while it runs.
    """

    problem: Problem
    num_draws: int
    flow: FlowMap
    gaussian: Family
    name: str

    @cached_property
    def _many(self) -> Problem:
        return replace(self.problem, num_draws=max(self.problem.num_draws, self.num_draws))

    def run(self) -> Fit:
        """The Gaussian fit, the wide flow led to the posterior, both flows together, and the better of them."""
        gaussian = self.gaussian.fit(self.problem)
        begin = time.perf_counter()
        narrow = _frame(gaussian)
        wide = self._wide(full=narrow.full)
        num = len(wide.loc)
        frame = Frame(torch.cat([narrow.loc, wide.loc]), torch.cat([narrow.scale, wide.scale]))
        led = self._led(wide)
        rows = torch.arange(num, device=wide.loc.device).repeat(2)
        theta = torch.cat([self.flow.identity(num), led.theta])
        seconds = time.perf_counter() - begin
        ended = ascend(self._many.rows(rows), theta, self._drawing(frame, 1.0), name=self.name, rate=RATE)
        return self._best(gaussian, (led, ended), frame, seconds)

    def _wide(self, *, full: bool) -> Frame:
        loc, scale = self.problem.moments()
        return Frame(loc, torch.diag_embed(scale) if full else scale)

    def _led(self, wide: Frame) -> Ascended:
        """The wide flow at the last inverse temperature below 1, and what all of them cost."""
        short = replace(self._many, num_steps=min(STAGE_STEPS, self.problem.num_steps))
        theta = self.flow.identity(len(wide.loc))
        num_steps = num_gradients = torch.zeros(len(theta), dtype=torch.long, device=theta.device)
        for beta in BETAS:
            ended = ascend(short, theta, self._drawing(wide, beta), name=f"{self.name} {beta}", rate=RATE)
            theta = ended.theta
            num_steps, num_gradients = num_steps + ended.num_steps, num_gradients + ended.num_gradients
        return replace(ended, num_steps=num_steps, num_gradients=num_gradients)

    def _drawing(self, frame: Frame, beta: float) -> _Drawing:
        return _Drawing(self.flow, frame, self._many.num_draws, beta)

    def _best(self, gaussian: Fit, fits: tuple[Ascended, Ascended], frame: Frame, seconds: float) -> Fit:
        """The Gaussian itself, the flow in its frame or the wide flow: whichever is worth most on common draws."""
        led, ended = fits
        num = len(led.theta)
        weights = torch.stack([self.flow.identity(num), ended.theta[:num], ended.theta[num:]])
        frames = [frame.rows(torch.arange(num, device=frame.loc.device) + first) for first in (0, 0, num)]
        pairs = zip(weights, frames, strict=True)
        worth = torch.stack([self._worth(FlowDensity(self.flow, row, part)) for row, part in pairs])
        best = worth.argmax(0)
        halves = ended.stopped.reshape(2, num)
        stopped = torch.stack([halves[0] & gaussian.stopped, *halves])
        loc, scale = (torch.stack([getattr(part, name) for part in frames]) for name in ("loc", "scale"))
        parameters = {"weights": weights, "loc": loc, "scale_tril" if frame.full else "scale": scale}
        row = torch.arange(num, device=best.device)
        steps, gradients = (getattr(ended, name).reshape(2, num).sum(0) for name in ("num_steps", "num_gradients"))
        return Fit(
            parameters={name: value[best, row] for name, value in parameters.items()},
            stopped=stopped[best, row],
            num_steps=gaussian.num_steps + led.num_steps + steps,
            num_gradients=gaussian.num_gradients + led.num_gradients + gradients,
            trace=_trace(gaussian.trace, led, ended.trace, seconds),
        )

    @torch.no_grad()
    def _worth(self, density: FlowDensity) -> Tensor:
        worth = values(density, self._many, "pick").mean(0)
        return torch.where(torch.isfinite(worth), worth, -torch.inf)


@dataclass(frozen=True)
class _Drawing:
    """Draws of flows in their frames, for a step towards q0^(1 - beta) p^beta.

    E[(1 - beta) log q0 + beta log p - log q] is raised where E[log p - (log q - (1 - beta) log q0) / beta] is, and
    that has the form of an ELBO.
    """

    flow: FlowMap
    frame: Frame
    num_draws: int
    beta: float

    def __call__(self, theta: Tensor, index: Tensor, noise: torch.Generator) -> Drawn:
        frame = self.frame.rows(index)
        u, log_q = FlowDensity(self.flow, theta, frame).pushed(
            even_normal(self.num_draws, len(index), noise, frame.loc)
        )
        if self.beta == 1:
            return Drawn(u, log_q)
        scale = frame.scale if frame.full else torch.diag_embed(frame.scale)
        base = GaussianDensity(frame.loc, scale).log_density(u)
        return Drawn(u, (log_q - (1 - self.beta) * base) / self.beta)


def _frame(gaussian: Fit) -> Frame:
    found = gaussian.parameters
    return Frame(found["loc"], found["scale_tril"] if "scale_tril" in found else found["scale"])


def _trace(gaussian: Trace | None, led: Ascended, ended: Trace, seconds: float) -> Trace | None:
    """The Gaussian fit, and the better of both flows; the way to the posterior is time and gradients between them."""
    if gaussian is None:
        return None
    both = np.fmax(*np.split(ended.elbo, 2, axis=1))
    spent = float(led.num_gradients.max())
    return chained(gaussian, Trace(ended.seconds + seconds, 2 * ended.num_gradients + spent, both))
