"""Factor models of counts: densities by scipy, evidence by quadrature, annealing, and which noise real counts have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import NegativeBinomialFactors, PoissonFactors
from tests.statistics import z_value

KINDS = {"poisson": PoissonFactors, "negative-binomial": NegativeBinomialFactors}
HOW = am.Training(learning_rate=1e-2, schedule="cosine", clip_norm=100.0)


def counts(num: int = 300, num_features: int = 6, *, shape: float = 2.0) -> torch.Tensor:
    """One factor and gamma noise of a shape beside it, float64."""
    rng = np.random.default_rng(0)
    log_mean = 0.7 * rng.normal(size=(num, 1)) + rng.normal(size=num_features) + 1
    rates = np.exp(log_mean) * rng.gamma(shape, 1 / shape, size=log_mean.shape)
    return torch.as_tensor(rng.poisson(rates).astype(float))


def log_likelihood(factors, z: np.ndarray, row: np.ndarray) -> float:
    """By scipy, at one latent."""
    with torch.no_grad():
        mean = np.exp(factors.rates.weight.double().numpy() @ z + factors.rates.bias.double().numpy())
        if isinstance(factors, PoissonFactors):
            return float(stats.poisson(mean).logpmf(row).sum())
        shape = factors.shape.double().numpy()
        return float(stats.nbinom(shape, shape / (shape + mean)).logpmf(row).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_is_that_distribution(kind):
    x = counts(5)
    factors = KINDS[kind].from_data(x, latent_dim=3)
    z = torch.randn(5, 3, dtype=torch.float64)
    found = factors.decoder(z).log_prob(x)
    expected = [log_likelihood(factors, z[n].numpy(), x[n].numpy()) for n in range(5)]
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_quadrature_against_another_integrator(kind):
    x = counts(4)
    factors = KINDS[kind].from_data(x, latent_dim=1)

    def joint(z: float, row: np.ndarray) -> float:
        return np.exp(log_likelihood(factors, np.array([z]), row) + stats.norm.logpdf(z))

    exact = [np.log(integrate.quad(joint, -8, 8, args=(row,), epsabs=0, limit=400)[0]) for row in x.numpy()]
    np.testing.assert_allclose(factors.log_evidence_by_quadrature(x).detach(), exact, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_annealing_agrees_with_quadrature(kind):
    x = counts(40)
    factors = KINDS[kind].from_data(x, latent_dim=1)
    found = am.evidence(factors.program(), x, method=am.AIS(num_temperatures=50), start="prior", seed=0)
    ratio = np.exp(found.log_evidence - factors.log_evidence_by_quadrature(x).detach().numpy())
    assert abs(ratio.mean() - 1) < z_value(2) * ratio.std() / len(ratio) ** 0.5


def test_the_noise_that_the_counts_have_explains_them_better():
    """Trained by the ELBO on overdispersed counts; evidence of others by quadrature, and no ELBO is above it."""
    x = counts(600)
    train, held_out = x[:400], x[400:]
    evidence = {}
    for kind, model in KINDS.items():
        factors = model.from_data(train, latent_dim=1, hidden=(16,))
        program = factors.program()
        am.fit(program, train, objective=factors.objective, num_steps=500, training=HOW)
        evidence[kind] = factors.log_evidence_by_quadrature(held_out).detach().numpy()
        elbo = am.evidence(program, held_out, method=am.ImportanceSampling(200)).log_weights
        above = elbo.mean(0) - evidence[kind]
        assert (above < z_value(400) * elbo.std(0) / 200**0.5 + 1e-9).all()
    better = evidence["negative-binomial"] - evidence["poisson"]
    assert better.mean() > z_value() * better.std() / len(better) ** 0.5
    assert np.median(factors.shape.detach()) == pytest.approx(2.0, rel=0.4)  # the gamma noise's own


def test_more_shape_is_nearer_to_poisson():
    x = counts(50)
    poisson = PoissonFactors.from_data(x, latent_dim=1)
    away = []
    for shape in (10.0, 1e3, 1e5):
        gamma = NegativeBinomialFactors.from_data(x, latent_dim=1)
        with torch.no_grad():
            gamma.decoder.log_shape.fill_(np.log(shape))
        difference = gamma.log_evidence_by_quadrature(x) - poisson.log_evidence_by_quadrature(x)
        away.append(float(difference.detach().abs().max()))
    assert away[0] > 10 * away[1] > 100 * away[2]


def test_molecules_in_cells_vary_more_than_poisson_s():
    """OsmFISH, 33 genes: a tenth of the cells, held out."""
    try:
        data = am.data.load("osmfish")
    except DataError as missing:
        pytest.skip(f"osmfish is not here: {missing}")
    train, held_out = (torch.as_tensor(part[:num]) for part, num in ((data.x_train, 1500), (data.x_test, 200)))
    bounds = {}
    for kind, model in KINDS.items():
        factors = model.from_data(train, latent_dim=3, hidden=(32,))
        program = factors.program()
        am.fit(program, train, objective=factors.objective, num_steps=400, training=HOW)
        bounds[kind] = am.evidence(program, held_out, method=am.ImportanceSampling(100)).log_weights.mean(0)
    better = bounds["negative-binomial"] - bounds["poisson"]
    assert better.mean() > z_value() * better.std() / len(better) ** 0.5
    assert better.mean() > 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_and_the_start(kind):
    x = counts().float()
    factors = KINDS[kind].from_data(x, latent_dim=2)
    report = factors.program().check(x[:20])
    assert report.ok, str(report)
    drawn = torch.as_tensor(factors.program().simulate(x.repeat(20, 1), seed=0)[1]["x"])
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0.25, atol=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused(kind):
    with pytest.raises(DataError, match="counts"):
        KINDS[kind].from_data(torch.tensor([[0.5, 1.0]]))
    with pytest.raises(DataError, match="counts"):
        KINDS[kind].from_data(torch.tensor([[-1.0, 1.0]]))
    with pytest.raises(ArgumentError, match="latent_dim"):
        KINDS[kind].from_data(counts(), latent_dim=0)
    factors = KINDS[kind].from_data(counts(), latent_dim=2)
    with pytest.raises(ArgumentError, match="expected 1 for quadrature"):
        factors.log_evidence_by_quadrature(counts())
    with pytest.raises(DataError, match="shape"):
        KINDS[kind].from_data(counts(), latent_dim=1).log_evidence_by_quadrature(torch.zeros(2, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_yes_and_no_are_counts(kind):
    x = counts(5) > 3
    assert KINDS[kind].from_data(x, latent_dim=2).program().check(x.float()).ok
