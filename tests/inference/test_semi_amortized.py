"""The ELBO after refinement as an objective: its gradient, its bound, and what it trains."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortize as am
from amortize.errors import ArgumentError, DiscreteLatentError
from amortize.inference.objectives import make_objective
from amortize.random import pyro_rng
from tests.gradients import Slopes
from tests.problems import reads_draws
from tests.statistics import z_value


def lagging(num: int = 4, shift: float = 0.2):
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, dtype=torch.float64)
    analysis.set_best_encoder()
    with torch.no_grad():
        analysis.encoder.bias.add_(shift)
    return analysis, analysis.simulate(num, seed=1).double()


def stated():
    analysis, x = lagging()
    return analysis.program(), x


@pytest.mark.parametrize("make", [stated, reads_draws])
def test_the_gradient_is_that_of_finite_differences(make):
    """With the noise held, the bound is a smooth function of the parameters, through every step."""
    program, x = make()
    data = program.prepare(x)
    loss = am.SemiAmortized(num_steps=3, num_draws=2, num_particles=2).on(program, data, seed=0)

    def value() -> Tensor:
        with pyro_rng(0, "difference"):
            return loss(data).loss

    slopes = Slopes(value, list(program.parameters()), torch.Generator().manual_seed(0))
    assert slopes.by_gradient() == pytest.approx(slopes.by_difference(), rel=1e-5)
    with torch.no_grad():
        assert float(value()) == pytest.approx(
            slopes.loss_at(0.0), rel=1e-12
        )  # steps need gradients where none is asked


def test_the_bound_lies_between_the_guide_and_the_best_of_its_family():
    analysis, x = lagging(20, shift=0.5)
    program = analysis.program()
    data = program.prepare(x)
    loss = am.SemiAmortized(num_steps=6, num_draws=16).on(program, data, seed=0)
    values = np.stack([loss.measured(data, 1, seed=seed) for seed in range(60)])
    mean, se = values.mean(0), values.std(0, ddof=1) / 60**0.5
    guide, best = analysis.guide_elbo(x).numpy(), analysis.best_mean_field_elbo(x).numpy()
    assert (mean <= best + z_value(20) * se).all()
    assert (mean - guide).sum() > 0.8 * (best - guide).sum()


def test_more_steps_close_more_of_the_gap():
    analysis, x = lagging(20, shift=0.5)
    program = analysis.program()
    data = program.prepare(x)
    means = [
        am.SemiAmortized(num_steps=k, step_size=0.2, num_draws=16)
        .on(program, data, seed=0)
        .measured(data, 50, seed=0)
        .mean()
        for k in (1, 3, 9)
    ]
    assert means[0] < means[1] < means[2]


def test_training_reaches_the_optimum_of_the_linear_vae():
    x = am.models.FactorAnalysis.random(latent_dim=2, data_dim=5, seed=0).simulate(100, seed=3)
    best = am.models.FactorAnalysis.probabilistic_pca(x, 2).log_evidence(x).mean().item()
    weight = 0.5 * torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    analysis = am.models.FactorAnalysis(weight, torch.zeros(5), torch.ones(1))
    training = am.Training(learning_rate=0.05, schedule="cosine")
    objective = am.SemiAmortized(num_steps=2, num_draws=2)
    fitted = am.fit(analysis.program(), x, objective=objective, num_steps=200, training=training)
    assert best - 0.02 < analysis.log_evidence(x).mean().item() <= best + 1e-4
    assert fitted.bound == "ELBO after 2 refinement steps" and fitted.settings["objective"]["num_steps"] == 2


def test_a_guide_that_cannot_tell_datapoints_apart_holds_the_model_back_less():
    """One guide for all data: the ELBO's model makes no use of its latents, that of the refined ELBO does."""
    x = am.models.FactorAnalysis.random(latent_dim=1, data_dim=4, seed=0).simulate(60, seed=3)
    evidence = []
    for objective in ("elbo", am.SemiAmortized(num_steps=3, num_draws=2)):
        weight = torch.nn.Parameter(0.5 * torch.ones(4))
        scale = torch.nn.Parameter(torch.zeros(()))

        def model(x, weight=weight):
            pyro.param("weight", weight)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weight, 0.7).to_event(1), obs=x)

        def guide(x, scale=scale):
            pyro.param("scale", scale)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.Normal(x.new_zeros(()), scale.exp()))

        program = am.Program(model, guide)
        centred = x - x.mean(0)
        am.fit(program, centred, objective=objective, num_steps=100, training=am.Training(learning_rate=0.03))
        fitted = am.models.FactorAnalysis(weight.detach()[:, None], torch.zeros(4), 0.49 * torch.ones(4))
        evidence.append(fitted.log_evidence(centred).mean().item())
    assert evidence[1] > evidence[0] + 1


def test_discrete_latents_are_refused_and_settings_are_checked():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.Bernoulli(logits=x + shift))

    with pytest.raises(DiscreteLatentError):
        am.fit(am.Program(model, guide), torch.zeros(4), objective="semi-amortized", num_steps=1)
    for settings in ({"num_steps": 0}, {"step_size": 2.0}, {"num_draws": 0}, {"num_particles": 1.5}):
        with pytest.raises(ArgumentError, match="SemiAmortized"):
            am.SemiAmortized(**settings)
    assert make_objective("semi-amortized") == am.SemiAmortized()
