r"""The ledger: for each datapoint, how much the guide loses and to what.

.. math:: \underbrace{\log p(x) - L_{guide}}_{\text{inference gap}} =
          \underbrace{\log p(x) - L^*}_{\text{approximation gap}} + \underbrace{L^* -
          L_{guide}}_{\text{amortization gap}}

with L* the best ELBO of the guide's own family, fitted to the datapoint by itself. All in nats, one row a
datapoint. Letters: S draws, N datapoints. Source: Cremer, Li and Duvenaud (2018), "Inference suboptimality in
variational autoencoders".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.errors import ArgumentError, check_count
from amortize.inference.ais import AIS
from amortize.inference.auto import Auto
from amortize.inference.evidence import evidence as measure_evidence
from amortize.inference.importance import ImportanceSampling
from amortize.inference.local import fit_local
from amortize.inference.method import Method
from amortize.program.data import Data
from amortize.program.density import require_guide
from amortize.program.discover import run_recorded
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.study.advice import advise
from amortize.study.guide_family import guide_family as find_guide_family

__all__ = ["Ledger", "gaps", "guide_treatment", "ledger_from", "summarise"]

Vector = NDArray[np.float64]


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


class LocalPart(Protocol):
    """What the ledger takes of a local posterior: (N,) each."""

    @property
    def elbo(self) -> Vector: ...
    @property
    def elbo_se(self) -> Vector: ...
    @property
    def converged(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, eq=False)
class Ledger:
    """The gaps of each datapoint, their summary, and what would pay.

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
        "mean-field", "full-covariance" or "other"; "none" without a guide.
    families
        The families that were fitted.
    evidence, local
        What the ledger was made from; local by family.
    settings
        How the numbers came about; ``reference`` names the family that splits the gap.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    advice: str
    guide_family: str
    families: tuple[str, ...]
    evidence: Any
    local: dict[str, Any]
    settings: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.summary.round(3).to_string()}\n{self.advice}"


def gaps(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    families: Sequence[str] = ("mean-field", "full-covariance"),
    method: Method | str | None = None,
    num_draws: int = 1000,
    seed: int = 0,
    device: str | None = None,
) -> Ledger:
    """Split the guide's loss into gaps that each have a remedy, datapoint by datapoint.

    Parameters
    ----------
    program
        A program with a guide.
    x
        Data, N datapoints.
    families
        Families to fit to each datapoint by itself; without the guide's own, the best of them stands in for
        it.
    method
        How to measure log p(x), as in ``am.evidence``: ``am.AIS(...)`` (the default), "auto", and so on.
    num_draws
        S, draws of the guide behind its ELBO, k-hat and effective sample size.
    seed, device
        Of all stages; each draws from a stream of its own.

    Raises
    ------
    ContractError
        The program breaks the contract, or has no guide.
    ArgumentError
        An argument is wrong.

    Examples
    --------
    >>> import amortize as am
    >>> model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    >>> x = model.simulate(4)
    >>> method = am.AIS(num_chains=16, num_temperatures=30)
    >>> ledger = am.gaps(model.program(), x, families=("mean-field",), method=method, num_draws=50)
    >>> ledger.guide_family, ledger.table.shape
    ('mean-field', (4, 14))
    """
    require_program(program)
    require_guide(program)
    _check_families(families)
    num_draws = check_count("num_draws", num_draws, 2)  # a standard error takes two
    method = AIS() if method is None else Auto() if isinstance(method, str) and method == "auto" else method
    if not isinstance(method, Method):
        raise ArgumentError(f"method: expected 'auto', am.AIS(...) or the settings of another method, got {method!r}")
    data = program.prepare(x, device=device)
    family = find_guide_family(program, data)
    importance = measure_evidence(
        program,
        data,
        method=ImportanceSampling(num_draws),
        start="guide",
        discrete=guide_treatment(program, data),
        seed=seed,
        device=device,
    )
    families = tuple(families) if program.structure(data).dim else ()  # where all is discrete there is none to fit
    local = {name: fit_local(program, data, family=name, seed=seed, device=device) for name in families}
    evidence = measure_evidence(program, data, method=method, seed=seed, device=device)
    settings = {
        "method": {"name": type(method).__name__, **method.settings()},
        "num_draws": num_draws,
        "seed": seed,
        "device": device,
    }
    all_discrete = not program.structure(data).dim
    return ledger_from(evidence, importance, local, guide_family=family, settings=settings, all_discrete=all_discrete)


def guide_treatment(program: Program, data: Data) -> str | None:
    """How to treat discrete latents where a guide is judged: "sample" where they are all it draws, else as ever.

    With every latent summed out, the evidence is exact and nothing is left of the guide.
    """
    structure = program.structure(data)
    if structure.dim or program.guide is None:
        return None
    drawn = run_recorded(program.guide, data.rows(slice(0, 2)))
    return "sample" if set(structure.discrete) <= set(drawn) else None


def ledger_from(
    evidence: EvidencePart,
    importance: EvidencePart | None,
    local: Mapping[str, LocalPart],
    *,
    guide_family: str | None,
    settings: Mapping[str, Any] | None = None,
    all_discrete: bool = False,
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
        Kept in the ledger, with ``reference`` and ``num_unconverged`` added.
    all_discrete
        Whether there is no continuous latent, and so no family to fit.

    Raises
    ------
    ArgumentError
        The parts aren't of the same datapoints.
    """
    _check_sizes(evidence, importance, local)
    unconverged = {name: int(np.sum(~np.asarray(part.converged, dtype=bool))) for name, part in local.items()}
    if importance is None:
        guide_family = "none"
    own = guide_family if guide_family in local else None
    reference = own or (f"best of {', '.join(local)}" if local else None)
    table = _table(evidence, importance, local, own)
    return Ledger(
        table=table,
        summary=summarise(table),
        advice=advise(
            table,
            reference=own,
            evidence_ess=np.asarray(evidence.ess),
            unconverged=unconverged,
            all_discrete=all_discrete,
        ),
        guide_family=guide_family or "other",
        families=tuple(local),
        evidence=evidence,
        local=dict(local),
        settings={**(settings or {}), "reference": reference, "num_unconverged": unconverged},
    )


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
        columns[f"elbo_{name.replace('-', '_')}"] = (_vector(part.elbo), _vector(part.elbo_se))
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


def _check_families(families: Sequence[str]) -> None:
    if not isinstance(families, (tuple, list)) or len(set(families)) != len(families):
        raise ArgumentError(f"families: expected a tuple of different names, as in ('mean-field',), got {families!r}")


def _check_sizes(evidence: EvidencePart, importance: EvidencePart | None, local: Mapping[str, LocalPart]) -> None:
    num = len(evidence.log_evidence)
    sizes = {} if importance is None else {"importance": np.shape(importance.log_weights)[-1]}
    sizes |= {f"local[{name!r}]": len(part.elbo) for name, part in local.items()}
    for name, size in sizes.items():
        if size != num:
            raise ArgumentError(f"{name}: expected the {num} datapoints of evidence, got {size}.")
