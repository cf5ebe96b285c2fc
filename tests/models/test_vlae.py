"""The VLAE: the lossy-code curve on digits, its contract, and what it refuses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.autoregressive_prior import AutoregressiveFlow
from amortize.models.vae import StandardNormal
from amortize.models.vlae import VLAE
from amortize.random import generator, pyro_rng
from tests.statistics import z_value

SIGHTS = (0, 1, 7)
STEPS = 400


def binary(num, num_pixels=16):
    return (torch.rand(num, num_pixels, generator=generator(0, "x")) < 0.4).float()


def bits_in_the_code(vlae, x):
    """KL(q(z | x) || p(z)) of each datapoint, in bits, by 64 draws."""
    with torch.no_grad(), pyro_rng(0, "rate"):
        q = vlae.encoder(x)
        z = q.sample((64,))
        rate: np.ndarray = (q.log_prob(z) - vlae.prior().log_prob(z)).mean(0).double().numpy() / np.log(2)
    return rate


@pytest.fixture(scope="module")
def curve():
    """Bits in the code and log evidence of 240 test digits, by sight; trained alike, without a warm-up."""
    digits = am.data.load("digits")
    x, held_out = torch.as_tensor(digits.x_train).float(), torch.as_tensor(digits.x_test).float()[:240]
    found = {}
    for sight in SIGHTS:
        vlae = VLAE.from_data(x, latent_dim=4, sight=sight)
        program = vlae.program()
        training = am.Training(learning_rate=1e-2, batch_size=100, schedule="cosine", progress=False)
        am.fit(program, x, objective=am.BetaELBO(), num_steps=STEPS, training=training)
        evidence = am.evidence(program, held_out, method=am.ImportanceSampling(num_draws=100))
        found[sight] = bits_in_the_code(vlae, held_out), evidence.log_evidence
    return found


def test_the_more_the_decoder_sees_the_less_the_code_says(curve):
    """The lossy-code curve falls, datapoint by datapoint in pairs: each step of it by a significant mean."""
    for near, far in pairwise(SIGHTS):
        fall = curve[near][0] - curve[far][0]
        assert fall.mean() > z_value(2) * fall.std(ddof=1) / len(fall) ** 0.5
    assert all(curve[sight][0].mean() > 0.5 for sight in SIGHTS)


def test_evidence_gains_by_sight(curve):
    """A decoder that sees its neighbours models digits better than one whose pixels are independent."""
    for far in SIGHTS[1:]:
        gain = curve[far][1] - curve[0][1]
        assert gain.mean() > z_value(2) * gain.std(ddof=1) / len(gain) ** 0.5


def test_it_keeps_the_contract():
    x = binary(6)
    vlae = VLAE.from_data(x, latent_dim=3, sight=1, hidden=(5,))
    program = vlae.program()
    report = program.check(x)
    assert report.ok, str(report)
    assert vlae.objective == am.BetaELBO(warmup=0.2)
    am.fit(program, x, objective=vlae.objective, num_steps=3)
    latents, observed = program.simulate(x, seed=0)
    assert latents["z"].shape == (6, 3)
    assert set(np.unique(observed["x"])) <= {0.0, 1.0}
    assert program.reconstruct(x)["x"].shape == (6, 16)


def test_without_sight_it_is_a_vae_with_independent_pixels():
    """The evidence of a decoder without sight is that of the same logits under Bernoulli pixels."""
    x = binary(4)
    vlae = VLAE.from_data(x, latent_dim=2, sight=0, prior="normal", hidden=(5,))
    z = torch.randn(4, 2, generator=generator(1, "z"))
    with torch.no_grad():
        pixels = torch.distributions.Bernoulli(vlae.decoder(z).mean)
        torch.testing.assert_close(vlae.decoder(z).log_prob(x), pixels.log_prob(x).sum(-1), rtol=1e-4, atol=1e-4)


def test_it_begins_at_the_data_s_means():
    x = binary(30)
    x[:, 0] = 1.0
    vlae = VLAE.from_data(x, latent_dim=2, sight=1)
    torch.testing.assert_close(vlae.decoder.bias.sigmoid(), (x.sum(0) + 0.5) / 31, rtol=1e-5, atol=1e-6)


def test_settings_reach_the_model():
    vlae = VLAE.from_data(binary(5), latent_dim=3, sight=2)
    assert (vlae.decoder.sight, vlae.decoder.side) == (2, 4)
    assert isinstance(vlae.prior, AutoregressiveFlow)
    assert isinstance(VLAE.from_data(binary(5), prior="normal").prior, StandardNormal)


@pytest.mark.parametrize(
    ("x", "settings", "error", "match"),
    [
        (torch.full((3, 4), 0.5), {}, DataError, "zeros and ones"),
        (torch.zeros(3, 12), {}, ArgumentError, "square"),
        (torch.zeros(3, 4), {"sight": -1}, ArgumentError, "sight"),
        (torch.zeros(3, 4), {"prior": "uniform"}, ArgumentError, "'flow' or 'normal'"),
        (torch.zeros(3, 4), {"latent_dim": 0}, ArgumentError, "latent_dim"),
    ],
)
def test_what_it_refuses(x, settings, error, match):
    with pytest.raises(error, match=match):
        VLAE.from_data(x, **settings)
