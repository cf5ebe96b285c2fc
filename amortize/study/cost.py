r"""What each method costs, the quality it reaches with time, and from how many datapoints on amortization is cheaper.

A guide costs its training once and then a forward pass a datapoint; a local posterior costs its fit for each. At equal
quality, that of the guide's ELBO, the two cost the same at

.. math:: N^* = \frac{\text{training}}{\text{fit to the guide's ELBO, a datapoint} - \text{forward pass}}.

In seconds this is true of the machine at hand; in gradients of the log joint of a datapoint it is true of any. Letters:
N datapoints, K looks at a fit on its way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.inference.fitted import Fitted
from amortize.inference.starts import GuideStart
from amortize.program.data import Data
from amortize.program.points import has_density
from amortize.program.program import Program
from amortize.study.findings import column
from amortize.study.tower import elbo_column

__all__ = ["BREAK_EVEN_COLUMNS", "COLUMNS", "CURVE_COLUMNS", "TrainingCost", "break_even", "cost", "curve"]

COLUMNS = [
    "seconds",
    "seconds_per_datapoint",
    "gradients_per_datapoint",
    "elbo",
    "training_seconds",
    "training_gradients",
]
CURVE_COLUMNS = ["method", "seconds", "seconds_per_datapoint", "gradients_per_datapoint", "elbo", "se"]
BREAK_EVEN_COLUMNS = [
    "reached", "seconds_per_datapoint", "gradients_per_datapoint", "num_datapoints", "num_datapoints_by_gradients",
]  # fmt: skip
NUM_PASSES = 3

Vector = NDArray[np.float64]


class CostPart(Protocol):
    """What a cost is read off: an evidence or a local posterior."""

    @property
    def seconds(self) -> float: ...
    @property
    def num_gradients(self) -> NDArray[Any]: ...


class TracedPart(CostPart, Protocol):
    """A local posterior (N,), with its fit on the way: (K,), (K,) and (K, N)."""

    @property
    def elbo(self) -> Vector: ...
    @property
    def trace_seconds(self) -> Vector: ...
    @property
    def trace_num_gradients(self) -> Vector: ...
    @property
    def trace_elbo(self) -> Vector: ...


@dataclass(frozen=True)
class TrainingCost:
    """What a guide's training took, and a forward pass.

    Attributes
    ----------
    seconds, num_gradients
        Of the training; gradients of the log joint of one datapoint at one draw. NaN where it isn't known.
    pass_seconds
        One draw of the guide for all N datapoints.
    """

    seconds: float = np.nan
    num_gradients: float = np.nan
    pass_seconds: float = np.nan

    @classmethod
    def of(cls, fitted: Fitted | None, program: Program, data: Data, *, seed: int) -> TrainingCost:
        """Read off a training, and a forward pass timed."""
        seconds = pass_seconds(program, data, seed=seed)
        if fitted is None:
            return cls(pass_seconds=seconds)
        return cls(fitted.seconds, _training_gradients(fitted), seconds)


def pass_seconds(program: Program, data: Data, *, seed: int) -> float:
    """Seconds that one draw of the guide takes for all datapoints: the median of a few; NaN without a density."""
    if not has_density(program, data):
        return float("nan")
    taken = []
    with program.evaluating():
        start = GuideStart(program.guide_density(data))
        for number in range(NUM_PASSES):
            begin = time.perf_counter()
            start.draw(data, seed, f"pass-{number}")
            taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def cost(
    table: pd.DataFrame, local: Mapping[str, CostPart], evidence: CostPart, training: TrainingCost | None
) -> pd.DataFrame:
    """What each method took, and what it reached.

    Returns
    -------
    pandas.DataFrame
        Rows "guide" (if there is one), the families, "log_evidence". ``seconds`` for all N datapoints (of the guide:
        one draw), ``seconds_per_datapoint``, ``gradients_per_datapoint`` (of the log joint), ``elbo`` (mean over
        datapoints where it is finite, nats; of "log_evidence" the evidence), ``training_seconds`` and
        ``training_gradients`` (0 but for the guide; NaN where its training isn't known).
    """
    num = len(table)
    rows: dict[str, tuple[float, ...]] = {}
    if "elbo_guide" in table:
        training = training or TrainingCost()
        seconds = training.pass_seconds
        rows["guide"] = (seconds, seconds / num, 0.0, _mean(table, "guide"), training.seconds, training.num_gradients)
    for name, part in {**local, "log_evidence": evidence}.items():
        gradients = np.asarray(part.num_gradients, dtype=np.float64)
        seconds = float(part.seconds)
        rows[name] = (seconds, seconds / num, float(gradients.mean()), _mean(table, name), 0.0, 0.0)
    return pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("method")


def curve(
    table: pd.DataFrame, local: Mapping[str, TracedPart], costs: pd.DataFrame, unaided: Mapping[str, TracedPart]
) -> pd.DataFrame:
    """Quality against time; fits without the guide's help are called "<family>, from the prior".

    Returns
    -------
    pandas.DataFrame
        Rows a look at a fit on its way, by its optimiser's own draws, then a last one for each method, by fresh draws:
        ``method``, ``seconds`` (all N datapoints), ``seconds_per_datapoint``, ``gradients_per_datapoint``, ``elbo``
        (mean over datapoints, nats) and ``se`` (over datapoints). Training is not in the guide's time.
    """
    num = len(table)
    rows = []
    for name, part in {**local, **{f"{name}, from the prior": part for name, part in unaided.items()}}.items():
        for seconds, gradients, elbo in zip(part.trace_seconds, part.trace_num_gradients, part.trace_elbo, strict=True):
            rows.append((name, float(seconds), float(seconds) / num, float(gradients), *_mean_se(elbo)))
        if name not in local:
            rows.append(
                (name, part.seconds, part.seconds / num, float(np.mean(part.num_gradients)), *_mean_se(part.elbo))
            )
    for name in costs.index:
        own = column(table, elbo_column(name))
        seconds, gradients = costs.loc[name, "seconds"], costs.loc[name, "gradients_per_datapoint"]
        rows.append((name, seconds, seconds / num, gradients, *_mean_se(own)))
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def break_even(
    table: pd.DataFrame, unaided: Mapping[str, TracedPart], training: TrainingCost | None
) -> pd.DataFrame | None:
    """From how many datapoints on training the guide is cheaper than fits that reach its mean ELBO.

    Parameters
    ----------
    table
        `Ledger.table`.
    unaided
        Fits by family that began at the prior: those that begin at the guide have its training behind them.
    training
        What the guide took.

    Returns
    -------
    pandas.DataFrame or None
        A row a family: whether it ``reached`` the guide's ELBO, at what ``seconds_per_datapoint`` and
        ``gradients_per_datapoint``, and the break-even ``num_datapoints`` by seconds and by gradients. A family that
        never gets there has NaN: at that quality there is no choice. Infinite where a fit costs no more than the
        guide's pass. None without a guide, such fits, or a known training.
    """
    if training is None or not np.isfinite(training.seconds) or "elbo_guide" not in table or not unaided:
        return None
    rows = {}
    for name, part in unaided.items():
        seconds, gradients = _reaching(column(table, "elbo_guide"), part)
        each = seconds / len(table)
        by_seconds = _ratio(training.seconds, each - training.pass_seconds / len(table))
        rows[name] = (
            bool(np.isfinite(seconds)),
            each,
            gradients,
            by_seconds,
            _ratio(training.num_gradients, gradients),
        )
    return pd.DataFrame.from_dict(rows, orient="index", columns=BREAK_EVEN_COLUMNS).rename_axis("family")


def _reaching(guide: Vector, part: TracedPart) -> tuple[float, float]:
    """Seconds of all datapoints, and gradients of one, at which the fits' mean ELBO first was the guide's."""
    both = np.isfinite(guide) & np.isfinite(part.elbo)
    target = float(guide[both].mean()) if both.any() else np.nan
    for seconds, gradients, elbo in zip(part.trace_seconds, part.trace_num_gradients, part.trace_elbo, strict=True):
        if elbo[both].mean() >= target:
            return float(seconds), float(gradients)
    if both.any() and part.elbo[both].mean() >= target:
        return float(part.seconds), float(np.mean(part.num_gradients))
    return float("nan"), float("nan")


def _training_gradients(fitted: Fitted) -> float:
    """Gradients of the log joint of one datapoint at one draw, those of steps that the guide took alone among them."""
    own = fitted.settings.get("objective", {})
    steps = float(len(fitted.history))
    if "inner_steps" in fitted.history:  # of aggressive training
        steps += float(fitted.history["inner_steps"].sum())
    return steps * float(fitted.settings["batch_size"]) * (_gradients_a_datapoint(own) if isinstance(own, dict) else 1)


def _gradients_a_datapoint(objective: Mapping[str, Any]) -> float:
    """Of one training step: one a particle; of objectives that move draws, one a draw and step besides."""
    particles = objective.get("num_particles", objective.get("num_chains", 1))
    draws = objective.get("num_draws", particles)
    return float(particles + draws * objective.get("num_steps", 0))


def _ratio(training: float, each: float) -> float:
    if np.isnan(training) or np.isnan(each):
        return float("nan")
    return training / each if each > 0 else float("inf")


def _mean(table: pd.DataFrame, rung: str) -> float:
    values = column(table, elbo_column(rung))
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _mean_se(values: Vector) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
