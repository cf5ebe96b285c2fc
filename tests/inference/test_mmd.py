"""The discrepancy penalty: against its closed form, in the loss, and what training by it brings about."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference import mmd
from amortize.inference.mmd import squared_mmd
from amortize.inference.prior_codes import PriorCodes
from amortize.program.rates import RatedRun
from amortize.random import generator
from tests.statistics import z_value


def test_it_is_the_sum_over_pairs():
    stream = generator(0, "pairs")
    codes, prior = torch.randn(2, 6, 3, generator=stream, dtype=torch.float64)
    unit = sum((a - b).square().sum() for a, b in itertools.permutations(prior, 2)) / 30

    def kernel(a, b):
        return sum(s * unit / (s * unit + (a - b).square().sum()) for s in (0.5, 2.0)) / 2

    within = sum(kernel(a, b) for a, b in itertools.permutations(codes, 2)) / 30
    between = sum(kernel(a, b) for a, b in itertools.permutations(prior, 2)) / 30
    across = sum(kernel(a, b) for a, b in itertools.product(codes, prior)) / 36
    torch.testing.assert_close(squared_mmd(codes, prior, scales=(0.5, 2.0)), within + between - 2 * across)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_it_is_unbiased_for_two_gaussians(shift):
    """The difference of two draws is N(shift, 2), over which a Gaussian kernel has a mean in closed form."""
    stream, scale = generator(0, "unbiased"), 0.5
    width = 2 * scale  # the mean squared distance of standard normal draws is 2

    def mean_kernel(away):
        return (1 + 4 / width) ** -0.5 * math.exp(-(away**2) / (width + 4))

    draws = torch.stack(
        [
            squared_mmd(
                torch.randn(400, 1, generator=stream) + shift,
                torch.randn(400, 1, generator=stream),
                kernel="gaussian",
                scales=(scale,),
            )
            for _ in range(100)
        ]
    ).double()
    truth = 2 * mean_kernel(0.0) - 2 * mean_kernel(shift)
    assert abs(float(draws.mean()) - truth) < z_value(2) * float(draws.std()) / 10


def test_the_loss_is_that_without_it_and_the_weighted_discrepancy():
    x = torch.randn(20, 6, generator=generator(0, "x"))
    program = am.models.FactorAnalysis.random(2, 6).program()
    data = program.prepare(x)
    plain = am.BetaELBO(num_particles=3).on(program, data, seed=0)
    penalised = am.BetaELBO(num_particles=3, penalties=(am.MMD(weight=7.0, scales=(1.0,)),)).on(program, data, seed=0)
    torch.manual_seed(0)
    without = plain(data).loss
    torch.manual_seed(0)
    run, codes = RatedRun.of(program, program.structure(data), data, 3), PriorCodes(program, data)
    expected = 7.0 * squared_mmd(codes.of(run), codes.drawn(data, run))
    assert codes.of(run).shape == codes.drawn(data, run).shape == (60, 2)
    torch.manual_seed(0)
    torch.testing.assert_close(penalised(data).loss, without + expected)


class Shifted(torch.nn.Module):
    """A guide that moves and stretches data into codes of two sites, under a decoder that knows nothing of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
        self.log_scale = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(torch.ones(1), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("guide", self)
        code = self.shift + self.log_scale.exp() * x
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Delta(code[:, 0]))
            pyro.sample("b", dist.Delta(code[:, 1:], event_dim=1))


def learned(monkeypatch: pytest.MonkeyPatch | None = None) -> torch.Tensor:
    """Shift and scale that the penalty alone teaches; codes of standard normal data should be (0, 1) and (1, 2)."""
    if monkeypatch is not None:  # broken on purpose: the prior is taken for its mean
        truth = mmd.squared_mmd
        monkeypatch.setattr(mmd, "squared_mmd", lambda z, p, **how: truth(z, p * 0.1 + p.mean(0), **how))
    guide, x = Shifted(), torch.randn(500, 2, generator=generator(0, "x"))
    x = (x - x.mean(0)) / x.std(0)
    objective = am.BetaELBO(beta=0.0, penalties=(am.MMD(weight=100.0),))
    how = am.Training(learning_rate=0.05, schedule="cosine", batch_size=125)
    am.fit(am.Program(guide.model, guide.guide), x, objective=objective, num_steps=300, training=how)
    return torch.cat([guide.shift, guide.log_scale.exp()]).detach()


TRUTH = torch.tensor([0.0, 1.0, 1.0, 2.0])


def test_training_by_it_alone_brings_the_codes_to_the_prior():
    assert float((learned() - TRUTH).abs().max()) < 0.2


def test_a_wrong_prior_is_noticed(monkeypatch):
    assert float((learned(monkeypatch) - TRUTH).abs().max()) > 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, "weight"),
        ({"kernel": "linear"}, "kernel"),
        ({"scales": ()}, "scales"),
        ({"scales": [1.0]}, "scales"),
        ({"scales": (1.0, -1.0)}, "scales"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ArgumentError, match=message):
        am.MMD(**settings)


def test_wrong_shapes_and_a_model_without_codes():
    with pytest.raises(ArgumentError, match="same shape"):
        squared_mmd(torch.zeros(4, 2), torch.zeros(3, 2))
    mixture = am.models.MODELS["gaussian-mixture"].from_data(torch.randn(30, 2), 2)
    with pytest.raises(am.errors.AmortizeError):
        am.fit(mixture.program(), torch.randn(30, 2), objective=am.BetaELBO(penalties=(am.MMD(),)), num_steps=1)
