"""Graphs against the eager functions they replace."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.path import GeometricPath
from amortize.inference.starts import GuideStart, PriorStart
from amortize.program import compile as compile_module
from amortize.program.compile import Compiled
from tests.problems import CONJUGATE, PROBLEMS

GRAPH = "FX graph, equal to eager"
TWO = (torch.ones(2, 2),), (torch.full((2, 2), 0.5),)


def two_sites(x):
    """A support that another latent sets, literals as parameters, observations by probability."""
    with pyro.plate("data", x.shape[0]):
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.sample("x", dist.Bernoulli((s[:, None] * z).sigmoid()).to_event(1), obs=x)


def binary(*shape):
    return torch.bernoulli(torch.full(shape, 0.4), generator=torch.Generator().manual_seed(0))


def bernoulli_vae():
    return am.models.BernoulliVAE(40, 2, hidden=(6, 5)).program()


PROGRAMS = {
    **{name: lambda name=name: (PROBLEMS[name]().program(guide=True), PROBLEMS[name]().data) for name in CONJUGATE},
    "dependent-support": lambda: (PROBLEMS["dependent-support"]().program(), PROBLEMS["dependent-support"]().data),
    "factor-analysis": lambda: (am.models.FactorAnalysis.random(2, 6).program().double(), torch.randn(5, 6).double()),
    "bernoulli-vae": lambda: (bernoulli_vae().double(), binary(5, 40).double()),
    "two-sites": lambda: (am.Program(two_sites), binary(5, 3).double()),
}


def positions(count, rows, dim, dtype=torch.float64):
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(rows, dim, generator=gen, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "origin"),
    [(name, origin) for name in PROGRAMS for origin in ("prior", "guide")],
)
def test_graph_equals_eager_value_and_gradient(name, origin):
    program, x = PROGRAMS[name]()
    if origin == "guide" and program.guide is None:
        origin = "prior"
    data = program.prepare(x).fold(3)
    with program.evaluating():
        start = GuideStart(program.guide_density(data)) if origin == "guide" else PriorStart(program.log_joint(data))
        u = positions(3, data.num_datapoints, start.log_joint.dim)
        eager = GeometricPath(lambda v: start.terms(data, v))
        graph = GeometricPath(lambda v: start.terms(data, v), (u[0], u[1]))
    assert graph.description == GRAPH
    for ours, truth in zip(graph.evaluate(u[2]), eager.evaluate(u[2]), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
    beta = torch.full_like(u[2][:, :1], 0.3)
    torch.testing.assert_close(graph.gradient(u[2], beta), eager.gradient(u[2], beta), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_s_log_joint_is_compiled(name):
    program, x = PROGRAMS[name]()
    joint = program.compiled(x, num_chains=2)
    assert joint.describe() == GRAPH
    num = program.prepare(x).num_datapoints
    u = positions(1, 2 * num, program.dim(x))[0].reshape(2, num, -1)
    with program.evaluating():
        data = program.prepare(x)
        eager = program.log_joint(data)(data, leaf := u.clone().requires_grad_())
    value, slope = joint.value_and_grad(u)
    torch.testing.assert_close(value, eager.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, torch.autograd.grad(eager.sum(), leaf)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(joint.grad_only(u), slope)


def test_the_gradient_of_bernoulli_needs_no_softplus():
    program, x = bernoulli_vae(), binary(5, 40)
    joint = program.compiled(x)
    assert "softplus" in joint._functions[0].code
    code = joint._functions[1].code
    assert "softplus" not in code and "sum" not in code and "pow" not in code and "log" not in code
    assert code.count("mm(") == 6, "a product a layer forward, and one back"
    assert joint._functions[0].code.count("mm(") == 6


def test_parameters_changed_in_place_are_followed():
    program, x = bernoulli_vae(), binary(5, 40)
    joint, eager = program.compiled(x), program.compiled(x, backend="eager")
    u = torch.randn(1, 5, 2)
    optimiser = torch.optim.Adam(program.parameters(), 0.1)
    seen = [joint.value_and_grad(u)[0]]
    for _ in range(2):
        optimiser.zero_grad()
        data = program.prepare(x)
        (-program.log_joint(data).terms(data, u=u[0]).joint.sum()).backward()
        optimiser.step()
        value, slope = joint.value_and_grad(u)
        for ours, truth in zip((value, slope, joint.grad_only(u)), (*eager.value_and_grad(u), slope), strict=True):
            torch.testing.assert_close(ours, truth)
        assert not torch.allclose(value, seen[-1])
        seen.append(value)


def test_what_is_made_of_parameters_is_made_anew():
    weight = torch.nn.Parameter(torch.eye(3))
    compiled = Compiled(lambda u: (u @ (weight @ weight).exp()).detach(), (torch.ones(2, 3),), (torch.rand(2, 3),))
    assert "exp" not in compiled.code
    u = torch.rand(2, 3)
    for change in (lambda: weight.mul_(0.5), lambda: setattr(weight, "data", torch.rand(3, 3))):
        with torch.no_grad():
            change()
        torch.testing.assert_close(compiled(u), (u @ (weight @ weight).exp()).detach())


def test_data_changed_in_place_are_followed():
    x = torch.ones(2)
    compiled = Compiled(lambda u: u * x.exp(), (torch.ones(2),), (torch.rand(2),))
    x.zero_()
    torch.testing.assert_close(compiled(torch.ones(2)), torch.ones(2))


def test_other_shapes_run_eagerly():
    compiled = Compiled(lambda u: u * torch.arange(u.shape[0]), (torch.ones(2),), (torch.rand(2),))
    torch.testing.assert_close(compiled(torch.ones(4)), torch.arange(4.0))


def test_a_part_does_no_work_for_the_rest():
    compiled = Compiled(lambda u: (u.exp(), u.sin()), *TWO)
    part = compiled.part((1,))
    assert "exp" in compiled.code and "exp" not in part.code
    torch.testing.assert_close(part(TWO[0][0]), (TWO[0][0].sin(),))


def branching(u):
    return u.sum(-1) if bool(u.sum() > 0) else -u.sum(-1)


def branching_through_numpy(u):
    return u.sum(-1) if u.detach().numpy().sum() > 0 else -u.sum(-1)


@pytest.mark.parametrize("function", [branching, branching_through_numpy])
def test_a_branch_on_values_falls_back_to_eager_with_the_reason(function):
    compiled = Compiled(function, *TWO)
    assert compiled.describe().startswith("eager (tracing failed: ")
    torch.testing.assert_close(compiled(-torch.ones(2, 2)), torch.full((2,), 2.0))
    torch.testing.assert_close(compiled.part((0,))(torch.ones(2, 2))[0], torch.tensor(2.0))


def test_a_graph_that_differs_is_dropped():
    calls = []

    def drifting(u):
        calls.append(None)
        return u * len(calls)

    compiled = Compiled(drifting, *TWO)
    assert "differs from eager" in compiled.describe()


@pytest.mark.parametrize("stage", ["use_onednn", "lower"])
def test_a_wrong_rewriting_is_noticed_and_dropped(monkeypatch, stage):
    right = getattr(compile_module, stage)

    def wrong(graph):
        right(graph)
        for node in graph.nodes:
            if node.target in (torch.exp, torch.ops.aten.exp.default):
                node.target = torch.sin

    monkeypatch.setattr(compile_module, stage, wrong)
    compiled = Compiled(lambda u: (u.exp(), u * 2), *TWO)
    assert "differs from eager" in compiled.reason
    torch.testing.assert_close(compiled(*TWO[0])[0], TWO[0][0].exp())


def test_random_numbers_are_not_baked_in():
    compiled = Compiled(lambda u: u + torch.rand(2, 2), *TWO)
    assert "differs from eager" in compiled.reason


def test_what_does_not_depend_on_inputs_runs_once():
    weight = torch.randn(50, 50)
    compiled = Compiled(lambda u: u + (weight @ weight).tanh().sum(), (torch.ones(2),), (torch.zeros(2),))
    assert "add" in compiled.code
    assert "mm" not in compiled.code and "tanh" not in compiled.code


def test_graphs_that_write_in_place_are_right_each_time():
    table = torch.zeros(2, 2)

    def into_a_view(u):
        total = torch.zeros(2, 2)
        total[0].add_(u[0])
        return total + u

    def fresh(u):
        total = torch.zeros(2, 2)
        total.add_(u).mul_(2)
        return total

    for function, truth in ((into_a_view, lambda u: u + torch.stack([u[0], table[0]])), (fresh, lambda u: 2 * u)):
        compiled = Compiled(function, *TWO)
        for _ in range(3):
            torch.testing.assert_close(compiled(TWO[1][0]), truth(TWO[1][0]))


def test_a_graph_leaves_its_inputs_and_constants_alone():
    x = torch.rand(2, 2)

    def function(u):
        first = u.exp()
        return (x - first).tanh() * first.sigmoid(), x * 1.0, (u + 0) * 1, torch.add(x, u.cos(), alpha=3)

    compiled = Compiled(function, *TWO)
    u, before = TWO[1][0].clone(), x.clone()
    for _ in range(2):
        for ours, truth in zip(compiled(u), function(u), strict=True):
            torch.testing.assert_close(ours, truth)
    torch.testing.assert_close((u, x), (TWO[1][0], before), rtol=0, atol=0)


def test_integers_stay_integers():
    compiled = Compiled(lambda u, k: (u * (k * 1 * 3), k * 2), *[(torch.ones(2), torch.arange(2) + i) for i in (1, 2)])
    value, count = compiled(torch.ones(2), torch.arange(2))
    assert count.dtype == torch.long and count.tolist() == [0, 2]
    assert value.tolist() == [0.0, 3.0]


def test_zero_times_what_is_not_finite_is_not_zero():
    compiled = Compiled(lambda u: u.log() * torch.zeros(2), (torch.ones(2),), (torch.ones(2),))
    assert compiled.describe() == GRAPH
    assert compiled(torch.zeros(2)).isnan().all()


def test_large_products_through_onednn_are_those_of_addmm():
    program, x = am.models.BernoulliVAE(784, 20, hidden=(200, 100)).program(), binary(30, 784)
    joint, eager = program.compiled(x, num_chains=4), program.compiled(x, num_chains=4, backend="eager")
    assert joint.describe() == GRAPH
    if torch.backends.mkldnn.is_available():
        assert "mkldnn" in joint._functions[0].code
    u = torch.randn(4, 30, 20)
    for ours, truth in zip(joint.value_and_grad(u), eager.value_and_grad(u), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-3)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ArgumentError, match=r"backend: expected one of .*got 'jit'"):
        am.AIS(backend="jit")
    assert Compiled(torch.sin, *TWO, backend="eager").describe() == "eager (asked for)"


def test_one_hot_does_not_stop_a_trace():
    index = torch.tensor([0, 2, 1])

    def function(u):
        return (torch.nn.functional.one_hot(index, num_classes=3) * u).sum(-1)

    compiled = Compiled(function, (torch.randn(3, 3),), (torch.randn(3, 3),))
    assert compiled.describe() == "FX graph, equal to eager"


def test_a_compiled_log_joint_follows_every_way_of_changing_a_parameter():
    decoder = torch.nn.Linear(2, 3)
    log_scale = torch.nn.Parameter(torch.zeros(3))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.log_scale = decoder, log_scale

        def forward(self, x):
            scale = self.log_scale.exp()
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)

    network, x, u = Model(), torch.randn(5, 3), torch.randn(2, 5, 2)
    program = am.Program(network)
    compiled = program.compiled(x, num_chains=2)

    def check():
        with program.evaluating():
            truth = program.log_joint(program.prepare(x))(program.prepare(x), u)
        torch.testing.assert_close(compiled.value_and_grad(u)[0], truth.detach(), rtol=1e-5, atol=1e-5)

    check()
    network.log_scale.data.add_(0.7)
    check()
    network.log_scale = torch.nn.Parameter(torch.full((3,), -0.4))
    check()
    optimiser = torch.optim.Adam(program.parameters(), lr=0.3, fused=True)
    program.model(x)
    (network.log_scale.sum() + network.decoder.weight.sum()).backward()
    optimiser.step()
    check()
