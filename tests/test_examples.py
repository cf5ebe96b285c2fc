"""The examples: each meets the contract, runs as a study at a small size, and is right where the answer is known."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import amortize as am
from amortize.data import place_of
from amortize.random import pyro_rng
from amortize.study.prepare import check_target
from amortize.study.spec import Study
from tests.statistics import z_value

FOLDER = Path(__file__).parent.parent / "examples"
DATA = {
    "bernoulli_vae": "binarized-mnist",
    "conditional_vae": "binarized-mnist",
    "conv_vae": "fashion-mnist",
    "deep_markov_model": "binarized-mnist",
    "hidden_markov": "digits",
    "item_response": "a1a",
    "mixture": "wine",
    "relaxed_clusters": "digits",
    "semi_supervised_vae": "digits",
    "single_cell": "starmap",
    "topics": "newsgroups20",
}
SMALL = {
    "data.num_train": 64,
    "data.num_evaluated": 3,
    "fit.num_steps": 3,
    "fit.batch_size": 16,
    "local.families": ["mean-field"],
    "local.num_steps": 5,
    "evidence.num_chains": 2,
    "evidence.num_temperatures": 4,
    "evidence.num_leapfrog": 2,
    "evidence.num_draws": 20,
    "ledger.probes": False,
    "report.num_draws": 10,
}


@pytest.fixture(params=sorted(DATA))
def name(request: pytest.FixtureRequest) -> str:
    """An example whose data are here; nothing is downloaded."""
    require_data(request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for example in DATA:
        sys.modules.pop(example, None)


def require_data(example: str) -> None:
    if place_of(DATA[example]).kind in ("download", "not available"):
        pytest.skip(f"{DATA[example]} is not here; AMORTIZE_DATA_DIR names the folder of its file")


def imported(example: str) -> ModuleType:
    require_data(example)
    return importlib.import_module(example)


def test_every_example_is_tested_described_and_has_a_study() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert files == set(DATA) == {path.stem for path in FOLDER.glob("*.toml")}
    page = (FOLDER.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    for example in files:
        words = (FOLDER / f"{example}.py").read_text(encoding="utf-8").split('"""')[1]
        assert f"amortize check examples/{example}.py:program --data examples/{example}.py:data" in words
        assert f"amortize study examples/{example}.toml" in words
        assert re.search(rf"amortize study examples/{example}\.toml", page)


def test_example_meets_the_contract(name: str) -> None:
    verdict = check_target(f"{FOLDER / name}.py:program", Path(f"{FOLDER / name}.py:data"))[1]
    assert verdict.ok, str(verdict)


def test_study_of_example_at_a_small_size(name: str) -> None:
    study = Study.from_toml(FOLDER / f"{name}.toml").with_values(SMALL)
    result = am.run(study, progress=False)
    table = result.ledger.table
    assert len(table) == 3
    assert np.isfinite(table[["log_evidence", "elbo_guide", "inference_gap"]]).all(axis=None)
    assert result.fitted is not None and np.isfinite(result.fitted.history["elbo"]).all()


def test_mixture_has_the_exact_evidence() -> None:
    example = imported("mixture")
    with pyro_rng(0, "test"):
        mixture, guide = example.Mixture(torch.randn(3, 13), 2), example.Guide(13, 2)
    x = example.data().x_test[:8]
    measured = am.evidence(am.Program(mixture, guide), x, seed=0)
    exact, clusters = mixture.exact(torch.as_tensor(x, dtype=torch.float32))
    require_close(measured, exact)
    torch.testing.assert_close(clusters.sum(1), torch.ones(8))


def bernoulli(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Log p(x) of pixels, summed."""
    return torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)


def test_relaxed_clusters_are_scored_as_the_discrete_model() -> None:
    """Training draws soft kinds; the evidence sums over ten hard ones."""
    example = imported("relaxed_clusters")
    with pyro_rng(0, "test"):
        clusters = example.Clusters(hidden=8)
    program = am.Program(clusters.model, clusters.guide)
    x = torch.as_tensor(example.data().x_train[:6])
    fitted = am.fit(program, x, objective="concrete-elbo", num_steps=2, seed=0)
    assert fitted.bound.startswith("relaxed ELBO in training")
    measured = am.evidence(program, x, method=am.ImportanceSampling(500), seed=0)
    kinds = torch.eye(example.KINDS)
    with pyro_rng(0, "test"), torch.no_grad():
        z = torch.randn(4_000, 1, example.HAND)
        logits = clusters.decoder(torch.cat([kinds.expand(4_000, -1, -1), z.expand(-1, example.KINDS, -1)], -1))
    weights = torch.stack([bernoulli(logits, row).double().exp().mean(1) for row in x])  # over kinds, exactly
    exact, relative = weights.mean(1).log(), weights.std(1) / weights.mean(1) / weights.shape[1] ** 0.5
    error = np.sqrt(np.square(measured.se) + np.square(relative.numpy()))
    assert (np.abs(measured.log_evidence - exact.numpy()) < z_value(len(x)) * error).all()


def test_item_response_has_the_evidence_of_quadrature() -> None:
    example = imported("item_response")
    with pyro_rng(0, "test"):
        program = example.program()
    x = example.data()[:8]
    measured = am.evidence(program, x, seed=0)
    items = (program.state()[f"model.scope.params.{key}"] for key in ("slope", "easiness"))
    require_close(measured, example.exact_log_evidence(torch.as_tensor(x), *items))


def test_hidden_markov_model_has_the_evidence_of_the_forward_algorithm() -> None:
    example = imported("hidden_markov")
    with pyro_rng(0, "test"):
        states = example.HiddenMarkov(12, 8)
    x = example.data()[:20]
    measured = am.evidence(am.Program(states, example.guide), x, seed=0)
    exact = states.exact_log_evidence(torch.as_tensor(x))
    np.testing.assert_allclose(measured.log_evidence, exact.numpy(), atol=1e-4)


def require_close(measured: am.Evidence, exact: torch.Tensor) -> None:
    """The mean is within Monte Carlo error of the truth."""
    error = measured.log_evidence - exact.numpy()
    assert abs(error.mean()) < z_value() * np.sqrt(np.square(measured.se).sum()) / len(error)


def test_sequences_are_ragged_and_padding_counts_for_nothing() -> None:
    example = imported("deep_markov_model")
    sequences = example.data(40)
    x, length = sequences["x"], sequences["length"]
    behind = np.arange(14) >= length[:, None]
    assert 1 < length.min() < length.max() <= 14 and not x[behind].any()
    assert x[:, 0].any(1).all() and x[np.arange(40), length - 1].any(1).all()
    with pyro_rng(0, "test"):
        program = example.program()
    changed = {"x": np.where(behind[:, :, None], 1, x).astype(np.float32), "length": length}
    first, second = (
        am.evidence(program, part, method=am.ImportanceSampling(4), seed=0) for part in (sequences, changed)
    )
    np.testing.assert_allclose(first.log_evidence, second.log_evidence, rtol=1e-5)
