r"""The optimiser of local posteriors: Adam in each posterior's own frame, every datapoint by itself.

All datapoints share each evaluation of the model and nothing else: own Adam moments, own rate, own stopping. At the end
of a window of steps, a datapoint whose ELBO no longer rises by more than its noise has its rate cut. It stops, at the
average of its window, once the rate is at its lowest and the gain still to be had, half the squared mean gradient in
its own frame (noise taken off), is below a tolerance; stopped datapoints leave the batch.

Letters: S draws, N datapoints, D latents, P parameters a datapoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference.families import Gaussians, draw, entropy, gradients, moved, scale_tril
from amortize.inference.starts import Start
from amortize.program.compile import Compiled
from amortize.program.data import Data
from amortize.program.density import LogJoint
from amortize.random import generator, stream_seed

__all__ = ["Problem"]

INIT_DRAWS = 256
FINAL_DRAWS = 1000
MAX_ROWS = 2**15
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
class Problem:
    """Fit one family to the datapoints of ``data``, from the moments of ``start``."""

    log_joint: LogJoint
    start: Start
    data: Data
    family: str
    num_draws: int

    def solve(self, num_steps: int, seed: int) -> dict[str, np.ndarray]:
        """Optimise all rows, then score begin and end on fresh draws."""
        loc, scale = self._moments(seed)
        first = self._theta(Gaussians(loc, scale.log(), None))
        rows = self._optimise(first, scale, num_steps, stream_seed(seed, "optimise"))
        final, begun = self._gaussians(rows.theta), self._gaussians(first)
        elbo, se = self._score(final, stream_seed(seed, "final"))
        before, before_se = self._score(begun, stream_seed(seed, "begun"))
        fine = np.isfinite(elbo) & ~(elbo < before - 3 * np.hypot(se, before_se))
        return {
            "elbo": elbo,
            "elbo_se": se,
            "converged": ~rows.active.cpu().numpy() & fine,
            "num_steps": rows.steps.cpu().numpy(),
            "loc": final.loc.double().cpu().numpy(),
            "scale_tril": scale_tril(final).double().cpu().numpy(),
        }

    def gaussians(self, num_steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The fit unscored: loc (N, D), scale_tril (N, D, D), and the gradients each datapoint took (N,).

        Gradients count for datapoints that have stopped, too, while others of their batch go on.
        """
        loc, scale = self._moments(seed)
        first = self._theta(Gaussians(loc, scale.log(), None))
        rows = self._optimise(first, scale, num_steps, stream_seed(seed, "optimise"))
        final = self._gaussians(rows.theta)
        return final.loc, scale_tril(final), rows.evaluated * self.num_draws

    def _optimise(self, theta: Tensor, unit: Tensor, num_steps: int, seed: int) -> Rows:
        """Run every row to its stop or to ``num_steps``; full covariance begins at the mean-field optimum."""
        taken: Tensor | int = 0
        evaluated: Tensor | int = 0
        if self.family == "full-covariance":
            coarse = replace(self, family="mean-field")
            begin = coarse._theta(self._gaussians(theta))
            rows = coarse._optimise(begin, unit, num_steps, stream_seed(seed, "mean-field"))
            theta, taken = self._theta(coarse._gaussians(rows.theta)), rows.steps
            evaluated = rows.evaluated
        whole = Rows.of(theta, unit)
        noise = generator(seed, "noise", device=theta.device)
        pool = torch.arange(len(theta), device=theta.device)
        step = 0
        with tqdm(total=num_steps, desc=f"local {self.family}", leave=False, disable=None) as bar:
            while step < num_steps and len(pool):
                rows, step = self._run_pool(whole.take(pool), self.data.rows(pool), (step, num_steps), noise, bar)
                whole.put(pool, rows)
                pool = pool[rows.active]
        return replace(whole, steps=whole.steps + taken, evaluated=whole.evaluated + evaluated)

    def _run_pool(
        self, rows: Rows, data: Data, steps: tuple[int, int], noise: torch.Generator, bar: Any
    ) -> tuple[Rows, int]:
        """Step these datapoints until half of them have stopped; their batch shape is fixed meanwhile."""
        density = self._density(data.fold(self.num_draws), self._gaussians(rows.theta))
        enough = len(rows.theta) // 2 if len(rows.theta) > SMALLEST_POOL else 0
        step, last = steps
        while step < last:
            rows = self._step(rows, density, noise)
            step += 1
            bar.update()
            if step % WINDOW == 0:
                rows = self._close_window(rows)
                if int(rows.active.sum()) <= enough:
                    break
        return rows, step

    def _step(self, rows: Rows, density: Callable[[Tensor], Any], noise: torch.Generator) -> Rows:
        q = self._gaussians(rows.theta)
        half = (self.num_draws // 2, *q.loc.shape)
        eps = torch.randn(half, generator=noise, device=q.loc.device, dtype=q.loc.dtype)
        eps = torch.cat([eps, -eps])
        log_p, slope = density(draw(q, eps).flatten(0, 1))
        log_p, slope = log_p.reshape(self.num_draws, -1), slope.reshape(eps.shape)
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
        if self.family == "mean-field":
            change[:, : self.log_joint.dim] = unit / rows.unit
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
        loc, scale = q.loc.repeat(self.num_draws, 1), q.log_scale.exp().repeat(self.num_draws, 1)

        def value_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                value = self.log_joint.terms(folded, u=u).joint
                (slope,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), slope.detach()

        return Compiled(value_and_gradient, (loc,), (loc + 0.5 * scale,))

    def _moments(self, seed: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the start, (N, D): where each datapoint begins."""
        num = self.data.num_datapoints
        draws = self.start.draw(self.data.fold(INIT_DRAWS), seed, "init").u.reshape(INIT_DRAWS, num, -1)
        scale = draws.std(0)
        usable = torch.isfinite(scale) & (scale > 0)
        return draws.mean(0).nan_to_num(0.0), torch.where(usable, scale, torch.ones_like(scale))

    def _theta(self, q: Gaussians) -> Tensor:
        """(N, P) parameters, the strictly lower triangle 0 where there is none."""
        parts = [q.loc, q.log_scale]
        if self.family == "full-covariance":
            row, column = self._triangle(q.loc)
            parts.append(q.loc.new_zeros(len(q.loc), len(row)) if q.lower is None else q.lower[:, row, column])
        return torch.cat(parts, -1)

    def _gaussians(self, theta: Tensor) -> Gaussians:
        dim = self.log_joint.dim
        loc, log_scale, below = theta[:, :dim], theta[:, dim : 2 * dim], theta[:, 2 * dim :]
        if self.family == "mean-field":
            return Gaussians(loc, log_scale, None)
        row, column = self._triangle(loc)
        lower = theta.new_zeros(len(theta), dim, dim)
        lower[:, row, column] = below
        return Gaussians(loc, log_scale, lower)

    def _stretch(self, unit: Tensor, q: Gaussians) -> Tensor:
        """(N, P) length of a step of 1 in the frame of q.

        In mean field loc moves by its unit; below the diagonal steps are shorter, as D of them add up in a row.
        """
        dim = self.log_joint.dim
        stretch = torch.ones_like(self._theta(q))
        if self.family == "mean-field":
            stretch[:, :dim] = unit / q.log_scale.exp()
        stretch[:, 2 * dim :] = dim**-0.5
        return stretch

    @staticmethod
    def _triangle(like: Tensor) -> Tensor:
        dim = like.shape[-1]
        return torch.tril_indices(dim, dim, -1, device=like.device)

    @torch.no_grad()
    def _score(self, q: Gaussians, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """ELBO and its standard error on fresh draws, (N,) each; a draw that is not finite makes it so."""
        gen = generator(seed, "score", device=q.loc.device)
        block = max(1, MAX_ROWS // len(q.loc))
        parts = []
        for first in range(0, FINAL_DRAWS, block):
            count = min(block, FINAL_DRAWS - first)
            eps = torch.randn(count, *q.loc.shape, generator=gen, device=q.loc.device, dtype=q.loc.dtype)
            log_p = self.log_joint.terms(self.data.fold(count), u=draw(q, eps).flatten(0, 1)).joint
            parts.append((log_p.reshape(count, -1).double() + 0.5 * eps.double().square().sum(-1)).cpu().numpy())
        values = np.concatenate(parts)
        known = (entropy(q).double() - 0.5 * q.loc.shape[-1]).cpu().numpy()
        with np.errstate(invalid="ignore"):  # rows that are nowhere finite
            return values.mean(0) + known, values.std(0, ddof=1) / math.sqrt(FINAL_DRAWS)


def _remaining_gain(rows: Rows) -> Tensor:
    """Nats still to be had, (N,): half the squared mean gradient over the window, less its noise.

    In the frame of q the ELBO's curvature is near one (less where mean field leaves out strong correlations), so that
    this is a Newton decrement.
    """
    mean = rows.slope / WINDOW
    variance = (rows.slope_square / WINDOW - mean.square()).clamp_min(0) / WINDOW
    return 0.5 * (mean.square() - 4 * variance).clamp_min(0).sum(-1)
