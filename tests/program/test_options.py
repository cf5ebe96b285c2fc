"""What a program is made with, and what verbs take in its place: the wrong ones are named."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import amortize as am
from amortize.errors import ArgumentError, DataError

METHOD = am.AIS(num_chains=2, num_temperatures=2)


def model(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_model(x):
    weights = pyro.sample("weights", dist.Gamma(1.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(weights.sum(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: am.Program(None), "model: expected a function"),
        (lambda: am.Program(torch.nn.Linear), "got the class Linear"),
        (lambda: am.Program(model, AutoNormal), "guide: .* Make an object of it first, AutoNormal"),
        (lambda: am.Program(model, whole="yes"), "whole: expected True or False, got 'yes'"),
        (lambda: am.Program(model, allow_nan=1), "allow_nan: expected True or False"),
        (lambda: am.Program(model, discrete="enum"), "discrete: expected None, 'enumerate' or 'sample', got 'enum'"),
    ],
)
def test_what_makes_no_program_is_named(make, says):
    with pytest.raises(ArgumentError, match=says):
        make()


@pytest.mark.parametrize("verb", [am.fit, am.evidence, am.posterior, am.fit_local, am.gaps])
def test_a_model_in_place_of_its_program_is_named(verb):
    with pytest.raises(ArgumentError, match=r"program: expected an am.Program, got 'model'"):
        verb(model, torch.zeros(3))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.ones(7), r"shape \(2,\) for 'weights', got one of shape \(7,\)"),
        (1.0, r"shape \(2,\) for 'weights', got one of shape \(\)"),
        (-torch.ones(2), "a value in the support .*GreaterThanEq.* for 'weights'"),
        (torch.full((2,), torch.nan), "a value in the support"),
    ],
)
def test_a_given_value_that_does_not_fit_its_site_is_refused(value, says, whole):
    with pytest.raises(ArgumentError, match=says):
        am.Program(shared_model, condition={"weights": value}, whole=whole).describe(torch.zeros(3))
    assert am.Program(shared_model, condition={"weights": [1.0, 2.0]}, whole=whole).dim(torch.zeros(3)) == (
        3 if whole else 1
    )


def test_a_treatment_of_discrete_latents_is_checked_where_there_are_none():
    for verb, options in ((am.evidence, {"method": METHOD}), (am.posterior, {})):
        with pytest.raises(ArgumentError, match="discrete: expected"):
            verb(am.Program(model), torch.zeros(3), discrete="enumerated", **options)


@pytest.mark.parametrize("start", [np.zeros(3), torch.zeros(3), "giude"])
def test_a_start_of_another_kind_is_named(start):
    with pytest.raises(ArgumentError, match="start: expected 'guide', 'prior' or a LocalPosterior"):
        am.evidence(am.Program(model), torch.zeros(3), start=start, method=METHOD)


def test_rows_in_reverse_are_data():
    x = np.arange(4.0)
    forward, backward = (am.fit_local(am.Program(model), rows, num_steps=50).elbo for rows in (x, x[::-1]))
    np.testing.assert_allclose(forward, backward[::-1], atol=0.05)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.ones(3).to_sparse(), "a sparse one; convert it"),
        (np.ma.masked_array(np.ones(3), mask=[True, False, False]), "a masked array whose mask would be lost"),
    ],
)
def test_arrays_that_would_lose_something_are_refused(x, says):
    with pytest.raises(DataError, match=says):
        am.Program(model).describe(x)
