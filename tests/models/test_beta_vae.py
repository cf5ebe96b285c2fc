"""The beta-VAE: the rate-distortion curve, and collapse provoked by a strong decoder, then prevented."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import amortize as am
from amortize.diagnostics.collapse import active_units
from amortize.errors import ArgumentError, DataError
from amortize.inference.mutual_information import mutual_information
from amortize.models.beta_vae import BetaVAE
from amortize.models.networks import MLP
from amortize.models.pixelcnn import PixelCNN
from amortize.models.vae import DiagonalNormal, StandardNormal, log_odds_of_means
from amortize.models.vlae import VLAE
from amortize.program.program import Program
from amortize.program.rates import RatedRun
from amortize.random import generator, pyro_rng
from tests.vaes import digits

BETAS = (0.25, 1.0, 4.0)


class Split(NamedTuple):
    """Mean distortion and rate, nats a datapoint."""

    distortion: float
    rate: float


@torch.no_grad()
def split_of(program: Program, x: Tensor) -> Split:
    """Of 8 draws a datapoint, the rate in closed form."""
    data = program.prepare(x)
    with pyro_rng(0, "split"), program.evaluating():
        run = RatedRun.of(program, program.structure(data), data, 8)
    return Split(float(run.distortion.mean()), float(run.rate.mean()))


def trained(x: Tensor, num_steps: int = 250, **settings: float) -> BetaVAE:
    vae = BetaVAE.from_data(x, **settings)
    training = am.Training(learning_rate=3e-3, schedule="cosine", batch_size=128)
    am.fit(vae.program(), x, objective=vae.objective, num_steps=num_steps, training=training)
    return vae


def test_the_settings_are_the_objectives():
    vae = BetaVAE.from_data(torch.eye(6), latent_dim=2, hidden=(4,), beta=3.0, warmup=0.2, free_bits=0.1)
    assert vae.objective == am.BetaELBO(beta=3.0, warmup=0.2, free_bits=0.1)
    assert vae.program().check(torch.eye(6)).ok


def test_it_begins_as_the_bernoulli_vae_does():
    x = digits()[0]
    ours, plain = BetaVAE.from_data(x, latent_dim=3, hidden=(8,)), am.models.BernoulliVAE.from_data(x, 3, hidden=(8,))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.decoder(z).base_dist.logits, plain.decoder(z))


@pytest.mark.parametrize("settings", [{"beta": -1.0}, {"warmup": 2.0}, {"free_bits": -0.5}, {"latent_dim": 0}])
def test_wrong_settings_are_refused_by_name(settings):
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        BetaVAE.from_data(torch.eye(6), **settings)


def test_grey_values_are_refused():
    with pytest.raises(DataError, match="zeros and ones"):
        BetaVAE.from_data(torch.full((3, 4), 0.5))


def test_rate_falls_and_distortion_rises_with_beta():
    """On digits, one seed: a curve, and each point is the best at its own price."""
    x, held_out = digits()
    programs = [trained(x, beta=beta).program() for beta in BETAS]
    for data in (x, held_out):
        points = [split_of(program, data) for program in programs]
        rates, distortions = np.array([p.rate for p in points]), np.array([p.distortion for p in points])
        assert (np.diff(rates) < -1.0).all(), rates  # nats: 11, 4.5 and 0.1 or so
        assert (np.diff(distortions) > 1.0).all(), distortions
    for beta in BETAS:
        costs = [point.distortion + beta * point.rate for point in (split_of(p, x) for p in programs)]
        assert int(np.argmin(costs)) == BETAS.index(beta), costs


def test_a_curve_without_a_price_is_no_curve():
    """The check fails where beta is not really there."""
    x = digits()[0]
    first, second = (BetaVAE.from_data(x, beta=beta) for beta in BETAS[:2])
    training = am.Training(learning_rate=3e-3, schedule="cosine", batch_size=128)
    for vae in (first, second):
        am.fit(vae.program(), x, objective="mean-field-elbo", num_steps=100, training=training)
    assert abs(split_of(first.program(), x).rate - split_of(second.program(), x).rate) < 0.1


def test_free_bits_hold_each_latent_at_their_number():
    """At a price at which codes collapse, each latent keeps about its free nats."""
    x = digits()[0]
    collapsed, held = (trained(x, beta=16.0, free_bits=free).program() for free in (0.0, 0.5))
    assert split_of(collapsed, x).rate < 0.1
    assert 0.4 * 8 < split_of(held, x).rate < 0.6 * 8


# Collapse


REMEDIES = {"annealing": am.BetaELBO(warmup=0.8), "free bits": am.BetaELBO(free_bits=0.5)}
LATENTS = 4


def strong_decoder(x: Tensor, width: int) -> VLAE:
    """A decoder that sees all pixels before, behind narrow networks that are slow to learn a code."""
    slow = (width,) * 3
    decoder = PixelCNN(LATENTS, 8, sight=7, channels=32, hidden=slow)
    with torch.no_grad():
        decoder.bias.copy_(log_odds_of_means(x))
    encoder = DiagonalNormal(MLP((64, *slow, 2 * LATENTS), generator=generator(0, "encoder")))
    return VLAE(prior=StandardNormal(LATENTS), decoder=decoder, encoder=encoder)


def use_of_the_code(width: int, objective: am.BetaELBO, aggressive: am.Aggressive | None = None, steps: int = 300):
    """Rate, mutual information (nats) and active units of held-out data after training."""
    x, held_out = digits()
    vae = strong_decoder(x, width)
    program = vae.program()
    training = am.Training(learning_rate=1e-2, batch_size=128, aggressive=aggressive)
    am.fit(program, x, objective=objective, num_steps=steps, training=training)
    data = program.prepare(held_out)
    with program.evaluating(), torch.no_grad():
        information = mutual_information(program.guide_density(data), data, seed=0)
        active = int(active_units(vae.encoder(held_out).mean.numpy()).sum())
    return split_of(program, held_out).rate, information, active


def test_a_decoder_that_sees_the_pixels_before_lets_the_code_collapse():
    rate, information, active = use_of_the_code(8, am.BetaELBO())
    assert active == 0 and rate < 0.05 and abs(information) < 0.05


@pytest.mark.parametrize("remedy", REMEDIES)
def test_and_each_remedy_keeps_it_in_use(remedy):
    rate, information, active = use_of_the_code(8, REMEDIES[remedy])
    assert active >= 2 and rate > 1.0 and information > 0.7


def test_a_guide_that_is_trained_ahead_keeps_it_in_use_where_its_network_can_lead():
    """Of 16 units: the ELBO as it is leaves one latent in use. (Of 8 units the guide finds nothing to lead with.)"""
    plain = use_of_the_code(16, am.BetaELBO())
    ahead = use_of_the_code(16, am.BetaELBO(), am.Aggressive(max_inner_steps=10, check_every=10, patience=3), 150)
    assert plain[2] <= 1 and ahead[2] >= 2
    assert ahead[0] > plain[0] + 0.5 and ahead[1] > plain[1] + 0.5
