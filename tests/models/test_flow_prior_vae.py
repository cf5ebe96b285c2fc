"""The flow prior: a density of its own, and the evidence it wins over a normal prior."""

from __future__ import annotations

import pytest
import torch

from amortize.errors import ArgumentError, DataError
from amortize.models import FlowPriorVAE
from amortize.models.flow_prior_vae import LAYERS, FlowPrior
from amortize.models.flows import Flow
from amortize.models.vae import StandardNormal
from tests.statistics import z_value
from tests.vaes import LATENT_DIM, MARGIN, digits, evidence_of, normal_prior_evidence, trained_alike


@pytest.mark.parametrize("flow", ["coupling", "spline"])
def test_the_prior_begins_as_the_standard_normal_and_its_parameters_get_slopes(flow):
    prior = FlowPrior(3, flow=flow)
    z = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    log_density = prior().log_prob(z)
    torch.testing.assert_close(log_density, torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1), atol=1e-4, rtol=0)
    log_density.sum().backward()
    assert sum(int(bool((p.grad.abs() > 0).any())) for p in prior.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("flow", ["coupling", "spline"])
def test_the_contract(flow):
    x, _ = digits()
    vae = FlowPriorVAE.from_data(x, latent_dim=3, hidden=(8,), flow=flow)
    report = vae.program().check(x[:8])
    assert report.ok, str(report)
    drawn, _ = vae.program().simulate(x[:8], seed=0)
    assert drawn["z"].shape == (8, 3)


@pytest.mark.parametrize(("flow", "other"), [("coupling", "spline"), ("spline", "coupling")])
def test_the_flow_is_of_the_kind_asked_for(flow, other):
    x, _ = digits()
    found = FlowPriorVAE.from_data(x, latent_dim=3, hidden=(8,), flow=flow).prior.flow
    shapes, of_that, of_the_other = (
        {name: weights.shape for name, weights in made.state_dict().items()}
        for made in (found, Flow(flow, 3, num_layers=LAYERS), Flow(other, 3, num_layers=LAYERS))
    )
    assert shapes == of_that
    assert shapes != of_the_other


@pytest.fixture(scope="module")
def trained():
    x, _ = digits()
    vae = FlowPriorVAE.from_data(x, latent_dim=LATENT_DIM, hidden=(64,))
    trained_alike(vae, x)
    return vae


def wins(program):
    """Whether the evidence of held-out digits is above that of the normal prior, beyond noise and a margin."""
    _, held_out = digits()
    gain = evidence_of(program, held_out).minus(normal_prior_evidence())
    return gain.mean > MARGIN + z_value() * gain.se


def test_its_evidence_is_above_that_of_a_normal_prior_at_the_same_budget(trained):
    assert wins(trained.program())


def test_without_its_flow_it_fails_the_check(trained):
    plain = FlowPriorVAE(prior=StandardNormal(LATENT_DIM), decoder=trained.decoder, encoder=trained.encoder)
    assert not wins(plain.program())


def test_what_it_refuses():
    x, _ = digits()
    with pytest.raises(ArgumentError, match="'coupling' or 'spline'"):
        FlowPriorVAE.from_data(x, flow="iaf")
    with pytest.raises(DataError, match="zeros and ones"):
        FlowPriorVAE.from_data(x + 0.5)
    with pytest.raises(ArgumentError, match="latent_dim"):
        FlowPriorVAE.from_data(x, latent_dim=0)
