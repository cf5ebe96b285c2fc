r"""The ledger, made from its parts: for each datapoint, how much the guide loses and to what.

.. math:: \underbrace{\log p(x) - L_{guide}}_{\text{inference gap}} =
          \underbrace{\log p(x) - L^*}_{\text{approximation gap}} + \underbrace{L^* -
          L_{guide}}_{\text{amortization gap}}

with L* the best ELBO of the guide's own family, fitted to the datapoint by itself. All in nats, one row a
datapoint. Letters: S draws, N datapoints, D latents, K looks at a fit on its way. Source: Cremer, Li and Duvenaud
(2018), "Inference suboptimality in variational autoencoders".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.errors import ArgumentError
from amortize.study.advice import advise
from amortize.study.causes import Clues, find_cause
from amortize.study.cost import TracedPart, TrainingCost, break_even, cost, curve
from amortize.study.findings import examine
from amortize.study.splits import by_label, compare_splits, read_labels
from amortize.study.tower import by_richness, elbo_column, tower

__all__ = ["Extras", "Ledger", "ledger_from", "summarise"]

Vector = NDArray[np.float64]
BOUNDLESS = ("point",)
"""Families whose value is no bound on log p(x), and so no rung."""


class EvidencePart(Protocol):
    """What the ledger takes of an evidence: (N,) each, and for the guide's draws log weights (S, N)."""

    @property
    def log_evidence(self) -> Vector: ...
    @property
    def se(self) -> Vector: ...
    @property
    def ess(self) -> Vector: ...
    @property
    def khat(self) -> Vector: ...
    @property
    def log_weights(self) -> Vector: ...
    @property
    def num_gradients(self) -> NDArray[Any]: ...
    @property
    def seconds(self) -> float: ...


class LocalPart(TracedPart, Protocol):
    """What the ledger takes of a local posterior: (N,) each, and the fit on its way."""

    @property
    def elbo_se(self) -> Vector: ...
    @property
    def converged(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, eq=False)
class Ledger:
    """The gaps of each datapoint, their summary, their cause, and what would pay.

    Attributes
    ----------
    table
        A row a datapoint: log_evidence, elbo_guide, elbo_<family>, inference_gap, approximation_gap,
        amortization_gap (nats), khat and ess of the guide's importance weights, then the Monte Carlo standard
        error ``<column>_se`` of each but the last two. A value that isn't finite marks a datapoint that
        failed there. Without a guide: log_evidence, elbo_<family>, approximation_gap and their errors.
    summary
        A row for each of these columns: mean over the datapoints where it is finite, se (over datapoints: a
        paired standard error for the gaps), mc_se (Monte Carlo alone; NaN where one is unknown), num_failed (how
        many are left out).
    advice
        One or two sentences.
    guide_family
        "mean-field", "low-rank", "full-covariance" or "other"; "none" without a guide.
    families
        The families that were fitted, from poor to rich.
    evidence, local
        What the ledger was made from; local by family.
    settings
        How the numbers came about; ``reference`` names the family that splits the gap.
    tower
        A row a step from the guide over the families to log_evidence: what it gains
        (`amortize.study.tower.tower`); no rows where there is neither guide nor family.
    cost
        A row a method, "guide", the families and "log_evidence": seconds, gradients and quality
        (`amortize.study.cost.cost`).
    cause
        One of `amortize.study.causes.CAUSES`.
    clues
        What the cause rests on beside the table.
    splits
        A row a column of the table: training data against these (`amortize.study.splits.compare_splits`); None
        without training data.
    train
        The ledger on training data; None without them.
    latents
        A row a dimension of the guide (`amortize.study.latents.latents`); None without a guide or without continuous
        latents.
    break_even
        A row a family: from how many datapoints on the guide's training is cheaper (`amortize.study.cost.break_even`);
        None where the training isn't known.
    labels
        (N,) labels or covariate of the datapoints, or None.
    unaided
        Local posteriors whose fits began at the prior, by family: what inference without a guide would have taken.
    training
        What the guide's training took, as far as it is known.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    advice: str
    guide_family: str
    families: tuple[str, ...]
    evidence: Any
    local: dict[str, Any]
    settings: dict[str, Any]
    tower: pd.DataFrame
    cost: pd.DataFrame
    cause: str
    clues: Clues = field(default_factory=Clues)
    splits: pd.DataFrame | None = None
    train: Ledger | None = None
    latents: pd.DataFrame | None = None
    break_even: pd.DataFrame | None = None
    labels: NDArray[Any] | None = None
    unaided: dict[str, Any] = field(default_factory=dict)
    training: TrainingCost | None = None

    def __str__(self) -> str:
        return f"{self.summary.round(3).to_string()}\n{self.advice}"

    def by(self, labels: Any = None, *, num_groups: int = 4) -> pd.DataFrame:
        """The gaps by label, or by a covariate that is cut into groups (`amortize.study.splits.by_label`).

        Parameters
        ----------
        labels
            (N,) one a datapoint; None takes those of the ledger.
        num_groups
            Groups of a covariate.

        Returns
        -------
        pandas.DataFrame
            A row a label: num, num_failed, mean and se of each gap, and by how much the gap differs from that of all
            other datapoints (difference, difference_se, z, worse).

        Raises
        ------
        ArgumentError
            Where there are no labels, or they are not one a datapoint.
        """
        own = self.labels if labels is None else labels
        if own is None:
            raise ArgumentError("labels: the ledger has none; pass one for each datapoint, as in ledger.by(labels)")
        return by_label(self.table, own, num_groups=num_groups)

    def curve(self) -> pd.DataFrame:
        """Quality against time of each method (`amortize.study.cost.curve`).

        Returns
        -------
        pandas.DataFrame
            Rows a look: method, seconds, seconds_per_datapoint, gradients_per_datapoint, elbo (nats), se.
        """
        return curve(self.table, self.local, self.cost, self.unaided)

    def with_unaided(self, unaided: Mapping[str, LocalPart]) -> Ledger:
        """The same ledger with fits that began at the prior, hence with a break-even where the training is known."""
        own = dict(unaided)
        return replace(self, unaided=own, break_even=break_even(self.table, own, self.training))

    def with_clues(self, clues: Clues) -> Ledger:
        """The same numbers, judged anew in the light of other clues."""
        own = self.guide_family if self.guide_family in self.local else None
        finding = examine(self.table, reference=own)
        advice = advise(
            self.table,
            reference=own,
            evidence_ess=np.asarray(self.evidence.ess),
            unconverged=self.settings["num_unconverged"],
            all_discrete=self.settings["all_discrete"],
            clues=clues,
        )
        return replace(self, clues=clues, cause=find_cause(finding, clues), advice=advice)


@dataclass(frozen=True, eq=False)
class Extras:
    """What a ledger may be given beside evidence, guide and local posteriors; see `Ledger` for each.

    Attributes
    ----------
    latents, labels, train, unaided
        As the ledger's.
    multimodal
        Share of datapoints with several modes, where that was looked at.
    training
        What the guide's training took.
    """

    latents: pd.DataFrame | None = None
    labels: Any = None
    train: Ledger | None = None
    unaided: Mapping[str, LocalPart] = field(default_factory=dict)
    multimodal: float = math.nan
    training: TrainingCost | None = None


def ledger_from(  # noqa: PLR0913 (a part each)
    evidence: EvidencePart,
    importance: EvidencePart | None,
    local: Mapping[str, LocalPart],
    *,
    guide_family: str | None,
    settings: Mapping[str, Any] | None = None,
    all_discrete: bool = False,
    extras: Extras | None = None,
) -> Ledger:
    """Make the ledger from its parts, without drawing anything.

    Parameters
    ----------
    evidence
        Log evidence of N datapoints.
    importance
        Importance sampling from the guide on the same datapoints: its log weights (S, N) give the guide's
        ELBO. None where there is no guide: then the gap is that of the best fitted posterior alone.
    local
        Local posteriors by family, on the same datapoints.
    guide_family
        The guide's family, or None where it isn't known.
    settings
        Kept in the ledger, with ``reference``, ``num_unconverged`` and ``all_discrete`` added.
    all_discrete
        Whether there is no continuous latent, and so no family to fit.
    extras
        What else is known.

    Raises
    ------
    ArgumentError
        The parts aren't of the same datapoints, or a family has no ELBO.
    """
    extras = extras or Extras()
    _check_parts(evidence, importance, local)
    local = {name: local[name] for name in by_richness(local)}
    labels = None if extras.labels is None else np.asarray(extras.labels)
    if labels is not None:
        read_labels(labels, len(evidence.log_evidence))
    unconverged = {name: int(np.sum(~np.asarray(part.converged, dtype=bool))) for name, part in local.items()}
    if importance is None:
        guide_family = "none"
    own = guide_family if guide_family in local else None
    table = _table(evidence, importance, local, own)
    ledger = Ledger(
        table=table,
        summary=summarise(table),
        advice="",
        cause="",
        guide_family=guide_family or "other",
        families=tuple(local),
        evidence=evidence,
        local=dict(local),
        settings={
            **(settings or {}),
            "reference": own or (f"best of {', '.join(local)}" if local else None),
            "num_unconverged": unconverged,
            "all_discrete": all_discrete,
        },
        tower=tower(table, tuple(local)),
        cost=cost(table, local, evidence, extras.training),
        splits=None if extras.train is None else compare_splits(extras.train.table, table),
        train=extras.train,
        latents=extras.latents,
        break_even=break_even(table, extras.unaided, extras.training),
        labels=labels,
        unaided=dict(extras.unaided),
        training=extras.training,
    )
    return ledger.with_clues(replace(_of_splits(ledger.splits), multimodal=extras.multimodal))


def _of_splits(splits: pd.DataFrame | None) -> Clues:
    if splits is None or "amortization_gap" not in splits.index:
        return Clues()
    mean, difference, se = (
        float(splits[name].to_dict()["amortization_gap"]) for name in ("train", "difference", "difference_se")
    )
    return Clues(train_amortization=mean, generalisation=difference, generalisation_se=se)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise the columns of a ledger's table over datapoints: mean, se, mc_se, num_failed."""
    names = [name for name in table.columns if not name.endswith("_se")]
    rows = {name: _summary_row(table[name], table.get(f"{name}_se")) for name in names}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "se", "mc_se", "num_failed"])
    return frame.astype({"num_failed": int})


def _summary_row(column: pd.Series, row_se: pd.Series | None) -> tuple[float, float, float, int]:
    values = column.to_numpy(dtype=np.float64)
    finite = np.isfinite(values)
    num = int(finite.sum())
    kept = values[finite]
    mean = kept.mean() if num else np.nan
    se = kept.std(ddof=1) / np.sqrt(num) if num > 1 else np.nan
    mc_se = np.nan
    if row_se is not None and num:
        errors = row_se.to_numpy(dtype=np.float64)[finite]
        mc_se = np.sqrt(np.square(errors).sum()) / num  # one unknown error makes that of the mean unknown
        mc_se = mc_se if np.isfinite(mc_se) else np.nan
    return float(mean), float(se), float(mc_se), len(values) - num


def _table(
    evidence: EvidencePart, importance: EvidencePart | None, local: Mapping[str, LocalPart], own: str | None
) -> pd.DataFrame:
    log_evidence = (_vector(evidence.log_evidence), _vector(evidence.se))
    guide = None if importance is None else _elbo_of_weights(importance.log_weights)
    columns = {"log_evidence": log_evidence}
    if guide is not None:
        columns["elbo_guide"] = guide
    for name, part in local.items():
        columns[elbo_column(name)] = (_vector(part.elbo), _vector(part.elbo_se))
    if guide is not None:
        columns["inference_gap"] = _difference(log_evidence, guide)
    if local:
        best = _reference(local, own)
        columns["approximation_gap"] = _difference(log_evidence, best)
        if guide is not None:
            columns["amortization_gap"] = _difference(best, guide)
    values = {name: value for name, (value, _) in columns.items()}
    if importance is not None and len(importance.log_weights) > 1:  # one weight is exact: there are no draws to judge
        values |= {"khat": _vector(importance.khat), "ess": _vector(importance.ess)}
    values |= {f"{name}_se": se for name, (_, se) in columns.items()}
    return pd.DataFrame(values, index=pd.RangeIndex(len(log_evidence[0]), name="datapoint"))


def _elbo_of_weights(log_weights: Vector) -> tuple[Vector, Vector]:
    """The guide's ELBO, the mean log weight, and its standard error: (N,) each of (S, N)."""
    weights = np.asarray(log_weights, dtype=np.float64)
    if len(weights) == 1:  # nothing is left to draw: every latent is summed out
        return weights[0], np.zeros(weights.shape[1])
    with np.errstate(invalid="ignore"):  # a weight of zero makes the ELBO -inf, and its error unknown
        return weights.mean(axis=0), weights.std(axis=0, ddof=1) / np.sqrt(len(weights))


def _reference(local: Mapping[str, LocalPart], own: str | None) -> tuple[Vector, Vector]:
    """The best ELBO of the guide's own family, or where that wasn't fitted the best of those that were."""
    parts = [local[own]] if own is not None else list(local.values())
    elbo, se = (np.stack([_vector(getattr(part, name)) for part in parts]) for name in ("elbo", "elbo_se"))
    best = np.where(np.isnan(elbo), -np.inf, elbo).argmax(axis=0)
    rows = np.arange(elbo.shape[1])
    return elbo[best, rows], se[best, rows]


def _difference(upper: tuple[Vector, Vector], lower: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    with np.errstate(invalid="ignore"):  # -inf less -inf is unknown
        return upper[0] - lower[0], np.hypot(upper[1], lower[1])


def _vector(values: Any) -> Vector:
    return np.asarray(values, dtype=np.float64)


def _check_parts(evidence: EvidencePart, importance: EvidencePart | None, local: Mapping[str, LocalPart]) -> None:
    for name in local:
        if name in BOUNDLESS:
            raise ArgumentError(
                f"local: {name!r} posteriors have no density, hence no ELBO to put in a ledger; leave them out"
            )
    num = len(evidence.log_evidence)
    sizes = {} if importance is None else {"importance": np.shape(importance.log_weights)[-1]}
    sizes |= {f"local[{name!r}]": len(part.elbo) for name, part in local.items()}
    for name, size in sizes.items():
        if size != num:
            raise ArgumentError(f"{name}: expected the {num} datapoints of evidence, got {size}.")
