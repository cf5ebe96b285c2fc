r"""The optimiser of Gaussian local posteriors: Adam in each posterior's own frame, every datapoint by itself.

All datapoints share each evaluation of the model and nothing else: own Adam moments, own rate, own stopping. At the end
of a window of steps, a datapoint whose ELBO no longer rises by more than its noise has its rate cut. It stops, at the
average of its window, once the rate is at its lowest and the gain still to be had, half the squared mean gradient in
its own frame (noise taken off), is below a tolerance; stopped datapoints leave the batch.

Letters: S draws, N datapoints, D latents, P parameters a datapoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference.families.family import Fit, Parameters, Problem, Trace
from amortize.inference.families.gaussians import Gaussians, draw, entropy, gradients, moved
from amortize.inference.families.watch import Watch
from amortize.program.compile import Compiled
from amortize.random import generator, stream_seed

__all__ = ["Ended", "GaussianAscent"]

WINDOW = 50
STEPS_AHEAD = 200  # that those who are left are taken to need
TRACE_SECONDS = 0.3  # roughly, as the next; deterministic, so that a seed always gives the same numbers
OWN_SECONDS = 2e-8  # of the optimiser itself, a parameter and step
TOLERANCE = 0.01  # nats
FIRST_RATE, CUT, NUM_CUTS = 0.1, 0.3, 4
DECAY_FIRST, DECAY_SECOND, EPSILON = 0.9, 0.99, 1e-8  # short memory: first gradients may be huge


@dataclass(frozen=True)
class Rows:
    """Optimiser state, every tensor with a leading N: a datapoint's row is all there is of it.

    ``theta`` (N, P) holds loc, log scale and the strictly lower triangle; ``unit`` (N, D) is what a mean-field step of
    loc by 1 means, so that a narrow posterior far from its start is reached before steps shrink to its scale.
    """

    theta: Tensor
    unit: Tensor
    first: Tensor
    second: Tensor
    average: Tensor
    slope: Tensor
    slope_square: Tensor
    total: Tensor
    square: Tensor
    previous: Tensor
    cuts: Tensor
    steps: Tensor
    evaluated: Tensor

    @classmethod
    def of(cls, theta: Tensor, unit: Tensor) -> Rows:
        """The state before the first step."""
        wide = {name: torch.zeros_like(theta) for name in ("first", "second", "average", "slope", "slope_square")}
        narrow = {name: theta.new_zeros(len(theta)) for name in ("total", "square")}
        counts = {name: theta.new_zeros(len(theta), dtype=torch.long) for name in ("cuts", "steps", "evaluated")}
        previous = theta.new_full((len(theta),), -torch.inf)
        return cls(theta.clone(), unit.clone(), **wide, **narrow, **counts, previous=previous)

    @property
    def active(self) -> Tensor:
        """Which rows still move."""
        return self.cuts < NUM_CUTS

    @property
    def rate(self) -> Tensor:
        """Learning rate of each row."""
        return FIRST_RATE * CUT ** self.cuts.to(self.theta.dtype)

    def take(self, index: Tensor) -> Rows:
        """Some rows."""
        return Rows(**{name: value[index] for name, value in vars(self).items()})

    def put(self, index: Tensor, rows: Rows) -> None:
        """Write rows back."""
        for name, value in vars(self).items():
            value[index] = getattr(rows, name)


@dataclass(frozen=True)
class Ended:
    """Where an ascent ended: the Gaussians, and the rest of a `Fit`."""

    q: Gaussians
    rows: Rows
    num_draws: int
    trace: Trace

    def fit(self, parameters: Parameters) -> Fit:
        """With the parameters of a family."""
        return Fit(
            parameters=parameters,
            stopped=~self.rows.active,
            num_steps=self.rows.steps,
            num_gradients=self.rows.evaluated * self.num_draws,
            trace=self.trace,
        )


@dataclass(frozen=True)
class GaussianAscent:
    """Fit Gaussians to the datapoints of ``problem``: with ``full`` covariance, or independent dimensions."""

    problem: Problem
    full: bool
    _triangles: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def run(self) -> Ended:
        """Every row to its stop or to the last step.

        Gradients count for datapoints that have stopped, too, while others of their batch go on.
        """
        loc, scale = self.problem.moments()
        first = self._theta(Gaussians(loc, scale.log(), None))
        watch = Watch(len(loc))
        rows = self._optimise(first, scale, stream_seed(self.problem.seed, "optimise"), watch)
        return Ended(self._gaussians(rows.theta), rows, self.problem.num_draws, watch.trace())

    def _optimise(self, theta: Tensor, unit: Tensor, seed: int, watch: Watch) -> Rows:
        """Run every row to its stop or to the last step; full covariance begins at the mean-field optimum."""
        taken: Tensor | int = 0
        evaluated: Tensor | int = 0
        if self.full:
            coarse = replace(self, full=False)
            begin = coarse._theta(self._gaussians(theta))
            rows = coarse._optimise(begin, unit, stream_seed(seed, "mean-field"), watch)
            theta, taken = self._theta(coarse._gaussians(rows.theta)), rows.steps
            evaluated = rows.evaluated
        whole = Rows.of(theta, unit)
        noise = generator(seed, "noise", device=theta.device)
        pool = torch.arange(len(theta), device=theta.device)
        step, num_steps = 0, self.problem.num_steps
        name = "full-covariance" if self.full else "mean-field"
        with tqdm(total=num_steps, desc=f"local {name}", leave=False, disable=None) as bar:
            while step < num_steps and len(pool):
                density = (self.problem if len(pool) == len(theta) else self.problem.rows(pool)).compiled
                rows, step = self._run_pool(whole.take(pool), density, (step, num_steps), noise, (bar, watch, pool))
                whole.put(pool, rows)
                pool = pool[rows.active]
        return replace(whole, steps=whole.steps + taken, evaluated=whole.evaluated + evaluated)

    def _run_pool(
        self,
        rows: Rows,
        density: Compiled,
        steps: tuple[int, int],
        noise: torch.Generator,
        shown: tuple[Any, Watch, Tensor],
    ) -> tuple[Rows, int]:
        """Step these datapoints until so many have stopped that the rest are better traced anew."""
        (step, last), (bar, watch, pool) = steps, shown
        while step < last:
            until = min(last, step + WINDOW)
            rate = torch.where(rows.active, rows.rate, 0).unsqueeze(-1)
            for age in range(step + 1, until + 1):
                self._step(rows, density, noise, (age, rate))
                bar.update()
            taken, step = until - step, until
            rows = replace(rows, steps=rows.steps + taken * rows.active.long(), evaluated=rows.evaluated + taken)
            if taken == WINDOW:
                watch.look(pool, rows.total / WINDOW, WINDOW * self.problem.num_draws)
                rows = self._close_window(rows)
                if self._leaves(rows, density):
                    break
        return rows, step

    def _step(self, rows: Rows, density: Compiled, noise: torch.Generator, setting: tuple[int, Tensor]) -> None:
        """One step of each row, in place; rows that have stopped come at a rate of 0."""
        q = self._gaussians(rows.theta)
        half = (self.problem.num_draws // 2, *q.loc.shape)
        eps = torch.randn(half, generator=noise, device=q.loc.device, dtype=q.loc.dtype)
        eps = torch.cat([eps, -eps])
        log_p, slope = density(draw(q, eps).flatten(0, 1))
        log_p, slope = log_p.reshape(self.problem.num_draws, -1), slope.reshape(eps.shape)
        elbo = (log_p + 0.5 * eps.square().sum(-1)).mean(0) + entropy(q) - 0.5 * q.loc.shape[-1]
        self._adam(rows, q, self._theta(gradients(q, eps, slope)), elbo, setting)

    def _adam(self, rows: Rows, q: Gaussians, slope: Tensor, elbo: Tensor, setting: tuple[int, Tensor]) -> None:
        """One ascent step, the ``age``-th, of each row; a row whose gradient is not finite stays where it is."""
        age, rate = setting
        finite = torch.isfinite(elbo + slope.sum(-1))
        move = finite.unsqueeze(-1)
        slope = torch.where(move, slope, 0)
        stretch = self._stretch(rows.unit, q)
        gradient = slope * stretch
        rows.first.lerp_(gradient, 1 - DECAY_FIRST)
        rows.second.mul_(DECAY_SECOND).addcmul_(gradient, gradient, value=1 - DECAY_SECOND)
        rate = torch.where(move, rate / (1 - DECAY_FIRST**age), 0)
        size = rows.first / rows.second.sqrt().mul_((1 - DECAY_SECOND**age) ** -0.5).add_(EPSILON) * rate
        step = self._gaussians(size * stretch)
        rows.theta.copy_(self._theta(moved(q, step)))
        rows.average.add_(rows.theta)
        rows.slope.add_(slope)
        rows.slope_square.addcmul_(slope, slope)
        seen = torch.where(finite, elbo, 0)
        rows.total.add_(seen)
        rows.square.addcmul_(seen, seen)

    def _close_window(self, rows: Rows) -> Rows:
        """Cut the rate of rows that no longer rise; stop those that have nothing left to gain."""
        mean = rows.total / WINDOW
        error = ((rows.square / WINDOW - mean.square()).clamp_min(0) / WINDOW).sqrt()
        done = _remaining_gain(rows) < TOLERANCE
        flat = ~(mean - rows.previous > torch.clamp(2 * math.sqrt(2) * error, min=TOLERANCE))
        stalled = (flat | done) & rows.active
        ended = done & rows.active & (rows.cuts >= NUM_CUTS - 1)
        cuts = torch.where(rows.active, (rows.cuts + stalled.long()).clamp(max=NUM_CUTS - 1), rows.cuts)
        unit = torch.where(stalled.unsqueeze(-1), self._gaussians(rows.theta).log_scale.exp(), rows.unit)
        change = torch.ones_like(rows.theta)
        if not self.full:
            change[:, : self.problem.dim] = unit / rows.unit
        wide = {name: torch.zeros_like(rows.theta) for name in ("average", "slope", "slope_square")}
        narrow = {name: torch.zeros_like(mean) for name in ("total", "square")}
        return replace(
            rows,
            theta=torch.where(ended.unsqueeze(-1), rows.average / WINDOW, rows.theta),
            unit=unit,
            first=rows.first * change,
            second=rows.second * change.square(),
            previous=torch.where(stalled, torch.full_like(mean, -torch.inf), mean),
            cuts=torch.where(ended, torch.full_like(cuts, NUM_CUTS), cuts),
            **wide,
            **narrow,
        )

    @staticmethod
    def _leaves(rows: Rows, density: Compiled) -> bool:
        """Whether none is left, or the steps ahead are worth tracing the model for the rest alone."""
        num, left = len(rows.theta), int(rows.active.sum())
        seconds = density.estimated_seconds + rows.theta.numel() * OWN_SECONDS
        return not left or (2 * left <= num and (1 - left / num) * STEPS_AHEAD * seconds > TRACE_SECONDS)

    def _theta(self, q: Gaussians) -> Tensor:
        """(N, P) parameters, the strictly lower triangle 0 where there is none."""
        if not self.full:
            return torch.cat([q.loc, q.log_scale], -1)
        where = self._triangle(q.loc.device)
        below = q.loc.new_zeros(len(q.loc), len(where)) if q.lower is None else q.lower.flatten(1)[:, where]
        return torch.cat([q.loc, q.log_scale, below], -1)

    def _gaussians(self, theta: Tensor) -> Gaussians:
        dim = self.problem.dim
        loc, log_scale, below = theta[:, :dim], theta[:, dim : 2 * dim], theta[:, 2 * dim :]
        if not self.full:
            return Gaussians(loc, log_scale, None)
        lower = theta.new_zeros(len(theta), dim * dim)
        lower[:, self._triangle(theta.device)] = below
        return Gaussians(loc, log_scale, lower.reshape(-1, dim, dim))

    def _stretch(self, unit: Tensor, q: Gaussians) -> Tensor:
        """(N, P) or (P,) length of a step of 1 in the frame of q.

        In mean field loc moves by its unit; below the diagonal steps are shorter, as D of them add up in a row.
        """
        if not self.full:
            return torch.cat([unit / q.log_scale.exp(), torch.ones_like(unit)], -1)
        dim = self.problem.dim
        stretch = unit.new_ones(2 * dim + len(self._triangle(unit.device)))
        stretch[2 * dim :] = dim**-0.5
        return stretch

    def _triangle(self, device: torch.device) -> Tensor:
        """Where the strictly lower triangle stands in a flattened matrix."""
        if device not in self._triangles:
            row, column = torch.tril_indices(self.problem.dim, self.problem.dim, -1, device=device)
            self._triangles[device] = row * self.problem.dim + column
        return self._triangles[device]


def _remaining_gain(rows: Rows) -> Tensor:
    """Nats still to be had, (N,): half the squared mean gradient over the window, less its noise.

    In the frame of q the ELBO's curvature is near one (less where mean field leaves out strong correlations), so that
    this is a Newton decrement.
    """
    mean = rows.slope / WINDOW
    variance = (rows.slope_square / WINDOW - mean.square()).clamp_min(0) / WINDOW
    return 0.5 * (mean.square() - 4 * variance).clamp_min(0).sum(-1)
