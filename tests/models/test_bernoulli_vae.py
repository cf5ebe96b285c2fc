"""The Bernoulli VAE: sizes, seeds, the start at the data's mean, and its densities."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from torch.distributions import Bernoulli, Normal

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import BernoulliVAE, ImportanceWeightedVAE
from amortize.random import pyro_rng
from tests.statistics import z_value
from tests.vaes import digits, rates_of


@pytest.fixture
def x() -> torch.Tensor:
    return (torch.rand(50, 12, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def test_densities_are_those_of_the_networks(x):
    vae = BernoulliVAE(12, 3, hidden=(8, 7), seed=1)
    with pyro.get_param_store().scope(), pyro_rng(0, "test"), torch.no_grad():
        drawn = pyro.poutine.trace(vae.guide).get_trace(x)
        joint = pyro.poutine.trace(pyro.poutine.replay(vae.model, drawn)).get_trace(x)
        joint.compute_log_prob()
        drawn.compute_log_prob()
        loc, scale = vae.encoder(x)
        z = drawn.nodes["z"]["value"]
        assert z.shape == (50, 3)
        likelihood = Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(-1)
        torch.testing.assert_close(joint.nodes["x"]["log_prob"], likelihood)
        torch.testing.assert_close(joint.nodes["z"]["log_prob"], Normal(0.0, 1.0).log_prob(z).sum(-1))
        torch.testing.assert_close(drawn.nodes["z"]["log_prob"], Normal(loc, scale).log_prob(z).sum(-1))


def test_the_decoder_starts_at_the_data_s_mean(x):
    x[:, 0], x[:, 1] = 0.0, 1.0
    vae = BernoulliVAE.from_data(x, latent_dim=3, hidden=(8,))
    bias = vae.decoder.last_bias
    torch.testing.assert_close(bias.sigmoid(), (x.sum(0) + 0.5) / 51, rtol=1e-5, atol=1e-6)
    assert bool(bias.isfinite().all())
    with torch.no_grad():
        at_the_origin = vae.decoder(torch.zeros(1, 3))[0]
    torch.testing.assert_close(at_the_origin, bias.detach())


def test_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (BernoulliVAE(12, 3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    bound = (6 / (12 + 64)) ** 0.5
    weight = first["encoder.network.layers.0.weight"]
    assert 0.95 * bound < float(weight.abs().max()) <= bound


def test_hidden_layers_mirror_and_may_be_missing():
    vae = BernoulliVAE(12, 3, hidden=(9, 5))
    widths = [p.shape for name, p in vae.named_parameters() if name.endswith("weight")]
    assert widths == [(9, 12), (5, 9), (6, 5), (5, 3), (9, 5), (12, 9)]
    assert BernoulliVAE(12, 3, hidden=()).decoder(torch.zeros(2, 3)).shape == (2, 12)


@pytest.mark.parametrize("sizes", [(0, 3, (4,)), (12, 0, (4,)), (12, 3, (0,))])
def test_sizes_must_be_positive(sizes):
    data_dim, latent_dim, hidden = sizes
    with pytest.raises(ArgumentError, match=r"positive|at least 1"):
        BernoulliVAE(data_dim, latent_dim, hidden=hidden)


@pytest.mark.parametrize("bad", [torch.full((3, 2), 0.5), torch.zeros(3), torch.full((3, 2), float("nan"))])
def test_data_that_are_not_binary_are_refused(bad):
    with pytest.raises(DataError, match="zeros and ones"):
        BernoulliVAE.from_data(bad)


@pytest.mark.parametrize("network", ["mlp", "conv", "residual"])
def test_networks_begin_at_the_data_s_mean_and_keep_the_contract(network):
    x, _ = digits()
    vae = BernoulliVAE.from_data(x, latent_dim=3, network=network)
    with torch.no_grad():
        torch.testing.assert_close(vae.decoder(torch.zeros(1, 3))[0], vae.decoder.last_bias.detach())
    torch.testing.assert_close(vae.decoder.last_bias.sigmoid(), (x.sum(0) + 0.5) / (len(x) + 1))
    report = vae.program().check(x[:8])
    assert report.ok, str(report)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_divergence_in_closed_form_is_that_of_draws(network):
    x, held_out = digits()
    vae = BernoulliVAE.from_data(x, latent_dim=3, hidden=(8,), network=network)
    with torch.no_grad():
        vae.encoder.network.last.weight.mul_(4.0)  # codes that say something
    said, drawn = rates_of(vae.program(), held_out[:16], 1000)
    se = drawn.std(0, ddof=1) / 1000**0.5
    z = z_value(16)
    assert np.all(np.abs(said - drawn.mean(0)) < z * se)
    too_little = 0.5 * said  # a divergence without its second half
    assert not np.all(np.abs(too_little - drawn.mean(0)) < z * se)


def test_names_of_weights_stay_what_saved_states_call_them():
    names = set(BernoulliVAE(12, 3, hidden=(8,)).state_dict())
    assert names == {
        f"{part}.{at}.{kind}"
        for part in ("encoder.network.layers", "decoder.layers")
        for at in (0, 2)
        for kind in ("weight", "bias")
    }


def test_its_kin_made_of_three_parts_begin_as_the_same_vae():
    x, held_out = digits()
    whole = BernoulliVAE.from_data(x, latent_dim=3, seed=4)
    parts = ImportanceWeightedVAE.from_data(x, latent_dim=3, seed=4)
    one, other = (
        am.evidence(vae.program(), held_out[:4], method=am.ImportanceSampling(num_draws=20)) for vae in (whole, parts)
    )
    np.testing.assert_array_equal(one.log_evidence, other.log_evidence)


def test_convolutions_take_squares():
    with pytest.raises(ArgumentError, match="square"):
        BernoulliVAE.from_data(torch.eye(12), network="conv")
    with pytest.raises(ArgumentError, match="network"):
        BernoulliVAE.from_data(torch.eye(12), network="cnn")


def test_its_networks_may_be_replaced(x):
    vae = BernoulliVAE.from_data(x, latent_dim=3, hidden=(8,))
    vae.decoder = torch.nn.Linear(3, 12)
    assert am.fit(vae.program(), x, num_steps=2).bound == "ELBO"
