"""VQ-VAE: codes that are kept where a VAE's collapse, what restarts and a learned prior are worth, what it takes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import amortize as am
from amortize.data import load
from amortize.diagnostics import bits_per_dim
from amortize.errors import ArgumentError, DataError
from amortize.models import VLAE, VQVAE
from amortize.models.code_priors import code_prior
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.random import generator
from tests.statistics import z_value

TRAINING = am.Training(learning_rate=1e-2, schedule="cosine", batch_size=100, progress=False)
SMALL = {"num_codes": 16, "channels": (16, 16)}


@cache
def digits():
    found = load("digits")
    return torch.as_tensor(found.x_train).float(), torch.as_tensor(found.x_test).float()


def binary(num=6, size=64):
    return (torch.rand(num, size, generator=generator(0, "binary")) < 0.5).float()


def textures(num, name):
    """Images of 8 x 8 in which a pixel depends on its neighbours above and to the left, and on nothing else."""
    chance, x = torch.rand(num, 8, 8, generator=generator(0, name)), torch.full((num, 9, 9), 0.5)
    for row, column in np.ndindex(8, 8):
        near = 0.1 + 0.4 * (x[:, row, column + 1] + x[:, row + 1, column])
        x[:, row + 1, column + 1] = (chance[:, row, column] < near).float()
    return x[:, 1:, 1:].flatten(1)


def told(decoder, codes, x):
    """Nats that each image's own code tells the decoder, more than that of another image: mean and standard error."""
    with torch.no_grad():
        gain = (decoder(codes).log_prob(x) - decoder(codes.roll(1, 0)).log_prob(x)).double()
    return float(gain.mean()), float(gain.std() / len(gain) ** 0.5)


def trained(x, num_steps, *, objective=None, **settings):
    model = VQVAE.from_data(x, **settings)
    am.fit(model.program(), x, objective=objective or model.objective, num_steps=num_steps, training=TRAINING)
    return model.eval()


def test_codes_are_kept_under_a_decoder_that_makes_a_vae_s_collapse():
    """A PixelCNN that sees all pixels before knows these images as well as they can be known without a code."""
    x, test = textures(1500, "train"), textures(300, "test")
    vae = VLAE.from_data(x, latent_dim=8, sight=7, prior="normal")
    am.fit(vae.program(), x, objective="elbo", num_steps=200, training=TRAINING)
    with torch.no_grad():
        ours, _ = told(vae.decoder, vae.encoder(test).mean, test)
    model = trained(x, 200, decoder="pixelcnn", prior="uniform", **SMALL)
    with torch.no_grad():
        kept, se = told(model.decoder, model.quantised(test)[0].vectors, test)
    assert ours < 1
    assert kept > ours + 10 + z_value() * se
    usage = am.code_usage(model.program(), test)["codes"]
    assert usage.perplexity > 8
    assert (usage.information > 1).all()


def test_codes_that_tell_nothing_are_noticed():
    """The same measure of a model whose encoder is the same for all images."""
    model, x = VQVAE.from_data(binary(50), **SMALL), binary(50)
    codes = model.quantised(x)[0].vectors[:1].expand(50, -1, -1)
    assert told(model.decoder, codes, x) == (0.0, 0.0)


@cache
def of_digits():
    """Codes of digits, and their priors trained on them alike."""
    x, _ = digits()
    model = trained(x, 250, prior="uniform", **SMALL)
    priors = {"uniform": model.priors[0]}
    for kind in ("pixelcnn", "transformer"):
        model.priors[0] = priors[kind] = code_prior(kind, (2, 2), 16)
        am.fit(model.program(), x, objective=QuantisedELBO(first=0.0), num_steps=150, training=TRAINING)
    return model.eval(), priors


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer"])
def test_a_learned_prior_costs_fewer_bits(kind):
    """On held-out digits, with the same codes: what it gains over the uniform prior, in pairs."""
    model, priors = of_digits()
    _, test = digits()
    bits = {}
    for name in ("uniform", kind):
        model.priors[0] = priors[name]
        program = model.program()
        data = program.prepare(test)
        bits[name] = bits_per_dim(QuantisedELBO().on(program, data, seed=0).measured(data, 1, seed=0), 64)
    gain = bits["uniform"] - bits[kind]
    se = gain.std(ddof=1) / len(gain) ** 0.5
    assert gain.mean() > 0.01 + z_value() * se
    assert 0.3 < bits[kind].mean() < 0.7


def test_moving_averages_with_restarts_use_more_of_the_codebook():
    """Begun at random, codes that nothing is near stay dead unless they start again."""
    x, test = digits()
    used = {}
    for restarts in (0.1, 0.0):
        model = VQVAE.from_data(x, 64, codebook={"restarts": restarts}, channels=(16, 16), prior="uniform")
        book = model.levels[0].codebook
        book.start(torch.randn(64, book.dim, generator=generator(0, "random")), generator=generator(0, "start"))
        am.fit(model.program(), x, num_steps=250, training=TRAINING)
        used[restarts] = am.code_usage(model.program(), test)["codes"]
    assert used[0.1].num_dead < 8  # of 64, none of them dead in training: held-out digits are few
    assert used[0.0].num_dead > 20
    assert used[0.1].perplexity > 2 * used[0.0].perplexity


# What it takes


@pytest.mark.parametrize("decoder", ["normal", "pixelcnn"])
def test_other_pixels(decoder):
    x = binary(8) if decoder == "pixelcnn" else torch.randn(8, 64, generator=generator(0, "numbers"))
    model = VQVAE.from_data(x, 3, codebook={"dim": 2}, channels=(4, 4), prior="uniform", decoder=decoder)
    report = model.program().check(x)
    assert report.ok, str(report)
    fitted = am.fit(model.program(), x, num_steps=5)
    assert np.isfinite(fitted.history["elbo"]).all()


def test_numbers_in_other_units_are_the_same_model():
    """Codes are the same, and the density changes by the units alone; its scale is learned."""
    x = torch.randn(40, 64, generator=generator(0, "numbers"))
    ours, other = (VQVAE.from_data(rows, 4, channels=(4, 4), prior="uniform", decoder="normal") for rows in (x, 8 * x))
    one, two = ours.run(x), other.run(8 * x)
    assert torch.equal(one.codes[0], two.codes[0])
    moved = one.likelihood.log_prob(x) - two.likelihood.log_prob(8 * x)
    torch.testing.assert_close(moved, torch.full((40,), 64 * float(np.log(8))), rtol=1e-4, atol=1e-3)
    before = ours.decoder.scale.clone()
    am.fit(ours.program(), x, num_steps=5)
    assert not torch.equal(before, ours.decoder.scale)


@pytest.mark.parametrize(
    ("x", "settings", "error", "named"),
    [
        (torch.full((3, 64), 0.5), {}, DataError, "zeros and ones"),
        (torch.zeros(3, 64), {"decoder": "normal"}, DataError, "not vary"),
        (torch.eye(8), {}, ArgumentError, "square images"),
        (torch.eye(64), {"decoder": "poisson"}, ArgumentError, "decoder"),
        (torch.eye(64), {"prior": "normal"}, ArgumentError, "prior"),
        (torch.eye(64), {"num_codes": 1}, ArgumentError, "num_codes"),
        (torch.eye(64), {"codebook": {"size": 3}}, ArgumentError, "codebook: expected some of"),
        (torch.eye(64), {"channels": ()}, ArgumentError, "channels"),
    ],
)
def test_what_it_refuses(x, settings, error, named):
    with pytest.raises(error, match=named):
        VQVAE.from_data(x, **settings)
