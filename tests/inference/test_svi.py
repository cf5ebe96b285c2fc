"""Training: it reaches known optima, is repeatable, and ends well."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError, GuideMismatchError, TrainingError


def linear_vae(seed: int = 0):
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=8, seed=0)
    x = torch.tensor(analysis.program().simulate(torch.zeros(200, 8), seed=seed)[1]["x"])
    return analysis, x


@pytest.mark.parametrize("objective", ["elbo", "mean-field-elbo", "graph-elbo", Trace_ELBO(num_particles=2)])
def test_training_approaches_the_best_mean_field_elbo(objective):
    analysis, x = linear_vae()
    program = analysis.program()
    for parameter in analysis.decoder.parameters():
        parameter.requires_grad_(False)
    before = analysis.guide_elbo(x).mean().item()
    training = am.Training(learning_rate=0.03, schedule="cosine")
    am.fit(program, x, objective=objective, num_steps=600, training=training)
    best, after = analysis.best_mean_field_elbo(x).mean().item(), analysis.guide_elbo(x).mean().item()
    assert before < best - 1 and best - 0.05 < after <= best + 1e-6


def test_a_guide_that_cannot_be_reparameterised_trains_with_the_graph_objective():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(4 * k - 2, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.Bernoulli(logits=slope * x))

    x = torch.tensor([-2.0, -1.0, 1.0, 2.0]).repeat(25)
    program = am.Program(model, guide)
    am.fit(program, x, objective="graph-elbo", num_steps=400, training=am.Training(learning_rate=0.1))
    assert program.state()["model.scope.params.slope"].item() > 2  # the exact posterior has slope 4


def test_history_has_a_row_a_step_with_its_quantities():
    analysis, x = linear_vae()
    training = am.Training(batch_size=32, schedule="exponential", clip_norm=1.0, validation=x[:50], validate_every=10)
    history = am.fit(analysis.program(), x[50:], num_steps=25, training=training).history
    assert list(history.step) == list(range(1, 26))
    assert history.validation_elbo.notna().sum() == 3 and history.elbo.notna().all()
    rates = history.learning_rate.to_numpy()
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-3 * 0.01 ** (24 / 25))
    assert (np.diff(history.seconds) >= 0).all()


def test_the_validation_elbo_is_the_guides():
    analysis, x = linear_vae()
    training = am.Training(learning_rate=1e-9, validation=x, validate_every=1)
    row = am.fit(analysis.program(), x, num_steps=1, training=training).history.iloc[-1]
    exact = analysis.guide_elbo(x).detach().numpy()
    assert abs(row.validation_elbo - exact.mean()) < 0.5


def test_a_subsampling_plate_gives_the_elbo_a_datapoint_too():
    def model(x):
        with pyro.plate("data", 10_000, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", 10_000, subsample=x):
            pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5))

    x = torch.linspace(-1, 1, 10)
    elbo = am.fit(am.Program(model, guide), x, num_steps=1).history.elbo[0]
    assert elbo == pytest.approx(dist.Normal(0.0, 2**0.5).log_prob(x).mean().item(), abs=1e-4)


def test_clipping_bounds_the_step():
    analysis, x = linear_vae()
    before = analysis.program().state()
    am.fit(analysis.program(), 1e4 * x, num_steps=1, training=am.Training(learning_rate=1e-3, clip_norm=1e-6))
    moved = max(float((after - before[name]).abs().max()) for name, after in analysis.program().state().items())
    assert moved <= 1e-3 + 1e-6


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_generators_alone():
    runs = []
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for seed in (0, 0, 1):
        analysis, x = linear_vae()
        runs.append(
            am.fit(analysis.program(), x, num_steps=5, seed=seed, training=am.Training(batch_size=16)).history.elbo
        )
    assert runs[0].equals(runs[1]) and not runs[0].equals(runs[2])
    assert torch.equal(torch.rand(3), expected)


def test_a_fit_says_in_a_line_what_it_was():
    analysis, x = linear_vae()
    fitted = am.fit(analysis.program(), x, num_steps=3, objective="elbo")
    last = fitted.history["elbo"].iloc[-1]
    assert str(fitted).startswith(f"fit by {fitted.objective}: 3 steps, last ELBO {last:.3f} nats a datapoint, ")
    assert str(fitted).endswith(" s") and "interrupted" not in str(fitted)
    assert str(replace(fitted, interrupted=True)).endswith(" s, interrupted")
    assert "last" not in str(am.fit(analysis.program(), x, num_steps=0))


def test_early_stopping_goes_back_to_the_best():
    analysis, x = linear_vae()
    training = am.Training(learning_rate=1.0, validation=x[100:], validate_every=5, patience=3)
    fitted = am.fit(analysis.program(), x[:100], num_steps=500, training=training)
    measured = fitted.history.validation_elbo.dropna()
    assert fitted.stopped_early and len(fitted.history) < 500
    again = am.fit(
        fitted.program, x[:100], num_steps=1, training=am.Training(learning_rate=1e-12, validation=x[100:])
    ).history.validation_elbo.iloc[-1]
    assert again == pytest.approx(measured.max(), abs=1e-3)


def test_ctrl_c_keeps_what_was_learned():
    analysis, x = linear_vae()
    threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.warns(AmortizeWarning, match="interrupted"):
        fitted = am.fit(analysis.program(), x, num_steps=10**6)
    assert fitted.interrupted and 0 < len(fitted.history) < 10**6


def test_a_loss_that_stays_non_finite_is_an_error():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("broken", z * float("nan"))

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(TrainingError, match="not finite in 20 steps"):
        am.fit(am.Program(model, guide), torch.zeros(5), num_steps=100)


def test_a_program_without_guide_or_parameters_is_refused():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(GuideMismatchError, match="no guide"):
        am.fit(am.Program(model), torch.zeros(5))
    with pytest.raises(TrainingError, match="no parameters"):
        am.fit(am.Program(model, guide), torch.zeros(5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: am.Training(learning_rate=0),
        lambda: am.Training(schedule="step"),
        lambda: am.Training(batch_size=0),
        lambda: am.Training(clip_norm=-1.0),
        lambda: am.Training(patience=3),
        lambda: am.Training(learning_rate="0.1"),
        lambda: am.Training(learning_rate=float("inf")),
        lambda: am.Training(clip_norm="1"),
        lambda: am.Training(redraw="dynamic"),
    ],
)
def test_settings_are_checked(make):
    with pytest.raises(ArgumentError, match="Training"):
        make()


def test_objectives_are_checked():
    analysis, x = linear_vae()
    with pytest.raises(ArgumentError, match="'graph-elbo'"):
        am.fit(analysis.program(), x, objective="tightest")
    with pytest.raises(ArgumentError, match="RenyiELBO"):
        am.fit(analysis.program(), x, objective=RenyiELBO())


def test_a_discrete_guide_is_validated_by_its_loss():
    """Two equally likely states, a guide that ignores the data: the ELBO is known by enumeration."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        logit = pyro.param("logit", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.Bernoulli(logits=logit))

    x = torch.linspace(-1, 2, 2000)
    training = am.Training(learning_rate=1e-9, validation=x, validate_every=1)
    row = am.fit(am.Program(model, guide), x, objective="graph-elbo", num_steps=1, training=training).history.iloc[-1]
    states = torch.stack([dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(1.0, 1.0).log_prob(x)])
    spread = states.std(0, correction=0).square().mean().sqrt() / (16 * len(x)) ** 0.5
    assert abs(row.validation_elbo - states.mean().item()) < 5 * spread


def test_a_value_given_to_a_global_latent_is_no_part_of_the_objective():
    x = torch.zeros(4)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1.5 + shift, 0.5**0.5))  # the exact posterior: the ELBO is log p(x | mean)

    program = am.Program(model, guide, condition={"mean": 3.0})
    history = am.fit(program, x, num_steps=3, training=am.Training(learning_rate=1e-9)).history
    exact = float(dist.Normal(3.0, 2**0.5).log_prob(torch.tensor(0.0)))
    np.testing.assert_allclose(history["elbo"], exact, rtol=1e-5)
