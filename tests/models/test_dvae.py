"""The discrete VAE: bounds that are exact sums, evidence against annealing, and codes that are local."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import OneHotCategorical
from torch.nn.functional import one_hot

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import DVAE
from amortize.models.discrete_vae_parts import GridEncoder
from amortize.models.quantised_networks import GridWriter
from tests.statistics import z_value
from tests.vaes import digits

POSITIONS, CODES = 4, 3


def tiny(seed=0):
    """Double precision, 3^4 configurations, weights that make the codes matter, and six images."""
    x, _ = digits()
    dvae = DVAE.from_data(x, CODES, code_dim=2, channels=(3, 4), seed=seed).double()
    with torch.no_grad():
        dvae.decoder.network.first.weight.mul_(3.0)
        dvae.encoder.last.weight.mul_(4.0)
    return dvae, x[:6].double()


def configurations():
    """All codes, one-hot (C, P, K)."""
    every = torch.tensor(list(itertools.product(range(CODES), repeat=POSITIONS)))
    return one_hot(every, CODES).double()


@torch.no_grad()
def log_joints(dvae, x):
    """Log p(x, k) of every configuration, (C, N) nats."""
    images = dvae.decoder(configurations())
    return torch.stack([images.log_prob(row) for row in x], 1) - POSITIONS * np.log(CODES)


@torch.no_grad()
def log_guides(dvae, x):
    """Log q(k | x) of every configuration, (C, N) nats."""
    logits = dvae.encoder(x).log_softmax(-1)
    return torch.einsum("cpk,npk->cn", configurations(), logits)


def test_the_evidence_is_the_sum_over_all_codes():
    dvae, x = tiny()
    found = am.evidence(dvae.program(), x)
    np.testing.assert_allclose(found.log_evidence, log_joints(dvae, x).logsumexp(0).numpy(), atol=1e-9)
    assert (found.se == 0).all()


def test_annealing_over_drawn_codes_finds_the_same():
    dvae, x = tiny()
    x = x[:3]
    exact = log_joints(dvae, x).logsumexp(0).numpy()
    found = am.evidence(dvae.program(), x, method=am.AIS(num_chains=32, num_temperatures=20), discrete="sample", seed=0)
    ratio = np.exp(found.log_evidence - exact)
    assert (np.abs(ratio - 1) < z_value(len(x)) * np.maximum(found.se, 1e-3)).all()


def test_the_bound_is_that_of_the_discrete_model():
    """What training measures in eval mode is the exact ELBO over all codes, not the relaxed one."""
    dvae, x = tiny()
    log_q = log_guides(dvae, x)
    exact = (log_q.exp() * (log_joints(dvae, x) - log_q)).sum(0).numpy()
    program = dvae.program()
    data = program.prepare(x)
    loss = dvae.objective.on(program, data, seed=0)
    draws = np.stack([loss.measured(data, 16, seed=seed) for seed in range(16)])
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - exact) < z_value(len(x)) * error).all()


def test_a_relaxed_reconstruction_is_not_the_discrete_one():
    """The corruption: codes left soft at temperature 1 have another likelihood than codes."""
    dvae, x = tiny()
    with torch.no_grad():
        logits = dvae.encoder(x)
        hard = dvae.decoder(OneHotCategorical(logits=logits.repeat(500, 1, 1)).sample()).log_prob(x.repeat(500, 1))
        soft = dvae.decoder(logits.softmax(-1)).log_prob(x)
    assert (soft - hard.reshape(500, -1).mean(0)).abs().max() > 0.1


def test_codes_are_the_most_probable_ones():
    dvae, x = tiny()
    usage = am.code_usage(dvae.program(), x)["codes"]
    codes = dvae.codes(x)
    assert codes.shape == (6, POSITIONS)
    np.testing.assert_array_equal(usage.counts[0], np.bincount(codes[:, 0].numpy(), minlength=CODES))


def test_it_keeps_the_contract_and_grows_with_the_image():
    x, _ = digits()
    dvae = DVAE.from_data(x, 5, channels=(4, 4))
    report = dvae.program().check(x[:6])
    assert report.ok, str(report)
    images = torch.zeros(3, 784)
    images[1:, ::3] = 1.0
    assert DVAE.from_data(images, 7, channels=(4, 4)).codes(images).shape == (3, 49)
    assert DVAE.from_data(images, 7, channels=(4, 4, 4)).codes(images).shape == (3, 16)


def test_a_position_of_the_grid_is_a_place_of_the_image():
    """A code moves the pixels about it, and an image's corner the code there: no position sees everything."""
    gen = torch.Generator().manual_seed(0)
    decoder = GridWriter(28 * 28, 2, channels=(4, 4), generator=gen)
    vectors = torch.zeros(2, 49, 2)
    vectors[1, 0] = 1.0
    with torch.no_grad():
        moved = (decoder(vectors)[1] - decoder(vectors)[0]).reshape(28, 28).abs() > 0
    assert moved[:4, :4].all() and not moved[16:].any() and not moved[:, 16:].any()
    encoder = GridEncoder(28 * 28, 2, channels=(4, 4), generator=gen)
    images = torch.zeros(2, 28, 28)
    images[1, :2, :2] = 1.0
    with torch.no_grad():
        seen = (encoder(images.flatten(1))[1] - encoder(images.flatten(1))[0]).abs().amax(-1).reshape(7, 7) > 0
    assert seen[0, 0] and not seen[4:].any() and not seen[:, 4:].any()


def test_training_raises_the_discrete_bound():
    x, held_out = digits()
    dvae = DVAE.from_data(x, 8, channels=(8, 8))
    training = am.Training(learning_rate=5e-3, batch_size=64, validation=held_out, validate_every=60, progress=False)
    history = am.fit(dvae.program(), x, num_steps=120, training=training).history.dropna(subset="validation_elbo")
    start = DVAE.from_data(x, 8, channels=(8, 8))
    program = start.program()
    data = program.prepare(held_out)
    with program.evaluating():
        begun = start.objective.on(program, data, seed=0).measured(data, 16, seed=0)
    gain = history["validation_elbo"].iloc[-1] - begun.mean()
    assert gain > 2.0, gain
    assert history["codes_perplexity"].between(1, 8).all()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"num_codes": 1}, ArgumentError, "num_codes: expected an integer of at least 2"),
        ({"code_dim": 0}, ArgumentError, "code_dim"),
        ({"channels": ()}, ArgumentError, "channels"),
        ({"beta": -1.0}, ArgumentError, "beta"),
        ({"x": torch.full((3, 64), 0.5)}, DataError, "zeros and ones"),
        ({"x": torch.zeros(3, 10)}, ArgumentError, "square"),
    ],
)
def test_what_it_refuses(settings, error, words):
    with pytest.raises(error, match=words):
        DVAE.from_data(**{"x": torch.zeros(3, 64), **settings})
