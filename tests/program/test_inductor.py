"""When a run is long enough for Inductor, and that its code gives the same numbers."""

from __future__ import annotations

import shutil

import pytest
import torch

import amortize as am
from amortize.program import compile as compile_module
from amortize.program.compile import Compiled
from amortize.program.inductor import estimated_seconds, pays

WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
EXAMPLES = (torch.ones(32, 64),), (torch.full((32, 64), 0.5),)


def layer(u):
    return (u @ WEIGHT).tanh().sum(-1)


def graph(rows):
    compiled = Compiled(layer, (torch.ones(rows, 64),), (torch.zeros(rows, 64),))
    return compiled._traced.graph


def test_the_decision_goes_by_sizes_and_calls():
    small, large = graph(32), graph(3200)
    assert 50 * estimated_seconds(small) < estimated_seconds(large) < 150 * estimated_seconds(small)
    assert not pays(large, 0)
    calls = [pays(large, 10**power) for power in range(10)]
    assert calls == sorted(calls) and calls[-1]


def test_a_short_run_waits_for_no_compiler(monkeypatch):
    monkeypatch.setattr(compile_module, "inductor", lambda *_: pytest.fail("compiled"))
    vae = am.models.BernoulliVAE(64, 8)
    calls = am.AIS(num_chains=16, num_temperatures=100).num_calls
    joint = vae.program().compiled(torch.zeros(300, 64), num_chains=16, num_calls=sum(calls))
    assert joint.describe() == "FX graph, equal to eager"


def test_a_long_run_asks_for_it_and_keeps_the_graph_where_it_fails(monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(compile_module, "inductor", no_compiler)
    compiled = Compiled(layer, *EXAMPLES, num_calls=10**9)
    assert compiled.describe() == "FX graph, equal to eager (no Inductor: RuntimeError: no C++ compiler)"
    torch.testing.assert_close(compiled(*EXAMPLES[1]), layer(*EXAMPLES[1]))


def test_code_that_differs_is_dropped(monkeypatch):
    monkeypatch.setattr(compile_module, "inductor", lambda module, _: lambda *inputs: 1.01 * module(*inputs))
    compiled = Compiled(layer, *EXAMPLES, backend="inductor")
    assert "no Inductor: the graph differs from eager" in compiled.describe()
    torch.testing.assert_close(compiled(*EXAMPLES[1]), layer(*EXAMPLES[1]))


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler, g++")
def test_inductor_gives_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    weight = torch.nn.Parameter(0.1 * torch.ones(3, 3))

    def function(u):
        return ((u @ weight).exp() * u).detach()

    first, second = torch.ones(2, 3), torch.linspace(0, 1, 6).reshape(2, 3)
    compiled = Compiled(function, (first,), (second,), backend="inductor")
    assert compiled.describe() == "Inductor, equal to eager"
    with torch.no_grad():
        weight.mul_(2.0)
    torch.testing.assert_close(compiled(first), function(first))


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler, g++")
def test_positions_may_have_any_layout(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    program = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4).program()
    joint = program.compiled(torch.zeros(3, 4), num_chains=5, backend="inductor")
    assert joint.describe() == "Inductor, equal to eager"
    wide = torch.linspace(-1, 1, 60).reshape(5, 3, 4)
    ours, plain = (joint.value_and_grad(u) for u in (wide[..., ::2], wide[..., ::2].contiguous()))
    torch.testing.assert_close(ours, plain)
