r"""The best non-amortized posterior of each datapoint: Gaussian variational inference in u, every datapoint by itself.

.. math:: \max_{\lambda_n} \; E_{q(u; \lambda_n)}[\log p(x_n, u) - \log q(u; \lambda_n)]

All datapoints share each evaluation of the model and nothing else: own Adam moments, own rate, own stopping. At the end
of a window of steps, a datapoint whose ELBO no longer rises by more than its noise has its rate cut and is whitened
by its own scale. It stops, at the average of its window, once the rate is at its lowest and the gain still to be had,
half the squared mean gradient in whitened coordinates (noise taken off), is below a tolerance; stopped datapoints leave
the batch. The reported ELBO is that of fresh draws, never the optimiser's.

Letters: S draws, N datapoints, D latents, P parameters a datapoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.errors import ArgumentError, check_count
from amortize.inference.families import Gaussians, check_family, draw, entropy, gradients, scale_tril
from amortize.inference.starts import GuideStart, PriorStart, Start
from amortize.program.compile import Compiled
from amortize.program.data import Data
from amortize.program.density import LogJoint
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.random import check_seed, generator, stream_seed

__all__ = ["LocalPosterior", "fit_local"]

INITS = ("guide", "prior")
INIT_DRAWS = 256
FINAL_DRAWS = 1000
MAX_DATAPOINTS = 2048
SMALLEST_POOL = 16
WINDOW = 50
TOLERANCE = 0.01  # nats
FIRST_RATE, CUT, NUM_CUTS = 0.1, 0.3, 4
DECAY_FIRST, DECAY_SECOND, EPSILON = 0.9, 0.99, 1e-8  # short memory: first gradients may be huge


@dataclass(frozen=True)
class LocalPosterior:
    """Gaussian posteriors over u, one a datapoint, with their ELBO on fresh draws.

    Attributes
    ----------
    family
        "mean-field" or "full-covariance".
    elbo, elbo_se
        (N,) nats.
    converged
        (N,) whether the datapoint stopped by itself, finite, and not below where it began.
    num_steps
        (N,) optimisation steps taken.
    loc, scale_tril
        (N, D) and (N, D, D).
    """

    family: str
    elbo: np.ndarray
    elbo_se: np.ndarray
    converged: np.ndarray
    num_steps: np.ndarray
    loc: np.ndarray
    scale_tril: np.ndarray
    settings: dict[str, Any]
    seconds: float
    program: Program | None = field(default=None, repr=False, compare=False)
    data: Data | None = field(default=None, repr=False, compare=False)

    def draws(self, num_draws: int = 1000, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Posterior draws by latent site, in the site's own (constrained) space: arrays (draw, N, ...).

        Raises
        ------
        ArgumentError
            If this posterior was loaded from arrays and knows neither program nor data.
        """
        if self.program is None or self.data is None:
            raise ArgumentError("draws: this posterior was made from arrays alone; use its loc and scale_tril")
        gen = generator(check_seed(seed), "local-draws")
        noise = torch.randn(num_draws, *self.loc.shape, generator=gen, dtype=torch.float64).numpy()
        u = self.loc + np.einsum("nij,snj->sni", self.scale_tril, noise)
        with self.program.evaluating():
            return constrained(self.program.log_joint(self.data), self.data, torch.from_numpy(u))


@dataclass(frozen=True)
class _Rows:
    """Optimiser state, every tensor with a leading N: a datapoint's row is all there is of it.

    ``theta`` (N, P) holds loc, log scale and the strictly lower triangle; ``unit`` (N, P) is what a step of 1 means.
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

    @classmethod
    def of(cls, theta: Tensor, unit: Tensor) -> _Rows:
        wide = {name: torch.zeros_like(theta) for name in ("first", "second", "average", "slope", "slope_square")}
        narrow = {name: theta.new_zeros(len(theta)) for name in ("total", "square")}
        counts = {name: theta.new_zeros(len(theta), dtype=torch.long) for name in ("cuts", "steps")}
        previous = theta.new_full((len(theta),), -torch.inf)
        return cls(theta.clone(), unit, **wide, **narrow, **counts, previous=previous)

    @property
    def active(self) -> Tensor:
        return self.cuts < NUM_CUTS

    @property
    def rate(self) -> Tensor:
        return FIRST_RATE * CUT ** self.cuts.to(self.theta.dtype)

    def take(self, index: Tensor) -> _Rows:
        return _Rows(**{name: value[index] for name, value in vars(self).items()})

    def put(self, index: Tensor, rows: _Rows) -> None:
        for name, value in vars(self).items():
            value[index] = getattr(rows, name)


def fit_local(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    family: str = "mean-field",
    init: str | None = None,
    num_draws: int = 8,
    num_steps: int = 3000,
    seed: int = 0,
    device: str | None = None,
) -> LocalPosterior:
    """Fit a posterior to each datapoint by itself, all at once.

    Parameters
    ----------
    program, x
        The program and N datapoints.
    family
        "mean-field" or "full-covariance" Gaussians in u.
    init
        "guide" (the default where there is one) or "prior": where each datapoint begins, by mean and scale of draws.
    num_draws
        S, draws a step (antithetic pairs).
    num_steps
        Most steps a datapoint may take.

    Raises
    ------
    ContractError, ArgumentError
        Where the program breaks the contract or an argument is off.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(__import__("torch").zeros(8, 4))[1]["x"]
    >>> local = am.fit_local(analysis.program(), x, init="prior", num_steps=100)
    >>> local.elbo.shape
    (8,)
    """
    check_family(family)
    num_draws, num_steps = check_count("num_draws", num_draws, 2), check_count("num_steps", num_steps)
    if num_draws % 2:
        raise ArgumentError(f"num_draws: expected an even number (draws come in antithetic pairs), got {num_draws}")
    seed = check_seed(seed)
    begin = time.perf_counter()
    data = program.prepare(x, device=device)
    with program.evaluating():
        start = _start(program, data, init)
        parts = []
        for first in range(0, data.num_datapoints, MAX_DATAPOINTS):
            chunk = slice(first, first + MAX_DATAPOINTS)
            problem = _Problem(program.log_joint(data), start, data.rows(chunk), family, num_draws)
            parts.append(problem.solve(num_steps, stream_seed(seed, "local", family, first)))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    settings = {"init": start.name, "num_draws": num_draws, "num_steps": num_steps, "seed": seed}
    seconds = time.perf_counter() - begin
    return LocalPosterior(family, **arrays, settings=settings, seconds=seconds, program=program, data=data)


def _start(program: Program, data: Data, init: str | None) -> Start:
    init = ("prior" if program.guide is None else "guide") if init is None else init
    if init not in INITS:
        raise ArgumentError(f"init: expected one of {INITS}, got {init!r}")
    if init == "guide":
        return GuideStart(program.guide_density(data))
    return PriorStart(program.log_joint(data))


@dataclass(frozen=True)
class _Problem:
    log_joint: LogJoint
    start: Start
    data: Data
    family: str
    num_draws: int

    def solve(self, num_steps: int, seed: int) -> dict[str, np.ndarray]:
        """Optimise all rows, then score begin and end on fresh draws."""
        loc, scale = self._moments(seed)
        first = self._theta(loc, scale.log())
        whole = _Rows.of(first, self._unit(scale))
        noise = generator(seed, "optimise", device=loc.device)
        pool = torch.arange(len(loc), device=loc.device)
        bar = tqdm(total=num_steps, desc=f"local {self.family}", leave=False, disable=None)
        step = 0
        with bar:
            while step < num_steps and len(pool):
                rows, step = self._run_pool(whole.take(pool), self.data.rows(pool), (step, num_steps), noise, bar)
                whole.put(pool, rows)
                pool = pool[rows.active]
        final, begun = self._gaussians(whole.theta), self._gaussians(first)
        elbo, se = self._score(final, stream_seed(seed, "final"))
        before, before_se = self._score(begun, stream_seed(seed, "begun"))
        fine = np.isfinite(elbo) & (elbo >= before - 3 * np.hypot(se, before_se))
        return {
            "elbo": elbo,
            "elbo_se": se,
            "converged": ~whole.active.cpu().numpy() & fine,
            "num_steps": whole.steps.cpu().numpy(),
            "loc": final.loc.double().cpu().numpy(),
            "scale_tril": scale_tril(final).double().cpu().numpy(),
        }

    def _run_pool(
        self, rows: _Rows, data: Data, steps: tuple[int, int], noise: torch.Generator, bar: Any
    ) -> tuple[_Rows, int]:
        """Step these datapoints until half of them have stopped; their batch shape is fixed meanwhile."""
        q = self._gaussians(rows.theta)
        density = self._density(data.fold(self.num_draws), q.loc, q.log_scale.exp())
        enough = len(q.loc) // 2 if len(q.loc) > SMALLEST_POOL else 0
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

    def _step(self, rows: _Rows, density: Callable[[Tensor], Any], noise: torch.Generator) -> _Rows:
        q = self._gaussians(rows.theta)
        half = (self.num_draws // 2, *q.loc.shape)
        eps = torch.randn(half, generator=noise, device=q.loc.device, dtype=q.loc.dtype)
        eps = torch.cat([eps, -eps])
        log_p, slope = density(draw(q, eps).flatten(0, 1))
        log_p, slope = log_p.reshape(self.num_draws, -1), slope.reshape(eps.shape)
        elbo = (log_p + 0.5 * eps.square().sum(-1)).mean(0) + entropy(q) - 0.5 * q.loc.shape[-1]
        gradient = gradients(q, eps, slope)
        return _adam(rows, self._theta(*gradient) * rows.unit, elbo)

    def _close_window(self, rows: _Rows) -> _Rows:
        """Cut the rate of rows that no longer rise; stop those that have nothing left to gain."""
        mean = rows.total / WINDOW
        error = ((rows.square / WINDOW - mean.square()).clamp_min(0) / WINDOW).sqrt()
        unit = self._unit(self._gaussians(rows.theta).log_scale.exp())
        done = _remaining_gain(rows, unit / rows.unit) < TOLERANCE
        flat = ~(mean - rows.previous > torch.clamp(2 * math.sqrt(2) * error, min=TOLERANCE))
        stalled = (flat | done) & rows.active
        cuts = (rows.cuts + stalled.long()).clamp(max=NUM_CUTS - 1)
        ended = done & rows.active & (rows.cuts >= NUM_CUTS - 1)
        unit = torch.where(stalled.unsqueeze(-1), unit, rows.unit)
        change = unit / rows.unit
        wide, narrow = torch.zeros_like(rows.theta), torch.zeros_like(mean)
        return replace(
            rows,
            theta=torch.where(ended.unsqueeze(-1), rows.average / WINDOW, rows.theta),
            unit=unit,
            first=rows.first * change,
            second=rows.second * change.square(),
            previous=torch.where(stalled, torch.full_like(mean, -torch.inf), mean),
            cuts=torch.where(ended, torch.full_like(cuts, NUM_CUTS), torch.where(rows.active, cuts, rows.cuts)),
            average=wide,
            slope=wide,
            slope_square=wide,
            total=narrow,
            square=narrow,
        )

    def _density(self, folded: Data, loc: Tensor, scale: Tensor) -> Compiled:
        loc, scale = loc.repeat(self.num_draws, 1), scale.repeat(self.num_draws, 1)

        def value_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                value = self.log_joint.terms(folded, u=u).joint
                (slope,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), slope.detach()

        return Compiled(value_and_gradient, (loc,), (loc + 0.5 * scale,))

    def _moments(self, seed: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the start, (N, D): where each datapoint begins, and its units."""
        shape = (INIT_DRAWS, self.data.num_datapoints, -1)
        draws = self.start.draw(self.data.fold(INIT_DRAWS), seed, "init").reshape(shape)
        scale = draws.std(0)
        usable = torch.isfinite(scale) & (scale > 0)
        return draws.mean(0).nan_to_num(0.0), torch.where(usable, scale, torch.ones_like(scale))

    def _theta(self, loc: Tensor, log_scale: Tensor, lower: Tensor | None = None) -> Tensor:
        """(N, P) parameters, the strictly lower triangle 0 where none is given."""
        parts = [loc, log_scale]
        if self.family == "full-covariance":
            row, column = self._triangle(loc)
            parts.append(loc.new_zeros(len(loc), len(row)) if lower is None else lower[:, row, column])
        return torch.cat(parts, -1)

    def _unit(self, scale: Tensor) -> Tensor:
        """(N, P) units of a step: the scale for loc, 1 for its logarithm, the row's scale below the diagonal."""
        parts = [scale, torch.ones_like(scale)]
        if self.family == "full-covariance":
            parts.append(scale[:, self._triangle(scale)[0]])
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

    @staticmethod
    def _triangle(like: Tensor) -> Tensor:
        dim = like.shape[-1]
        return torch.tril_indices(dim, dim, -1, device=like.device)

    @torch.no_grad()
    def _score(self, q: Gaussians, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """ELBO and its standard error on fresh draws, (N,) each; a draw that is not finite makes it so."""
        gen = generator(seed, "score", device=q.loc.device)
        total = q.loc.new_zeros(2, len(q.loc), dtype=torch.float64)
        centre = total[0]
        block = max(1, 2**15 // len(q.loc))
        for first in range(0, FINAL_DRAWS, block):
            count = min(block, FINAL_DRAWS - first)
            eps = torch.randn(count, *q.loc.shape, generator=gen, device=q.loc.device, dtype=q.loc.dtype)
            log_p = self.log_joint.terms(self.data.fold(count), u=draw(q, eps).flatten(0, 1)).joint
            value = log_p.reshape(count, -1).double() + 0.5 * eps.double().square().sum(-1)
            if first == 0:
                centre = value[0]
            total += torch.stack([(value - centre).sum(0), (value - centre).square().sum(0)])
        mean = total[0] / FINAL_DRAWS
        variance = (total[1] / FINAL_DRAWS - mean.square()).clamp_min(0) * FINAL_DRAWS / (FINAL_DRAWS - 1)
        elbo = centre + mean + entropy(q).double() - 0.5 * q.loc.shape[-1]
        return elbo.cpu().numpy(), (variance / FINAL_DRAWS).sqrt().cpu().numpy()


def _remaining_gain(rows: _Rows, change: Tensor) -> Tensor:
    """Nats still to be had, (N,): half the squared mean gradient over the window, less its noise.

    In coordinates whitened by q itself (``change`` converts from the units of the window) the ELBO's curvature is near
    one, so that this is a Newton decrement.
    """
    mean = rows.slope / WINDOW
    variance = (rows.slope_square / WINDOW - mean.square()).clamp_min(0) / WINDOW
    return 0.5 * ((mean.square() - 4 * variance) * change.square()).clamp_min(0).sum(-1)


def _adam(rows: _Rows, gradient: Tensor, elbo: Tensor) -> _Rows:
    """One ascent step of each active row; a row whose gradient is not finite stays where it is."""
    move = rows.active & torch.isfinite(elbo) & torch.isfinite(gradient).all(-1)
    column = move.unsqueeze(-1)
    gradient = torch.where(column, gradient, 0)
    steps = rows.steps + rows.active.long()
    first = torch.where(column, DECAY_FIRST * rows.first + (1 - DECAY_FIRST) * gradient, rows.first)
    second = torch.where(column, DECAY_SECOND * rows.second + (1 - DECAY_SECOND) * gradient.square(), rows.second)
    age = steps.clamp_min(1).unsqueeze(-1).to(gradient)
    size = first / (1 - DECAY_FIRST**age) / ((second / (1 - DECAY_SECOND**age)).sqrt() + EPSILON)
    theta = torch.where(column, rows.theta + rows.rate.unsqueeze(-1) * rows.unit * size, rows.theta)
    seen = torch.where(rows.active, elbo, 0)
    return replace(
        rows,
        theta=theta,
        first=first,
        second=second,
        steps=steps,
        average=rows.average + theta,
        slope=rows.slope + gradient,
        slope_square=rows.slope_square + gradient.square(),
        total=rows.total + seen,
        square=rows.square + seen.square(),
    )
