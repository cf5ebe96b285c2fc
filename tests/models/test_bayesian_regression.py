"""Bayesian regression: exact evidence of a data set, its maximum by another program, and what mean field loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import BayesianRidge

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import BayesianRegression
from tests.statistics import z_value

HOW = am.Training(learning_rate=0.03, schedule="cosine")


@pytest.fixture(scope="module")
def diabetes() -> dict[str, torch.Tensor]:
    data = am.data.load("diabetes")
    return {"x": torch.as_tensor(data.x_train), "y": torch.as_tensor(data.y_train)}


def test_evidence_is_the_density_of_the_responses(diabetes):
    regression = BayesianRegression.from_data(diabetes)
    design = regression.design(diabetes["x"]).numpy()
    s, tau = float(regression.noise.detach()), float(regression.prior_scale.detach())
    covariance = s**2 * np.eye(len(design)) + tau**2 * design @ design.T
    mean = np.full(len(design), float(diabetes["y"].mean()))
    exact = stats.multivariate_normal(mean, covariance).logpdf(diabetes["y"].numpy())
    assert float(regression.log_evidence(diabetes)) == pytest.approx(exact, rel=1e-9)
    assert torch.equal(regression.log_evidence(diabetes["x"], diabetes["y"]), regression.log_evidence(diabetes))


def test_training_finds_the_maximum_of_another_program(diabetes):
    """Scikit-learn's evidence maximisation, without its priors of the two scales."""
    regression = BayesianRegression.from_data(diabetes)
    program = regression.program()
    fitted = am.fit(program, diabetes, objective=regression.objective, num_steps=300, training=HOW)
    ridge = BayesianRidge(
        alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, compute_score=True, max_iter=1000, tol=1e-10
    ).fit(regression.design(diabetes["x"]).numpy(), diabetes["y"].numpy())
    exact = float(regression.log_evidence(diabetes))
    assert exact == pytest.approx(ridge.scores_[-1], abs=1e-4)
    assert float(regression.noise.detach()) == pytest.approx(ridge.alpha_**-0.5, rel=1e-3)
    assert float(regression.prior_scale.detach()) == pytest.approx(ridge.lambda_**-0.5, rel=1e-2)
    np.testing.assert_allclose(regression.posterior(diabetes)[0], ridge.coef_, rtol=2e-2, atol=0.05)
    assert fitted.history.elbo.iloc[-1] == pytest.approx(exact, abs=1e-3)  # the guide is the posterior


def test_the_guide_is_the_posterior_and_mean_field_loses_what_it_must(diabetes):
    draws = {}
    for guide in ("full-covariance", "mean-field"):
        regression = BayesianRegression.from_data(diabetes, guide=guide)
        found = am.evidence(regression.program(), diabetes, method=am.ImportanceSampling(1000), seed=0)
        draws[guide] = found.log_weights[:, 0]
    exact, bound = float(regression.log_evidence(diabetes)), float(regression.best_mean_field_elbo(diabetes))
    np.testing.assert_allclose(draws["full-covariance"], exact, rtol=1e-8)
    mean, se = draws["mean-field"].mean(), draws["mean-field"].std() / len(draws["mean-field"]) ** 0.5
    assert abs(mean - bound) < z_value() * se
    assert exact - bound > 1.0


def test_annealing_agrees_with_the_closed_form(diabetes):
    regression = BayesianRegression.from_data(diabetes, guide="mean-field")
    found = am.evidence(regression.program(), diabetes, method=am.AIS(num_temperatures=100), seed=0)
    assert abs(found.log_evidence[0] - float(regression.log_evidence(diabetes))) < z_value() * found.se[0]


def test_a_wrong_noise_is_noticed(diabetes):
    """The evidence of a noise a fifth larger is another, by more than any error here."""
    regression = BayesianRegression.from_data(diabetes)
    before = float(regression.log_evidence(diabetes))
    with torch.no_grad():
        regression.scales.log_noise.add_(np.log(1.2))
    assert abs(float(regression.log_evidence(diabetes)) - before) > 1.0


def test_the_contract_and_pairs(diabetes):
    regression = BayesianRegression.from_data((diabetes["x"], diabetes["y"]))
    report = regression.program().check(diabetes)
    assert report.ok, str(report)
    assert regression.program().dim(diabetes) == 10


def test_what_is_refused(diabetes):
    with pytest.raises(DataError, match="or a pair"):
        BayesianRegression.from_data(diabetes["x"])
    with pytest.raises(DataError, match="finite responses"):
        BayesianRegression.from_data((diabetes["x"], diabetes["y"][:3]))
    with pytest.raises(DataError, match="one value"):
        BayesianRegression.from_data((diabetes["x"], torch.ones(len(diabetes["y"]))))
    with pytest.raises(ArgumentError, match="guide"):
        BayesianRegression.from_data(diabetes, guide="flow")
    with pytest.raises(DataError, match="shape"):
        BayesianRegression.from_data(diabetes).log_evidence(torch.zeros(3, 2), torch.zeros(3))
