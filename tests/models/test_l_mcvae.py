"""The Langevin Monte Carlo VAE: a bound between its guide's ELBO and the evidence, and steps that are trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import LangevinVAE
from tests.statistics import z_value
from tests.vaes import bound_of, digits, evidence_of


@pytest.fixture(scope="module")
def trained():
    x, held_out = digits()
    vae = LangevinVAE.from_data(x, latent_dim=4, hidden=(16,), num_steps=4)
    program, training = vae.program(), am.Training(learning_rate=1e-2, batch_size=64, clip_norm=20.0)
    fitted = am.fit(program, x, objective=vae.objective, num_steps=200, training=training)
    return vae, program, fitted, held_out


def gains(bound, elbo):
    """Whether a bound lies above the ELBO by more than the noise of both."""
    gain = bound.minus(elbo)
    return gain.mean > z_value() * gain.se


def test_the_bound_lies_between_the_guide_s_elbo_and_the_evidence(trained):
    vae, program, fitted, held_out = trained
    bound = bound_of(vae.objective, program, held_out, fitted.extra)
    assert gains(bound, bound_of(am.IWAE(num_particles=1), program, held_out))
    room = evidence_of(program, held_out).minus(bound)
    assert room.mean > -z_value() * room.se


def test_steps_of_no_length_give_the_elbo_and_fail_the_check(trained):
    vae, program, _, held_out = trained
    still = bound_of(replace(vae.objective, step_size=1e-6), program, held_out)
    elbo = bound_of(am.IWAE(num_particles=1), program, held_out)
    assert not gains(still, elbo)
    change = still.minus(elbo)
    assert abs(change.mean) < z_value() * change.se


def test_temperatures_and_step_sizes_are_trained(trained):
    _, _, fitted, _ = trained
    assert bool((fitted.extra["steps.log_step_sizes"] - torch.log(torch.tensor(0.3))).abs().max() > 0.1)
    assert bool((fitted.extra["steps.log_increments"].diff().abs() > 0.01).any())


def test_contract_and_refusals():
    x, _ = digits()
    assert LangevinVAE.from_data(x, network="conv").program().check(x[:8]).ok
    with pytest.raises(DataError, match="zeros and ones"):
        LangevinVAE.from_data(x + 0.5)
    with pytest.raises(ArgumentError, match="num_steps"):
        LangevinVAE.from_data(x, num_steps=0)
