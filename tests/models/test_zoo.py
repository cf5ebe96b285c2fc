"""The catalogue, its pages, the command line and the benchmarks name the same models, and each of them is alive.

Whatever is in ``MODELS`` is tried here: built from small data of its kind, held to the contract, trained for a few
steps, saved and loaded, and studied from spec to page.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import amortize as am
from amortize import models
from amortize.cli import app
from amortize.data import load
from amortize.errors import DataError, SpecError
from amortize.inference.objective import Objective
from amortize.inference.objectives import BOUNDS, OBJECTIVES, name_of, resolve_objective
from amortize.models import MODELS
from amortize.models.zoo import DataKind
from amortize.program.points import has_density
from amortize.study.evidence_spec import EvidenceSpec
from amortize.study.fit_spec import FitSpec
from amortize.study.model_study import KIND_WORDS, kinds_of, study_of_model
from amortize.study.spec import Study

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "models"
NUM = 48
SETS: dict[DataKind, str] = {"binary": "digits", "unit": "digits", "real": "digits", "labelled": "diabetes"}
"""Sets that come with scikit-learn; counts are drawn."""
TINY: dict[str, Any] = {
    "data.num_train": NUM,
    "data.num_evaluated": 3,
    "fit.num_steps": 3,
    "fit.batch_size": 16,
    "local.families": ["mean-field"],
    "local.num_steps": 4,
    "ledger": {"probes": False, "break_even": False},
    "report.num_draws": 4,
}


@cache
def counts() -> np.ndarray:
    """Counts (N, 12) of three rates."""
    stream = np.random.RandomState(0)
    return stream.poisson(np.exp(stream.normal(size=(2 * NUM, 3)) @ stream.normal(size=(3, 12)) / 2)).astype(np.float32)


@cache
def data_of(kind: DataKind) -> Any:
    """Small data of a kind, as a study gives them to a model."""
    if kind == "counts":
        return counts()[:NUM]
    settings = kinds_of(SETS[kind])[kind]
    found = load(SETS[kind], binarise=settings.get("binarise"))
    x = found.x_train[:NUM]
    return {"x": x, "y": found.y_train[:NUM]} if kind == "labelled" else x


ANNEALED = {"num_chains": 2, "num_temperatures": 3, "num_leapfrog": 2}
WEIGHED = {"method": "importance", "num_draws": 4}
"""Evidence of a model with a guide to draw from: cheap where annealing would have to trace a flow."""


def built(name: str, **settings: Any) -> Any:
    """A model of the catalogue for small data of its kind."""
    entry = MODELS[name]
    takes = inspect.signature(entry.from_data).parameters
    return entry.from_data(data_of(entry.data), **{key: value for key, value in settings.items() if key in takes})


def is_point(name: str) -> bool:
    """Whether the model's guide is a point."""
    program = built(name).program()
    return not has_density(program, program.prepare(data_of(MODELS[name].data)))


def tiny_study(name: str, folder: Path) -> Study:
    """A study of a model, as the command line makes it, at the smallest budget."""
    kind = MODELS[name].data
    source = SETS.get(kind, str(folder / "counts.npy"))
    np.save(folder / "counts.npy", counts())
    return study_of_model(source, name).with_values({**TINY, "evidence": ANNEALED if is_point(name) else WEIGHED})


# One catalogue


def test_each_model_is_one_line_and_one_file() -> None:
    for name, entry in MODELS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert 0 < len(entry.description) <= 90, name
        assert "\n" not in entry.description
        assert entry.constructor.__name__ in models.__all__, name
        assert entry.has_exact_evidence == ("log_evidence" in dir(entry.constructor))
    files = [entry.constructor.__module__ for entry in MODELS.values()]
    assert len(set(files)) == len(files)


def test_each_model_has_a_page_and_each_page_a_model() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md")) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_page_says_what_is_needed(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert re.search(r"^Sources?: .*\d{4}", page, re.MULTILINE), "no source with its year"
    studied = re.findall(r"^amortize study (\S+) --model (\S+)", page, re.MULTILINE)
    assert name in [model for _, model in studied], f"no `amortize study DATASET --model {name}`"
    for source, model in studied:
        assert MODELS[model].data in kinds_of(source), f"{model} does not take {source}"
    assert f"](../images/models/{name}.png)" in page, "no picture"
    tests = re.findall(r"tests/models/test_\w+\.py", page)
    assert tests, "no test that shows the check"
    assert all((ROOT / test).is_file() for test in tests), tests


def test_the_index_lists_each_page_with_its_kind_of_data() -> None:
    index = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[([\w-]+)\]\(models/([\w-]+)\.md\) \| (\w+) \|", index, re.MULTILINE)
    assert sorted(rows) == sorted((name, name, entry.data) for name, entry in MODELS.items())


def test_the_command_line_lists_each_model_with_its_kind_of_data() -> None:
    shown = CliRunner().invoke(app, ["models"], env={"COLUMNS": "250"}).output.splitlines()[1:]
    listed = [re.split(r" {2,}", line.strip())[:2] for line in shown]
    assert listed == [[name, KIND_WORDS[entry.data]] for name, entry in MODELS.items()]


def test_the_benchmark_has_a_row_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import zoo_training  # type: ignore[import-not-found]

    rows = [name for table in zoo_training.TABLES for name in zoo_training.names_of(table)]
    del sys.modules["zoo_training"]
    assert sorted(rows) == sorted(MODELS)


# Each model alive


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_made_by_its_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = built(name, seed=0).state_dict(), built(name, seed=0).state_dict(), built(name, seed=1)
    assert torch.equal(before, torch.get_rng_state()), "it draws from the global generator"
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    if "seed" in inspect.signature(MODELS[name].from_data).parameters:
        assert any(not torch.equal(value, first[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_each_model_keeps_the_contract(name: str) -> None:
    model, x = built(name), data_of(MODELS[name].data)
    program = model.program()
    report = program.check(x)
    assert report.ok, str(report)
    data = program.prepare(x)
    assert {id(p) for p in program.parameters()} == {id(p) for p in model.parameters()}
    objective = resolve_objective(model.objective, program, data)
    assert name_of(objective) in {**OBJECTIVES, **BOUNDS} or type(objective).__module__.startswith("amortize.models")


@pytest.mark.parametrize("name", MODELS)
def test_each_model_trains_and_is_loaded_as_it_was(name: str, tmp_path: Path) -> None:
    model, x = built(name, seed=0), data_of(MODELS[name].data)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    training = am.Training(batch_size=None if model.program().whole else 16, progress=False)
    fitted = am.fit(model.program(), x, objective=model.objective, num_steps=3, training=training)
    assert np.isfinite(fitted.history["elbo"]).all()
    after = model.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
    fitted.save(tmp_path / "fit.pt")
    loaded = built(name, seed=1)
    program = am.load(tmp_path / "fit.pt", loaded.program()).program
    ours, theirs = (one.simulate(x, seed=0)[1] for one in (fitted.program, program))
    for site, values in ours.items():
        np.testing.assert_array_equal(values, theirs[site])


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_studied_from_spec_to_page(name: str, tmp_path: Path) -> None:
    result = am.run(tiny_study(name, tmp_path), out=tmp_path / "run", progress=False)
    assert isinstance(result, am.StudyResult)
    assert np.isfinite(result.ledger.table["log_evidence"]).all()
    point = is_point(name)
    assert (result.ledger.guide_family == "point") == point == ("elbo_guide" not in result.ledger.table)
    assert result.fitted is not None
    model, program = built(name), result.fitted.program
    objective = resolve_objective(model.objective, program, program.prepare(data_of(MODELS[name].data)))
    assert result.fitted.objective == name_of(objective)  # its own, which a study calls "auto"
    if isinstance(objective, Objective):
        assert result.fitted.settings["objective"] == objective.settings()
    assert {"reconstruction", "prior_predictive", "posterior"} <= set(result.tree.children)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


# The command line


@pytest.mark.parametrize("name", MODELS)
def test_a_study_begins_with_the_model_s_own_settings(name: str) -> None:
    entry = MODELS[name]
    study = study_of_model(SETS.get(entry.data, "starmap"), name)
    assert study.fit == FitSpec(**entry.fit)
    assert study.evidence == EvidenceSpec(**entry.evidence)
    assert study.fit.objective == "auto"
    assert Study.from_text(study.to_toml()) == study
    assert study.with_values({"fit.learning_rate": 0.5}).fit.learning_rate == 0.5


@pytest.mark.parametrize(
    ("source", "name", "error", "says"),
    [
        (
            "starmap",
            "bernoulli-vae",
            SpecError,
            r"takes ones and zeros, and starmap is counts.*poisson-factors.*digits",
        ),
        ("digits", "linear-regression", SpecError, r"takes numbers with a response, and digits is.*diabetes"),
        (
            "digits",
            "poisson-factors",
            SpecError,
            r"Data sets for poisson-factors: (newsgroups20|none that can be read here)",
        ),
        ("digits", "bernouli-vae", SpecError, r"did you mean bernoulli-vae\b.*`amortize models` lists"),
        ("no-such-set", "bernoulli-vae", DataError, "unknown data set 'no-such-set'"),
    ],
)
def test_data_of_the_wrong_kind_are_refused_with_what_fits(
    source: str, name: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        study_of_model(source, name)


def test_images_are_given_as_the_model_takes_them() -> None:
    assert study_of_model("mnist", "bernoulli-vae").data.binarise == "static"
    assert study_of_model("mnist", "factor-analysis").data.binarise is None  # grey is its own way
    assert study_of_model("digits", "bernoulli-vae").data.binarise is None
    assert study_of_model("digits", "factor-analysis").data.binarise == "grey"
    assert study_of_model("diabetes", "linear-regression").data.arrays == {"x": "x", "y": "y"}


def test_the_command_line_takes_settings_by_their_keys() -> None:
    words = ["study", "digits", "--model", "bernoulli-vae", "--set", "program.settings.latent_dim=3"]
    words += ["--set", "fit.num_steps=7", "--set", "local.families=['laplace']", "--seed", "5", "--print-spec"]
    study = Study.from_text(CliRunner().invoke(app, words).output)
    assert (study.program.settings, study.fit.num_steps, study.seed) == ({"latent_dim": 3}, 7, 5)
    assert study.local.families == ("laplace",)
    for wrong, says in [("fit.steps=3", "Did you mean fit.num_steps"), ("fit.num_steps", "expected KEY=VALUE")]:
        failed = CliRunner().invoke(app, [*words[:4], "--set", wrong, "--print-spec"])
        assert failed.exit_code == 2
        assert says in failed.output


def test_a_data_set_without_a_model_is_told_of_one() -> None:
    failed = CliRunner().invoke(app, ["study", "mnist"])
    assert failed.exit_code == 2
    assert "amortize study mnist --model NAME" in failed.output


def test_a_file_of_data_is_studied_too(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", counts())
    study = study_of_model(str(tmp_path / "x.npy"), "poisson-factors")
    assert (study.name, study.data.source) == ("x-poisson-factors", str(tmp_path / "x.npy"))
    failed = CliRunner().invoke(app, ["study", "digits", "--model", "bernoulli-vae", "--data", str(tmp_path / "x.npy")])
    assert failed.exit_code == 2
    assert "the data come first" in failed.output


@pytest.mark.parametrize("guide", ["exact", None])
def test_factor_analysis_with_its_other_guides(guide: Any) -> None:
    model = models.FactorAnalysis.random(2, 6)
    assert model.program(guide).check(model.simulate(5)).ok


def test_a_program_of_the_zoo_is_trained_by_its_model_s_objective():
    vae = MODELS["beta-vae"].from_data(torch.eye(6), latent_dim=2, hidden=(4,), beta=3.0)
    assert (
        am.fit(vae.program(), torch.eye(6), num_steps=1).bound == vae.objective.bound == "distortion + 3 rate, no bound"
    )
    assert am.fit(vae.program(), torch.eye(6), objective="elbo", num_steps=1).bound == "ELBO"
