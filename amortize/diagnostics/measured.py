"""What a judgement of evidence takes: the numbers that a run leaves behind, and what follows from them.

Shapes: C draws or chains, N datapoints, T temperatures; float64.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mask", "Measured", "PathLike", "Run", "derive"]

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

STILL = 0.1  # nats


class PathLike(Protocol):
    """The annealing path of each datapoint; NaN where a datapoint has no such step."""

    @property
    def betas(self) -> Vector:
        """(T + 1, N) inverse temperatures from 0 to 1."""

    @property
    def acceptance(self) -> Vector:
        """(T, N) mean acceptance over chains; NaN for kernels that reject nothing."""

    @property
    def spread(self) -> Vector:
        """(T + 1, N) standard deviation over chains of the log ratio at ``betas``, nats."""


class Measured(Protocol):
    """What is judged: an estimate of N log evidences with the numbers of its run."""

    @property
    def log_evidence(self) -> Vector:
        """(N,) nats."""

    @property
    def se(self) -> Vector:
        """(N,) standard error, nats."""

    @property
    def ess(self) -> Vector:
        """(N,) effective sample size; infinite for an exact value."""

    @property
    def khat(self) -> Vector:
        """(N,) Pareto k-hat."""

    @property
    def acceptance(self) -> Vector:
        """(N,) mean acceptance; NaN for methods that reject nothing."""

    @property
    def num_nonfinite(self) -> NDArray[np.int64]:
        """(N,) proposals that were not finite."""

    @property
    def log_weights(self) -> Vector:
        """(C, N) nats; NaN where a datapoint has fewer than C."""

    @property
    def path(self) -> PathLike | None:
        """The annealing path, None without one."""


class Run(NamedTuple):
    """Numbers derived once, (N,) each but ``steps``.

    Attributes
    ----------
    measured
        What they were derived from.
    num_draws
        Weights that a datapoint has.
    spread
        Of its log weights above their median, nats; NaN for one draw.
    steps
        (T, N) standard deviation of each step's part of the log weight, 0 where there is no such step.
    num_steps
        Temperatures of its path.
    moving
        Whether the weights would vary by more than 0.1 nats if its chains stood still.
    """

    measured: Measured
    num_draws: Vector
    spread: Vector
    steps: Vector
    num_steps: Vector
    moving: Mask


def derive(measured: Measured) -> Run:
    """Derive the numbers that the checks share."""
    log_weights = np.asarray(measured.log_weights, dtype=np.float64)
    num_draws = np.sum(~np.isnan(log_weights), axis=0).astype(np.float64)
    steps = _steps(measured.path, log_weights.shape[1])
    return Run(
        measured,
        num_draws,
        _upper_spread(log_weights),
        np.nan_to_num(steps, nan=0.0, posinf=np.inf),
        np.sum(~np.isnan(steps), axis=0).astype(np.float64),
        np.nansum(steps, axis=0) > STILL,
    )


def _steps(path: PathLike | None, num: int) -> Vector:
    """(T, N) standard deviation of each step's part of the log weight, by the wider of its two ends."""
    if path is None:
        return np.zeros((0, num))
    betas = np.broadcast_to(np.asarray(path.betas, dtype=np.float64).reshape(len(path.betas), -1), path.spread.shape)
    spread = np.asarray(path.spread, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # no step times an infinite spread is no step
        return np.diff(betas, axis=0) * np.fmax(spread[:-1], spread[1:])


def _upper_spread(log_weights: Vector) -> Vector:
    """(N,) root mean square of the log weights above their median, about it."""
    finite = np.where(np.isneginf(log_weights), np.nan, log_weights)
    spread = np.full(log_weights.shape[1], np.nan)
    for column in np.flatnonzero(np.isfinite(finite).sum(0) > 1):
        row = finite[:, column][~np.isnan(finite[:, column])]
        above = row[row > np.median(row)] - np.median(row)
        spread[column] = np.sqrt(np.mean(np.square(above))) if above.size else 0.0
    return spread
