"""Distortion plus beta times rate: Pyro's ELBO where beta is 1, closed forms, warm-up, free bits, penalties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.penalty import Penalty, PenaltyTerm
from amortize.program.rates import RatedRun
from amortize.random import pyro_rng
from tests.gradients import Slopes
from tests.problems import linear_vae, reads_draws
from tests.statistics import z_value


def off(num: int = 12):
    """Factor analysis in float64 with an encoder that is not at its best."""
    analysis, x = linear_vae(num)
    with torch.no_grad():
        for parameter in analysis.encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return analysis, x


def loss_of(program: am.Program, x, objective: am.BetaELBO):
    data = program.prepare(x)
    return objective.on(program, data, seed=0), data


def value_and_gradient(program: am.Program, loss) -> tuple[float, torch.Tensor]:
    """Of a loss with the random numbers of one seed."""
    program.zero_grad()
    with pyro_rng(5, "test"):
        value = loss()
    value.backward()
    return float(value.detach()), torch.cat([p.grad.flatten() for p in program.parameters() if p.grad is not None])


# Beta = 1


def test_it_is_pyros_mean_field_elbo_draw_by_draw():
    analysis, x = off()
    program = analysis.program()
    loss, data = loss_of(program, x, am.BetaELBO())
    ours = value_and_gradient(program, lambda: loss(data).loss)
    pyros = TraceMeanField_ELBO()
    theirs = value_and_gradient(program, lambda: pyros.differentiable_loss(program.model, program.guide, x) / len(x))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    torch.testing.assert_close(ours[1], theirs[1])


def test_it_is_pyros_elbo_draw_by_draw_where_no_divergence_is_known():
    """A Gaussian with full covariance before a prior of independent normals."""
    analysis, x = off()
    weight = nn.Parameter(0.1 * torch.ones(3, 6, dtype=torch.float64))
    factor = torch.tensor([[0.5, 0, 0], [0.2, 0.6, 0], [0, -0.1, 0.4]], dtype=torch.float64)

    def guide(x):
        pyro.param("weight", weight)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ weight.T, scale_tril=factor))

    program = am.Program(analysis.model, guide)
    loss, data = loss_of(program, x, am.BetaELBO())
    ours = value_and_gradient(program, lambda: loss(data).loss)
    pyros = Trace_ELBO()
    theirs = value_and_gradient(program, lambda: pyros.differentiable_loss(program.model, program.guide, x) / len(x))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("num_particles", [1, 4])
def test_its_gradient_is_that_of_the_closed_form_and_quieter_than_the_sampled_one(num_particles):
    analysis, x = off()
    program = analysis.program()
    loss, data = loss_of(program, x, am.BetaELBO(num_particles=num_particles))
    sampled, pyros = [], Trace_ELBO(num_particles=num_particles, vectorize_particles=False)
    ours = []
    for seed in range(150):
        for rows, made in ((ours, lambda: loss(data).loss), (sampled, lambda: _pyro(pyros, program, x))):
            program.zero_grad()
            with pyro_rng(seed, "test"):
                made().backward()
            rows.append(torch.cat([p.grad.flatten() for p in program.parameters()]).numpy())
    analysis.zero_grad()
    mean, scale = analysis.encoder(x)
    (-analysis.closed_form().elbo(x, mean, torch.diag(scale.square())).mean()).backward()
    exact = torch.cat([p.grad.flatten() for p in program.parameters()]).numpy()
    rows = np.array(ours)
    se = rows.std(0, ddof=1) / len(rows) ** 0.5
    assert (np.abs(rows.mean(0) - exact) < z_value(len(exact)) * se + 1e-12).all()
    assert rows.var(0).sum() < np.array(sampled).var(0).sum()


def _pyro(elbo, program, x):
    return elbo.differentiable_loss(program.model, program.guide, x) / len(x)


def test_several_sites_whose_priors_read_one_another():
    program, x = reads_draws(12)
    loss, data = loss_of(program, x, am.BetaELBO())
    pyros = Trace_ELBO()
    with torch.no_grad():
        ours, theirs = np.empty(400), np.empty(400)
        for seed in range(400):
            with pyro_rng(seed, "ours"):
                ours[seed] = loss(data).loss
            with pyro_rng(seed, "pyro"):
                theirs[seed] = pyros.loss(program.model, program.guide, x) / len(x)
    se = np.hypot(ours.std(ddof=1), theirs.std(ddof=1)) / 400**0.5
    assert abs(ours.mean() - theirs.mean()) < z_value() * se


# Other prices


@pytest.mark.parametrize("objective", [am.BetaELBO(beta=0.3), am.BetaELBO(beta=4.0, free_bits=0.5)])
def test_gradients_are_slopes(objective):
    analysis, x = off()
    program = analysis.program()
    loss, data = loss_of(program, x, objective)

    def held():
        with pyro_rng(1, "test"):
            return loss(data).loss

    slopes = Slopes(held, list(program.parameters()), torch.Generator().manual_seed(0))
    assert slopes.by_gradient() == pytest.approx(slopes.by_difference(), rel=1e-5)


def rate_of(analysis, x):
    """(N, D), the encoder's divergence from the prior."""
    mean, scale = analysis.encoder(x)
    return (0.5 * (mean**2 + scale**2 - 1) - scale.log()).detach()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_a_nat_of_rate_costs_beta(beta):
    analysis, x = off()
    priced, data = loss_of(analysis.program(), x, am.BetaELBO(beta=beta))
    free, _ = loss_of(analysis.program(), x, am.BetaELBO(beta=0.0))
    with pyro_rng(0, "test"):
        costs = float(priced(data).loss.detach())
    with pyro_rng(0, "test"):
        distortion = float(free(data).loss.detach())
    assert costs - distortion == pytest.approx(beta * float(rate_of(analysis, x).sum(-1).mean()), rel=1e-10, abs=1e-12)


def test_free_bits_charge_each_latent_no_less_than_they_are_and_leave_it_alone_below():
    """Mean rates over the batch, latent by latent; a latent below has no slope in its rate."""
    analysis, x = off()
    rates = rate_of(analysis, x).mean(0)
    free = float(rates.sort().values[1]) + 1e-3  # two below, one above
    loss, data = loss_of(analysis.program(), x, am.BetaELBO(beta=2.0, free_bits=free))
    plain, _ = loss_of(analysis.program(), x, am.BetaELBO(beta=0.0))
    gradients = []
    for each in (loss, plain):
        analysis.zero_grad()
        with pyro_rng(0, "test"):
            terms = each(data)
        terms.loss.backward()
        gradients.append((float(terms.loss.detach()), analysis.encoder.log_scale.grad.clone()))
    (charged, slope), (distortion, bare) = gradients
    assert charged - distortion == pytest.approx(2.0 * float(rates.clamp(min=free).sum()), rel=1e-10)
    same = torch.isclose(slope, bare)
    assert same.tolist() == (rates < free).tolist() and int(same.sum()) == 2


def test_beta_climbs_while_training_and_is_whole_where_it_is_measured():
    analysis, x = off()
    loss, _ = loss_of(analysis.program(), x, am.BetaELBO(beta=3.0, warmup=0.5))
    seen = []
    for loss.progress in (0.0, 0.1, 0.25, 0.5, 0.9):
        seen.append(loss.beta)
    assert seen == pytest.approx([0.0, 0.6, 1.5, 3.0, 3.0])
    loss.progress = 0.0
    assert loss.eval().beta == 3.0


def test_fit_warms_up_and_its_validation_is_at_the_full_price():
    analysis, x = off(40)
    training = am.Training(learning_rate=1e-9, validation=x, validate_every=10)
    fitted = am.fit(analysis.program(), x, objective=am.BetaELBO(warmup=0.5), num_steps=40, training=training)
    measured = fitted.history.validation_elbo.dropna().to_numpy()
    assert len(measured) == 4 and np.ptp(measured) < 1e-4
    assert abs(measured[0] - float(analysis.guide_elbo(x).mean())) < 0.5


def test_a_rate_that_is_not_yet_charged_is_in_the_history_all_the_same():
    """What is called an ELBO is one from the first step on; its gradient is that of the price as it stands."""
    analysis, x = off(40)
    program, rate = analysis.program(), float(rate_of(analysis, x).sum(-1).mean())
    (warm, data), (free, _) = (
        loss_of(program, x, objective) for objective in (am.BetaELBO(warmup=0.5), am.BetaELBO(beta=0.0))
    )
    warm.progress = 0.0
    slopes = [value_and_gradient(program, lambda loss=loss: loss(data).loss)[1] for loss in (warm, free)]
    torch.testing.assert_close(*slopes)
    with pyro_rng(5, "test"):
        bound = warm(data).bound
    with pyro_rng(5, "test"):
        distortion = -free(data).bound
    assert rate > 3 and float((-bound - distortion).mean()) == pytest.approx(rate, rel=1e-10)
    fitted = am.fit(program, x, objective=am.BetaELBO(warmup=1.0), num_steps=40, training=am.Training(1e-9))
    assert fitted.bound == "ELBO"
    assert abs(fitted.history.elbo.mean() - float(analysis.guide_elbo(x).mean())) < 1.0


def test_more_beta_trains_shorter_codes():
    """The closed form of a linear Gaussian program: at beta its guide has precision 1 + w^2 / (psi beta)."""
    weight, noise = 2.0, 1.0
    x = torch.linspace(-3, 3, 16, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(weight * z, noise), obs=x)

    for beta in (0.25, 1.0, 4.0):
        slope = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        log_scale = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

        def guide(x, slope=slope, log_scale=log_scale):
            pyro.param("slope", slope), pyro.param("log_scale", log_scale)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))

        training = am.Training(learning_rate=0.1, schedule="exponential")
        am.fit(am.Program(model, guide), x, objective=am.BetaELBO(beta=beta, num_particles=16), num_steps=250,
               training=training)  # fmt: skip
        precision = beta + weight**2 / noise**2
        assert float(slope.detach()) == pytest.approx(weight / noise**2 / precision, abs=0.01)
        assert float((-2 * log_scale.detach()).exp()) == pytest.approx(precision / beta, rel=0.05)


# Penalties


@dataclass(frozen=True)
class Length(Penalty):
    """``weight`` times the mean squared distance of a code from one beside a trained centre."""

    name: ClassVar[str] = "length"
    weight: float = 1.0

    def on(self, program, data, *, seed):
        return _LengthTerm(self.weight)

    def settings(self):
        return {"name": self.name, "weight": self.weight}


class _LengthTerm(PenaltyTerm):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.centre = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, batch, run: RatedRun):
        return self.weight * (run.values["z"] - self.centre - 1.0).square().sum(-1).mean()


def test_penalties_are_added_to_the_loss_and_not_to_the_bound():
    analysis, x = off()
    plain, data = loss_of(analysis.program(), x, am.BetaELBO())
    priced, _ = loss_of(analysis.program(), x, am.BetaELBO(penalties=(Length(0.5), Length(2.0))))
    with pyro_rng(0, "test"):
        first = plain(data)
    with pyro_rng(0, "test"):
        second = priced(data)
    with pyro_rng(0, "test"):
        z = RatedRun.of(analysis.program(), plain.trained.structure, data).values["z"].detach()
    expected = 2.5 * float((z - 1.0).square().sum(-1).mean())
    assert float((second.loss - first.loss).detach()) == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(first.bound, second.bound)


def test_a_penalty_s_own_parameters_are_trained_along_and_kept():
    analysis, x = off(40)
    objective = am.BetaELBO(penalties=(Length(5.0),))
    fitted = am.fit(analysis.program(), x, objective=objective, num_steps=60, training=am.Training(learning_rate=0.05))
    assert fitted.bound == "distortion + 1 rate + length, no bound"
    assert fitted.settings["objective"]["penalties"] == [{"name": "length", "weight": 5.0}]
    assert float(fitted.extra["penalties.0.centre"]) < -0.3  # towards codes whose mean is 0


# Settings


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({}, "ELBO"),
        ({"warmup": 0.5}, "ELBO"),
        ({"num_particles": 8}, "ELBO"),
        ({"beta": 0.5}, "distortion + 0.5 rate, no bound"),
        ({"free_bits": 0.1}, "distortion + 1 rate above 0.1 nats a latent, no bound"),
    ],
)
def test_only_a_bound_is_called_one(settings, bound):
    assert am.BetaELBO(**settings).bound == bound


@pytest.mark.parametrize(
    "settings",
    [{"beta": -1.0}, {"warmup": 1.5}, {"free_bits": -0.1}, {"num_particles": 0}, {"beta": float("nan")},
     {"penalties": [Length()]}, {"penalties": ("mmd",)}],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(settings):
    with pytest.raises(ArgumentError, match=f"BetaELBO {next(iter(settings))}"):
        am.BetaELBO(**settings)


def test_what_has_no_rate_is_refused_before_training():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = am.Program(model, pyro.infer.autoguide.AutoNormal(model))
    with pytest.raises(ArgumentError, match="objective='elbo'"):
        am.fit(program, torch.zeros(4), objective="beta-elbo", num_steps=1)


def test_a_penalty_is_no_objective_and_is_told_its_place():
    with pytest.raises(ArgumentError, match=r"am\.BetaELBO\(penalties=\(am\.MMD\(\.\.\.\),\)\)"):
        am.fit(off()[0].program(), off()[1], objective=am.MMD(), num_steps=1)
