"""Adoption: parameters live in the program; Pyro's global store is as it was."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import cloudpickle
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

import amortize as am
from amortize.errors import ParameterNameError
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
