r"""The optimiser of families that are given by a differentiable draw: Adam on theta, every datapoint by itself.

.. math:: L(\theta_n) = E \sum_s w_s [\log p(x_n, u_s) - \log q(u_s)], \qquad u_s, w_s, \log q(u_s)
    \text{ functions of } \theta_n \text{ and noise}

All datapoints share each evaluation of the model and nothing else: own Adam moments, own rate, own stopping. At the end
of a window of steps, the average of its second half is held against the best so far, on fresh draws common to both. A
datapoint that gained no more than a tolerance, or the noise of the comparison, in several windows together returns to
its best, and has its rate cut; at the lowest rate it stops. Stopped datapoints leave the batch.

Letters: S draws a step, N datapoints, n of them in a batch, D latents, P parameters a datapoint, R calls of a check.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference.families.family import Fit, Parameters, Problem, Trace
from amortize.inference.families.gaussian_ascent import STEPS_AHEAD, TRACE_SECONDS
from amortize.inference.families.watch import Watch, chained
from amortize.random import generator, stream_seed

__all__ = ["Ascended", "Draw", "Drawn", "ascend"]

WINDOW, PATIENCE = 50, 2
TOLERANCE = 0.01  # nats
CHECKS = 16
RATE, CUT, NUM_CUTS = 0.05, 0.3, 4
DECAY_FIRST, DECAY_SECOND, EPSILON = 0.9, 0.99, 1e-8  # short memory: first gradients may be huge


class Drawn(NamedTuple):
    """Draws of a family: ``u`` (S, n, D), ``log_q`` (S, n) nats, ``weight`` (S, n) with sum 1 over S; None is 1/S.

    What of ``log_q`` hangs on theta only through u follows the path alone ("sticking the landing", Roeder et al. 2017):
    families detach theta in it where they can.
    """

    u: Tensor
    log_q: Tensor
    weight: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean (n,) of ``values`` (S, n)."""
        return values.mean(0) if self.weight is None else (self.weight * values).sum(0)


Draw = Callable[[Tensor, Tensor, torch.Generator], Drawn]
"""Takes theta (n, P), the datapoints' numbers (n,) in the problem, and a generator; the noise may not hang on theta."""


@dataclass(frozen=True)
class Ascended:
    """Where an ascent ended.

    Attributes
    ----------
    theta
        (N, P) the best.
    stopped
        (N,) bool: nothing was left to gain.
    num_steps, num_gradients
        (N,) steps, and gradients of the log joint; those of datapoints that have stopped count, too, while others of
        their batch go on. Checks evaluate the log joint alone and don't count.
    trace
        The way there, by the draws of the checks.
    """

    theta: Tensor
    stopped: Tensor
    num_steps: Tensor
    num_gradients: Tensor
    trace: Trace

    def fit(self, parameters: Parameters, after: Fit | None = None) -> Fit:
        """With the parameters of a family, and what the fit cost ``after`` which this one began."""
        done = Fit(parameters, self.stopped, self.num_steps, self.num_gradients, trace=self.trace)
        if after is None:
            return done
        return replace(
            done,
            num_steps=after.num_steps + self.num_steps,
            num_gradients=after.num_gradients + self.num_gradients,
            trace=None if after.trace is None else chained(after.trace, self.trace),
        )


def ascend(problem: Problem, theta: Tensor, draw: Draw, *, name: str, rate: float = RATE) -> Ascended:
    """Climb the ELBO from ``theta`` (N, P), each datapoint to its stop or to ``problem.num_steps``.

    Parameters
    ----------
    problem
        The datapoints; what its start says is not looked at.
    theta
        (N, P) where each begins; it never ends below, but for the noise of the checks.
    draw
        The family: rows of its draws may hang on no other row of theta.
    name
        What to show while it runs.
    rate
        The first step of a parameter; later ones are down to ``rate`` times 0.027.

    Returns
    -------
    Ascended
        A datapoint whose gradient is not finite stays where it is; one that can't move at all is not ``stopped``.
    """
    return _Ascent(problem, draw, name, rate).run(theta.detach())


@dataclass(frozen=True)
class _Rows:
    """Optimiser state, every tensor with a leading N: a datapoint's row is all there is of it."""

    theta: Tensor
    best: Tensor
    first: Tensor
    second: Tensor
    cuts: Tensor
    stale: Tensor
    steps: Tensor
    evaluated: Tensor
    lost: Tensor

    @classmethod
    def of(cls, theta: Tensor) -> _Rows:
        """The state before the first step."""
        wide = {name: torch.zeros_like(theta) for name in ("first", "second")}
        zero = theta.new_zeros(len(theta), dtype=torch.long)
        counts = {name: zero.clone() for name in ("cuts", "stale", "steps", "evaluated")}
        return cls(theta.clone(), theta.clone(), **wide, **counts, lost=zero.bool())

    @property
    def active(self) -> Tensor:
        """Which rows still move."""
        return (self.cuts < NUM_CUTS) & ~self.lost

    def take(self, index: Tensor) -> _Rows:
        """Some rows."""
        return _Rows(**{name: value[index] for name, value in vars(self).items()})

    def put(self, index: Tensor, rows: _Rows) -> None:
        """Write rows back."""
        for name, value in vars(self).items():
            value[index] = getattr(rows, name)


class _Batch:
    """The datapoints ``index`` (n,) of a problem, with their log joint as a graph of fixed shape."""

    def __init__(self, problem: Problem, draw: Draw, index: Tensor, theta: Tensor) -> None:
        self._draw, self._index = draw, index
        with torch.no_grad():
            self.num_draws = len(draw(theta, index, generator(problem.seed, "size", device=theta.device)).u)
        part = problem if len(index) == problem.data.num_datapoints else problem.rows(index)
        if self.num_draws != problem.num_draws:
            part = replace(part, num_draws=self.num_draws)
        self._both, self._value = part.compiled, part.compiled_value

    def worth_tracing(self, left: int) -> bool:
        """Whether the steps ahead repay tracing the model for the ``left`` datapoints alone."""
        stopped = 1 - left / len(self._index)
        return stopped >= 0.5 and stopped * STEPS_AHEAD * self._both.estimated_seconds > TRACE_SECONDS

    def gradient(self, theta: Tensor, noise: torch.Generator) -> Tensor:
        """Of the ELBO, (n, P), by one set of draws; NaN where a draw's log joint is not finite."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            u, log_q, weight = self._draw(theta, self._index, noise)
            log_p, slope = self._both(u.detach().flatten(0, 1))
            log_p, slope = log_p.reshape(log_q.shape), slope.reshape(u.shape)
            path = (slope * u).sum(-1)
            if weight is None:
                each = (path - log_q).mean(0)
            else:
                each = (weight * (log_p - log_q) + weight.detach() * path).sum(0)
            (gradient,) = torch.autograd.grad(each.sum(), theta)
        known = torch.isfinite(each + log_p.sum(0))
        return torch.where(known.unsqueeze(-1), gradient, math.nan)

    @torch.no_grad()
    def elbo(self, theta: Tensor, noise: torch.Generator) -> Tensor:
        """R estimates of the ELBO, (R, n) nats; draws of the same noise are common."""
        return torch.stack([self._estimate(theta, noise) for _ in range(CHECKS)])

    def _estimate(self, theta: Tensor, noise: torch.Generator) -> Tensor:
        drawn = self._draw(theta, self._index, noise)
        (log_p,) = self._value(drawn.u.flatten(0, 1))
        return drawn.mean(log_p.reshape(drawn.log_q.shape) - drawn.log_q)


@dataclass(frozen=True)
class _Ascent:
    problem: Problem
    draw: Draw
    name: str
    rate: float

    def run(self, theta: Tensor) -> Ascended:
        whole, watch = _Rows.of(theta), Watch(len(theta))
        pool = torch.arange(len(theta), device=theta.device)
        num_draws, step, num_steps = 0, 0, self.problem.num_steps
        noise = generator(self.problem.seed, "ascent", self.name, device=theta.device)
        with tqdm(total=num_steps, desc=f"local {self.name}", leave=False, disable=None) as bar:
            while step < num_steps and len(pool):
                batch = _Batch(self.problem, self.draw, pool, whole.theta[pool])
                rows, num_draws, before = whole.take(pool), batch.num_draws, step
                while step < num_steps:
                    window = min(WINDOW, num_steps - step)
                    rows, elbo = self._window(rows, batch, window, noise, step)
                    step += window
                    watch.look(pool, elbo, window * num_draws)
                    left = int(rows.active.sum())
                    if not left or batch.worth_tracing(left):
                        break
                whole.put(pool, rows)
                pool = pool[rows.active]
                bar.update(step - before)
        stopped = ~whole.active & ~whole.lost
        return Ascended(whole.best, stopped, whole.steps, whole.evaluated * num_draws, watch.trace())

    def _window(
        self, rows: _Rows, batch: _Batch, window: int, noise: torch.Generator, step: int
    ) -> tuple[_Rows, Tensor]:
        """Some steps of all rows, and what they gained; with the ELBO of the best, (n,) nats."""
        late = window - window // 2
        average, moves = torch.zeros_like(rows.theta), torch.zeros_like(rows.steps)
        rate = (self.rate * CUT ** rows.cuts.to(average) * rows.active).unsqueeze(-1)
        for number in range(window):
            moves += _step(rows, batch.gradient(rows.theta, noise), rate, step + number + 1)
            if number >= window - late:
                average.add_(rows.theta, alpha=1 / late)
        taken = window * rows.active.long()
        rows = replace(rows, steps=rows.steps + taken, evaluated=rows.evaluated + window)
        seed = stream_seed(self.problem.seed, "check", self.name, step)
        new, old = (batch.elbo(theta, generator(seed, device=theta.device)) for theta in (average, rows.best))
        return _closed(rows, average, moves, (new, old)), torch.maximum(_finite_mean(new), _finite_mean(old))


def _step(rows: _Rows, slope: Tensor, rate: Tensor, age: int) -> Tensor:
    """The ``age``-th step of Adam, in place; a row whose gradient is not finite stays where it is. (n,) who moved."""
    move = torch.isfinite(slope.sum(-1))
    wide = move.unsqueeze(-1)
    slope = torch.where(wide, slope, 0)
    rows.first.lerp_(slope, 1 - DECAY_FIRST)
    rows.second.mul_(DECAY_SECOND).addcmul_(slope, slope, value=1 - DECAY_SECOND)
    root = rows.second.sqrt().mul_((1 - DECAY_SECOND**age) ** -0.5).add_(EPSILON)
    rows.theta.add_(rows.first / root * torch.where(wide, rate / (1 - DECAY_FIRST**age), 0))
    return move


def _closed(rows: _Rows, average: Tensor, moves: Tensor, elbos: tuple[Tensor, Tensor]) -> _Rows:
    """Close a window of so many moves (n,), by (R, n) estimates of the average's ELBO and the best's.

    The best gives way to a gain beyond tolerance and noise, or, with the rate cut, to any: small gains of single
    windows add up against the same best.
    """
    new, old = elbos
    difference = new - old
    gain, noise = difference.mean(0), 2 * difference.std(0) / math.sqrt(len(difference))
    above = torch.isfinite(_finite_mean(new)) & ~(gain <= torch.clamp(noise, min=TOLERANCE))
    stale = torch.where(above, 0, rows.stale + 1)
    cut = rows.active & (stale >= PATIENCE)
    taken = rows.active & (above | (cut & (gain > 0)))
    best = torch.where(taken.unsqueeze(-1), average, rows.best)
    known = torch.isfinite(torch.maximum(_finite_mean(new), _finite_mean(old)))
    return replace(
        rows,
        best=best,
        theta=torch.where(cut.unsqueeze(-1), best, rows.theta),
        cuts=rows.cuts + (cut & known).long(),
        stale=torch.where(cut, 0, stale),
        lost=rows.lost | (rows.active & ((moves == 0) | (cut & ~known))),
    )


def _finite_mean(values: Tensor) -> Tensor:
    """Mean over draws, (n,); minus infinity where it is not finite."""
    mean = values.mean(0)
    return torch.where(torch.isfinite(mean), mean, -torch.inf)
