"""The Gaussian VAE: its scale, its units, its divergence, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import GaussianVAE
from tests.statistics import z_value
from tests.vaes import digits, rates_of


class Blind(torch.nn.Module):
    def forward(self, z):
        return z.new_zeros(*z.shape[:-1], 3)


def wine():
    loaded = am.data.load("wine")
    return torch.as_tensor(loaded.x_train).float(), torch.as_tensor(loaded.x_test).float()


def test_it_begins_at_the_data_s_mean_and_scale():
    x, _ = wine()
    own = GaussianVAE.from_data(x, latent_dim=2, scale="own")
    torch.testing.assert_close(own.scale, x.std(0, correction=0))
    shared = GaussianVAE.from_data(x, latent_dim=2)
    torch.testing.assert_close(shared.scale, (x - x.mean(0)).square().mean().sqrt().reshape(1))
    with torch.no_grad():
        at_the_origin = own.decoder(torch.zeros(1, 2)).mean[0]
    torch.testing.assert_close(at_the_origin, x.mean(0))


@pytest.mark.parametrize("scale", ["shared", "own"])
def test_the_scale_is_learned(scale):
    """With a decoder that sees nothing, maximum likelihood is the columns' own standard deviation."""
    stream = torch.Generator().manual_seed(0)
    x = 3.0 + torch.tensor([0.5, 2.0, 4.0]) * torch.randn(400, 3, generator=stream)
    vae = GaussianVAE.from_data(x, latent_dim=1, hidden=(4,), scale=scale)
    vae.decoder.network = Blind()
    with torch.no_grad():
        vae.decoder.log_sigma.fill_(1.0)
    am.fit(
        vae.program(), x, objective="beta-elbo", num_steps=300, training=am.Training(learning_rate=0.05, batch_size=400)
    )
    centred = (x - x.mean(0)).square().mean(0)
    exact = (centred if scale == "own" else centred.mean().reshape(1)).sqrt()
    torch.testing.assert_close(vae.scale, exact, rtol=1e-3, atol=0)


def test_another_unit_changes_the_evidence_by_its_jacobian_alone():
    x, held_out = wine()
    unit = 100.0 ** torch.linspace(-1, 1, x.shape[1])
    one, other = (GaussianVAE.from_data(data, latent_dim=2, scale="own", seed=3) for data in (x, x * unit))
    method = am.ImportanceSampling(num_draws=50)
    first = am.evidence(one.program(), held_out[:8], method=method).log_evidence
    second = am.evidence(other.program(), held_out[:8] * unit, method=method).log_evidence
    np.testing.assert_allclose(second, first - float(unit.log().sum()), atol=1e-3)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_divergence_in_closed_form_is_that_of_draws(network):
    x, held_out = digits(grey=True)
    vae = GaussianVAE.from_data(x, latent_dim=3, hidden=(8,), network=network)
    assert vae.program().check(x[:8]).ok
    said, drawn = rates_of(vae.program(), held_out[:16], 1000)
    se = drawn.std(0, ddof=1) / 1000**0.5
    assert np.all(np.abs(said - drawn.mean(0)) < z_value(16) * se)
    assert not np.all(np.abs(0.5 * said - drawn.mean(0)) < z_value(16) * se)


def test_training_finds_more_than_independent_columns():
    x, held_out = wine()
    vae = GaussianVAE.from_data(x, latent_dim=2, hidden=(16,), scale="own")
    am.fit(vae.program(), x, num_steps=300, training=am.Training(learning_rate=1e-2))
    found = am.evidence(vae.program(), held_out, method=am.AIS(num_chains=8, num_temperatures=30))
    columns = torch.distributions.Normal(x.mean(0), x.std(0, correction=0)).log_prob(held_out).sum(-1)
    assert found.log_evidence.mean() > float(columns.mean()) + 1.0


def test_what_it_refuses():
    x, _ = wine()
    constant = x.clone()
    constant[:, 4] = 7.1
    GaussianVAE.from_data(constant)  # one scale for all columns is fine there
    with pytest.raises(DataError, match="column 4 does not vary"):
        GaussianVAE.from_data(constant, scale="own")
    with pytest.raises(DataError, match="do not vary"):
        GaussianVAE.from_data(torch.full((5, 3), 0.1))
    with pytest.raises(DataError, match="finite"):
        GaussianVAE.from_data(torch.full((5, 3), float("nan")))
    with pytest.raises(ArgumentError, match="'shared' or 'own'"):
        GaussianVAE.from_data(x, scale="mine")
    with pytest.raises(ArgumentError, match="latent_dim"):
        GaussianVAE.from_data(x, latent_dim=0)
