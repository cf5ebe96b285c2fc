"""Item response: the evidence by quadrature against another integrator and a published maximum, and annealing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import ItemResponse
from amortize.random import generator
from tests.statistics import z_value

PATTERNS = ((torch.arange(32)[:, None] >> torch.arange(4, -1, -1)) & 1).double()
PERSONS = torch.tensor(
    [3, 6, 2, 11, 1, 1, 3, 4, 1, 8, 0, 16, 0, 3, 2, 15, 10, 29, 14, 81, 3, 28, 15, 80, 16, 56, 21, 173, 11, 61, 28, 298]
)
"""Section 6 of the Law School Admission Test, 1000 persons, five items (Bock and Lieberman 1970)."""
PUBLISHED = -2466.653
DISCRIMINATION = [0.8254, 0.7229, 0.8905, 0.6886, 0.6575]
DIFFICULTY = [-3.3597, -1.3696, -0.2799, -1.8659, -3.1236]
"""The two-parameter model by R's ltm (Rizopoulos 2006), whose optimiser stops at a gradient of 0.02."""


def answered(num: int = 2000) -> tuple[ItemResponse, torch.Tensor]:
    """A test of twelve items, and the answers that the model itself draws."""
    stream = generator(0, "items")
    slope = 0.7 + 1.5 * torch.rand(12, generator=stream)
    test = ItemResponse(slope, torch.randn(12, generator=stream))
    _, observed = test.program().simulate(torch.zeros(num, 12), seed=0)
    return test, torch.as_tensor(observed["x"])


def maximised(test: ItemResponse, log_evidence) -> float:
    """The largest log likelihood of the items, by a quasi-Newton method."""
    optimiser = torch.optim.LBFGS(
        test.items.parameters(),
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -(PERSONS * log_evidence(PATTERNS)).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return -float(loss().detach())


def test_the_published_maximum_and_its_items():
    test = ItemResponse.from_data(PATTERNS.repeat_interleave(PERSONS, 0)).double()
    assert maximised(test, test.log_evidence) == pytest.approx(PUBLISHED, abs=1e-3)
    assert test.discrimination.tolist() == pytest.approx(DISCRIMINATION, abs=2e-3)
    assert test.difficulty.tolist() == pytest.approx(DIFFICULTY, abs=5e-3)


def test_a_latent_left_out_misses_the_published_maximum():
    """Independent answers, each with its own share of ones."""
    share = (PERSONS[:, None] * PATTERNS).sum(0) / PERSONS.sum()
    log_p = (PATTERNS * share.log() + (1 - PATTERNS) * (1 - share).log()).sum(1)
    assert float((PERSONS * log_p).sum()) < PUBLISHED - 5


def test_evidence_against_another_integrator():
    test, x = answered(3)
    slope, intercept = (p.detach().double().numpy() for p in (test.discrimination, test.items.bias))

    def density(z: float, row: np.ndarray) -> float:
        logits = slope * z + intercept
        return float(
            np.exp(row @ special.log_expit(logits) + (1 - row) @ special.log_expit(-logits)) * stats.norm.pdf(z)
        )

    exact = [
        np.log(integrate.quad(density, -12, 12, args=(row,), epsabs=0, limit=200)[0]) for row in x.double().numpy()
    ]
    np.testing.assert_allclose(test.log_evidence(x).detach(), exact, rtol=1e-8)


def test_annealing_agrees_with_it():
    test, x = answered(40)
    program = test.program()
    found = am.evidence(program, x, method=am.AIS(num_temperatures=30), seed=0)
    off = found.log_evidence - test.log_evidence(x).detach().numpy()
    assert np.abs(off / found.se).max() < z_value(2 * len(off))
    ratio = np.exp(off)
    assert abs(ratio.mean() - 1) < z_value(2) * ratio.std() / len(ratio) ** 0.5


def test_training_finds_the_items_behind_the_answers():
    truth, x = answered()
    test = ItemResponse.from_data(x, hidden=(32,))
    how = am.Training(learning_rate=1e-2, schedule="cosine")
    before = float(test.log_evidence(x).detach().mean())
    fitted = am.fit(test.program(), x, objective=test.objective, num_steps=600, training=how)
    after = float(test.log_evidence(x).detach().mean())
    assert after > before
    assert fitted.history.elbo[-50:].mean() < after + 0.05  # of batches; a bound never passes the evidence
    assert after > float(truth.log_evidence(x).detach().mean()) - 0.02
    for found, true in ((test.discrimination, truth.discrimination), (test.difficulty, truth.difficulty)):
        assert np.corrcoef(found.detach(), true.detach())[0, 1] > 0.95


def test_the_contract_holds_on_digits():
    x = torch.as_tensor(am.data.load("digits").x_train[:100]).float()
    test = ItemResponse.from_data(x)
    report = test.program().check(x)
    assert report.ok, str(report)
    assert test.program().dim(x) == 1


def test_what_is_refused():
    with pytest.raises(DataError, match="zeros and ones"):
        ItemResponse.from_data(torch.full((3, 2), 0.5))
    with pytest.raises(DataError, match="one score"):
        ItemResponse.from_data(torch.ones(4, 3))
    with pytest.raises(ArgumentError, match="same for both"):
        ItemResponse(torch.ones(3), torch.zeros(2))
    with pytest.raises(ArgumentError, match="none of 0"):
        ItemResponse(torch.zeros(3), torch.zeros(3))
    with pytest.raises(DataError, match="shape"):
        ItemResponse(torch.ones(3), torch.zeros(3)).log_evidence(torch.zeros(2, 4))
