"""Guides with correlations: those of an exact posterior are recovered, which mean field misses."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import FactorAnalysis, FlowGuideVAE
from amortize.models.flow_guide_vae import CONTEXT, GUIDES, LAYERS, FlowEncoder
from amortize.models.flows import KINDS, Flow
from amortize.models.networks import register
from amortize.models.vae import DiagonalNormal
from amortize.models.vae_parts import reading
from tests.vaes import digits

DIM = 2
TRAINING = {"full-covariance": (0.1, 400)}
"""Learning rate and steps where they are not (0.02, 300): a linear network alone has a long way to go."""


def exact_program():
    """Factor analysis whose columns are much alike, so that the posterior's latents are strongly correlated."""
    stream = torch.Generator().manual_seed(0)
    weight = 0.6 + 0.3 * torch.randn(6, DIM, generator=stream)
    analysis = FactorAnalysis(weight, torch.zeros(6), torch.full((6,), 0.15))
    analysis.requires_grad_(False)
    return analysis, analysis.simulate(256, seed=1)


def trained(analysis, x, encoder, *, learning_rate=0.02, num_steps=300):
    def guide(x):
        register("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    program = am.Program(analysis.model, guide)
    training = am.Training(learning_rate=learning_rate, batch_size=256, schedule="exponential")
    am.fit(program, x, objective="elbo", num_steps=num_steps, training=training)
    return program


def missed(analysis, x, program):
    """Largest error of a posterior correlation, and the inference gap in nats."""
    draws = am.posterior(program, x[:8], num_draws=2000)
    covariance = analysis.posterior(x)[1].numpy()
    exact = covariance / np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    found = [np.corrcoef(np.asarray(draws["z"])[:, n].T) for n in range(8)]
    weights = am.evidence(program, x, method=am.ImportanceSampling(num_draws=1))  # one draw: the ELBO
    gap = float(analysis.log_evidence(x).mean()) - float(weights.log_evidence.mean())
    return float(np.abs(np.array(found) - exact).max()), gap


@pytest.mark.parametrize("guide", KINDS)
def test_the_flow_is_of_the_kind_asked_for(guide):
    """In three dimensions the kinds' weights have different shapes."""
    x, _ = digits()
    found = FlowGuideVAE.from_data(x, latent_dim=3, hidden=(8,), guide=guide).encoder.flow
    shapes = {name: weights.shape for name, weights in found.state_dict().items()}
    made = {kind: Flow(kind, 3, CONTEXT, num_layers=LAYERS).state_dict() for kind in KINDS}
    alike = [kind for kind in KINDS if shapes == {name: weights.shape for name, weights in made[kind].items()}]
    assert alike == [guide]


@pytest.mark.parametrize("guide", GUIDES)
def test_posterior_correlations_are_recovered(guide):
    analysis, x = exact_program()
    learning_rate, num_steps = TRAINING.get(guide, (0.02, 300))
    encoder = FlowEncoder(6, DIM, guide=guide, hidden=())
    program = trained(analysis, x, encoder, learning_rate=learning_rate, num_steps=num_steps)
    error, gap = missed(analysis, x, program)
    assert error < 0.2
    assert gap < 0.25 * float(analysis.approximation_gap(x)[0])


def test_mean_field_misses_them_and_fails_the_check():
    analysis, x = exact_program()
    network = reading(6, 2 * DIM, network="mlp", hidden=(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.last.weight[DIM:].zero_()  # scales begin at 1, as those of the others do
    program = trained(analysis, x, DiagonalNormal(network), learning_rate=0.1, num_steps=400)
    error, gap = missed(analysis, x, program)
    assert error > 0.5
    assert gap > 0.9 * float(analysis.approximation_gap(x)[0])


@torch.no_grad()
def quadrature(vae, x):
    """Mean log p(x) of a VAE with one latent, on a grid."""
    grid = torch.linspace(-8, 8, 801).unsqueeze(-1)
    log_joint = vae.decoder(grid.unsqueeze(1)).log_prob(x) + vae.prior().log_prob(grid).unsqueeze(1)
    return float((log_joint.logsumexp(0) + np.log(16 / 800)).mean())


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("latent_dim", [1, 4])
def test_the_contract_holds_and_its_weights_give_the_evidence(guide, latent_dim):
    x, held_out = digits()
    vae = FlowGuideVAE.from_data(x, latent_dim=latent_dim, guide=guide, hidden=(8,))
    report = vae.program().check(x[:8])
    assert report.ok, str(report)
    if latent_dim == 1:  # its weights integrate to the evidence
        sampled = am.evidence(vae.program(), held_out[:8], method=am.ImportanceSampling(num_draws=2000))
        assert sampled.log_evidence.mean() == pytest.approx(quadrature(vae, held_out[:8]), abs=0.05)


def test_it_begins_as_a_gaussian_of_unit_covariance():
    x, _ = digits()
    for guide in GUIDES:
        encoder = FlowEncoder(64, 4, guide=guide)
        loc = encoder.network(x[:5])[:, :4]
        z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        expected = torch.distributions.Normal(loc, 1.0).log_prob(z).sum(-1)
        torch.testing.assert_close(encoder(x[:5]).log_prob(z), expected, atol=1e-4, rtol=1e-4)


def test_what_it_refuses():
    x, _ = digits()
    with pytest.raises(ArgumentError, match="full-covariance"):
        FlowGuideVAE.from_data(x, guide="mean-field")
    with pytest.raises(DataError, match="zeros and ones"):
        FlowGuideVAE.from_data(x + 0.5)
    with pytest.raises(ArgumentError, match="latent_dim"):
        FlowGuideVAE.from_data(x, latent_dim=0)
