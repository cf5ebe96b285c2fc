"""Adoption: parameters live in the program; Pyro's global store is as it was."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import amortize as am
from amortize.errors import ArgumentError, ParameterNameError
from amortize.program.adopt import find_modules

X = torch.linspace(-1, 1, 8)


def functions(net: nn.Module, scale: float):
    def model(x):
        pyro.module("net", net)
        sigma = pyro.param("sigma", torch.tensor(scale), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z).squeeze(-1), sigma), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal((x + shift)[:, None], 1.0).to_event(1))

    return model, guide


def test_two_programs_with_the_same_names_keep_their_own():
    programs = [am.Program(*functions(nn.Linear(1, 1), scale)) for scale in (0.5, 2.0)]
    for program in programs:
        program.prepare(X)
    values = [dict(program.named_parameters())["model.scope.params.sigma"].exp().item() for program in programs]
    assert values == pytest.approx([0.5, 2.0])
    before = programs[1].state()
    am.fit(programs[0], X, num_steps=3, training=am.Training(learning_rate=0.1))
    assert all(torch.equal(before[name], value) for name, value in programs[1].state().items())
    assert len(pyro.get_param_store()) == 0


def test_every_parameter_is_trained():
    program = am.Program(*functions(nn.Linear(1, 1), 0.5))
    program.prepare(X)
    before = program.state()
    am.fit(program, X, num_steps=3, training=am.Training(learning_rate=0.1))
    after = program.state()
    assert set(before) == set(after) and all(not torch.equal(before[name], after[name]) for name in before)


def test_the_users_store_survives_calls_and_errors():
    pyro.param("mine", torch.tensor(3.0), constraint=dist.constraints.positive)
    try:

        def broken(x):
            pyro.param("inner", torch.tensor(1.0))
            raise RuntimeError("broken on purpose")

        program = am.Program(*functions(nn.Linear(1, 1), 0.5))
        am.posterior(program, X, num_draws=2)
        with pytest.raises(RuntimeError, match="on purpose"):
            am.Program(broken).prepare(X)
        assert list(pyro.get_param_store().keys()) == ["mine"] and pyro.param("mine").item() == pytest.approx(3.0)
    finally:
        pyro.clear_param_store()


def test_a_second_network_under_a_used_name_is_refused():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(x):
        pyro.module("net", first)
        pyro.module("net", second)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ParameterNameError, match="net"):
        am.Program(model).prepare(X)


class Encoder(PyroModule):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.net = PyroModule[nn.Linear](1, 1)
        self.scale = PyroParam(torch.tensor(value), constraint=dist.constraints.positive)


class Model(Encoder):
    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z).squeeze(-1), self.scale), obs=x)


class Guide(Encoder):
    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.net(x[:, None]), self.scale).to_event(1))


@pytest.mark.parametrize("local", [True, False])
def test_pyro_modules_with_the_same_attribute_names_share_nothing(local):
    with pyro.settings.context(module_local_params=local):
        program = am.Program(Model(0.5), Guide(2.0))
        program.prepare(X)
        before = program.state()
        am.fit(program, X, num_steps=3, training=am.Training(learning_rate=0.1))
    after = program.state()
    scales = sorted(float(value.exp()) for name, value in before.items() if name.endswith("scale_unconstrained"))
    assert scales == pytest.approx([0.5, 2.0])
    assert len(after) == 6 and all(not torch.equal(before[name], after[name]) for name in before)
    assert len(pyro.get_param_store()) == 0


def test_modules_are_found_through_closures_methods_and_containers():
    net = nn.Linear(1, 1)

    class Holder:
        def __init__(self) -> None:
            self.nets = {"a": [net]}

        def model(self, x):
            return self.nets["a"][0](x)

    assert find_modules(Holder().model) == [net]
    assert find_modules(functions(net, 1.0)[0]) == [net]
    assert find_modules(nn.Sequential(net))[0][0] is net


def test_copies_and_pickles_are_programs_of_their_own():
    program = am.Program(Model(0.5), Guide(2.0))
    am.fit(program, X, num_steps=2)
    for twin in (copy.deepcopy(program), pickle.loads(cloudpickle.dumps(program))):
        twin_draws, draws = (am.posterior(p, X, num_draws=3)["lp"] for p in (twin, program))
        assert (twin_draws == draws).all()
        am.fit(twin, X, num_steps=1, training=am.Training(learning_rate=0.5))
        assert (am.posterior(program, X, num_draws=3)["lp"] == draws).all()
        assert (am.posterior(twin, X, num_draws=3)["lp"] != draws).any()


def test_saved_parameters_return_to_a_program_made_anew(tmp_path):
    program = am.Program(*functions(nn.Linear(1, 1), 0.5))
    fitted = am.fit(program, X, num_steps=20, training=am.Training(learning_rate=0.1))
    path = fitted.save(tmp_path / "fit.pt")
    fresh = am.load(path, am.Program(*functions(nn.Linear(1, 1), 0.5)))
    expected, found = (am.posterior(p, X, num_draws=5)["lp"] for p in (program, fresh.program))
    assert (expected == found).all()
    assert fresh.history.equals(fitted.history) and fresh.seed == fitted.seed


def test_a_saved_program_loads_in_a_new_process(tmp_path):
    program = am.Program(*functions(nn.Linear(1, 1), 0.5))
    fitted = am.fit(program, X, num_steps=5)
    fitted.save(tmp_path / "fit.pt")
    expected = am.posterior(program, X, num_draws=2)["lp"].sum()
    code = (
        "import torch, amortize as am; torch.set_num_threads(1); "
        f"f = am.load({str(tmp_path / 'fit.pt')!r}); "
        "print(am.posterior(f.program, torch.linspace(-1, 1, 8), num_draws=2)['lp'].sum())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) == pytest.approx(float(expected), rel=1e-6)


IMPORTABLE = """
import pyro, torch
import pyro.distributions as dist
import amortize as am
encoder = torch.nn.Linear(1, 1)
def model(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
def guide(x):
    NAMED
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(encoder(x[:, None]).squeeze(-1), 0.45))
def program():
    return am.Program(model, guide)
"""


@pytest.mark.parametrize("named", ['pyro.module("encoder", encoder)', "pass"])
def test_networks_of_importable_functions_come_back_too(tmp_path, named):
    """The functions are pickled by reference: their module-level networks must take the saved values all the same."""
    (tmp_path / "my_model.py").write_text(IMPORTABLE.replace("NAMED", named))
    head = "import torch, my_model, amortize as am; torch.set_num_threads(1); x = torch.linspace(-1, 1, 8); "
    score = "print(am.posterior(f.program, x, num_draws=50)['lp'].mean())"
    fit = "f = am.fit(my_model.program(), x, num_steps=30, training=am.Training(learning_rate=0.1)); f.save('f.pt'); "
    outs = []
    for body in (fit + score, "f = am.load('f.pt'); " + score):
        run = [sys.executable, "-c", head + body]
        outs.append(subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path, env=_environment()))
    assert float(outs[0].stdout) == pytest.approx(float(outs[1].stdout), rel=1e-6)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(am.__file__).parents[1]), "."])}


def test_a_copy_that_would_share_networks_is_refused():
    program = am.Program(*functions(nn.Linear(1, 1), 0.5))
    with pytest.raises(ArgumentError, match="Make the program anew"):
        copy.deepcopy(program)


def test_networks_named_in_inner_functions_and_callable_objects_are_found():
    net, other = nn.Linear(1, 1), nn.Linear(1, 1)

    class Callable:
        def __call__(self, x):
            return [other(y) for y in x]

    assert find_modules(lambda x: [net(value) for value in x]) == [net]
    assert find_modules(Callable()) == [other]


def test_the_store_survives_threads():
    pyro.param("mine", torch.tensor(3.0))
    try:
        programs = [am.Program(*functions(nn.Linear(1, 1), 0.5)) for _ in range(3)]
        threads = [threading.Thread(target=am.fit, args=(p, X), kwargs={"num_steps": 20}) for p in programs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(pyro.get_param_store().keys()) == ["mine"]
    finally:
        pyro.clear_param_store()


def test_a_state_with_parameters_the_program_never_makes_is_refused():
    other = am.Program(*functions(nn.Linear(1, 1), 0.5))
    other.prepare(X)
    state = {name.replace("sigma", "tau"): value for name, value in other.state().items()}
    program = am.Program(*functions(nn.Linear(1, 1), 0.5))
    program.restore(state)
    with pytest.raises(ArgumentError, match="tau"):
        program.prepare(X)


def test_looking_at_a_program_leaves_batch_norm_alone():
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    program = am.Program(*functions(net, 0.5))
    before = net[1].running_mean.clone()
    program.describe(X[:1])
    program.dim(X)
    assert torch.equal(net[1].running_mean, before) and net.training


def test_parameters_in_any_memory_layout_are_trained():
    net = nn.Linear(2, 3)
    net.weight = nn.Parameter(torch.randn(2, 3).T)
    assert not net.weight.is_contiguous()

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    before = net.weight.detach().clone()
    am.fit(am.Program(model, guide), torch.randn(5, 3), num_steps=2, training=am.Training(learning_rate=0.1))
    assert not torch.equal(net.weight, before)


def test_a_pyro_param_is_read_in_its_own_space():
    def model(x):
        scale = pyro.param("scale", torch.tensor([0.5, 2.0]), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], scale).to_event(1), obs=x)

    program = am.Program(model)
    program.prepare(torch.zeros(3, 2))
    np.testing.assert_allclose(program.param("scale"), [0.5, 2.0], rtol=1e-6)
    with pytest.raises(ArgumentError, match=r"no pyro.param 'scales'; it has scale"):
        program.param("scales")


def test_a_flow_of_the_likelihood_does_not_keep_the_inverse_of_parameters_that_were():
    flow = dist.transforms.affine_autoregressive(2)  # remembers x and its inverse, by identity

    def model(x):
        pyro.module("flow", flow)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.TransformedDistribution(dist.Normal(z, 1.0).to_event(1), [flow]), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x + shift, 1.0).to_event(1))

    x, u = torch.linspace(-1, 1, 8).reshape(4, 2), torch.full((1, 4, 2), 0.3)
    program = am.Program(model, guide)
    am.fit(program, x, num_steps=3, training=am.Training(learning_rate=0.1))  # all of x at each step
    joint = program.compiled(x, backend="eager")
    joint.value_and_grad(u)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3)
    now, _ = joint.value_and_grad(u)
    fresh, _ = program.compiled(x.clone(), backend="eager").value_and_grad(u)
    torch.testing.assert_close(now, fresh)
