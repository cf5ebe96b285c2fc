"""The annealed Monte Carlo VAE: more moves, a tighter bound; never above the evidence."""

from __future__ import annotations

import itertools

import pytest

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import AnnealedVAE
from tests.statistics import z_value
from tests.vaes import bound_of, digits, evidence_of


@pytest.fixture(scope="module")
def trained():
    x, held_out = digits()
    vae = AnnealedVAE.from_data(x, latent_dim=4, hidden=(16,), num_steps=4)
    program, training = vae.program(), am.Training(learning_rate=1e-2, batch_size=64, clip_norm=20.0)
    fitted = am.fit(program, x, objective=vae.objective, num_steps=200, training=training)
    return vae, program, fitted, held_out


def rises(program, x, **settings):
    """Whether bounds of more moves lie above those of fewer, and all above the ELBO, by more than their noise."""
    objectives = [am.IWAE(num_particles=1), *(am.AMCVAE(num_steps=num, **settings) for num in (2, 8))]
    bounds = [bound_of(objective, program, x) for objective in objectives]
    steps = [after.minus(before) for before, after in itertools.pairwise(bounds)]
    return all(step.mean > z_value(2) * step.se for step in steps)


def test_bounds_are_in_the_order_of_their_moves(trained):
    _, program, _, held_out = trained
    assert rises(program, held_out)


def test_the_trained_bound_lies_between_the_guide_s_elbo_and_the_evidence(trained):
    vae, program, fitted, held_out = trained
    bound = bound_of(vae.objective, program, held_out, fitted.extra)
    gain = bound.minus(bound_of(am.IWAE(num_particles=1), program, held_out))
    assert gain.mean > z_value() * gain.se
    room = evidence_of(program, held_out).minus(bound)
    assert room.mean > -z_value() * room.se


def test_moves_that_lead_nowhere_lose_the_order(trained):
    _, program, _, held_out = trained
    assert not rises(program, held_out, step_size=1e-6)


def test_step_sizes_follow_the_acceptance(trained):
    vae, _, fitted, _ = trained
    begun = vae.objective.step_size
    assert bool((fitted.extra["log_step_sizes"].exp() - begun).abs().max() > 0.02)


def test_contract_and_refusals():
    x, _ = digits()
    assert AnnealedVAE.from_data(x, network="conv").program().check(x[:8]).ok
    with pytest.raises(DataError, match="zeros and ones"):
        AnnealedVAE.from_data(x + 0.5)
    with pytest.raises(ArgumentError, match="num_steps"):
        AnnealedVAE.from_data(x, num_steps=0)
