"""Fits of a family to datapoints, one begun anew where it failed, and scored on fresh draws.

A Gaussian that is begun at the mean of two modes may stay there: the slope of its ELBO is zero by symmetry. Its log
weights then spread by far more than those of a good fit; it is begun anew at one of the start's draws, and narrow.

Letters: S draws, N datapoints, D latents, K looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from amortize.inference.chunks import slices
from amortize.inference.families.density import Density, GaussianDensity
from amortize.inference.families.family import Family, Fit, Problem, Trace
from amortize.random import generator

__all__ = ["COLUMNS", "Fits", "joined_trace", "score"]

MAX_ROWS = 2**15
FINAL_DRAWS, BEGUN_DRAWS = 1000, 200
DOUBT = 2.0  # nats, standard deviation of the log weights
COLUMNS = ("elbo", "elbo_se", "converged", "num_steps", "num_gradients", "num_restarts")


class Fits:
    """The fits of one problem: where one failed, or may have, the better of it and another, begun elsewhere.

    The attributes ``COLUMNS`` are those of ``LocalPosterior``, (N,) each.
    """

    def __init__(self, family: Family, problem: Problem) -> None:
        self._family, self._problem = family, problem
        fit = family.fit(problem)
        num = problem.data.num_datapoints
        self.trace = fit.trace
        self.parameters = {name: value.double().cpu().numpy() for name, value in fit.parameters.items()}
        self.elbo, self.elbo_se = self._score(problem, fit)
        self.num_steps, self.num_gradients = _numpy(fit.num_steps), _numpy(fit.num_gradients).astype(float)
        self.num_restarts = np.zeros(num, dtype=int)
        begun, begun_se = _begun(problem)
        self._floor, self._floor_se = begun, begun_se
        self._stopped = _numpy(fit.stopped)

    @property
    def converged(self) -> np.ndarray:
        """(N,) whether it stopped, and did not fail."""
        return np.asarray(self._stopped & ~self._failed)

    @property
    def _failed(self) -> np.ndarray:
        below = self.elbo < self._floor - 3 * np.hypot(self.elbo_se, self._floor_se)
        return np.asarray(~np.isfinite(self.elbo) | (below & self._family.raises_elbo))

    @property
    def _doubtful(self) -> np.ndarray:
        """(N,) whether it stopped with log weights that spread as between two modes, where its slope is zero too."""
        return np.asarray(self._family.doubtful & self._stopped & (self.elbo_se > DOUBT / math.sqrt(FINAL_DRAWS)))

    def after(self, num_restarts: int) -> Fits:
        """Itself, once fits that failed were tried again, and once those that may have."""
        problem = self._problem
        for attempt in range(num_restarts):
            index = np.flatnonzero(self._failed | (self._doubtful if attempt == 0 else False))
            if not len(index):
                break
            problem = problem.again()
            self._retry(problem.rows(torch.from_numpy(index).to(problem.data.index.device)), index)
        return self

    def _retry(self, problem: Problem, index: np.ndarray) -> None:
        fit = self._family.fit(problem)
        elbo, se = self._score(problem, fit)
        beyond = self.elbo[index] + np.where(self._failed[index], 0, 3 * np.hypot(se, self.elbo_se[index]))
        better = ~(elbo <= beyond) & np.isfinite(elbo)  # the higher of two equal ones would be too high
        taken = index[better]
        self.elbo[taken], self.elbo_se[taken] = elbo[better], se[better]
        for name, value in fit.parameters.items():
            self.parameters[name][taken] = value.double().cpu().numpy()[better]
        self._stopped[taken] = _numpy(fit.stopped)[better]
        self.num_steps[index] += _numpy(fit.num_steps)
        self.num_gradients[index] += _numpy(fit.num_gradients)
        self.num_restarts[index] += 1

    def _score(self, problem: Problem, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        if fit.elbo is not None and fit.elbo_se is not None:
            return _numpy(fit.elbo.double()), _numpy(fit.elbo_se.double())
        return score(self._family.density(fit.parameters), problem, "final")


@torch.no_grad()
def score(
    density: Density, problem: Problem, stream: str, *, num_draws: int = FINAL_DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """ELBO and its standard error on fresh draws, (N,) nats each; a draw that is not finite makes it so.

    There are ``num_draws`` of them, or so many more that the graph that fits them takes them in full blocks.
    """
    gen = generator(problem.seed, "score", stream, device=problem.data.index.device)
    num, parts = problem.data.num_datapoints, []
    log_p, size = _in_blocks(problem)
    most = max(1, MAX_ROWS // (num * problem.log_joint.num_tiles) // size)
    for block in slices(-(-num_draws // size), most):
        count = (block.stop - block.start) * size
        u, log_q = density.draw_scored(count, gen)
        parts.append(_numpy(log_p(u).double() - log_q.double()))
    values = np.concatenate(parts)
    with np.errstate(invalid="ignore"):  # rows that are nowhere finite
        return np.asarray(values.mean(0)), np.asarray(values.std(0, ddof=1) / math.sqrt(len(values)))


def _in_blocks(problem: Problem) -> tuple[Callable[[Tensor], Tensor], int]:
    """Log p (S, N) of draws u (S, N, D), and the number that S must be a multiple of: the traced graph's own."""
    num, graph = problem.data.num_datapoints, problem.compiled_value
    if graph.reason:
        return lambda u: problem.log_joint(problem.data, u), 1
    size = problem.num_draws

    def by_graph(u: Tensor) -> Tensor:
        return torch.cat([graph(part.flatten(0, 1))[0].reshape(size, num) for part in torch.split(u, size)])

    return by_graph, size


def _begun(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The ELBO of where fits begin: a Gaussian with independent dimensions."""
    loc, scale = problem.moments()
    return score(GaussianDensity(loc, torch.diag_embed(scale)), problem, "begun", num_draws=BEGUN_DRAWS)


def joined_trace(traces: list[Trace | None]) -> Trace:
    """Chunks side by side, look by look; their seconds add up."""
    known = [trace for trace in traces if trace is not None]
    if len(known) < len(traces):
        return Trace(np.zeros(0), np.zeros(0), np.zeros((0, 0)))
    looks = max(len(trace.seconds) for trace in known)
    padded = [Trace(*(_padded(values, looks) for values in trace)) for trace in known]
    return Trace(
        np.sum([trace.seconds for trace in padded], axis=0),
        np.max([trace.num_gradients for trace in padded], axis=0),
        np.concatenate([trace.elbo for trace in padded], axis=1),
    )


def _padded(values: np.ndarray, looks: int) -> np.ndarray:
    """As many looks, by repeating the last one."""
    if not len(values):
        return np.full((looks, *values.shape[1:]), np.nan)
    return np.concatenate([values, np.repeat(values[-1:], looks - len(values), axis=0)])


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().numpy()
    return array
