"""Every model of the zoo keeps the contract of a program, with what it says about itself."""

from __future__ import annotations

import pytest
import torch

from amortize.models import MODELS, BernoulliVAE, FactorAnalysis

BUILD = {
    "factor-analysis": lambda: (FactorAnalysis.random(2, 6), FactorAnalysis.random(2, 6).simulate(5)),
    "bernoulli-vae": lambda: (BernoulliVAE(6, 2, hidden=(4,)), torch.eye(5, 6)),
}


def test_each_model_is_listed_with_one_line():
    assert set(MODELS) == set(BUILD)
    for name, entry in MODELS.items():
        assert 0 < len(entry.description) <= 90, name
        assert "\n" not in entry.description
        assert isinstance(BUILD[name]()[0], entry.constructor)
        assert entry.has_exact_evidence == hasattr(entry.constructor, "log_evidence")


@pytest.mark.parametrize("name", BUILD)
def test_each_model_keeps_the_contract(name):
    model, x = BUILD[name]()
    program = model.program()
    report = program.check(x)
    assert report.ok, str(report)
    assert program.dim(x) == 2
    latents, observed = program.simulate(x, seed=0)
    assert {key: value.shape for key, value in latents.items()} == {"z": (5, 2)}
    assert {key: value.shape for key, value in observed.items()} == {"x": (5, 6)}


@pytest.mark.parametrize("name", BUILD)
def test_a_program_s_parameters_are_the_model_s_own(name):
    model, x = BUILD[name]()
    program = model.program()
    program.prepare(x)
    owned = {id(parameter) for parameter in program.parameters()}
    assert owned == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("guide", ["exact", None])
def test_factor_analysis_with_its_other_guides(guide):
    model, x = BUILD["factor-analysis"]()
    assert model.program(guide).check(x).ok
