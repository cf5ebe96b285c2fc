from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amortize as am
from amortize.data import load_digits
from amortize.errors import AmortizeError, ArgumentError
from amortize.study.spec import Study
from amortize.study.store import read_manifest
from tests.statistics import z_value
from tests.study.tiny import OUTPUTS, PROGRAM, STAGES, mine, same_numbers, tiny, written

UNTRAINED = """
def untrained():
    def model(x):
        weight = pyro.param("weight", torch.ones(3))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weight, 1.0).to_event(1), obs=x)
    return am.Program(model)
"""


@pytest.fixture(scope="module")
def reference() -> am.StudyResult:
    """The tiny study, never interrupted and never written."""
    return am.run(tiny())


def test_a_study_from_spec_to_page(folder: Path, reference: am.StudyResult) -> None:
    result = am.run(tiny(), out="runs/tiny")
    out = folder / "runs" / "tiny"
    assert {path.name for path in out.iterdir()} == OUTPUTS
    assert list(read_manifest(out)) == STAGES
    assert Study.from_toml(out / "spec.toml") == tiny()
    same_numbers(written(out), result.tree)
    same_numbers(result.tree, reference.tree)
    assert result.ledger is not None
    numbers = json.loads((out / "report.json").read_text())["summary"]
    for name, row in result.ledger.summary.iterrows():
        assert numbers[name]["mean"] == pytest.approx(row["mean"], nan_ok=True)
    table = result.ledger.table
    assert np.abs(table.inference_gap - table.approximation_gap - table.amortization_gap).max() <= 1e-6


def test_the_tree_says_where_every_number_comes_from(reference: am.StudyResult) -> None:
    from amortize.report.attrs import decode_attrs

    attrs = decode_attrs(reference.tree.attrs)
    assert attrs["settings"]["evidence"]["num_chains"] == 4
    assert attrs["settings"]["datapoints"] == {"train": 90, "validation": 10, "evaluated": 6}
    assert attrs["spec_hash"] == tiny().fingerprint()
    assert {"torch", "pyro-ppl", "numpy", "python", "xarray", "arviz-base", "amortize"} <= set(attrs["versions"])
    assert len(attrs["data_hash"]) == 64
    assert attrs["image_shape"] == [8, 8]
    assert set(attrs["seconds"]) == set(STAGES)
    assert {"created", "command", "title", "program_hash"} <= set(attrs)
    groups = {"posterior", "sample_stats", "evidence", "gaps", "local", "training", "observed_data", "reconstruction"}
    assert groups | {"prior", "prior_predictive"} <= set(reference.tree.children)
    np.testing.assert_array_equal(reference.tree["observed_data"]["x"], load_digits().x_test[:6])
    np.testing.assert_array_equal(reference.tree["gaps"]["label"], load_digits().y_test[:6])


def test_nothing_is_written_without_out(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    am.run(tiny())
    assert sorted(folder.rglob("*")) == before


def test_studies_in_one_process_give_what_each_gives_alone(reference: am.StudyResult) -> None:
    other = tiny(seed=1)
    first = am.run(other)
    again = am.run(tiny())  # the same names of sites, parameters and networks
    second = am.run(other)
    same_numbers(again.tree, reference.tree)
    same_numbers(first.tree, second.tree)
    assert first.ledger is not None
    assert reference.ledger is not None
    assert (first.ledger.table.elbo_guide != reference.ledger.table.elbo_guide).all()


def test_the_global_random_state_neither_matters_nor_changes(reference: am.StudyResult) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    result = am.run(tiny())
    assert torch.equal(torch.random.get_rng_state(), state)
    same_numbers(result.tree, reference.tree)


def test_an_earlier_run_of_the_study_is_replaced_and_another_is_not(folder: Path) -> None:
    am.run(tiny(), out="run")
    Path("run/notes.txt").write_text("mine")
    am.run(tiny(seed=1), out="run")
    assert Study.from_toml("run/spec.toml").seed == 1
    assert Path("run/notes.txt").read_text() == "mine"
    before = Path("run/tree.nc").read_bytes()
    with pytest.raises(ArgumentError, match=r"holds the run of another study, 'tiny'; this one is 'mine'"):
        am.run(mine(), out="run")
    assert Path("run/tree.nc").read_bytes() == before
    with pytest.raises(ArgumentError, match="resume: expected out="):
        am.run(tiny(), resume=True)


def test_ones_own_program_is_evaluated_on_held_out_rows(folder: Path) -> None:
    result = am.run(mine(), out="run")
    assert result.ledger is not None
    rows = result.ledger.table.index.to_numpy()
    assert len(rows) == 10
    assert len(set(rows)) == 10
    x = np.load("x.npy")
    np.testing.assert_allclose(result.tree["observed_data"]["x"], x[rows], rtol=1e-6)
    np.testing.assert_array_equal(result.tree["posterior"]["datapoint"], rows)
    assert result.tree["posterior"]["z"].sizes == {"chain": 1, "draw": 20, "datapoint": 10, "z_dim_0": 2}
    assert "rate" in result.tree["posterior"]
    again = am.run(mine(seed=1))
    assert again.ledger is not None
    np.testing.assert_array_equal(again.ledger.table.index, rows)  # the split does not depend on the seed
    assert (again.ledger.table.elbo_guide != result.ledger.table.elbo_guide).all()  # initial weights do


def test_a_program_without_a_guide_starts_from_its_prior(folder: Path) -> None:
    study = mine("prior_alone", **{"evidence.num_chains": 16, "evidence.num_temperatures": 100, "seed": 2})
    result = am.run(study, out="run")
    assert result.fitted is None
    assert result.ledger.guide_family == "none"
    assert [name for name in result.ledger.table if not name.endswith("_se")] == [
        *("log_evidence", "elbo_mean_field", "elbo_full_covariance", "approximation_gap")
    ]
    assert result.tree["local"].sizes["family"] == 2
    numbers = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    assert numbers["summary"]["log_evidence"]["mean"] == result.ledger.summary.loc["log_evidence", "mean"]
    assert "num_untrained" not in numbers
    assert {path.name for path in Path("run").iterdir()} == OUTPUTS
    rows = np.sort(np.random.RandomState(0).permutation(50)[40:])
    x = np.load("x.npy")[rows]
    exact = -0.5 * (x**2 / 2 + np.log(2 * np.pi * 2)).sum(-1)
    evidence = result.tree["evidence"].to_dataset().isel(method=0)
    np.testing.assert_array_equal(evidence["datapoint"], rows)
    difference = evidence["log_evidence"].to_numpy() - exact
    assert np.abs(difference).mean() < 0.2
    assert abs(difference.mean()) < z_value() * np.sqrt((evidence["se"] ** 2).sum().item()) / 10 + 0.01
    assert result.tree["posterior"]["z"].sizes["draw"] == 20


def test_a_model_that_was_not_trained_is_said_to_be_untrained(folder: Path) -> None:
    Path("mine.py").write_text(PROGRAM + UNTRAINED)
    result = am.run(mine("untrained"), out="run")
    assert result.ledger.families == ("mean-field",)  # in one dimension full covariance is the same
    numbers = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    assert "3 parameters of the model were not trained: there is no guide." in numbers["notes"]
    assert any(note.startswith("One family was left out: full-covariance") for note in numbers["notes"])


def test_arrays_of_an_npz_are_passed_by_name(folder: Path) -> None:
    result = am.run(mine("named", "two.npz"))
    assert result.ledger is not None
    assert np.isfinite(result.ledger.table.inference_gap).all()
    np.testing.assert_allclose(
        result.tree["observed_data"]["counts"], np.load("two.npz")["counts"][result.ledger.table.index], rtol=1e-6
    )


def test_evidence_by_importance_sampling(folder: Path) -> None:
    study = tiny(evidence={"method": "importance", "num_draws": 100})
    result = am.run(study)
    assert result.ledger is not None
    assert "evidence" not in am.run(study).tree.attrs["seconds"]
    assert (result.ledger.table.log_evidence >= result.ledger.table.elbo_guide).all()


def test_a_study_of_factor_analysis_finds_its_exact_evidence() -> None:
    study = tiny(
        program={"target": "factor-analysis", "settings": {"latent_dim": 3}},
        **{"data.num_evaluated": 32, "data.num_train": 500, "fit.num_steps": 100, "local.num_steps": 1000},
        **{"evidence.num_chains": 16, "evidence.num_temperatures": 100, "evidence.num_leapfrog": 10},
    )
    result = am.run(study)
    assert result.ledger is not None
    model = result.fitted.program.model.function.__self__  # type: ignore[union-attr]
    x = load_digits().x_test[:32]
    import torch

    exact = model.log_evidence(torch.as_tensor(x)).detach().numpy()
    assert abs((result.ledger.table.log_evidence - exact).mean()) < 0.02
    means = result.ledger.summary["mean"]
    assert means.elbo_guide <= means.elbo_mean_field <= means.elbo_full_covariance + 0.01 <= means.log_evidence + 0.03


def test_settings_build_the_program_of_a_file(folder: Path) -> None:
    one = am.run(mine(program={"target": "mine.py:program", "settings": {"scale": 1.0}}))
    two = am.run(mine(program={"target": "mine.py:program", "settings": {"scale": 3.0}}))
    assert one.ledger is not None
    assert two.ledger is not None
    assert (one.ledger.table.log_evidence != two.ledger.table.log_evidence).all()


def test_progress_is_quiet_when_asked(folder: Path, capsys: Any) -> None:
    am.run(tiny(), progress=False)
    assert capsys.readouterr() == ("", "")
    am.run(tiny())  # not a terminal
    assert capsys.readouterr() == ("", "")


def test_nothing_is_written_where_the_inputs_are_wrong(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    wrong = [
        mine(data={"source": "none.npy"}),
        mine("none"),
        mine(source="two.npz"),
        tiny(**{"program.target": "vae"}),
        tiny(**{"program.settings": {"latent": 3}}),
    ]
    for study in wrong:
        with pytest.raises(AmortizeError):
            am.run(study, out="runs/x")
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in str(path)] == before
