"""Made-up results of the right shape: real digits or random vectors, with numbers of the test's own.

The gaps are drawn, not measured; only their sums and their summary are consistent, as a ledger's are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from amortize.diagnostics import assess, effective_sample_size
from amortize.report.tree import to_datatree

FAMILIES = ("mean-field", "full-covariance")


@dataclass(frozen=True)
class FakePath:
    betas: np.ndarray
    acceptance: np.ndarray
    spread: np.ndarray


def path(num: int, *, steps: int = 100, seed: int = 0, jump: bool = False, fast: float = 1.0) -> FakePath:
    """A path like that of AIS from a guide; with ``jump`` most of the way is one step's."""
    rng = np.random.default_rng(seed)
    betas = np.linspace(0, 1, steps + 1) ** (1.6 * fast)
    if jump:
        betas = np.where(betas > 0.4, 0.4 + (betas - 0.4) / 2, betas) + 0.3 * (betas > 0.4)
    spread = (1.2 + 6 * np.exp(-4 * betas))[:, None] * rng.lognormal(0, 0.4, num)
    spread = spread * rng.lognormal(0, 0.12, (steps + 1, num))
    acceptance = np.clip(0.8 + 0.05 * np.sin(5 * betas[1:, None]) + rng.normal(0, 0.05, (steps, num)), 0, 1)
    return FakePath(np.repeat(betas[:, None], num, axis=1), acceptance, spread * (20 if jump else 1))


@dataclass(frozen=True)
class FakeEvidence:
    log_evidence: np.ndarray
    se: np.ndarray
    log_weights: np.ndarray
    acceptance: np.ndarray
    num_nonfinite: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    used: np.ndarray | None = None
    num_gradients: np.ndarray | None = None
    path: FakePath | None = None
    interrupted: bool = False
    simulated: FakeSimulated | None = None
    method: str = "AIS"
    settings: dict[str, Any] = field(default_factory=lambda: {"num_chains": 16, "num_temperatures": 100})
    seed: int = 0
    start: str = "guide"
    seconds: float = 12.5

    def __post_init__(self) -> None:
        num = len(self.se)
        for name, value in (("used", np.full(num, self.method, dtype=object)), ("num_gradients", np.full(num, 2e4))):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def trusted(self) -> np.ndarray:
        return assess(self).trusted

    @property
    def warnings(self) -> tuple[str, ...]:
        return assess(self).warnings


@dataclass(frozen=True)
class FakeSandwich:
    lower: np.ndarray
    lower_se: np.ndarray
    upper: np.ndarray
    upper_se: np.ndarray
    exact: bool = True
    draws: str = "exact draws"
    method: str = "AIS"
    settings: dict[str, Any] = field(default_factory=lambda: {"num_chains": 16})
    start: str = "guide"
    seed: int = 4
    seconds: float = 9.0

    @property
    def mean_gap(self) -> float:
        return float(np.nanmean(self.upper - self.lower))

    @property
    def gap_se(self) -> float:
        gap = self.upper - self.lower
        return float(np.nanstd(gap, ddof=1) / np.sqrt(np.isfinite(gap).sum()))


def sandwich(num: int = 80, *, exact: bool = True) -> FakeSandwich:
    rng = np.random.default_rng(5)
    truth = rng.normal(-20.0, 4.0, num)
    se = 0.03 * rng.uniform(0.7, 1.4, (2, num))
    lower, upper = truth - rng.gamma(1.0, 0.05, num), truth + rng.gamma(1.0, 0.04, num)
    upper[3] = np.nan
    return FakeSandwich(lower, se[0], upper, se[1], exact)


@dataclass(frozen=True)
class FakeSimulated:
    sandwich: FakeSandwich
    outside: float = 0.0
    harder: float = 1.1
    warnings: tuple[str, ...] = ()

    @property
    def errors(self) -> np.ndarray:
        return self.sandwich.upper - self.sandwich.lower

    @property
    def mean(self) -> float:
        return self.sandwich.mean_gap

    @property
    def se(self) -> float:
        return self.sandwich.gap_se


@dataclass(frozen=True)
class FakeLocal:
    elbo: np.ndarray
    elbo_se: np.ndarray
    converged: np.ndarray
    num_steps: np.ndarray
    num_gradients: np.ndarray
    family_settings: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=lambda: {"num_draws": 8, "num_steps": 3000, "init": "guide"})
    seconds: float = 20.0


@dataclass(frozen=True)
class FakeLedger:
    table: pd.DataFrame
    summary: pd.DataFrame
    evidence: FakeEvidence
    local: dict[str, FakeLocal]
    advice: str = "Train the encoder longer, or make it larger: most of the loss is amortization."
    guide_family: str = "mean-field"
    families: tuple[str, ...] = FAMILIES
    settings: dict[str, Any] = field(default_factory=lambda: {"num_draws": 1000, "seed": 0})
    cause: str = "small-encoder"
    clues: dict[str, float] = field(default_factory=lambda: {"continued": 0.01, "continued_se": 0.02})
    labels: np.ndarray | None = None
    splits: pd.DataFrame | None = None
    latents: pd.DataFrame | None = None
    break_even: pd.DataFrame | None = None

    @property
    def tower(self) -> pd.DataFrame:
        rungs = [name for name in ("guide", *self.families, "log_evidence") if _column(name) in self.table]
        rises = {
            (low, high): (self.table[_column(high)] - self.table[_column(low)]).dropna()
            for low, high in itertools.pairwise(rungs)
        }
        rows = [
            (*step, rise.mean(), rise.std() / max(len(rise), 1) ** 0.5, 0.01, len(rise), 0)
            for step, rise in rises.items()
        ]
        return pd.DataFrame(rows, columns=["lower", "upper", "gain", "se", "mc_se", "num", "num_failed"])

    @property
    def cost(self) -> pd.DataFrame:
        names = ["guide", *self.families, "log_evidence"]
        columns = {
            "seconds": [0.01, 20.0, 30.0, 12.5],
            "seconds_per_datapoint": [0.0002, 0.33, 0.5, 0.2],
            "gradients_per_datapoint": [0.0, 9000.0, 12000.0, 17000.0],
            "elbo": [self.table[_column(name)].mean() if _column(name) in self.table else np.nan for name in names],
            "training_seconds": [60.0, 0.0, 0.0, 0.0],
            "training_gradients": [4e5, 0.0, 0.0, 0.0],
        }
        return pd.DataFrame(columns, index=names)

    def curve(self) -> pd.DataFrame:
        rows = []
        for name, part in self.local.items():
            for look in range(1, 20):
                elbo = np.nanmean(part.elbo) - 9 / look**2 if np.isfinite(part.elbo).any() else np.nan
                rows.append((name, 0.1 * look, 0.1 * look / 60, 80.0 * look, elbo, 0.5))
        names = ["method", "seconds", "seconds_per_datapoint", "gradients_per_datapoint", "elbo", "se"]
        return pd.DataFrame(rows, columns=names)

    def by(self) -> pd.DataFrame:
        gaps = [name for name in ("inference_gap", "approximation_gap", "amortization_gap") if name in self.table]
        rows = {}
        for label in np.unique(self.labels):
            own, rest = self.table[self.labels == label], self.table[self.labels != label]
            row = {"num": len(own), "num_failed": 0}
            for name in gaps:
                row |= {name: own[name].mean(), f"{name}_se": own[name].std() / len(own) ** 0.5}
            difference = own[gaps[0]].mean() - rest[gaps[0]].mean()
            z = difference / row[f"{gaps[0]}_se"]
            rows[str(label)] = {
                **row,
                "difference": difference,
                "difference_se": difference / z,
                "z": z,
                "worse": z > 3,
            }
        return pd.DataFrame.from_dict(rows, orient="index")


def _column(rung: str) -> str:
    return rung if rung == "log_evidence" else f"elbo_{rung.replace('-', '_')}"


def full_ledger(num: int = 60, *, seed: int = 0) -> FakeLedger:
    """A ledger with all that one may hold."""
    made, rng = ledger(num, seed=seed), np.random.default_rng(seed)
    kl = np.sort(rng.gamma(0.6, 1.2, 12))[::-1]
    latents = pd.DataFrame(
        {
            "site": "z",
            "index": np.arange(12),
            "kl": kl,
            "kl_se": 0.05 * kl,
            "kind": "density",
            "activity": kl / 4,
            "active": kl > 0.1,
        }
    )
    even = pd.DataFrame(
        {
            "reached": [True],
            "seconds_per_datapoint": 0.02,
            "gradients_per_datapoint": 900.0,
            "num_datapoints": 3000.4,
            "num_datapoints_by_gradients": 444.4,
        },
        index=["mean-field"],
    )
    labels = np.arange(num) % 3
    made.table.loc[labels == 1, ["inference_gap", "amortization_gap"]] += 3.0
    made.table.loc[labels == 1, "elbo_guide"] -= 3.0
    splits = pd.DataFrame(
        {
            "train": [0.5, 0.2],
            "train_se": [0.05, 0.02],
            "test": [1.5, 0.25],
            "test_se": [0.1, 0.03],
            "difference": [1.0, 0.05],
            "difference_se": [0.11, 0.04],
            "num_train": num,
            "num_test": num,
        },
        index=["amortization_gap", "approximation_gap"],
    )
    return replace(
        made,
        summary=_summary(made.table),
        labels=labels,
        splits=splits,
        latents=latents,
        break_even=even,
    )


def ledger(num: int = 60, *, seed: int = 0, failed: tuple[int, ...] = ()) -> FakeLedger:
    rng = np.random.default_rng(seed)
    log_evidence = rng.normal(-20.0, 4.0, num)
    approximation = rng.gamma(2.0, 0.12, num)
    amortization = rng.gamma(1.2, 0.9, num)
    full = log_evidence - 0.4 * approximation
    columns = {
        "log_evidence": log_evidence,
        "elbo_guide": log_evidence - approximation - amortization,
        "elbo_mean_field": log_evidence - approximation,
        "elbo_full_covariance": full,
        "inference_gap": approximation + amortization,
        "approximation_gap": approximation,
        "amortization_gap": amortization,
    }
    table = pd.DataFrame(columns, index=pd.RangeIndex(num, name="datapoint"))
    for name, size in zip(columns, (0.03, 0.05, 0.02, 0.02, 0.06, 0.04, 0.055), strict=True):
        table[f"{name}_se"] = size * rng.uniform(0.7, 1.4, num)
    table["khat"] = np.clip(0.15 + 0.28 * amortization + rng.normal(0, 0.1, num), -0.2, 1.6)
    table["ess"] = 1000 * np.exp(-1.2 * (approximation + amortization))
    table.loc[list(failed)] = np.nan
    evidence = _evidence(log_evidence, rng, failed)
    local = {family: _local(table[f"elbo_{family.replace('-', '_')}"], rng) for family in FAMILIES}
    return FakeLedger(table, _summary(table), evidence, local)


def guideless(made: FakeLedger) -> FakeLedger:
    """The same ledger without its guide."""
    names = ("elbo_guide", "inference_gap", "amortization_gap")
    dropped = [*names, *(f"{name}_se" for name in names), "khat", "ess"]
    table = made.table.drop(columns=dropped)
    advice = "There is no guide: train one (am.fit) to amortize."
    evidence = replace(made.evidence, start="prior")
    return FakeLedger(
        table, _summary(table), evidence, made.local, advice, "none", settings={"reference": "best of both"}
    )


def _evidence(log_evidence: np.ndarray, rng: np.random.Generator, failed: tuple[int, ...]) -> FakeEvidence:
    num = len(log_evidence)
    values = {
        "log_evidence": log_evidence.copy(),
        "se": 0.03 * rng.uniform(0.7, 1.4, num),
        "ess": rng.uniform(9.0, 15.9, num),
        "acceptance": rng.normal(0.8, 0.02, num),
    }
    for row in values.values():
        row[list(failed)] = np.nan
    return FakeEvidence(
        **values,
        khat=np.full(num, np.nan),
        lower=values["log_evidence"] - 0.01,
        log_weights=np.tile(values["log_evidence"], (16, 1)),
        num_nonfinite=np.where(np.isin(np.arange(num), failed), 160, 0),
        path=path(num),
    )


def _local(elbo: pd.Series, rng: np.random.Generator) -> FakeLocal:
    num = len(elbo)
    steps = rng.integers(300, 3000, num)
    return FakeLocal(elbo.to_numpy(), np.full(num, 0.02), steps < 2800, steps, 8.0 * steps)


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in table.columns if not name.endswith("_se")]
    rows = table[names]
    num = rows.notna().sum()
    mc = {
        name: np.sqrt(np.square(table[f"{name}_se"]).sum()) / num[name]
        if num[name] and f"{name}_se" in table
        else np.nan
        for name in names
    }
    return pd.DataFrame(
        {
            "mean": rows.mean(),
            "se": rows.std() / np.sqrt(num),
            "mc_se": pd.Series(mc),
            "num_failed": rows.isna().sum(),
        }
    )


def history(num_steps: int = 3000, *, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    step = np.arange(1, num_steps + 1)
    truth = -22.0 - 25.0 * np.exp(-step / 250.0) - 300.0 * np.exp(-step / 15.0)
    validated = step % 100 == 0
    return pd.DataFrame(
        {
            "step": step,
            "elbo": truth + rng.normal(0, 0.8, num_steps),
            "validation_elbo": np.where(validated, truth - 0.7, np.nan),
            "validation_elbo_se": np.where(validated, 0.2, np.nan),
            "learning_rate": 1e-3,
            "gradient_norm": rng.gamma(4.0, 3.0, num_steps),
            "seconds": step * 0.004,
        }
    )


ATTRS = {
    "title": "Digits <8 x 8>, Bernoulli VAE",
    "seed": 0,
    "settings": {
        "fit": {"objective": "elbo", "num_steps": 3000, "learning_rate": 1e-3, "batch_size": 128},
        "evidence": {"method": "AIS", "num_chains": 16, "num_temperatures": 100},
    },
    "versions": {"amortize": "0.1.0", "torch": "2.13.0", "pyro-ppl": "1.9.2", "numpy": "2.4.6"},
    "data_hash": "sha256:3f1c0d2e9a7b4c5d",
    "spec_hash": "sha256:77aa12cd9e0f1b2c",
    "created": "2026-01-01T00:00:00+00:00",
    "command": "amortize study digits --seed 0",
}


def digits_tree(num: int = 60, *, failed: tuple[int, ...] = ()) -> xr.DataTree:
    """A tree like that of the study ``digits``."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    digits = load_digits()
    images = (digits.data[:num] > 7).astype(np.float32)
    blurred = np.clip(0.75 * images + 0.25 * digits.data[:num] / 16 + rng.normal(0, 0.04, images.shape), 0, 1)
    latents = rng.normal(size=(100, num, 4)).astype(np.float32)
    lp, log_q = rng.normal(-25, 3, (100, num)), rng.normal(-4, 1, (100, num))
    return to_datatree(
        {"z": latents, "lp": lp, "log_q": log_q},
        ledger=ledger(num, failed=failed),
        history=history(),
        groups={
            "observed_data": {"x": images},
            "reconstruction": {"x": blurred},
            "prior_predictive": {"x": np.stack([blurred[::-1], 1 - blurred])},
        },
        attrs={**ATTRS, "image_shape": [8, 8], "labels": digits.target[:num].tolist()},
    )


def full_tree(num: int = 60) -> xr.DataTree:
    """A tree with every part that a ledger may have."""
    return to_datatree(ledger=full_ledger(num), history=history(), attrs={**ATTRS, "title": "All of the ledger"})


def guideless_tree(num: int = 40) -> xr.DataTree:
    """A tree of a program without a guide: no reconstruction, no training."""
    rng = np.random.default_rng(2)
    return to_datatree(
        {"z": rng.normal(size=(50, num, 5))},
        ledger=guideless(ledger(num, seed=2)),
        groups={
            "observed_data": {"x": rng.normal(size=(num, 20))},
            "prior_predictive": {"x": rng.normal(size=(1, num, 20))},
        },
        attrs={**ATTRS, "title": "No guide", "num_untrained": 7, "data_hash": f"sha256:{'0123456789abcdef' * 4}"},
    )


def auto_evidence(num: int = 120) -> FakeEvidence:
    """Effort where it is needed: importance sampling for the easy half, AIS for most others, SMC for the rest."""
    rng = np.random.default_rng(3)
    made = ledger(num, seed=3).evidence
    hard = rng.uniform(size=num)
    weights = made.log_evidence + rng.normal(0, 0.3, (16, num))
    weights[:, hard > 0.97] += rng.normal(0, 9.0, (16, int((hard > 0.97).sum())))
    used = np.where(hard > 0.9, "SMC", np.where(hard > 0.5, "AIS, 100 temperatures", "importance sampling (PSIS)"))
    gradients = np.where(hard > 0.9, 9e4, np.where(hard > 0.5, 1.7e4, 0.0)) * rng.uniform(1, 1.6, num) + 333
    return replace(
        made,
        used=used.astype(object),
        num_gradients=gradients,
        ess=effective_sample_size(weights),
        se=np.minimum(0.05, 0.01 + 0.05 * hard * rng.uniform(0.5, 1, num)),
        log_weights=weights,
        path=None,
        method="auto",
        settings={"target_se": 0.05},
    )


def auto_tree(num: int = 120) -> xr.DataTree:
    """A tree of evidence that spent effort where it was needed, and of a run whose path has a jump."""
    made = ledger(num, seed=3)
    stuck = replace(made.evidence, path=path(num, jump=True, fast=0.7), settings={"schedule": "linear"})
    return to_datatree(
        evidence={"auto": auto_evidence(num), "AIS, linear": stuck, "AIS": made.evidence},
        sandwich=sandwich(),
        ledger=made,
        history=history(400),
        attrs={
            **ATTRS,
            "title": "Effort where it is needed",
            "trained_bound": "importance-weighted bound, 5 particles",
        },
    )


def vectors_tree(num: int = 40, size: int = 20) -> xr.DataTree:
    """A tree like that of factor analysis: vectors, two methods of evidence, no images."""
    rng = np.random.default_rng(1)
    loading = rng.normal(size=(5, size))
    mean = rng.normal(size=(num, 5)) @ loading
    made = ledger(num, seed=1)
    importance = FakeEvidence(
        log_evidence=made.table["log_evidence"].to_numpy() + rng.normal(0, 0.05, num),
        se=np.full(num, 0.05),
        log_weights=np.zeros((1000, num)),
        acceptance=np.full(num, np.nan),
        num_nonfinite=np.zeros(num, dtype=np.int64),
        ess=made.table["ess"].to_numpy(),
        khat=made.table["khat"].to_numpy(),
        method="ImportanceSampling",
        settings={"num_draws": 1000},
        seconds=0.2,
    )
    return to_datatree(
        {"z": rng.normal(size=(50, num, 5))},
        evidence={"AIS": made.evidence, "importance": importance},
        ledger=made,
        history=history(400),
        groups={
            "observed_data": {"x": mean + rng.normal(0, 0.4, mean.shape)},
            "reconstruction": {"x": mean},
            "prior_predictive": {"x": rng.normal(size=(1, num, 5)) @ loading},
        },
        attrs={**ATTRS, "title": "Factor analysis, 20 observed dimensions"},
    )
