"""The importance-weighted autoencoder: more particles, a tighter bound; never above the evidence."""

from __future__ import annotations

import itertools

import pytest

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.inference import iwae as module
from amortize.models import ImportanceWeightedVAE
from tests.statistics import z_value
from tests.vaes import bound_of, digits, evidence_of

PARTICLES = (1, 5, 50)


@pytest.fixture(scope="module")
def trained():
    x, held_out = digits()
    vae = ImportanceWeightedVAE.from_data(x, latent_dim=4, hidden=(16,), num_particles=5)
    program = vae.program()
    fitted = am.fit(
        program, x, objective=vae.objective, num_steps=200, training=am.Training(learning_rate=1e-2, batch_size=64)
    )
    return program, fitted, held_out


def rises(program, x):
    """Whether each bound lies above the one before by more than the noise of both."""
    bounds = [bound_of(am.IWAE(num_particles=num), program, x) for num in PARTICLES]
    steps = [after.minus(before) for before, after in itertools.pairwise(bounds)]
    return all(step.mean > z_value(2) * step.se for step in steps)


def test_bounds_are_in_the_order_of_their_particles(trained):
    program, _, held_out = trained
    assert rises(program, held_out)


def test_bounds_stay_below_the_evidence(trained):
    program, _, held_out = trained
    room = evidence_of(program, held_out).minus(bound_of(am.IWAE(num_particles=PARTICLES[-1]), program, held_out))
    assert room.mean > -z_value() * room.se
    assert room.mean < 0.1  # and fifty particles leave little of it


def test_without_the_weights_together_the_order_is_lost(trained, monkeypatch):
    program, _, held_out = trained
    monkeypatch.setattr(module, "log_mean_exp", lambda log_weights: log_weights.mean(0))  # K ELBOs
    assert not rises(program, held_out)


def test_it_trains_on_its_own_bound(trained):
    _, fitted, _ = trained
    assert fitted.bound == "importance-weighted bound, 5 particles"
    assert fitted.history.elbo[-20:].mean() > fitted.history.elbo[:5].mean() + 3.0


def test_contract_and_refusals():
    x, _ = digits()
    assert ImportanceWeightedVAE.from_data(x, network="conv").program().check(x[:8]).ok
    with pytest.raises(DataError, match="zeros and ones"):
        ImportanceWeightedVAE.from_data(x + 0.5)
    with pytest.raises(ArgumentError, match="num_particles"):
        ImportanceWeightedVAE.from_data(x, num_particles=0)
    with pytest.raises(ArgumentError, match="latent_dim"):
        ImportanceWeightedVAE.from_data(x, latent_dim=0)
