from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from amortize.errors import SpecError
from amortize.study.spec import Study
from amortize.study.studies import digits


def minimal(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "tiny",
        "program": {"target": "bernoulli-vae"},
        "data": {"source": "digits"},
    }
    return Study(**{**values, **changes})


STUDIES = {
    "digits": digits,
    "minimal": minimal,
    "strings": lambda: minimal(report={"title": 'quotes " \\ tab\t Greek β, a face 😀 and \x7f'}),
    "numbers": lambda: minimal(fit={"learning_rate": 1e-7, "clip_norm": 1e16, "patience": 3}, seed=2**62),
    "settings": lambda: minimal(
        program={
            "target": "bernoulli-vae",
            "settings": {"hidden": [4, 4], "scale": 0.5, "tied": True, "kind": "a"},
        }
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_toml_round_trip(name: str) -> None:
    study = STUDIES[name]()
    assert Study.from_text(study.to_toml()) == study


def test_every_key_of_the_toml_stands_under_a_comment_that_says_what_it_is() -> None:
    lines = digits().to_toml().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"(# )?\w+ =|\[(?!program.settings)", line)]
    assert len(keys) > 30
    settings = lines.index("[program.settings]")
    for number in keys:
        if settings < number < lines.index("[data]") - 1:
            continue  # arguments of the program: only the program knows what they are
        assert lines[number - 1].startswith("# ")
        assert len(lines[number - 1]) > 8


def test_a_key_without_a_value_is_listed_but_not_set() -> None:
    text = minimal().to_toml()
    assert "\n# patience =\n" in text
    assert "patience" not in tomllib.loads(text)["fit"]


def test_integers_are_taken_as_numbers_but_nothing_else_is_converted() -> None:
    assert minimal(fit={"learning_rate": 1}).fit.learning_rate == 1.0
    for value in ("5", 2.5, True, None, [5]):
        with pytest.raises(SpecError, match=r"fit\.num_steps: expected an integer, got"):
            minimal(fit={"num_steps": value})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"fit": {"num_step": 10}}, r"unknown key fit\.num_step\. Did you mean fit\.num_steps\?"),
    "key of other tables": (
        {"num_chains": 3},
        r"unknown key num_chains\. Did you mean evidence\.num_chains\?",
    ),
    "unknown table": ({"evidense": {}}, r"unknown key evidense\. Did you mean evidence\?"),
    "unlike any key": (
        {"local": {"zzz": 1}},
        r"unknown key local\.zzz\. Known keys here: families, num_draws",
    ),
    "choice": (
        {"fit": {"schedule": "cosin"}},
        r"fit\.schedule: expected 'constant'.*'cosin' \(did you mean cosine\?\)",
    ),
    "range": ({"fit": {"learning_rate": -1.0}}, r"fit\.learning_rate: expected a number > 0.*, got -1\.0"),
    "not finite": ({"fit": {"clip_norm": float("nan")}}, r"fit\.clip_norm: expected a .*, got nan"),
    "family": (
        {"local": {"families": ["mean-feild"]}},
        r"local\.families\.0: expected 'laplace', 'mean-field', .*'mean-feild' \(did you mean mean-field\?\)",
    ),
    "no density": (
        {"local": {"families": ["point", "mean-field"]}},
        r"local\.families: a point has no density, hence no ELBO to compare",
    ),
    "settings of a family that is not fitted": (
        {"local": {"settings": {"low-rank": {"rank": 2}}}},
        r"local: settings\.low-rank: families are mean-field, full-covariance; name it there",
    ),
    "no family": ({"local": {"families": []}}, r"local\.families: expected at least 1"),
    "family twice": (
        {"local": {"families": ["mean-field"] * 2}},
        r"local\.families: each family may be named once",
    ),
    "odd": ({"local": {"num_draws": 3}}, r"local\.num_draws: expected a multiple of 2, got 3"),
    "no list": ({"local": {"families": "mean-field"}}, r"local\.families: expected a list, got 'mean-field'"),
    "no table": ({"program": "my_model.py:program"}, r"program: expected a table, got 'my_model.py:program'"),
    "nested setting": (
        {"program": {"target": "A", "settings": {"a": {"b": 1}}}},
        r"program\.settings: a = {'b': 1}",
    ),
    "patience": ({"fit": {"patience": 3, "validation": 0.0}}, r"fit: patience needs a validation share above 0"),
    "of another method": (
        {"evidence": {"method": "smc", "num_chains": 8}},
        r"is for method 'ais' or 'langevin' or 'auto', and method is 'smc': leave it out, or set method = 'ais'",
    ),
    "of auto": ({"evidence": {"target_se": 0.1}}, r"evidence: target_se is for method 'auto', and method is 'ais'"),
    "of another kernel": (
        {"evidence": {"kernel": "mala", "num_leapfrog": 5}},
        r"evidence: num_leapfrog is for kernel 'hmc', and kernel is 'mala'",
    ),
    "sides of smc": (
        {"evidence": {"method": "smc", "sandwich": True}},
        r"evidence: sandwich needs a method whose run can be reversed \(ais, langevin, importance\)",
    ),
    "sides twice": (
        {"evidence": {"error": "simulated", "sandwich": True}},
        r"evidence: sandwich is part of error 'simulated'",
    ),
    "of another objective": (
        {"fit": {"num_particles": 5}},
        r"fit: num_particles is for objective 'iwae' or 'wake-sleep' or .*'beta-elbo'.*, and objective is 'auto'",
    ),
    "seed": ({"seed": -1}, r"seed: expected a number >= 0, got -1"),
    "device": ({"device": "gpu"}, r"device: expected cpu, cuda or cuda:1, got 'gpu'"),
    "name": ({"name": "../elsewhere"}, r"name: expected a name .*, got '\.\./elsewhere'"),
    "missing": ({"data": {}}, r"data\.source is missing: a data set of amortize\.data"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_is_one_screen_that_names_the_key(case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(SpecError, match=message) as caught:
        minimal(**changes)
    assert len(str(caught.value).splitlines()) <= 2


def test_many_wrong_keys_still_fit_on_a_screen() -> None:
    with pytest.raises(SpecError) as caught:
        minimal(fit={f"k{number}": "x" * 1000 for number in range(50)})
    lines = str(caught.value).splitlines()
    assert len(lines) < 10
    assert max(map(len, lines)) < 300


def test_toml_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("name = \n")
    with pytest.raises(SpecError, match=r"study\.toml is not valid TOML: .*line 1"):
        Study.from_toml(path)
    path.write_text(minimal().to_toml().replace("learning_rate", "learning_rat"))
    with pytest.raises(SpecError, match=r"study\.toml: unknown key fit\.learning_rat\. Did you mean"):
        Study.from_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="not UTF-8"):
        Study.from_toml(path)
    with pytest.raises(SpecError, match="No such file"):
        Study.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"evidence": {"method": "auto", "num_chains": 2}}, "evidence: Auto num_chains: expected .* got 2"),
        ({"evidence": {"method": "auto", "num_draws": 2}}, "evidence: Auto num_draws: expected .* got 2"),
    ],
)
def test_settings_that_the_method_refuses_are_errors_that_name_the_file(tmp_path: Path, table, message: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(minimal(**table).to_toml())
    with pytest.raises(SpecError, match=rf"study\.toml: {message}"):
        Study.from_toml(path)


def test_paths_are_taken_from_the_specs_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(minimal(program={"target": "models/a.py:program"}, data={"source": "x.npy"}).to_toml())
    study = Study.from_toml(path)
    assert study.program.target == f"{tmp_path.resolve()}/models/a.py:program"
    assert study.data.source == f"{tmp_path.resolve()}/x.npy"
    path.write_text(minimal().to_toml())
    assert Study.from_toml(path) == minimal()


def test_with_values_changes_dotted_keys_and_validates_them() -> None:
    study = minimal().with_values({"seed": 3, "fit.num_steps": 7})
    assert (study.seed, study.fit.num_steps) == (3, 7)
    assert study.with_values({"seed": 0, "fit.num_steps": minimal().fit.num_steps}) == minimal()
    with pytest.raises(SpecError, match=r"unknown key fit\.steps"):
        study.with_values({"fit.steps": 7})


def test_every_setting_enters_the_fingerprint() -> None:
    study = digits()
    changes: dict[str, object] = {"seed": 1, "name": "other", "device": "cuda", "program.settings": {}}
    changes |= {
        "data.num_train": 9,
        "fit.patience": 1,
        "local.families": ["mean-field"],
        "report.num_draws": 3,
    }
    prints = {study.with_values({key: value}).fingerprint() for key, value in changes.items()}
    assert len(prints | {study.fingerprint()}) == len(changes) + 1
    assert Study.from_text(study.to_toml()).fingerprint() == study.fingerprint()


def test_a_study_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        digits().seed = 3  # type: ignore[misc]


def test_reading_a_spec_needs_no_torch() -> None:
    code = "import sys, json, amortize.study.studies as s; s.digits(); print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


@pytest.mark.parametrize("key", ["fit.num_steps.x", "fit.beta.x"])
def test_a_value_is_no_table(key):
    with pytest.raises(SpecError, match=rf"{key}: '\w+' is no table"):
        digits().with_values({key: 3})
