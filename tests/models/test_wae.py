"""Wasserstein autoencoders on digits: codes together nearer to the prior than a VAE's, reconstructions better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import amortize as am
from amortize.diagnostics.mmd import Discrepancy, mmd_test
from amortize.errors import ArgumentError, DataError
from amortize.models import AdversarialWAE, BernoulliVAE, DiscrepancyWAE
from amortize.random import pyro_rng
from tests.statistics import z_value

KINDS = {"mmd": DiscrepancyWAE, "gan": AdversarialWAE}
HOW = am.Training(learning_rate=5e-3, schedule="cosine")


@dataclass(frozen=True)
class Measured:
    """Codes of all 1797 digits against as many draws of the prior, and the error of held-out reconstructions."""

    discrepancy: Discrepancy
    error: float


def measured(model, objective) -> Measured:
    data = am.data.load("digits")
    x, held_out = (torch.as_tensor(part).float() for part in (data.x_train, data.x_test))
    program = model.program()
    am.fit(program, x, objective=objective, num_steps=800, training=HOW)
    prepared = program.prepare(torch.cat([x, held_out]))
    with program.evaluating(), torch.no_grad(), pyro_rng(0, "codes"):
        codes = program.guide_density(prepared, points=True).sample(prepared)[0]["z"].numpy()
    prior = np.random.default_rng(0).normal(size=codes.shape)
    away = program.reconstruct(held_out)["x"] - held_out.numpy()
    return Measured(mmd_test(codes, prior, num_permutations=100), float(np.sqrt(np.mean(away**2))))


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return torch.as_tensor(am.data.load("digits").x_train).float()


@pytest.fixture(scope="module")
def vae(digits) -> Measured:
    """Its codes are draws of the encoder; the ELBO in closed form."""
    return measured(BernoulliVAE.from_data(digits, 4), am.BetaELBO())


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_nearer_to_the_prior_than_a_vae_s_and_reconstructions_better(kind, digits, vae):
    wae = KINDS[kind].from_data(digits, latent_dim=4)
    found = measured(wae, wae.objective)
    print(kind, found, vae)
    noise = np.hypot(found.discrepancy.noise, vae.discrepancy.noise)
    assert vae.discrepancy.squared - found.discrepancy.squared > z_value(2) * noise
    assert found.discrepancy.squared < vae.discrepancy.squared / 2
    assert found.error < vae.error


def test_without_a_penalty_the_codes_are_anywhere(digits, vae):
    """What holds them is the penalty, and not the network."""
    found = measured(DiscrepancyWAE.from_data(digits, latent_dim=4), am.BetaELBO(beta=0.0))
    assert found.discrepancy.squared > 10 * vae.discrepancy.squared
    assert found.discrepancy.p_value == 1 / 101


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract(kind, digits):
    wae = KINDS[kind].from_data(digits, latent_dim=3, hidden=(8,))
    report = wae.program().check(digits[:20])
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_and_the_weight_of_the_penalty(kind, digits):
    wae = KINDS[kind].from_data(digits, latent_dim=3, network="conv", hidden=(4,), weight=7.0)
    assert wae.objective.penalties == ({"mmd": am.MMD, "gan": am.Adversary}[kind](weight=7.0),)
    assert wae.objective.beta == 0.0
    assert wae.program().check(digits[:5]).ok


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused(kind):
    with pytest.raises(DataError, match="zeros and ones"):
        KINDS[kind].from_data(torch.full((3, 4), 0.5))
    with pytest.raises(ArgumentError, match="weight"):
        KINDS[kind].from_data(torch.eye(4), weight=0.0)
    with pytest.raises(ArgumentError, match="network"):
        KINDS[kind].from_data(torch.eye(4), network="transformer")
