"""The Monte Carlo diffusion VAE: it begins as Langevin Monte Carlo, and the learned way back tightens the bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import DiffusedVAE
from tests.statistics import z_value
from tests.vaes import bound_of, digits, evidence_of


@pytest.fixture(scope="module")
def trained():
    x, held_out = digits()
    vae = DiffusedVAE.from_data(x, latent_dim=4, hidden=(16,), num_steps=5)
    program, training = vae.program(), am.Training(learning_rate=1e-2, batch_size=64, clip_norm=20.0)
    fitted = am.fit(program, x, objective=vae.objective, num_steps=400, training=training)
    return vae, program, fitted, held_out


def more_digits():
    """Of those held out, enough to see small gains."""
    return torch.as_tensor(am.data.load("digits").x_test[:200]).float()


def without_network(state):
    return {name: torch.zeros_like(value) if name.startswith("network") else value for name, value in state.items()}


def gain_of_network(vae, program, x, state, repeats=8):
    """What the network adds to the bound: means over the same noise with and without it, and the standard error."""
    data = program.prepare(x)
    loss = vae.objective.on(program, data, seed=0)
    found = []
    for weights in (state, without_network(state)):
        loss.load_state_dict(weights)
        found.append(np.array([loss.measured(data, 8, seed=seed).mean() for seed in range(repeats)]))
    gains = found[0] - found[1]
    return gains.mean(), gains.std(ddof=1) / repeats**0.5


def test_before_training_it_is_langevin_monte_carlo(trained):
    vae, program, _, held_out = trained
    plain = am.LMCVAE(num_steps=5, step_size=vae.objective.step_size)
    assert bound_of(vae.objective, program, held_out) == pytest.approx(bound_of(plain, program, held_out), abs=1e-5)


def test_the_learned_way_back_tightens_the_bound(trained):
    vae, program, fitted, _ = trained
    gain, se = gain_of_network(vae, program, more_digits(), fitted.extra)
    assert gain > z_value() * se


def test_a_network_that_points_the_other_way_fails_the_check(trained):
    vae, program, fitted, _ = trained
    last = [name for name in fitted.extra if name.startswith("network")][-2:]
    turned = {name: -value if name in last else value for name, value in fitted.extra.items()}
    gain, se = gain_of_network(vae, program, more_digits(), turned)
    assert not gain > z_value() * se


def test_the_bound_lies_between_the_guide_s_elbo_and_the_evidence(trained):
    vae, program, fitted, held_out = trained
    bound = bound_of(vae.objective, program, held_out, fitted.extra)
    gain = bound.minus(bound_of(am.IWAE(num_particles=1), program, held_out))
    assert gain.mean > z_value() * gain.se
    room = evidence_of(program, held_out).minus(bound)
    assert room.mean > -z_value() * room.se


def test_contract_and_refusals():
    x, _ = digits()
    assert DiffusedVAE.from_data(x, network="conv").program().check(x[:8]).ok
    with pytest.raises(DataError, match="zeros and ones"):
        DiffusedVAE.from_data(x + 0.5)
    with pytest.raises(ArgumentError, match="num_steps"):
        DiffusedVAE.from_data(x, num_steps=0)
