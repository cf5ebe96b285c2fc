"""The latents of a guide: KL divergences and activity against their closed forms."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.study.latents import COLUMNS, latents
from tests.statistics import z_value

N, S = 30, 400
X = torch.linspace(-2.0, 2.0, N)


def gaussian_kl(loc, scale):
    """KL divergence of N(loc, scale^2) from a standard normal."""
    return 0.5 * (loc**2 + scale**2 - 1 - np.log(scale**2))


def test_the_linear_vae_dimension_by_dimension():
    model = am.models.FactorAnalysis.random(latent_dim=3, data_dim=6, seed=0)
    model.set_best_encoder()
    with torch.no_grad():  # the second dimension falls back to the prior
        model.encoder.weight[1], model.encoder.bias[1], model.encoder.log_scale[1] = 0.0, 0.0, 0.0
    x = model.simulate(N, seed=1)
    with torch.no_grad():
        loc, scale = (part.numpy() for part in model.encoder(x))
    found = latents(model.program(), x, num_draws=S)
    assert list(found.columns) == COLUMNS
    assert found[["site", "index", "kind"]].to_numpy().tolist() == [
        ["z", 0, "density"],
        ["z", 1, "density"],
        ["z", 2, "density"],
    ]
    kl = gaussian_kl(loc, scale)
    noise = np.sqrt(((scale**2 - 1) ** 2 / 2 + scale**2 * loc**2).mean(0) / (N * S))
    assert (np.abs(found["kl"] - kl.mean(0)) < z_value(3) * noise + 1e-6).all()
    np.testing.assert_allclose(found["kl_se"], kl.std(0, ddof=1) / N**0.5, rtol=0.2, atol=1e-6)
    assert found.loc[1, "kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["active"].tolist() == [True, False, True]
    np.testing.assert_allclose(found["activity"], loc.var(0, ddof=1), rtol=0.05, atol=0.005)


def program(prior, guide) -> am.Program:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z if z.dim() == 1 else z.sum(-1), 1.0), obs=x)

    def encoder(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", guide(x))

    return am.Program(model, encoder)


def test_a_correlated_guide_has_the_divergences_of_its_marginals():
    tril = torch.tensor([[0.5, 0.0], [0.4, 0.3]])
    made = program(
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        lambda x: dist.MultivariateNormal(torch.stack([x, -x], -1), scale_tril=tril),
    )
    found = latents(made, X, num_draws=S)
    assert found["kind"].tolist() == ["moments", "moments"]
    kl = gaussian_kl(X.numpy()[:, None], np.array([0.5, 0.5])).mean(0)
    np.testing.assert_allclose(found["kl"], kl, rtol=0.03)


def test_a_positive_latent_keeps_its_divergence_whatever_its_coordinates():
    made = program(dist.LogNormal(0.0, 1.0), lambda x: dist.LogNormal(x, 0.5))
    found = latents(made, X, num_draws=S)
    assert found["kind"].tolist() == ["density"]
    assert found.loc[0, "kl"] == pytest.approx(gaussian_kl(X.numpy(), 0.5).mean(), rel=0.03)


def test_a_prior_of_another_scale_is_no_more_active():
    wide = program(dist.Normal(0.0, 10.0), lambda x: dist.Normal(0.5 * x, 1.0))
    assert latents(wide, X, num_draws=S)["active"].tolist() == [False]
    assert latents(program(dist.Normal(0.0, 1.0), lambda x: dist.Normal(0.5 * x, 1.0)), X)["active"].tolist() == [True]


def test_a_simplex_has_one_dimension_less_and_a_prior_under_a_discrete_latent_no_density():
    made = program(
        dist.Dirichlet(torch.ones(3)),
        lambda x: dist.Dirichlet(torch.ones(x.shape[0], 3) + x.exp().unsqueeze(-1)),
    )
    found = latents(made, X, num_draws=50)
    assert found[["site", "index", "kind"]].to_numpy().tolist() == [["z", 0, "moments"], ["z", 1, "moments"]]

    def mixed(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(4.0 * k - 2.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, 0.5))

    assert latents(am.Program(mixed, guide), X, num_draws=50)["kind"].tolist() == ["moments"]


def test_there_is_nothing_to_say_without_a_guide_and_one_datapoint_moves_nowhere():
    model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    assert latents(model.program(None), model.simulate(3)) is None
    one = latents(model.program(), model.simulate(1))
    assert one["activity"].isna().all()
    assert not one["active"].any()
