"""Graphs against the eager functions they replace."""

from __future__ import annotations

import pytest
import torch

from amortize.inference.path import GeometricPath
from amortize.inference.starts import GuideStart, PriorStart
from amortize.program.compile import Compiled
from tests.problems import CONJUGATE, PROBLEMS


@pytest.mark.parametrize("name", CONJUGATE)
@pytest.mark.parametrize("origin", ["prior", "guide"])
def test_graph_equals_eager_value_and_gradient(name, origin):
    problem = PROBLEMS[name]()
    program = problem.program(guide=True)
    data = program.prepare(problem.data).fold(3)
    density = program.guide_density(data)
    start = GuideStart(density) if origin == "guide" else PriorStart(density.log_joint)
    gen = torch.Generator().manual_seed(0)
    u = [torch.randn(data.num_datapoints, problem.dim, generator=gen, dtype=torch.float64) for _ in range(3)]
    eager, graph = (
        GeometricPath(lambda v: start.terms(data, v)),
        GeometricPath(lambda v: start.terms(data, v), (u[0], u[1])),
    )
    assert graph.description == "FX graph, equal to eager"
    for ours, truth in zip(graph.evaluate(u[2]), eager.evaluate(u[2]), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    beta = torch.full_like(u[2][:, :1], 0.3)
    torch.testing.assert_close(graph.gradient(u[2], beta), eager.gradient(u[2], beta), rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    path = GeometricPath(lambda u: (-0.5 * u.square().sum(-1), u.sin().sum(-1)))
    u = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    beta, step = torch.tensor([[0.6]], dtype=torch.float64), 1e-6
    for i in range(2):
        shift = torch.zeros_like(u)
        shift[0, i] = step
        ends = [path.evaluate(u + sign * shift).log_density(beta.squeeze(-1)) for sign in (1, -1)]
        assert path.gradient(u, beta)[0, i].item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), abs=1e-8)


def test_a_branch_on_values_falls_back_to_eager_with_the_reason():
    def branching(u):
        return u.sum(-1) if bool(u.sum() > 0) else -u.sum(-1)

    compiled = Compiled(branching, (torch.ones(2, 2),), (torch.ones(2, 2),))
    assert "eager" in compiled.describe() and compiled.reason
    torch.testing.assert_close(compiled(-torch.ones(2, 2)), torch.full((2,), 2.0))


def test_a_branch_through_numpy_is_not_baked_in():
    def branching(u):
        return u.sum(-1) if u.detach().numpy().sum() > 0 else -u.sum(-1)

    compiled = Compiled(branching, (torch.ones(2, 2),), (torch.ones(2, 2),))
    assert "eager" in compiled.describe()
    torch.testing.assert_close(compiled(-torch.ones(2, 2)), torch.full((2,), 2.0))


def test_a_graph_that_differs_is_dropped():
    calls = []

    def drifting(u):
        calls.append(None)
        return u * len(calls)

    compiled = Compiled(drifting, (torch.ones(2),), (torch.ones(2),))
    assert "differs from eager" in compiled.reason


def test_what_does_not_depend_on_inputs_runs_once():
    weight = torch.randn(50, 50)

    def function(u):
        return u + (weight @ weight).tanh().sum()

    compiled = Compiled(function, (torch.ones(2),), (torch.zeros(2),))
    assert "add" in compiled.code
    assert "mm" not in compiled.code and "tanh" not in compiled.code
    torch.testing.assert_close(compiled(torch.ones(2)), function(torch.ones(2)))


def test_in_place_graphs_are_not_frozen():
    def function(u):
        total = torch.zeros(2)
        total.add_(u)
        return total

    compiled = Compiled(function, (torch.ones(2),), (torch.zeros(2),))
    for _ in range(3):
        torch.testing.assert_close(compiled(torch.ones(2)), torch.ones(2))
