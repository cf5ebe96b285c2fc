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
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.errors import ArgumentError
from amortize.study.advice import advise
from amortize.study.causes import Clues, find_cause
from amortize.study.cost import TrainingCost, break_even, cost, curve
from amortize.study.findings import examine
from amortize.study.gap_table import EvidencePart, LocalPart, gap_table, summarise
from amortize.study.splits import by_label, compare_splits, read_labels
from amortize.study.tower import by_richness, tower

__all__ = ["Extras", "Ledger", "ledger_from", "summarise"]

POINT = "point"
"""What a guide is called that is a Delta: it has no density, hence no ELBO."""
BOUNDLESS = (POINT,)
"""Families whose value is no bound on log p(x), and so no rung."""


@dataclass(frozen=True, eq=False)
class Ledger:
    """The gaps of each datapoint, their summary, their cause, and what would pay.

    Attributes
    ----------
    table
        A row a datapoint: log_evidence, elbo_guide, elbo_<family>, inference_gap, approximation_gap,
        amortization_gap (nats), khat and ess of the guide's importance weights, then the Monte Carlo standard
        error ``<column>_se`` of each but the last two. A value that isn't finite marks a datapoint that
        failed there. Without a guide, or with one that is a point: log_evidence, elbo_<family>, approximation_gap and
        their errors.
    summary
        A row for each of these columns: mean over the datapoints where it is finite, se (over datapoints: a
        paired standard error for the gaps), mc_se (Monte Carlo alone; NaN where one is unknown), num_failed (how
        many are left out).
    advice
        One or two sentences.
    guide_family
        "mean-field", "low-rank", "full-covariance" or "other"; "none" without a guide, "point" where it is one.
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
        ELBO. None where there is no guide, or one that is a point: then the gap is that of the best fitted posterior.
    local
        Local posteriors by family, on the same datapoints.
    guide_family
        The guide's family, "point" where it has no density, or None where it isn't known.
    settings
        Kept in the ledger, with ``reference``, ``num_unconverged`` and ``all_discrete`` added.
    all_discrete
        Whether there is no continuous latent, or a discrete one that is drawn beside it, and so no family to fit.
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
    if importance is None and guide_family != POINT:
        guide_family = "none"
    own = guide_family if guide_family in local else None
    table = gap_table(evidence, importance, local, own)
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
    clues = replace(_of_splits(ledger.splits), multimodal=extras.multimodal, point=guide_family == POINT)
    return ledger.with_clues(clues)


def _of_splits(splits: pd.DataFrame | None) -> Clues:
    if splits is None or "amortization_gap" not in splits.index:
        return Clues()
    mean, difference, se = (
        float(splits[name].to_dict()["amortization_gap"]) for name in ("train", "difference", "difference_se")
    )
    return Clues(train_amortization=mean, generalisation=difference, generalisation_se=se)


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
