"""Guides that are points: found, their rows checked for independence, trained, and refused where they can't be."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortize as am
from amortize.errors import AmortizeError, NotIndependentError
from amortize.program.points import has_density, point_sites

X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)


class Coder(nn.Module):
    """A linear code of two numbers; ``flaw`` says what is wrong with it."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__()
        self.flaw = flaw
        self.slope = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(self, x):
        code = self.slope * x
        if self.flaw == "batch":
            code = code - code.mean(0)
        if self.flaw == "noise" or (self.flaw == "noise in training" and self.training):
            code = code + torch.randn_like(code)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.distribution(code))

    def distribution(self, code):
        if self.flaw == "distribution":
            return dist.Normal(code, 1.0).to_event(1)
        if self.flaw == "to_event":
            return dist.Delta(code).to_event(1)
        return dist.Delta(code, event_dim=1)

    def program(self) -> am.Program:
        return am.Program(self.model, self.guide)


@pytest.mark.parametrize(("flaw", "sites"), [("", ("z",)), ("to_event", ("z",)), ("distribution", ())])
def test_points_are_told_from_distributions(flaw, sites):
    program = Coder(flaw).program()
    data = program.prepare(X)
    assert point_sites(program, data) == sites
    assert has_density(program, data) == (not sites)


def test_a_program_without_a_guide_has_neither():
    program = am.Program(Coder().model)
    data = program.prepare(X)
    assert point_sites(program, data) == () and not has_density(program, data)


def test_one_site_may_be_a_point_beside_a_distribution():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Delta(0.3 * x))
            pyro.sample("b", dist.Normal(0.2 * x, 0.5))

    program = am.Program(model, guide)
    assert point_sites(program, program.prepare(X[:, 0])) == ("a",)


@pytest.mark.parametrize("flaw", ["batch", "noise"])
def test_a_code_that_reads_the_batch_or_chance_is_refused(flaw):
    with pytest.raises(NotIndependentError, match="'z' puts a datapoint elsewhere"):
        am.fit(Coder(flaw).program(), X, num_steps=2)
    assert not Coder(flaw).program().check(X).ok


@pytest.mark.parametrize("flaw", ["", "noise in training"])
def test_a_code_is_checked_and_trained(flaw):
    coder = Coder(flaw)
    assert coder.program().check(X).ok
    fitted = am.fit(coder.program(), X, num_steps=300, training=am.Training(learning_rate=0.03))
    assert fitted.objective == "beta-elbo" and "no bound" in fitted.bound
    # the mode of the posterior, x / (1 + 0.25); noise in training adds its variance and moves no mean
    assert float(coder.slope.detach()) == pytest.approx(0.8, abs=1e-3 if not flaw else 0.1)


def test_it_has_reconstructions_and_no_elbo():
    program = Coder().program()
    rebuilt = program.reconstruct(X)["x"]
    np.testing.assert_allclose(rebuilt, 0.1 * X, rtol=1e-6)
    for verb in (lambda: am.evidence(program, X, start="guide"), lambda: am.fit(program, X, objective="iwae")):
        with pytest.raises(AmortizeError, match=r"(?i)point"):
            verb()


def test_evidence_starts_from_the_prior_beside_it():
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(X).sum(-1).numpy()
    result = am.evidence(Coder().program(), X, method=am.AIS(num_chains=32, num_temperatures=40))
    assert (np.abs(result.log_evidence - exact) < 4 * result.se).all()


class Positive(nn.Module):
    """A scale for each datapoint, as a point that is where ``placed`` puts it; a location beside it."""

    def __init__(self, placed, *, spread: bool = False) -> None:
        super().__init__()
        self.placed, self.spread = placed, spread
        self.slope = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            s = pyro.sample("s", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], s[..., None]).to_event(1), obs=x)

    def guide(self, x):
        code = self.slope * x
        with pyro.plate("data", x.shape[0]):
            z = dist.Normal(code[:, 0], 1.0) if self.spread else dist.Delta(code[:, 0])
            pyro.sample("z", z)
            pyro.sample("s", dist.Delta(self.placed(code[:, 1])))

    def program(self) -> am.Program:
        return am.Program(self.model, self.guide)


def test_a_point_may_stand_inside_a_support_that_is_not_all_numbers():
    program = Positive(torch.exp).program()
    assert program.check(X).ok
    assert am.fit(program, X, num_steps=2).bound == "log p(x, z) at a point, no bound"


def test_a_point_outside_the_support_is_refused():
    with pytest.raises(AmortizeError, match=r"'s' is a point outside the model's support.*biject_to"):
        am.fit(Positive(lambda code: code).program(), X, num_steps=2)


def test_points_beside_distributions_are_told_what_would_do():
    with pytest.raises(AmortizeError, match=r"'s' is a point .* beside .*'z'.* make all of them points"):
        am.fit(Positive(torch.exp, spread=True).program(), X, num_steps=2)


def test_a_way_out_is_named_that_the_verb_has():
    with pytest.raises(AmortizeError, match=r"for training take objective='beta-elbo'"):
        am.fit(Coder().program(), X, objective="iwae", num_steps=2)


def test_what_an_auto_delta_was_trained_by_is_called_no_bound():
    coder = Coder()
    program = am.Program(coder.model, pyro.infer.autoguide.AutoDelta(coder.model))
    assert am.fit(program, X, num_steps=1).bound == "log p(x, z) at a point, no bound"
