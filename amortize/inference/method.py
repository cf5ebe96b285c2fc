"""What every method of evidence has in common: how many datapoints it takes at once, and what it gives back.

Letters: C weights a datapoint (chains, draws or runs), N datapoints, T temperatures. Everything is numpy float64, nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from amortize.diagnostics.psis import psis
from amortize.diagnostics.weights import effective_sample_size, log_evidence_se, log_mean_exp
from amortize.inference.starts import Start
from amortize.program.data import Data

__all__ = ["MAX_ROWS", "VALUE_COST", "AnnealingPath", "Estimate", "Method", "concatenate", "estimate_of", "most_rows"]

MAX_ROWS = 2**15
"""Rows evaluated at once, for the sake of memory."""
FEWEST_ROWS = 2**11  # below, small models spend their time on overhead
MAX_WORK = 2**23
"""Gradients in one chunk of datapoints, so that a long run has results to keep when it is stopped."""
VALUE_COST = 1 / 3
"""What a value costs in gradients: a forward pass beside a forward and a backward one of twice its work."""


@dataclass(frozen=True)
class AnnealingPath:
    """How an annealed run went, temperature by temperature.

    Attributes
    ----------
    betas
        (T + 1, N) inverse temperatures.
    acceptance
        (T, N) mean acceptance over chains of the moves at ``betas[1:]``.
    spread
        (T + 1, N) standard deviation over chains of the log ratio, nats: the speed of thermodynamic length.
    """

    betas: np.ndarray
    acceptance: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """Log evidence of N datapoints and what is known of its error.

    Attributes
    ----------
    log_evidence, se, ess, khat, acceptance, num_nonfinite
        (N,), as in ``Evidence``.
    num_gradients
        (N,) gradient evaluations a datapoint, the pilot's included; a value counts as a third of one.
    log_weights
        (C, N); the mean weight estimates p(x_n).
    lower, upper
        (N,) bounds in expectation, or None.
    name
        Of the method, as people read it.
    used
        (N,) name of what was used for each datapoint.
    path
        How annealing went, None for a method that doesn't anneal.
    """

    log_evidence: np.ndarray
    se: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    acceptance: np.ndarray
    num_nonfinite: np.ndarray
    num_gradients: np.ndarray
    log_weights: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None
    name: str
    used: np.ndarray
    path: AnnealingPath | None = None


@dataclass(frozen=True)
class Method(ABC):
    """Settings of a method of evidence; each subclass is a frozen dataclass."""

    def settings(self) -> dict[str, Any]:
        """What to write down: the fields that its repr shows, those of settings within by their class's name."""
        return _fields(self)

    @abstractmethod
    def chunk_size(self, start: Start) -> int:
        """How many datapoints to take at once."""

    @abstractmethod
    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """The evidence of the N datapoints of ``data``, all at once."""


def _fields(settings: Any) -> dict[str, Any]:
    return {item.name: _plain(getattr(settings, item.name)) for item in fields(settings) if item.repr}


def _plain(value: Any) -> Any:
    return {"name": type(value).__name__, **_fields(value)} if is_dataclass(value) else value


def most_rows(num_gradients: float) -> int:
    """Rows to take at once where each needs ``num_gradients``."""
    return int(min(MAX_ROWS, max(FEWEST_ROWS, MAX_WORK / max(num_gradients, 1.0))))


def estimate_of(
    log_weights: np.ndarray,
    *,
    name: str,
    num_gradients: float,
    acceptance: np.ndarray | None = None,
    num_nonfinite: np.ndarray | None = None,
    path: AnnealingPath | None = None,
) -> Estimate:
    """The estimate from independent unbiased weights (C, N): log mean exp, a lower bound in expectation."""
    num = log_weights.shape[1]
    estimate = log_mean_exp(log_weights)
    return Estimate(
        log_evidence=estimate,
        se=log_evidence_se(log_weights),
        ess=effective_sample_size(log_weights),
        khat=psis(log_weights).khat,
        acceptance=np.full(num, np.nan) if acceptance is None else acceptance,
        num_nonfinite=np.isnan(log_weights).sum(0) if num_nonfinite is None else num_nonfinite,
        num_gradients=np.full(num, num_gradients, dtype=float),
        log_weights=log_weights,
        lower=estimate,
        upper=None,
        name=name,
        used=np.full(num, name, dtype=object),
        path=path,
    )


def concatenate(parts: Sequence[Estimate]) -> Estimate:
    """The estimates of chunks as one; a path is kept if all have one."""
    first = parts[0]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts], -1)
        for name in ("log_evidence", "se", "ess", "khat", "acceptance", "num_nonfinite", "num_gradients", "used")
    }
    return Estimate(
        **columns,
        log_weights=np.concatenate(_padded([part.log_weights for part in parts]), -1),
        lower=None if first.lower is None else _joined([part.lower for part in parts]),
        upper=None if first.upper is None else _joined([part.upper for part in parts]),
        name=first.name,
        path=_joined_path([part.path for part in parts]),
    )


def _joined(columns: Sequence[np.ndarray | None]) -> np.ndarray:
    known = [column for column in columns if column is not None]
    assert len(known) == len(columns)
    return np.concatenate(known)


def _padded(tables: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Weights of the same count a datapoint: NaN below where there are fewer."""
    most = max(len(table) for table in tables)
    return [np.pad(t, ((0, most - len(t)), (0, 0)), constant_values=np.nan) for t in tables]


def _joined_path(paths: Sequence[AnnealingPath | None]) -> AnnealingPath | None:
    """Datapoints with fewer temperatures than others wait at 1, where nothing is known of them any more."""
    known = [path for path in paths if path is not None]
    if len(known) < len(paths):
        return None
    most = max(len(path.betas) for path in known)
    fills = {"betas": 1.0, "acceptance": np.nan, "spread": np.nan}
    tables = {
        name: [np.pad(getattr(p, name), ((0, most - len(p.betas)), (0, 0)), constant_values=fill) for p in known]
        for name, fill in fills.items()
    }
    return AnnealingPath(**{name: np.concatenate(parts, 1) for name, parts in tables.items()})
