"""The hidden Markov model: the forward algorithm against all paths, the smoother against the posterior, training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pyro.infer import TraceEnum_ELBO

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.inference.objectives import loss_of
from amortize.models.hidden_markov_model import HiddenMarkovModel
from amortize.models.hidden_markov_model_chain import Chain, backward
from tests.statistics import z_value

STATES, STEPS, FEATURES, NUM = 3, 4, 2, 6


def random_model(emission="bernoulli", smoother=(5,)):
    """A model whose probabilities are far from even, float64, and data for it."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(NUM, STEPS * FEATURES, generator=stream, dtype=torch.float64)
    x = (x > 0).double() if emission == "bernoulli" else x
    model = HiddenMarkovModel.from_data(x, STATES, num_steps=STEPS, emission=emission, smoother=smoother)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    return model, x


def of_all_paths(model, x):
    """Log p(x, s), (N, K ** T), and the paths (K ** T, T)."""
    paths = torch.tensor(list(itertools.product(range(STATES), repeat=STEPS)))
    total = model.chain.log_initial[paths[:, 0]] + torch.zeros(len(x), 1, dtype=x.dtype)
    for t in range(STEPS):
        if t:
            total = total + model.chain.log_transition[paths[:, t - 1], paths[:, t]]
        part = x.reshape(NUM, STEPS, FEATURES)[:, t]
        total = total + model.emission(paths[:, t]).log_prob(part[:, None])
    return total.detach(), paths


@pytest.mark.parametrize("emission", ["bernoulli", "normal"])
def test_the_forward_algorithm_is_the_sum_over_all_paths(emission):
    model, x = random_model(emission, None)
    joint, paths = of_all_paths(model, x)
    torch.testing.assert_close(model.log_evidence(x), joint.logsumexp(1))
    found = am.evidence(model.program(), x)
    np.testing.assert_allclose(found.log_evidence, joint.logsumexp(1), rtol=1e-12)
    assert (found.se == 0).all()
    states = torch.nn.functional.one_hot(paths, STATES).double()
    torch.testing.assert_close(model.smoothed(x), torch.einsum("np,ptk->ntk", joint.softmax(1), states))
    backwards = model.log_evidence(x.reshape(NUM, STEPS, FEATURES).flip(1).reshape(NUM, -1))
    assert float((backwards - joint.logsumexp(1)).abs().max()) > 0.1  # the order counts


def test_the_smoother_s_elbo_is_that_of_all_paths_and_what_is_trained():
    model, x = random_model()
    joint, paths = of_all_paths(model, x)
    messages = model._messages(x)
    log_q = (model.guide_chain.log_initial + messages[:, 0]).log_softmax(-1)[:, paths[:, 0]]
    for t in range(1, STEPS):
        rows = (model.guide_chain.log_transition + messages[:, t, None]).log_softmax(-1)
        log_q = log_q + rows[:, paths[:, t - 1], paths[:, t]]
    torch.testing.assert_close(log_q.exp().sum(1), torch.ones(NUM, dtype=torch.float64))
    elbo = (log_q.exp() * (joint - log_q)).sum(1).detach()
    torch.testing.assert_close(model.guide_elbo(x), elbo)
    assert bool((elbo < model.log_evidence(x)).all())
    program = model.program()
    loss = loss_of(TraceEnum_ELBO(), program, program.prepare(x))
    assert float(loss.detach()) == pytest.approx(-float(elbo.sum()), rel=1e-12)


def test_the_smoother_can_be_the_posterior():
    """With the chain's own moves and the exact messages nothing is lost; with other moves something is."""
    model, x = random_model()
    x = x[:1]
    transition, emitted = model.chain.log_transition.double(), model._emitted(x)
    with torch.no_grad():
        for layer in (model.smoother.layers[0], model.smoother.last):
            layer.weight.zero_()
        model.smoother.last.bias.copy_((emitted + backward(transition, emitted)).reshape(-1))
        model.guide_chain.load_state_dict(model.chain.state_dict())
        torch.testing.assert_close(model.guide_elbo(x), model.log_evidence(x))
        model.guide_chain.transition_logits.zero_()
        assert float(model.log_evidence(x) - model.guide_elbo(x)) > 0.01


def assert_above(first, second):
    """The mean difference is beyond its standard error."""
    gain = first - second
    assert float(gain.mean()) > z_value() * float(gain.std()) / len(gain) ** 0.5


def test_training_beats_a_mixture_of_steps_on_digits():
    """A chain whose next state doesn't ask for the last one is a mixture of independent steps."""
    data = am.data.load("digits")
    x, held_out = (torch.as_tensor(part) for part in (data.x_train, data.x_test))
    model = HiddenMarkovModel.from_data(x, 8)
    before = model.log_evidence(held_out)
    how = am.Training(learning_rate=3e-2, batch_size=100, progress=False)
    am.fit(model.program(), x, objective=model.objective, num_steps=60, training=how)
    after = model.log_evidence(held_out)
    assert_above(after, before)
    shares = model.smoothed(x).mean((0, 1)).float()
    model.chain = Chain(shares, shares.expand(8, 8))
    assert_above(after - 1, model.log_evidence(held_out))


@pytest.mark.parametrize("smoother", [None, (8,)])
def test_the_contract_holds(smoother):
    x = torch.as_tensor(am.data.load("digits").x_train[:40])
    model = HiddenMarkovModel.from_data(x, 4, smoother=smoother)
    report = model.program().check(x[:20])
    assert report.ok, str(report)
    assert model.num_steps == model.emission.num_features == 8


def test_normal_scales_stay_above_the_floor():
    x = torch.cat([torch.zeros(30, 4), torch.ones(30, 4)])
    model = HiddenMarkovModel.from_data(x, 2, emission="normal", num_steps=2)
    how = am.Training(learning_rate=0.1, progress=False)
    am.fit(model.program(), x, objective=model.objective, num_steps=40, training=how)
    scale = model.emission.floor + model.emission.log_excess.exp()
    assert 0 < model.emission.floor < float(scale.detach().min())
    assert bool(model.log_evidence(x).isfinite().all())


def test_what_is_refused():
    x = torch.eye(6)
    with pytest.raises(ArgumentError, match="num_steps: expected a divisor of the 6 features, got 4"):
        HiddenMarkovModel.from_data(x, num_steps=4)
    with pytest.raises(ArgumentError, match="emission"):
        HiddenMarkovModel.from_data(x, emission="poisson")
    with pytest.raises(DataError, match="zeros and ones"):
        HiddenMarkovModel.from_data(x / 2)
    with pytest.raises(DataError, match="vary"):
        HiddenMarkovModel.from_data(torch.ones(4, 2), 2, emission="normal")
    model = HiddenMarkovModel.from_data(x, 2)
    with pytest.raises(DataError, match="shape"):
        model.log_evidence(torch.zeros(2, 5))
    with pytest.raises(ArgumentError, match="the guide leaves the states out"):
        model.guide_elbo(x)
    with pytest.raises(ArgumentError, match="Chain transition"):
        Chain(torch.ones(2), torch.ones(2, 3))
