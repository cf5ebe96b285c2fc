"""The VampPrior: a mixture of the encoder's own posteriors, and the evidence it wins over a normal prior."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import VampPriorVAE
from tests.statistics import z_value
from tests.vaes import LATENT_DIM, MARGIN, digits, evidence_of, normal_prior_evidence, trained_alike


def test_the_prior_is_the_mean_of_the_encoder_s_posteriors():
    x, _ = digits()
    vae = VampPriorVAE.from_data(x, latent_dim=3, num_components=5, hidden=(8,)).double()
    z = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loc, scale = vae.encoder(vae.pseudo_inputs)
    each = torch.distributions.Normal(loc, scale).log_prob(z.unsqueeze(1)).sum(-1).exp()
    torch.testing.assert_close(vae.prior().log_prob(z), each.mean(1).log())


def test_pseudo_inputs_begin_at_datapoints_and_stay_between_zero_and_one():
    x, _ = digits()
    vae = VampPriorVAE.from_data(x, latent_dim=2, num_components=4, hidden=(8,))
    begun = vae.pseudo_inputs.detach().clone()
    rows = {tuple(row) for row in x.bool().tolist()}
    assert all(tuple(row) in rows for row in (begun > 0.5).tolist())
    am.fit(vae.program(), x, num_steps=30, training=am.Training(learning_rate=0.05))
    ended = vae.pseudo_inputs.detach()
    assert bool(((ended - begun).abs().amax(1) > 0.01).all())
    assert bool(((ended > 0) & (ended < 1)).all())


def test_more_components_than_datapoints():
    vae = VampPriorVAE.from_data(torch.eye(3), latent_dim=2, num_components=7, hidden=(4,))
    assert vae.pseudo_inputs.shape == (7, 3)


def test_the_encoder_is_one_and_its_parameters_are_listed_once():
    x, _ = digits()
    vae = VampPriorVAE.from_data(x, latent_dim=2, num_components=4, hidden=(8,), network="conv")
    program = vae.program()
    report = program.check(x[:8])
    assert report.ok, str(report)
    program.prepare(x[:8])
    assert {id(p) for p in program.parameters()} == {id(p) for p in vae.parameters()}


@pytest.fixture(scope="module")
def trained():
    x, _ = digits()
    vae = VampPriorVAE.from_data(x, latent_dim=LATENT_DIM, hidden=(64,), num_components=40)
    trained_alike(vae, x)
    return vae


def wins(vae):
    """Whether the evidence of held-out digits is above that of the normal prior, beyond noise and a margin."""
    _, held_out = digits()
    gain = evidence_of(vae.program(), held_out).minus(normal_prior_evidence())
    return gain.mean > MARGIN + z_value() * gain.se


def test_its_evidence_is_above_that_of_a_normal_prior_at_the_same_budget(trained):
    assert wins(trained)


def test_with_pseudo_inputs_that_are_all_the_same_it_fails_the_check(trained):
    alike = deepcopy(trained)
    with torch.no_grad():
        alike.pseudo[0].copy_(alike.pseudo[0].mean(0).expand_as(alike.pseudo[0]))
    assert not wins(alike)


def test_what_it_refuses():
    x, _ = digits()
    with pytest.raises(DataError, match="zeros and ones"):
        VampPriorVAE.from_data(x + 0.5)
    with pytest.raises(ArgumentError, match="num_components"):
        VampPriorVAE.from_data(x, num_components=0)
    with pytest.raises(ArgumentError, match="latent_dim"):
        VampPriorVAE.from_data(x, latent_dim=0)
