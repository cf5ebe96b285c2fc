"""Bounds that move the guide's draws on: unbiased weights, below the evidence, tighter with more steps, and trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.random import pyro_rng
from tests.statistics import z_value

COPIES = 20_000


def problem():
    """A datapoint of factor analysis many times over: a bound of each copy is one draw of log w."""
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=4, dtype=torch.float64)
    analysis.set_best_encoder()
    with torch.no_grad():
        analysis.encoder.log_scale.add_(0.2)
    x = analysis.simulate(1, seed=1)
    return analysis, x.expand(COPIES, -1).contiguous(), analysis.log_evidence(x).item()


def log_weights(objective, *, noise: float = 0.0) -> tuple[np.ndarray, float]:
    """Log w of each copy, and log p(x)."""
    analysis, x, truth = problem()
    program = analysis.program()
    data = program.prepare(x)
    loss = objective.on(program, data, seed=0)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loss.own_parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=gen, dtype=parameter.dtype))
    loss.eval()
    with pyro_rng(0, "weights"), torch.no_grad():
        return loss(data).bound.numpy(), truth


@pytest.mark.parametrize(
    "objective",
    [am.LMCVAE(3, step_size=0.4), am.DAIS(3, step_size=0.4), am.MCD(3, step_size=0.4, hidden=(8,))],
    ids=lambda objective: objective.name,
)
def test_weights_are_unbiased_whatever_the_parameters(objective):
    values, truth = log_weights(objective, noise=0.1)
    ratio = np.exp(values - truth)
    assert abs(ratio.mean() - 1) < z_value() * ratio.std(ddof=1) / COPIES**0.5
    assert values.mean() < truth


def test_annealed_weights_are_unbiased(monkeypatch):
    """A-MCVAE averages log w over its chains: with one chain, it is log w itself."""
    objective = am.AMCVAE(num_steps=3)
    object.__setattr__(objective, "num_chains", 1)
    monkeypatch.setattr("amortize.inference.amcvae._score_term", lambda parts, decisions: decisions.sum(0))
    values, truth = log_weights(objective)
    ratio = np.exp(values - truth)
    assert abs(ratio.mean() - 1) < z_value() * ratio.std(ddof=1) / COPIES**0.5


@pytest.mark.parametrize("kind", [am.LMCVAE, am.DAIS, am.AMCVAE], ids=lambda kind: kind.name)
def test_bounds_tighten_with_steps_and_stay_below(kind):
    means = [log_weights(kind(num_steps=count, step_size=0.4))[0].mean() for count in (1, 4, 16)]
    analysis, x, truth = problem()
    elbo = analysis.guide_elbo(x[:1]).item()
    assert elbo < means[1] and means[0] < means[1] < means[2] < truth


def test_monte_carlo_diffusion_begins_as_langevin():
    analysis, x, _ = problem()
    program = analysis.program()
    data = program.prepare(x[:50])
    bounds = []
    for objective in (am.LMCVAE(num_steps=3), am.MCD(num_steps=3)):
        loss = objective.on(program, data, seed=0)
        with pyro_rng(3, "same noise"):
            bounds.append(loss(data).bound)
    torch.testing.assert_close(*bounds)


def test_training_tightens_a_bound_beyond_the_guides_family():
    """The posterior is correlated, so that no mean-field guide reaches it; the model stays as it is."""
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=4, dtype=torch.float64)
    analysis.set_best_encoder()
    analysis.decoder.requires_grad_(False)
    x = analysis.simulate(60, seed=1)
    truth, best = (values.mean().item() for values in (analysis.log_evidence(x), analysis.best_mean_field_elbo(x)))
    reached = {}
    for kind in (am.LMCVAE, am.MCD, am.DAIS):
        analysis.set_best_encoder()
        objective = kind(num_steps=4, step_size=0.4)
        training = am.Training(learning_rate=0.05, schedule="cosine", validation=x, validate_every=100)
        fitted = am.fit(analysis.program(), x, objective=objective, num_steps=100, training=training)
        reached[objective.name] = fitted.history.validation_elbo.iloc[-1]
    assert all(best + 0.15 * (truth - best) < value < truth + 0.02 for value in reached.values())
    assert reached["mcd"] > reached["l-mcvae"] - 0.01
