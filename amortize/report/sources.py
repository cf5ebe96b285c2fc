"""What the tree asks of the objects it is made from: shapes of results, not classes.

Any object with these attributes will do; nothing here, or above it in ``amortize.report``, imports torch.

Shapes: C chains or draws behind one estimate, N datapoints. All numbers are float64; log densities in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.diagnostics.measured import Measured

__all__ = ["EvidenceLike", "LedgerLike", "LocalLike", "SandwichLike", "SimulatedLike", "UsageLike"]


class EvidenceLike(Measured, Protocol):
    """Evidence of each datapoint, as ``am.evidence`` returns it: what diagnostics judge, and how it came about."""

    @property
    def lower(self) -> NDArray[np.float64] | None:
        """(N,) nats, a stochastic lower bound, or None."""

    @property
    def upper(self) -> NDArray[np.float64] | None:
        """(N,) nats, a stochastic upper bound, or None."""

    @property
    def used(self) -> NDArray[Any]:
        """(N,) name of the method used for each datapoint."""

    @property
    def num_gradients(self) -> NDArray[np.float64]:
        """(N,) gradient evaluations it took; a value counts as a third."""

    @property
    def trusted(self) -> NDArray[np.bool_]:
        """(N,) whether the number can be relied on."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong and what to do, in plain words."""

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before all datapoints were done."""

    @property
    def simulated(self) -> SimulatedLike | None:
        """The error that the method makes on simulated data, if it was measured."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-able settings of the method."""

    @property
    def seed(self) -> int | None:
        """Seed of the run."""

    @property
    def start(self) -> str:
        """Where it started: "guide", "prior" or a local posterior."""

    @property
    def seconds(self) -> float:
        """Wall-clock time."""


class SandwichLike(Protocol):
    """Log p(x) of M datapoints from below and above, as ``am.bdmc`` returns it."""

    @property
    def lower(self) -> NDArray[np.float64]:
        """(M,) nats, lower bounds in expectation."""

    @property
    def lower_se(self) -> NDArray[np.float64]:
        """(M,) nats."""

    @property
    def upper(self) -> NDArray[np.float64]:
        """(M,) nats, upper bounds in expectation where ``exact``."""

    @property
    def upper_se(self) -> NDArray[np.float64]:
        """(M,) nats."""

    @property
    def mean_gap(self) -> float:
        """Mean of upper less lower, nats."""

    @property
    def gap_se(self) -> float:
        """Its standard error over datapoints."""

    @property
    def exact(self) -> bool:
        """Whether ``upper`` is a bound."""

    @property
    def draws(self) -> str:
        """Where reversed runs start."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-able settings of the method."""

    @property
    def start(self) -> str:
        """Where forward runs start."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def seconds(self) -> float:
        """Wall-clock time."""


class SimulatedLike(Protocol):
    """The error of a method on data simulated from the model, as ``am.evidence(error="simulated")`` measures it."""

    @property
    def errors(self) -> NDArray[np.float64]:
        """(M,) nats, upper bound less estimate on simulated data."""

    @property
    def mean(self) -> float:
        """Mean error, nats."""

    @property
    def se(self) -> float:
        """Its standard error over simulated datapoints, nats."""

    @property
    def outside(self) -> float:
        """Share of real datapoints far outside the range of the simulated ones."""

    @property
    def harder(self) -> float:
        """How many times as much the log weights of real datapoints vary."""

    @property
    def sandwich(self) -> SandwichLike:
        """The bounds on simulated data."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the error may not be that on the real data."""


class LocalLike(Protocol):
    """Posteriors fitted for each datapoint by itself, as ``am.fit_local`` returns them."""

    @property
    def elbo(self) -> NDArray[np.float64]:
        """(N,) nats, on fresh draws."""

    @property
    def elbo_se(self) -> NDArray[np.float64]:
        """(N,) nats."""

    @property
    def converged(self) -> NDArray[np.bool_]:
        """(N,) whether the fit stopped by itself."""

    @property
    def num_steps(self) -> NDArray[np.int64]:
        """(N,) steps taken."""

    @property
    def num_gradients(self) -> NDArray[np.float64]:
        """(N,) gradients of the log joint."""

    @property
    def family_settings(self) -> Mapping[str, Any]:
        """JSON-able settings of the family."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-able settings of the fit."""

    @property
    def seconds(self) -> float:
        """Wall-clock time."""


class LedgerLike(Protocol):
    """The gaps of each datapoint, as ``am.gaps`` returns them."""

    @property
    def table(self) -> pd.DataFrame:
        """A row a datapoint, nats."""

    @property
    def summary(self) -> pd.DataFrame:
        """A row a column of ``table``: mean, se, mc_se, num_failed."""

    @property
    def cause(self) -> str:
        """What is to blame, one of a closed list."""

    @property
    def clues(self) -> Any:
        """A dataclass of numbers that the cause rests on beside the table."""

    @property
    def tower(self) -> pd.DataFrame:
        """A row a step between rungs."""

    @property
    def cost(self) -> pd.DataFrame:
        """A row a method."""

    @property
    def splits(self) -> pd.DataFrame | None:
        """A row a quantity: training data against others."""

    @property
    def latents(self) -> pd.DataFrame | None:
        """A row a dimension of the guide."""

    @property
    def break_even(self) -> pd.DataFrame | None:
        """A row a family."""

    @property
    def labels(self) -> NDArray[Any] | None:
        """(N,) labels or covariate of the datapoints."""

    def by(self) -> pd.DataFrame:
        """The gaps by label, a row each."""

    def curve(self) -> pd.DataFrame:
        """Quality against time, a row a look."""

    @property
    def advice(self) -> str:
        """What would pay, in a sentence or two."""

    @property
    def guide_family(self) -> str:
        """Family of the guide."""

    @property
    def families(self) -> tuple[str, ...]:
        """Families that were fitted for each datapoint."""

    @property
    def evidence(self) -> EvidenceLike:
        """The evidence that the gaps are measured against."""

    @property
    def local(self) -> Mapping[str, LocalLike]:
        """The local posteriors by family."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-able settings."""


class UsageLike(Protocol):
    """How often each of K codes was used at each of P positions, as ``am.code_usage`` counts it for a site."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """(P, K)."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K,), they sum to 1."""

    @property
    def num_dead(self) -> int:
        """How many codes were never used."""

    @property
    def perplexity(self) -> float:
        """Of all positions together."""

    @property
    def perplexity_se(self) -> float:
        """Over datapoints."""

    @property
    def position_perplexities(self) -> NDArray[np.float64]:
        """(P,)."""

    @property
    def information(self) -> NDArray[np.float64]:
        """(P,) nats that each position tells of the datapoint."""
