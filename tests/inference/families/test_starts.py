"""Chains started at posteriors of every family that has a density give the exact evidence."""

from __future__ import annotations

import numpy as np
import pytest

import amortize as am
from amortize.inference.families.density import Density
from amortize.inference.families.registry import FAMILIES
from amortize.inference.local import LocalPosterior
from tests.problems import PROBLEMS
from tests.statistics import z_value

WITH_DENSITY = [name for name, make in FAMILIES.items() if make().has_density and name != "flow"]  # one of the others
METHOD = am.AIS(num_chains=200, num_temperatures=4)


def ratio(program: am.Program, problem, local: LocalPosterior) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the weights over the evidence, and its standard error, (N,)."""
    evidence = am.evidence(program, problem.data, method=METHOD, start=local, seed=1)
    weights = np.exp(evidence.log_weights - problem.log_evidence)
    return weights.mean(0), weights.std(0, ddof=1) / len(weights) ** 0.5


@pytest.mark.parametrize("family", WITH_DENSITY)
def test_annealing_from_each_family_is_unbiased(family):
    """Fits are cut short: whatever a start is, its draws and its density must be of one and the same distribution."""
    problem = PROBLEMS["dirichlet-multinomial"]()
    program = problem.program()
    local = am.fit_local(program, problem.data, family=family, num_steps=60, num_restarts=0)
    mean, se = ratio(program, problem, local)
    assert (np.abs(mean - 1) < z_value(len(mean)) * se + 1e-6).all()


def test_a_density_that_is_not_that_of_the_draws_is_noticed(monkeypatch):
    problem = PROBLEMS["gamma-poisson"]()
    program = problem.program()
    local = am.fit_local(program, problem.data, family="mixture", num_steps=60, num_restarts=0)
    density = type(local.density(problem.data))
    assert issubclass(density, Density)
    right = density.log_density
    monkeypatch.setattr(density, "log_density", lambda self, u: right(self, u) + 0.2)
    mean, se = ratio(program, problem, local)
    assert (np.abs(mean - 1) > z_value(len(mean)) * se + 1e-6).any()


@pytest.mark.parametrize("family", ["point", "annealed"])
def test_families_without_a_density_start_no_chains(family):
    problem = PROBLEMS["normal-normal"]()
    made = am.Annealed(num_steps=1, num_parts=1, train_draws=2) if family == "annealed" else family
    local = am.fit_local(problem.program(), problem.data, family=made, num_steps=10)
    with pytest.raises(am.errors.ArgumentError, match=f"{family} posteriors have no density"):
        am.evidence(problem.program(), problem.data, method=METHOD, start=local)
