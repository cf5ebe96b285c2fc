"""Methods of evidence and objectives of training by their names in a study."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import amortize as am
from amortize.errors import SpecError
from amortize.inference.families.registry import FAMILIES
from amortize.inference.hmc import HMC
from amortize.inference.objectives import BOUNDS, OBJECTIVES
from amortize.study.evidence_spec import TAKES, EvidenceSpec
from amortize.study.fit_spec import TAKES as OBJECTIVE_TAKES
from amortize.study.fit_spec import FitSpec
from amortize.study.local_spec import LocalSpec
from amortize.study.methods import KERNELS, METHODS, families_of, method_of, objective_of
from amortize.study.run import run
from tests.study.tiny import mine, same_numbers

SMALL: dict[str, dict[str, Any]] = {
    "ais": {"num_chains": 5, "num_temperatures": 8, "num_leapfrog": 2, "schedule": "pilot-per-datapoint"},
    "ais, mala": {"method": "ais", "num_chains": 5, "num_temperatures": 8, "kernel": "mala", "sandwich": True},
    "smc": {"num_particles": 16, "num_leapfrog": 2, "error": "simulated"},
    "langevin": {"num_chains": 5, "num_temperatures": 20, "schedule": "power"},
    "importance": {},
    "auto": {"num_chains": 5, "num_temperatures": 5, "target_se": 0.3, "max_gradients": 4000},
}


def names_of(table: type, field: str) -> set[str]:
    annotation = table.model_fields[field].annotation
    return {name for name in get_args(annotation) if name is not type(None)} - {None}


def test_every_name_stands_for_something() -> None:
    assert names_of(EvidenceSpec, "method") == set(METHODS) == set(TAKES)
    kernels = next(part for part in get_args(EvidenceSpec.model_fields["kernel"].annotation) if get_args(part))
    assert set(get_args(kernels)) == set(KERNELS)
    assert names_of(FitSpec, "objective") == {"auto", *OBJECTIVES, *BOUNDS}
    assert set(OBJECTIVE_TAKES) == set(BOUNDS)
    names = get_args(LocalSpec.model_fields["families"].annotation)[0]
    assert set(get_args(names)) == set(FAMILIES) - {"point"}


def test_families_take_their_settings_from_poor_to_rich() -> None:
    spec = LocalSpec(families=("mixture", "low-rank", "mean-field"), settings={"low-rank": {"rank": 3}})
    made = families_of(spec)
    assert list(made) == ["mean-field", "low-rank", "mixture"]
    assert made["low-rank"].settings()["rank"] == 3
    assert made["mixture"] == FAMILIES["mixture"]()
    with pytest.raises(SpecError, match=r"local\.settings\.low-rank: no setting 'rnk' \(did you mean rank\?\)"):
        families_of(LocalSpec(families=("low-rank",), settings={"low-rank": {"rnk": 3}}))
    with pytest.raises(SpecError, match=r"local\.settings\.low-rank: .*rank: expected an integer of at least 1, got 0"):
        families_of(LocalSpec(families=("low-rank",), settings={"low-rank": {"rank": 0}}))


@pytest.mark.parametrize("name", METHODS)
def test_what_a_study_leaves_out_is_the_methods_own_default(name: str) -> None:
    made = method_of(EvidenceSpec(method=name))
    assert made == METHODS[name]()
    known = {field.name for field in fields(made)}
    assert set(TAKES[name]) - {"num_leapfrog"} <= known


def test_settings_reach_the_method() -> None:
    spec = EvidenceSpec(num_chains=7, num_temperatures=9, kernel="ula", schedule="sigmoid")
    assert method_of(spec) == am.AIS(num_chains=7, num_temperatures=9, kernel=am.ULA(), schedule="sigmoid")
    assert method_of(EvidenceSpec(method="smc", num_particles=8, num_leapfrog=3)) == am.SMC(8, HMC(3))
    assert method_of(EvidenceSpec(method="importance", num_draws=77)) == am.ImportanceSampling(77)
    auto = method_of(EvidenceSpec(method="auto", target_se=0.2, max_gradients=500, num_draws=100)).settings()
    assert (auto["target_se"], auto["max_gradients"], auto["num_draws"]) == (0.2, 500, 100)


def test_what_a_method_refuses_is_an_error_of_the_spec() -> None:
    with pytest.raises(SpecError, match="evidence: Auto num_chains: expected"):
        method_of(EvidenceSpec(method="auto", num_chains=1))


def test_objectives_take_their_settings() -> None:
    assert objective_of(FitSpec()) == "auto"
    assert objective_of(FitSpec(objective="wake-sleep", num_particles=3)) == am.WakeSleep(num_particles=3)
    assert objective_of(FitSpec(objective="mcd", num_annealing_steps=2)) == am.MCD(num_steps=2)
    assert objective_of(FitSpec(objective="iwae")) == am.IWAE()
    priced = FitSpec(objective="beta-elbo", beta=4.0, warmup=0.0, free_bits=0.1)
    assert objective_of(priced) == am.BetaELBO(beta=4.0, free_bits=0.1)
    relaxed = FitSpec(objective="concrete-elbo", temperature=1.0, final_temperature=0.3, straight_through=True)
    assert objective_of(relaxed) == am.ConcreteELBO(temperature=1.0, final_temperature=0.3, straight_through=True)
    with pytest.raises(SpecError, match="fit: ConcreteELBO temperature"):
        objective_of(FitSpec(objective="concrete-elbo", final_temperature=0.3))
    refined = FitSpec(objective="semi-amortized", num_refinement_steps=3)
    assert objective_of(refined) == am.SemiAmortized(num_steps=3)


@pytest.mark.parametrize("name", SMALL)
def test_a_study_by_each_method(name: str, folder: Path) -> None:
    spec = {"method": name, "num_draws": 100, **SMALL[name]}
    study = mine(evidence=spec, **{"fit.num_steps": 5, "local.num_steps": 10, "data.num_evaluated": 4})
    result = run(study, out=folder / "out")
    evidence = result.tree["evidence"].to_dataset().isel(method=0)
    assert np.isfinite(evidence["log_evidence"]).all()
    assert (evidence["num_gradients"] > 0).all()
    assert all(str(used) for used in evidence["used"].values)
    assert ("sandwich" in result.tree.children) == ("sandwich" in spec or "error" in spec)
    if name.startswith("ais"):
        assert result.tree["annealing"].sizes["temperature"] == 9
    if name in ("ais, mala", "smc", "auto"):  # with every stage there is, and with the most varied evidence
        same_numbers(run(study, out=folder / "out", resume=True).tree, result.tree)


@pytest.mark.parametrize("objective", ["iwae", "l-mcvae"])
def test_a_study_trained_by_a_tighter_bound(objective: str, folder: Path) -> None:
    fit = {"objective": objective, "num_steps": 6, "validate_every": 3, "batch_size": 16}
    fit |= {"num_particles": 3} if objective == "iwae" else {"num_annealing_steps": 2}
    evidence = {"method": "importance", "num_draws": 20}
    study = mine(fit=fit, evidence=evidence, **{"local.num_steps": 10, "data.num_evaluated": 4})
    result = run(study, out=folder / "out")
    assert result.fitted is not None
    assert result.fitted.objective == objective
    assert result.tree.attrs["trained_bound"] == result.fitted.bound
    assert result.fitted.bound in (folder / "out" / "report.html").read_text(encoding="utf-8")
