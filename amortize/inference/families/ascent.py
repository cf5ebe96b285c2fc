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
from amortize.inference.families.watch import Watch, chained
from amortize.program.compile import Compiled
from amortize.random import generator, stream_seed

__all__ = ["Ascended", "Draw", "Drawn", "ascend"]

SMALLEST_POOL = 16
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
    average: Tensor
    cuts: Tensor
    stale: Tensor
    moves: Tensor
    steps: Tensor
    evaluated: Tensor
    lost: Tensor

    @classmethod
    def of(cls, theta: Tensor) -> _Rows:
        """The state before the first step."""
        wide = {name: torch.zeros_like(theta) for name in ("first", "second", "average")}
        zero = theta.new_zeros(len(theta), dtype=torch.long)
        counts = {name: zero.clone() for name in ("cuts", "stale", "moves", "steps", "evaluated")}
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
        gen = generator(problem.seed, "shapes", device=theta.device)
        with torch.no_grad():
            u, again = (draw(theta, index, gen).u.flatten(0, 1) for _ in range(2))
        self.num_draws = len(u) // len(index)
        folded = problem.data.rows(index).fold(self.num_draws)

        def value_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                value = problem.log_joint.terms(folded, u=u).joint
                (slope,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), slope.detach()

        self._both = Compiled(value_and_gradient, (u,), (again,))
        self._value = self._both.part((0,))

    def gradient(self, theta: Tensor, noise: torch.Generator) -> Tensor:
        """Of the ELBO, (n, P), by one set of draws."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            u, log_q, weight = self._draw(theta, self._index, noise)
            log_p, slope = self._both(u.detach().flatten(0, 1))
            log_p, slope = log_p.reshape(log_q.shape), slope.reshape(u.shape)
            path = (slope * u).sum(-1)
            if weight is None:
                total = (path - log_q).sum() / len(u)
            else:
                total = (weight * (log_p - log_q) + weight.detach() * path).sum()
            (slope,) = torch.autograd.grad(total, theta)
        return slope

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
                enough = len(pool) // 2 if len(pool) > SMALLEST_POOL else 0
                while step < num_steps and int(rows.active.sum()) > enough:
                    window = min(WINDOW, num_steps - step)
                    rows, elbo = self._window(rows, batch, window, noise, step)
                    step += window
                    watch.look(pool, elbo, window * num_draws)
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
        rows = replace(rows, average=torch.zeros_like(rows.theta), moves=torch.zeros_like(rows.moves))
        for number in range(window):
            rows = self._step(rows, batch.gradient(rows.theta, noise))
            if number >= window - late:
                rows = replace(rows, average=rows.average + rows.theta / late)
        seed = stream_seed(self.problem.seed, "check", self.name, step)
        new, old = (batch.elbo(theta, generator(seed, device=theta.device)) for theta in (rows.average, rows.best))
        return _closed(rows, new, old), torch.maximum(_finite_mean(new), _finite_mean(old))

    def _step(self, rows: _Rows, slope: Tensor) -> _Rows:
        """One of Adam for each active row; a row whose gradient is not finite stays where it is."""
        move = rows.active & torch.isfinite(slope).all(-1)
        wide = move.unsqueeze(-1)
        steps = rows.steps + rows.active.long()
        first = torch.where(wide, DECAY_FIRST * rows.first + (1 - DECAY_FIRST) * slope, rows.first)
        second = torch.where(wide, DECAY_SECOND * rows.second + (1 - DECAY_SECOND) * slope.square(), rows.second)
        age = steps.clamp_min(1).unsqueeze(-1).to(slope)
        size = first / (1 - DECAY_FIRST**age) / ((second / (1 - DECAY_SECOND**age)).sqrt() + EPSILON)
        rate = self.rate * CUT ** rows.cuts.to(slope).unsqueeze(-1)
        return replace(
            rows,
            theta=torch.where(wide, rows.theta + rate * size, rows.theta),
            first=first,
            second=second,
            steps=steps,
            moves=rows.moves + move.long(),
            evaluated=rows.evaluated + 1,
        )


def _closed(rows: _Rows, new: Tensor, old: Tensor) -> _Rows:
    """Close a window, by (R, n) estimates of the average's ELBO and the best's.

    The best gives way to a gain beyond tolerance and noise, or, with the rate cut, to any: small gains of single
    windows add up against the same best.
    """
    difference = new - old
    gain, noise = difference.mean(0), 2 * difference.std(0) / math.sqrt(len(difference))
    above = torch.isfinite(_finite_mean(new)) & ~(gain <= torch.clamp(noise, min=TOLERANCE))
    stale = torch.where(above, 0, rows.stale + 1)
    cut = rows.active & (stale >= PATIENCE)
    taken = rows.active & (above | (cut & (gain > 0)))
    best = torch.where(taken.unsqueeze(-1), rows.average, rows.best)
    known = torch.isfinite(torch.maximum(_finite_mean(new), _finite_mean(old)))
    return replace(
        rows,
        best=best,
        theta=torch.where(cut.unsqueeze(-1), best, rows.theta),
        cuts=rows.cuts + (cut & known).long(),
        stale=torch.where(cut, 0, stale),
        lost=rows.lost | (rows.active & ((rows.moves == 0) | (cut & ~known))),
    )


def _finite_mean(values: Tensor) -> Tensor:
    """Mean over draws, (n,); minus infinity where it is not finite."""
    mean = values.mean(0)
    return torch.where(torch.isfinite(mean), mean, -torch.inf)
