"""The mixture with a one-hot latent: exact sums, what a relaxed encoder loses, and against summing out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import GaussianMixture, OneHotMixture
from amortize.models.one_hot_mixture import OneHotComponents
from tests.statistics import z_value


@pytest.fixture(scope="module")
def wine():
    """Standardised, float32."""
    x = torch.as_tensor(am.data.load("wine").x_train)
    return ((x - x.mean(0)) / x.std(0)).float()


def small(num=12):
    """A mixture of three, float64, whose encoder is far from even, and data for it."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(num, 2, generator=stream, dtype=torch.float64)
    mixture = OneHotMixture.from_data(x, 3, hidden=(4,))
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    return mixture, x


def test_it_is_the_mixture_that_is_summed_out():
    """The same parameters, as one-hot and as index: evidence, responsibilities, and what the program finds."""
    mixture, x = small()
    parts = mixture.components
    variances = (2 * parts.log_scale()).exp()
    other = GaussianMixture(parts.log_weights.exp().detach(), parts.means.detach(), variances.detach())
    torch.testing.assert_close(mixture.log_evidence(x), other.log_evidence(x))
    torch.testing.assert_close(mixture.responsibilities(x), other.responsibilities(x))
    found = am.evidence(mixture.program(), x)
    np.testing.assert_allclose(found.log_evidence, mixture.log_evidence(x), rtol=1e-12)
    assert (found.se == 0).all()


def test_the_encoder_s_loss_is_its_divergence():
    """Evidence less the guide's ELBO is KL(q || p), from both sides, and draws of the guide agree."""
    mixture, x = small()
    exact, encoded = mixture.responsibilities(x), mixture.encoded(x)
    divergence = (encoded * (encoded.log() - exact.log())).sum(1)
    torch.testing.assert_close(mixture.log_evidence(x) - mixture.guide_elbo(x), divergence)
    assert float(divergence.max()) > 0.1
    drawn = am.evidence(mixture.program(), x, method=am.ImportanceSampling(4000), discrete="sample", seed=0)
    elbo, se = drawn.log_weights.mean(0), drawn.log_weights.std(0) / 4000**0.5
    assert (np.abs(elbo - mixture.guide_elbo(x).numpy()) < z_value(len(x)) * se + 1e-9).all()


def test_a_soft_component_is_between_the_hard_ones():
    components = OneHotComponents(torch.ones(2), torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0]]), floor=1e-3)
    hard, soft = components(torch.eye(2)), components(torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(hard.mean, torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(hard.variance, torch.tensor([[1.0], [4.0]]))
    torch.testing.assert_close(soft.mean, torch.tensor([1.0]))
    torch.testing.assert_close(soft.variance, torch.tensor([2.0]))


def test_the_relaxed_encoder_nearly_reaches_what_summing_out_does(wine):
    """On wine: within 0.1 nats of the mixture that is trained without a guide, and the discrete guide within 0.15."""
    how = am.Training(learning_rate=2e-2, schedule="cosine", progress=False)
    summed = GaussianMixture.from_data(wine, 3)
    am.fit(summed.program(), wine, objective=summed.objective, num_steps=150, training=how)
    mixture = OneHotMixture.from_data(wine, 3, hidden=(32,))
    untrained = float(mixture.guide_elbo(wine).mean())
    fitted = am.fit(mixture.program(), wine, objective=mixture.objective, num_steps=150, training=how)
    best = float(summed.log_evidence(wine).mean())
    reached, elbo = float(mixture.log_evidence(wine).mean()), float(mixture.guide_elbo(wine).mean())
    assert fitted.objective == "concrete-elbo"
    assert best - 0.1 < reached < best + 0.1
    assert reached - 0.15 < elbo < reached
    assert untrained < elbo - 5


def test_an_encoder_that_was_shuffled_is_noticed(wine):
    """It names other components than it was trained to."""
    mixture = OneHotMixture.from_data(wine, 3, hidden=(8,))
    how = am.Training(learning_rate=2e-2, progress=False)
    am.fit(mixture.program(), wine, objective="enum-elbo", num_steps=60, training=how)
    before = float((mixture.log_evidence(wine) - mixture.guide_elbo(wine)).mean())
    last = mixture.encoder[1].last
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, 0))
        last.bias.copy_(last.bias.roll(1))
    assert float((mixture.log_evidence(wine) - mixture.guide_elbo(wine)).mean()) > before + 5


def test_the_contract_holds(wine):
    mixture = OneHotMixture.from_data(wine, 3)
    report = mixture.program().check(wine[:20])
    assert report.ok, str(report)
    assert mixture.program().dim(wine) == 0


def test_what_is_refused():
    with pytest.raises(DataError, match="different rows"):
        OneHotMixture.from_data(torch.zeros(9, 2), 2)
    with pytest.raises(DataError, match="finite"):
        OneHotMixture.from_data(torch.tensor([[float("nan")]]), 1)
    with pytest.raises(ArgumentError, match="num_components"):
        OneHotMixture.from_data(torch.randn(9, 2), 0)
    with pytest.raises(DataError, match="shape"):
        small()[0].log_evidence(torch.zeros(1, 3))
