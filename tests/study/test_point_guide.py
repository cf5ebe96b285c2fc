"""A guide that is a point: no ELBO of its own in ledger, study and page; the model is judged, and codes reconstruct."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import GuideMismatchError, SpecError
from amortize.models import FactorAnalysis
from amortize.study.latents import latents
from tests.statistics import z_value
from tests.study.tiny import mine, written

GUIDE_COLUMNS = {"elbo_guide", "inference_gap", "amortization_gap", "khat", "ess"}
METHOD = am.AIS(num_chains=16, num_temperatures=60)


def linear(*, point: bool, dtype: torch.dtype = torch.float64) -> tuple[FactorAnalysis, am.Program]:
    """Factor analysis, whose posterior is known, with the exact posterior mean as a code, or a Gaussian around it."""
    exact = FactorAnalysis.random(2, 6, dtype=dtype)

    def guide(x: torch.Tensor) -> None:
        mean = exact.closed_form().posterior_mean(x).detach()
        fn = dist.Delta(mean, event_dim=1) if point else dist.Normal(mean, 0.3).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    return exact, am.Program(exact.model, guide)


@pytest.mark.parametrize("point", [True, False])
def test_a_point_has_no_column_in_the_ledger_and_a_density_has(point: bool) -> None:
    exact, program = linear(point=point)
    x = exact.simulate(8, seed=1)
    ledger = am.gaps(program, x, method=METHOD, num_draws=50)
    assert (set(ledger.table) & GUIDE_COLUMNS == set()) == point
    assert (ledger.guide_family == "point") == point == ledger.clues.point
    assert (ledger.cause == "point-guide") == point
    assert ("guide" in ledger.cost.index) == (not point) == (ledger.latents is not None)
    assert ledger.advice.startswith("The guide is a point") == point


def test_the_evidence_and_the_families_are_those_of_the_model() -> None:
    exact, program = linear(point=True)
    x = exact.simulate(16, seed=1)
    ledger = am.gaps(program, x, x_train=exact.simulate(20, seed=2), method=METHOD)
    truth = exact.log_evidence(x).numpy()
    np.testing.assert_allclose(ledger.table["elbo_full_covariance"], truth, rtol=0.0, atol=1e-3)
    ratio = np.exp(ledger.table["log_evidence"].to_numpy() - truth)  # unbiased for 1
    assert abs(ratio.mean() - 1) < z_value() * ratio.std(ddof=1) / 4
    assert ledger.evidence.start == "local posterior"  # the best that was fitted: the exact one
    alone = am.gaps(program, x, families=(), method=METHOD)
    assert alone.evidence.start == "prior"
    assert alone.evidence.se.mean() > ledger.evidence.se.mean()
    assert ledger.train is not None
    assert ledger.train.guide_family == "point"


def test_what_needs_a_density_says_that_a_point_has_none() -> None:
    exact, program = linear(point=True)
    x = exact.simulate(4)
    assert latents(program, x) is None
    with pytest.raises(GuideMismatchError, match="is a point"):
        am.evidence(program, x, method=am.ImportanceSampling(10), start="guide")


POINT = """
def coded(width=2):
    encoder, decoder = torch.nn.Linear(3, width), torch.nn.Linear(width, 3)
    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(width), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)
    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Delta(encoder(x), event_dim=1))
    coded.parts = encoder, decoder
    return am.Program(model, guide)
"""


@pytest.fixture
def coded(folder: Path) -> Path:
    """A folder with a program whose guide is a point."""
    source = Path("mine.py")
    source.write_text(source.read_text() + POINT)
    return folder


def test_a_study_trains_a_point_and_shows_what_there_is(coded: Path) -> None:
    result = am.run(mine("coded", **{"ledger.probes": True, "ledger.num_train": 5, "local.num_steps": 200}), out="run")
    assert isinstance(result, am.StudyResult)
    assert result.ledger.guide_family == "point"
    assert result.fitted is not None
    assert result.fitted.bound == "log p(x, z) at a point, no bound"
    assert set(result.ledger.table) & GUIDE_COLUMNS == set()
    assert {"guide", "latents", "cost", "probe"} & set(result.seconds) == set()
    tree = written(Path("run"))
    data = np.load("x.npy").astype(np.float32)[result.ledger.table.index]
    program = result.fitted.program
    np.testing.assert_allclose(tree["reconstruction"]["x"], program.reconstruct(data)["x"], rtol=1e-5)
    assert tree["posterior"]["z"].sizes["draw"] == 20


def test_the_page_says_that_the_guide_is_a_point(coded: Path) -> None:
    am.run(mine("coded"), out="run")
    page, numbers = Path("run/report.html").read_text(), json.loads(Path("run/report.json").read_text())
    assert numbers["verdict"].startswith("The guide is a point, which has no ELBO")
    assert numbers["cause"] in ("point-guide", "evidence-too-low")
    assert any("no importance weights" in note and "full-covariance" in note for note in numbers["notes"])
    assert "guide: a point" in page
    assert "the guide's reconstruction" in page
    assert "The fits here begin at the prior." in page
    for words in ("no guide<", "k-hat of each", "Inference gap", "Its level is not that", "The guide loses"):
        assert words not in page, words


def test_what_a_point_cannot_give_is_refused_before_anything_is_written(coded: Path) -> None:
    for changes in ({"method": "importance"}, {"start": "guide"}):
        with pytest.raises(SpecError, match=r"evidence\.(method|start): .*the program's is a point, which has no dens"):
            am.run(mine("coded", evidence=changes), out="run")
    assert not Path("run").exists()


def test_points_and_densities_stand_side_by_side_in_a_grid(coded: Path) -> None:
    study = mine(
        grid=[{"key": "program.target", "values": ["mine.py:coded", "mine.py:program"], "labels": ["point", "density"]}]
    )
    result = am.run(study, out="run")
    assert isinstance(result, am.GridResult)
    assert np.isfinite(result.table["log_evidence"]).all()
    assert np.isnan(result.table.loc["target-point", "elbo_guide"])
    assert np.isfinite(result.table.loc["target-density", "elbo_guide"])
    compared = am.compare("run/cells/target-point", "run/cells/target-density")
    assert "log_evidence" in compared.summary.index
    assert "elbo_guide" not in compared.summary.index
