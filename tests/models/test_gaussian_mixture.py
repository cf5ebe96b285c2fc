"""The mixture of Gaussians: exact evidence by scikit-learn's densities, EM's maximum, and the sum over components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import GaussianMixture

KINDS = {"diagonal": "diag", "full": "full"}


@pytest.fixture(scope="module")
def wine() -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised, to train on and held out."""
    data = am.data.load("wine")
    loc, scale = data.x_train.mean(0), data.x_train.std(0)
    train, held_out = ((part - loc) / scale for part in (data.x_train, data.x_test))
    return torch.as_tensor(train), torch.as_tensor(held_out)


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_and_responsibilities_are_those_of_another_program(kind, wine):
    train, held_out = wine
    fitted = Reference(3, covariance_type=KINDS[kind], random_state=0).fit(train.numpy())
    mixture = GaussianMixture(*(torch.as_tensor(p) for p in (fitted.weights_, fitted.means_, fitted.covariances_)))
    np.testing.assert_allclose(mixture.log_evidence(held_out), fitted.score_samples(held_out.numpy()), rtol=1e-9)
    np.testing.assert_allclose(mixture.responsibilities(held_out), fitted.predict_proba(held_out.numpy()), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_sums_over_components_exactly(kind, wine):
    train, held_out = wine
    mixture = GaussianMixture.from_data(train, 3, covariance=kind)
    found = am.evidence(mixture.program(), held_out)
    np.testing.assert_allclose(found.log_evidence, mixture.log_evidence(held_out), rtol=1e-9)
    assert (found.se == 0).all()
    ledger = am.gaps(mixture.program(), held_out)
    assert abs(ledger.summary.loc["inference_gap", "mean"]) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_training_climbs_to_the_maximum_of_em(kind, wine):
    train, _ = wine
    mixture = GaussianMixture.from_data(train, 3, covariance=kind)
    before = float(mixture.log_evidence(train).mean())
    how = am.Training(learning_rate=0.03, schedule="cosine")
    fitted = am.fit(mixture.program(), train, objective=mixture.objective, num_steps=300, training=how)
    after = float(mixture.log_evidence(train).mean())
    reference = Reference(3, covariance_type=KINDS[kind], reg_covar=1e-3, n_init=3, random_state=0).fit(train.numpy())
    assert after > before + 0.2
    assert after > reference.score(train.numpy()) - 0.05
    assert fitted.history.elbo.iloc[-1] == pytest.approx(after, abs=1e-3)  # nothing is lost between bound and evidence


def test_a_component_left_out_is_noticed(wine):
    """The sum of two of three components is no evidence: too low wherever the third has a share."""
    train, held_out = wine
    fitted = Reference(3, covariance_type="diag", random_state=0).fit(train.numpy())
    parts = [torch.as_tensor(p)[:2] for p in (fitted.weights_, fitted.means_, fitted.covariances_)]
    lacking = GaussianMixture(*parts).log_evidence(held_out).numpy()
    assert np.abs(lacking - fitted.score_samples(held_out.numpy())).max() > 1.0


def test_variances_stay_above_the_floor():
    x = torch.cat([torch.zeros(50, 1), torch.randn(50, 1, generator=torch.Generator().manual_seed(0))])
    mixture = GaussianMixture.from_data(x, 2, floor=0.01)
    how = am.Training(learning_rate=0.1)
    am.fit(mixture.program(), x, objective=mixture.objective, num_steps=300, training=how)
    floor = 0.01 * float(x.var(0, correction=0))
    least = float(mixture.components.scale().detach().min()) ** 2
    assert floor <= least < 1.5 * floor


def test_the_contract_holds_on_digits():
    x = torch.as_tensor(am.data.load("digits", binarise="grey").x_train).float()
    mixture = GaussianMixture.from_data(x)
    report = mixture.program().check(x[:20])
    assert report.ok, str(report)
    assert mixture.program().dim(x) == 0


def test_what_is_refused():
    ones = torch.ones(2)
    with pytest.raises(ArgumentError, match="covariance"):
        GaussianMixture.from_data(torch.randn(9, 2), 2, covariance="tied")
    with pytest.raises(DataError, match="different rows"):
        GaussianMixture.from_data(torch.zeros(9, 2), 2)
    with pytest.raises(DataError, match="finite"):
        GaussianMixture.from_data(torch.tensor([[float("nan")]]), 1)
    with pytest.raises(ArgumentError, match="positive weights"):
        GaussianMixture(ones, torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(ArgumentError, match="above the floor"):
        GaussianMixture(ones, torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match="positive definite"):
        GaussianMixture(ones, torch.zeros(2, 2), -torch.eye(2).expand(2, 2, 2))
    with pytest.raises(DataError, match="shape"):
        GaussianMixture(ones, torch.zeros(2, 2), torch.ones(2, 2)).log_evidence(torch.zeros(1, 3))
