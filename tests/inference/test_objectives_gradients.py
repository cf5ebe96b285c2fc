"""Gradients of the bounds: against closed forms, against finite differences, and against one another."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortize as am
from amortize.random import pyro_rng
from tests.gradients import Slopes
from tests.problems import reads_draws
from tests.statistics import z_value


def linear_gaussian(num: int = 10, seed: int = 0):
    """Factor analysis whose encoder is off, in float64, with its data."""
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, dtype=torch.float64)
    x = analysis.simulate(num, seed=1).double()
    with torch.no_grad():
        analysis.set_best_encoder()
        for parameter in analysis.encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return analysis, x


def gradients(program: am.Program, x: Tensor, objective, seeds) -> np.ndarray:
    """Gradient of the bound a datapoint, one row a seed."""
    data = program.prepare(x)
    loss, rows = objective.on(program, data, seed=0), []
    for seed in seeds:
        program.zero_grad()
        with pyro_rng(seed, "gradient"):
            (-loss(data).loss).backward()
        rows.append(torch.cat([p.grad.flatten() for p in program.parameters()]).numpy())
    return np.array(rows)


def agree(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the means of two independent samples (R, P) are one, within their standard errors."""
    se = np.sqrt(first.var(0, ddof=1) / len(first) + second.var(0, ddof=1) / len(second))
    return bool((np.abs(first.mean(0) - second.mean(0)) <= z_value(first.shape[1]) * se + 1e-12).all())


@pytest.mark.parametrize("gradient", ["dreg", "standard"])
def test_one_particle_has_the_elbos_gradient(gradient):
    analysis, x = linear_gaussian()
    rows = gradients(analysis.program(), x, am.IWAE(num_particles=1, gradient=gradient), range(300))
    analysis.zero_grad()
    mean, scale = analysis.encoder(x)
    analysis.closed_form().elbo(x, mean, torch.diag(scale.square())).mean().backward()
    exact = torch.cat([p.grad.flatten() for p in analysis.program().parameters()]).numpy()
    se = rows.std(0, ddof=1) / math.sqrt(len(rows))
    assert (np.abs(rows.mean(0) - exact) < z_value(len(exact)) * se + 1e-12).all()


def test_dreg_is_the_standard_gradient_in_expectation():
    analysis, x = linear_gaussian()
    dreg, standard = (
        gradients(analysis.program(), x, am.IWAE(num_particles=4, gradient=kind), seeds)
        for kind, seeds in (("dreg", range(200)), ("standard", range(200, 400)))
    )
    assert agree(dreg, standard)


def normal_with_noise(noise: float):
    """A standard normal latent of each datapoint, observed with noise."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    return model


def test_dreg_leaves_an_exact_guide_alone():
    """Where the guide is the posterior, the weights are constant and no draw moves it."""
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def guide(x):
        pyro.param("shift", shift)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5))

    program = am.Program(normal_with_noise(1.0), guide)
    assert np.abs(gradients(program, x, am.IWAE(num_particles=5), range(3))).max() < 1e-12
    standard = gradients(program, x, am.IWAE(num_particles=5, gradient="standard"), range(3))
    assert np.abs(standard).max() > 1e-3


def test_dreg_follows_draws_that_read_draws():
    program, x = reads_draws(20)
    dreg, standard = (
        gradients(program, x, am.IWAE(num_particles=4, gradient=kind), seeds)
        for kind, seeds in (("dreg", range(200)), ("standard", range(200, 400)))
    )
    assert agree(dreg, standard)
    assert dreg.var(0).sum() < standard.var(0).sum()


PATHWISE = {
    "iwae": am.IWAE(num_particles=3, gradient="standard"),
    "l-mcvae": am.LMCVAE(num_steps=3, num_chains=2),
    "dais": am.DAIS(num_steps=3),
    "mcd": am.MCD(num_steps=2, hidden=(8,)),
}


def drawn_scales():
    """A guide whose widths over u are not stated: the steps' units are measured from its draws."""
    return reads_draws()


def stated_scales():
    analysis, x = linear_gaussian(3)
    return analysis.program(), x


@pytest.mark.parametrize("make", [stated_scales, drawn_scales])
@pytest.mark.parametrize("name", PATHWISE)
def test_pathwise_gradients_are_those_of_finite_differences(name, make):
    """With the noise held, each bound is a smooth function of every parameter, those of the objective too."""
    program, x = make()
    data = program.prepare(x)
    loss = PATHWISE[name].on(program, data, seed=0)
    parameters = [*program.parameters(), *loss.own_parameters()]
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loss.own_parameters():  # a network that begins at zero would hide most of its gradient
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=gen, dtype=parameter.dtype))

    def value() -> Tensor:
        with pyro_rng(0, "difference"):
            return loss(data).loss

    slopes = Slopes(value, parameters, gen)
    assert slopes.by_gradient() == pytest.approx(slopes.by_difference(), rel=1e-5)


def test_accepted_moves_answer_for_their_decisions(monkeypatch):
    """A-MCVAE's gradient against differences of the mean bound, whose decisions jump; without its score it is off."""
    num = 120_000
    shift = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def guide(x):
        pyro.param("shift", shift)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(shift.expand(x.shape[0]), 1.0))

    x = torch.full((num,), 1.5, dtype=torch.float64)
    program = am.Program(normal_with_noise(0.5), guide)
    data = program.prepare(x)
    objective = am.AMCVAE(num_steps=6, step_size=1.4)
    loss = objective.on(program, data, seed=0)
    loss.eval()  # step sizes stay

    def bounds(value: float, seed: int) -> Tensor:
        with torch.no_grad(), pyro_rng(seed, "difference"):
            shift.fill_(value)
            return loss(data).bound

    step = 0.15
    differences = (bounds(0.8 + step, 0) - bounds(0.8 - step, 0)) / (2 * step)
    shift.data.fill_(0.8)

    def off() -> float:
        """How far our gradient is from the differences, in standard errors; 0.01 is the differences' own error."""
        rows = []
        for seed in range(1, 6):
            program.zero_grad()
            with pyro_rng(seed, "gradient"):
                (-loss(data).loss).backward()
            rows.append(float(shift.grad))
        se = math.hypot(float(differences.std()) / math.sqrt(num), np.std(rows, ddof=1) / math.sqrt(len(rows)))
        return max(abs(np.mean(rows) - float(differences.mean())) - 0.01, 0.0) / se

    assert off() < z_value()
    monkeypatch.setattr("amortize.inference.amcvae._score_term", lambda parts, decisions: torch.zeros_like(parts[0]))
    assert off() > z_value()
