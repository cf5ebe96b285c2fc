r"""The optimiser of Gaussian local posteriors: Adam in each posterior's own frame, every datapoint by itself.

All datapoints share each evaluation of the model and nothing else: own Adam moments, own rate, own stopping. At the end
of a window of steps, a datapoint whose ELBO no longer rises by more than its noise has its rate cut. It stops, at the
average of its window, once the rate is at its lowest and the gain still to be had, half the squared mean gradient in
its own frame (noise taken off), is below a tolerance; stopped datapoints leave the batch.

Letters: S draws, N datapoints, D latents, P parameters a datapoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference.families.family import Fit, Parameters, Problem, Trace
from amortize.inference.families.gaussians import Gaussians, draw, entropy, gradients, moved
from amortize.program.compile import Compiled
from amortize.program.data import Data
from amortize.random import generator, stream_seed

__all__ = ["Ended", "GaussianAscent"]

SMALLEST_POOL = 16
WINDOW = 50
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

    def run(self) -> Ended:
        """Every row to its stop or to the last step.

        Gradients count for datapoints that have stopped, too, while others of their batch go on.
        """
        loc, scale = self.problem.moments()
        first = self._theta(Gaussians(loc, scale.log(), None))
        watch = _Watch(len(loc))
        rows = self._optimise(first, scale, stream_seed(self.problem.seed, "optimise"), watch)
        return Ended(self._gaussians(rows.theta), rows, self.problem.num_draws, watch.trace())

    def _optimise(self, theta: Tensor, unit: Tensor, seed: int, watch: _Watch) -> Rows:
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
                data = self.problem.data.rows(pool)
                rows, step = self._run_pool(whole.take(pool), data, (step, num_steps), noise, (bar, watch, pool))
                whole.put(pool, rows)
                pool = pool[rows.active]
        return replace(whole, steps=whole.steps + taken, evaluated=whole.evaluated + evaluated)

    def _run_pool(
        self,
        rows: Rows,
        data: Data,
        steps: tuple[int, int],
        noise: torch.Generator,
        shown: tuple[Any, _Watch, Tensor],
    ) -> tuple[Rows, int]:
        """Step these datapoints until half of them have stopped; their batch shape is fixed meanwhile."""
        density = self._density(data.fold(self.problem.num_draws), self._gaussians(rows.theta))
        enough = len(rows.theta) // 2 if len(rows.theta) > SMALLEST_POOL else 0
        (step, last), (bar, watch, pool) = steps, shown
        while step < last:
            rows = self._step(rows, density, noise)
            step += 1
            bar.update()
            if step % WINDOW == 0:
                watch.look(pool, rows.total / WINDOW, WINDOW * self.problem.num_draws)
                rows = self._close_window(rows)
                if int(rows.active.sum()) <= enough:
                    break
        return rows, step

    def _step(self, rows: Rows, density: Callable[[Tensor], Any], noise: torch.Generator) -> Rows:
        q = self._gaussians(rows.theta)
        half = (self.problem.num_draws // 2, *q.loc.shape)
        eps = torch.randn(half, generator=noise, device=q.loc.device, dtype=q.loc.dtype)
        eps = torch.cat([eps, -eps])
        log_p, slope = density(draw(q, eps).flatten(0, 1))
        log_p, slope = log_p.reshape(self.problem.num_draws, -1), slope.reshape(eps.shape)
        elbo = (log_p + 0.5 * eps.square().sum(-1)).mean(0) + entropy(q) - 0.5 * q.loc.shape[-1]
        return self._adam(rows, q, self._theta(gradients(q, eps, slope)), elbo)

    def _adam(self, rows: Rows, q: Gaussians, slope: Tensor, elbo: Tensor) -> Rows:
        """One ascent step of each active row; a row whose gradient is not finite stays where it is."""
        move = (rows.active & torch.isfinite(elbo) & torch.isfinite(slope).all(-1)).unsqueeze(-1)
        slope = torch.where(move, slope, 0)
        stretch = self._stretch(rows.unit, q)
        gradient = slope * stretch
        steps = rows.steps + rows.active.long()
        first = torch.where(move, DECAY_FIRST * rows.first + (1 - DECAY_FIRST) * gradient, rows.first)
        second = torch.where(move, DECAY_SECOND * rows.second + (1 - DECAY_SECOND) * gradient.square(), rows.second)
        age = steps.clamp_min(1).unsqueeze(-1).to(gradient)
        size = first / (1 - DECAY_FIRST**age) / ((second / (1 - DECAY_SECOND**age)).sqrt() + EPSILON)
        step = self._gaussians(rows.rate.unsqueeze(-1) * size * stretch)
        theta = torch.where(move, self._theta(moved(q, step)), rows.theta)
        seen = torch.where(rows.active & torch.isfinite(elbo), elbo, 0)
        return replace(
            rows,
            theta=theta,
            first=first,
            second=second,
            steps=steps,
            evaluated=rows.evaluated + 1,
            average=rows.average + theta,
            slope=rows.slope + slope,
            slope_square=rows.slope_square + slope.square(),
            total=rows.total + seen,
            square=rows.square + seen.square(),
        )

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
        wide, narrow = torch.zeros_like(rows.theta), torch.zeros_like(mean)
        return replace(
            rows,
            theta=torch.where(ended.unsqueeze(-1), rows.average / WINDOW, rows.theta),
            unit=unit,
            first=rows.first * change,
            second=rows.second * change.square(),
            previous=torch.where(stalled, torch.full_like(mean, -torch.inf), mean),
            cuts=torch.where(ended, torch.full_like(cuts, NUM_CUTS), cuts),
            average=wide,
            slope=wide,
            slope_square=wide,
            total=narrow,
            square=narrow,
        )

    def _density(self, folded: Data, q: Gaussians) -> Compiled:
        """Value and gradient of log p at u (S * N, D)."""
        loc, scale = q.loc.repeat(self.problem.num_draws, 1), q.log_scale.exp().repeat(self.problem.num_draws, 1)

        def value_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                value = self.problem.log_joint.terms(folded, u=u).joint
                (slope,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), slope.detach()

        return Compiled(value_and_gradient, (loc,), (loc + 0.5 * scale,))

    def _theta(self, q: Gaussians) -> Tensor:
        """(N, P) parameters, the strictly lower triangle 0 where there is none."""
        parts = [q.loc, q.log_scale]
        if self.full:
            row, column = self._triangle(q.loc)
            parts.append(q.loc.new_zeros(len(q.loc), len(row)) if q.lower is None else q.lower[:, row, column])
        return torch.cat(parts, -1)

    def _gaussians(self, theta: Tensor) -> Gaussians:
        dim = self.problem.dim
        loc, log_scale, below = theta[:, :dim], theta[:, dim : 2 * dim], theta[:, 2 * dim :]
        if not self.full:
            return Gaussians(loc, log_scale, None)
        row, column = self._triangle(loc)
        lower = theta.new_zeros(len(theta), dim, dim)
        lower[:, row, column] = below
        return Gaussians(loc, log_scale, lower)

    def _stretch(self, unit: Tensor, q: Gaussians) -> Tensor:
        """(N, P) length of a step of 1 in the frame of q.

        In mean field loc moves by its unit; below the diagonal steps are shorter, as D of them add up in a row.
        """
        dim = self.problem.dim
        stretch = torch.ones_like(self._theta(q))
        if not self.full:
            stretch[:, :dim] = unit / q.log_scale.exp()
        stretch[:, 2 * dim :] = dim**-0.5
        return stretch

    @staticmethod
    def _triangle(like: Tensor) -> Tensor:
        dim = like.shape[-1]
        return torch.tril_indices(dim, dim, -1, device=like.device)


class _Watch:
    """The way of a fit: the optimiser's own ELBO at the end of each window."""

    def __init__(self, num: int) -> None:
        self._begin, self._latest = time.perf_counter(), np.full(num, np.nan)
        self._looks: list[tuple[float, int, np.ndarray]] = []
        self._num_gradients = 0

    def look(self, pool: Tensor, elbo: Tensor, num_gradients: int) -> None:
        """Datapoints that have stopped keep their last value."""
        self._num_gradients += num_gradients
        self._latest[pool.cpu().numpy()] = elbo.double().cpu().numpy()
        self._looks.append((time.perf_counter() - self._begin, self._num_gradients, self._latest.copy()))

    def trace(self) -> Trace:
        """All looks."""
        if not self._looks:
            return Trace(np.zeros(0), np.zeros(0), np.zeros((0, len(self._latest))))
        seconds, num_gradients, elbo = zip(*self._looks, strict=True)
        return Trace(np.array(seconds), np.array(num_gradients, dtype=float), np.stack(elbo))


def _remaining_gain(rows: Rows) -> Tensor:
    """Nats still to be had, (N,): half the squared mean gradient over the window, less its noise.

    In the frame of q the ELBO's curvature is near one (less where mean field leaves out strong correlations), so that
    this is a Newton decrement.
    """
    mean = rows.slope / WINDOW
    variance = (rows.slope_square / WINDOW - mean.square()).clamp_min(0) / WINDOW
    return 0.5 * (mean.square() - 4 * variance).clamp_min(0).sum(-1)
