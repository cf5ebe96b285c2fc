"""The ELBO without Pyro's traces: the same numbers as Trace_ELBO's, value and gradient, on programs of every kind."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import amortize as am
from amortize.errors import AmortizeWarning, ParameterNameError
from amortize.inference.objectives import is_direct, loss_of
from amortize.program.direct import direct_elbo, has_paths
from amortize.program.handlers import unvalidated
from amortize.random import pyro_rng
from tests.problems import linear_vae, reads_draws
from tests.programs import PROGRAMS

GUIDED = [name for name, make in PROGRAMS.items() if make().guide is not None]


def both(program: am.Program, x) -> tuple[tuple[float, list], tuple[float, list]]:
    """Value and gradients, ours and Pyro's, with the same random numbers."""
    data, found = program.prepare(x), []
    for direct in (True, False):
        program.zero_grad()
        with pyro_rng(0, "test"), unvalidated(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = loss_of(Trace_ELBO(), program, data, direct=direct)
            loss.backward()
        found.append((float(loss.detach()), [None if p.grad is None else p.grad.clone() for p in program.parameters()]))
    return found[0], found[1]


def require_same(program: am.Program, x) -> None:
    (value, gradients), (expected, theirs) = both(program, x)
    assert value == pytest.approx(expected, rel=1e-5)
    for ours, others in zip(gradients, theirs, strict=True):
        assert (ours is None) == (others is None)
        if ours is not None:
            torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::amortize.errors.AmortizeWarning")
@pytest.mark.parametrize("name", GUIDED)
def test_it_is_trace_elbo(name):
    case = PROGRAMS[name]()
    program = case.program()
    data = program.prepare(case.data)
    if program.structure(data).discrete or not has_paths(program, data):
        assert not is_direct(Trace_ELBO(), program, data) or program.structure(data).discrete
        return
    if not any(p.requires_grad for p in program.parameters()):
        with unvalidated():
            with pyro_rng(0, "test"):
                ours = -float(direct_elbo(program, data))
            with pyro_rng(0, "test"):
                theirs = float(loss_of(Trace_ELBO(), program, data))
        assert ours == pytest.approx(theirs, rel=1e-5)
        return
    require_same(program, case.data)


def test_it_is_trace_elbo_of_vaes_and_of_guides_that_read_their_draws():
    analysis, x = linear_vae(20)
    require_same(analysis.program(), x)
    vae = am.models.BernoulliVAE(12, 3, hidden=(8,))
    require_same(vae.program(), (torch.rand(20, 12, generator=torch.Generator().manual_seed(0)) < 0.4).float())
    require_same(*reads_draws(6))


def test_it_is_trace_elbo_of_an_autoguide():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, s), obs=x)

    program = am.Program(model, pyro.infer.autoguide.AutoNormal(model))
    x = torch.linspace(-1, 2, 6)
    program.bind(program.prepare(x))
    require_same(program, x)


def test_masks_scales_and_subsamples_count_as_they_do_for_pyro():
    def model(x):
        with pyro.plate("data", 90, subsample=x), poutine.scale(scale=0.5):
            with poutine.mask(mask=x > 0):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(x < 1.5), obs=x)
            pyro.factor("more", 0.3 * z)

    slope = nn.Parameter(torch.tensor(0.5))

    def guide(x):
        pyro.param("slope", slope)
        with pyro.plate("data", 90, subsample=x), poutine.scale(scale=0.5), poutine.mask(mask=x > 0):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    require_same(am.Program(model, guide), torch.linspace(-1, 2, 9))


def test_draws_without_a_path_are_left_to_pyro():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(4 * k - 2, 1.0), obs=x)

    slope = nn.Parameter(torch.tensor(0.5))

    def guide(x):
        pyro.param("slope", slope)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=slope * x))

    x = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    program = am.Program(model, guide, discrete="sample")
    data = program.prepare(x)
    assert not has_paths(program, data) and not is_direct(Trace_ELBO(), program, data)
    with unvalidated():
        assert direct_elbo(program, data) is None
    fitted = am.fit(program, x.repeat(16), objective="elbo", num_steps=150, training=am.Training(learning_rate=0.1))
    assert np.isfinite(fitted.history.elbo).all() and float(slope.detach()) > 1.0


@pytest.mark.parametrize(
    "objective", [Trace_ELBO(num_particles=2), Trace_ELBO(num_particles=2, vectorize_particles=True)]
)
def test_other_settings_of_pyros_elbo_are_left_to_pyro(objective):
    analysis, x = linear_vae(6)
    program = analysis.program()
    assert not is_direct(objective, program, program.prepare(x))


def test_training_is_the_same_as_by_traces_step_by_step(monkeypatch):
    histories = []
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr("amortize.inference.svi.is_direct", lambda *args: False)
        analysis, x = linear_vae(40)
        histories.append(am.fit(analysis.program(), x, num_steps=30, training=am.Training(batch_size=8)).history)
    np.testing.assert_allclose(histories[0].elbo, histories[1].elbo, rtol=1e-9)
    np.testing.assert_allclose(histories[0].gradient_norm, histories[1].gradient_norm, rtol=1e-8)


def test_compiled_densities_follow_a_fused_optimiser():
    """A graph that was made before training sees what training wrote."""
    analysis, x = linear_vae(5)
    program = analysis.program(None)
    compiled = program.compiled(x, backend="fx")
    u = torch.zeros(5, 3, dtype=torch.float64)
    before = compiled.value_and_grad(u)[0].clone()
    am.fit(analysis.program(), x, num_steps=20, training=am.Training(learning_rate=0.1))
    after = compiled.value_and_grad(u)[0]
    fresh = analysis.program(None).compiled(x, backend="eager").value_and_grad(u)[0]
    torch.testing.assert_close(after, fresh)
    assert float((after - before).abs().max()) > 0.1


def test_another_network_under_a_known_name_is_still_refused_in_training():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    taken = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        network = first if len(taken) < 40 else second
        taken.append(0)
        pyro.module("net", network)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x[:, None]).squeeze(-1), 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)
        with pytest.raises(ParameterNameError, match="two different networks"):
            am.fit(am.Program(model, guide), torch.zeros(6), num_steps=80)
    assert pyro.module is pyro.primitives.module
