"""Rows whose data are replaced beneath a compiled graph: the log terms are those of the data now in them."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import amortize as am
from amortize.inference.bridge_batch import Batch, charts_of, refillable
from amortize.inference.bridge_model import BridgeModel
from amortize.inference.evidence import make_start
from amortize.program.data import Data
from tests.problems import PROBLEMS

FIRST, SECOND, DRAWS = torch.tensor([0, 1, 2]), torch.tensor([5, 3, 1]), 4


def normal(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0]), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def encoder(x):
    gain = pyro.param("gain", torch.tensor(0.6).double())
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(gain * x, 0.7))


def local(program, x):
    gen = np.random.default_rng(0)
    posterior = am.fit_local(program, x, init="prior", num_steps=50)
    moved = posterior.parameters | {"loc": gen.normal(size=posterior.loc.shape)}
    return am.LocalPosterior(**vars(posterior) | {"parameters": moved})


def starts():
    x = torch.linspace(-2, 2, 6).double()
    amortized, auto = am.Program(normal, encoder), am.Program(normal, AutoNormal(normal))
    am.fit(auto, x, num_steps=20)
    return {
        "prior": (amortized, x, "prior"),
        "guide": (amortized, x, "guide"),
        "guide of datapoints": (auto, x, "guide"),
        "local": (amortized, x, local(amortized, x)),
    }


@pytest.mark.parametrize("name", ["prior", "guide", "guide of datapoints", "local"])
def test_refilled_rows_are_those_of_a_batch_made_anew(name):
    program, x, start = starts()[name]
    data = program.prepare(x)
    with program.evaluating():
        origin = make_start(program, data, start)
        charts = charts_of(origin, data, 0)
        made = [
            Batch(origin, data, charts, index=index, num_draws=DRAWS, backend=backend)
            for index, backend in ((FIRST, "fx"), (SECOND, "eager"))
        ]
        model = BridgeModel("ula", 3, 1).double()
        made[0].launch(model, 0, "first")
        made[0].refill(SECOND)
        ours, anew = (batch.launch(model, 1, "second") for batch in made)
        torch.testing.assert_close(ours.z, anew.z)
        for a, b in zip(ours.evaluate(ours.z), anew.evaluate(anew.z), strict=True):
            torch.testing.assert_close(a, b)
    assert made[0].terms.describe().startswith("FX graph")


def test_coordinates_are_those_of_the_start():
    program, x, start = starts()["local"]
    with program.evaluating():
        data = program.prepare(x)
        chart = charts_of(make_start(program, data, start), data, 0)
    np.testing.assert_allclose(chart.loc, start.loc)
    np.testing.assert_allclose(chart.scale, start.scale_tril)


def test_moments_of_a_start_that_only_draws():
    problem = PROBLEMS["normal-normal"]()
    program = problem.program()
    with program.evaluating():
        data = program.prepare(problem.data)
        chart = charts_of(make_start(program, data, "prior"), data, 0)
    assert (abs(chart.loc - 0.5) < 4 * 2 / 8).all() and (abs(chart.scale - 2) < 1).all()


def test_what_can_be_replaced_in_place():
    x = torch.zeros(4, 2)
    assert refillable(Data.of((x, torch.zeros(3))))
    packed = torch.nn.utils.rnn.pack_sequence([x[:1], x[:2], x[:3], x[:4]], enforce_sorted=False)
    assert not refillable(Data.of((x, packed)))
