"""Guides that breach the contract; see ``tests.breaches``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn
from torch.nn import functional

from amortize.errors import (
    ContractError,
    DynamicStructureError,
    GuideMismatchError,
    NotIndependentError,
    ParameterNameError,
)
from tests.breaches import Breach, X

__all__ = ["GUIDE_BREACHES"]


def two_sites(x: torch.Tensor) -> None:
    """A real latent and a positive one."""
    with pyro.plate("data", x.shape[0]):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a, b), obs=x)


def a_pair(x: torch.Tensor) -> None:
    """A latent of two numbers."""
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def sampling(a: Any = None, b: Any = None, more: Any = None) -> Callable[[torch.Tensor], None]:
    """A guide of ``two_sites`` with one of its distributions changed, or more statements."""

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("a", dist.Normal(0.0, 1.0) if a is None else a(x))
            pyro.sample("b", dist.LogNormal(0.0, 1.0) if b is None else b(x))
            if more is not None:
                more(x)

    return guide


def mismatch(guide: Callable[..., Any], clause: str, names: tuple[str, ...], remedy: tuple[str, ...]) -> Breach:
    return Breach(two_sites, clause, GuideMismatchError, names, remedy, guide=guide, verb="posterior")


def misses_a_site() -> Breach:
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("a", dist.Normal(0.0, 1.0))

    return mismatch(guide, "guide-sites", ("misses 'b'",), ("'a', 'b'",))


def samples_one_more() -> Breach:
    def more(x):
        pyro.sample("c", dist.Normal(0.0, 1.0))

    return mismatch(sampling(more=more), "guide-sites", ("samples 'c'",), ("'a', 'b'",))


def has_a_factor() -> Breach:
    def more(x):
        pyro.factor("penalty", -x.square())

    return mismatch(sampling(more=more), "guide-sites", ("'penalty'", "pyro.factor"), ("to the model",))


def observes() -> Breach:
    def more(x):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return mismatch(sampling(more=more), "guide-sites", ("observes 'x'",), ("to the model",))


def without_the_plate() -> Breach:
    def guide(x):
        pyro.sample("a", dist.Normal(torch.zeros(x.shape[0]), 1.0))
        pyro.sample("b", dist.LogNormal(torch.zeros(x.shape[0]), 1.0))

    return mismatch(guide, "guide-plate", ("no plate 'data'",), ("pyro.plate('data', x.shape[0])",))


def one_site_outside() -> Breach:
    def guide(x):
        pyro.sample("a", dist.Normal(torch.zeros(x.shape[0]), 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("b", dist.LogNormal(0.0, 1.0))

    return mismatch(guide, "guide-plate", ("'a'", "outside"), ("pyro.plate('data', x.shape[0])",))


def another_dimension() -> Breach:
    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.LogNormal(0.0, 1.0))

    return mismatch(guide, "guide-plate", ("'a'", "-2", "-1"), ("dim=-1",))


def another_shape() -> Breach:
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    return Breach(
        a_pair, "guide-plate", GuideMismatchError, ("'z'", "(3,)", "(2,)"), ("shape",), guide=guide, verb="posterior"
    )


def missing_to_event() -> Breach:
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 2), 1.0))

    return Breach(
        a_pair, "guide-runs", ContractError, ("'z'", "'data'"), (".to_event(1)",), guide=guide, verb="posterior"
    )


def support_too_wide() -> Breach:
    guide = sampling(b=lambda x: dist.Normal(0.0, 1.0))
    return mismatch(guide, "guide-support", ("'b'", "outside the model's support"), ("dist.LogNormal",))


def support_too_narrow() -> Breach:
    guide = sampling(a=lambda x: dist.LogNormal(0.0, 1.0))
    return mismatch(guide, "guide-support", ("'a'", "only a part"), ("whole support",))


def draws_nan() -> Breach:
    guide = sampling(a=lambda x: dist.Normal((x + 0.9).log(), 1.0))
    return mismatch(guide, "guide-draws", ("'a'", "NaN", "datapoints 0"), ("logarithm",))


def a_point() -> Breach:
    guide = sampling(a=dist.Delta)
    return mismatch(guide, "guide-density", ("'a'", "Delta"), ("start='prior'",))


def scaled() -> Breach:
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            with poutine.scale(scale=0.5):
                pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.LogNormal(0.0, 1.0))

    return mismatch(guide, "guide-density", ("'a'", "poutine.scale"), ("Take the scale off",))


def centres_the_data() -> Breach:
    guide = sampling(a=lambda x: dist.Normal(x - x.mean(0), 1.0))
    return Breach(
        two_sites,
        "guide-rows",
        NotIndependentError,
        ("'a'", "log q"),
        ("x - x.mean(0)",),
        guide=guide,
        verb="posterior",
    )


def random_numbers() -> Breach:
    guide = sampling(a=lambda x: dist.Normal(x + torch.randn_like(x), 1.0))
    return Breach(
        two_sites, "guide-rows", DynamicStructureError, ("'a'", "two runs"), ("random",), guide=guide, verb="posterior"
    )


def functional_dropout() -> Breach:
    guide = sampling(b=lambda x: dist.LogNormal(functional.dropout(x, 0.5, training=True), 1.0))
    return Breach(
        two_sites, "guide-rows", DynamicStructureError, ("'b'", "two runs"), ("dropout",), guide=guide, verb="posterior"
    )


def encoder_in_training() -> Breach:
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def loc(x):
        return dist.Normal(net.train()(x.unsqueeze(-1)).squeeze(-1), 1.0)

    return Breach(
        two_sites, "guide-rows", NotIndependentError, ("log q",), ("BatchNorm1d",), guide=sampling(a=loc),
        verb="posterior",
    )  # fmt: skip


def samples_at_random() -> Breach:
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            if a.mean() > 0:
                pyro.sample("b", dist.LogNormal(0.0, 1.0))
            else:
                pyro.sample("c", dist.LogNormal(0.0, 1.0))

    return mismatch(guide, "guide-sites", ("'b'",), ("'a', 'b'",))


def encoder_under_the_decoders_name() -> Breach:
    decoder, encoder = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(x):
        pyro.module("net", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z).squeeze(-1), 1.0), obs=x)

    def guide(x):
        pyro.module("net", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(x[:, None]), 1.0).to_event(1))

    return Breach(
        model, "parameters", ParameterNameError, ("'net$$$weight'",), ("a name of its own",), guide=guide, data=X,
        verb="posterior",
    )  # fmt: skip


def relaxed_for_another_site() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(z + k[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("k", dist.RelaxedBernoulli(torch.tensor(0.5), torch.ones(x.shape[0], 3) / 3).to_event(1))

    names = ("'k'", "Bernoulli", "2", "3")
    return Breach(model, "guide-density", GuideMismatchError, names, ("discrete",), guide=guide, verb="posterior")


GUIDE_BREACHES: dict[str, Callable[[], Breach]] = {
    f"guide-{function.__name__.replace('_', '-')}": function
    for function in (
        misses_a_site, samples_one_more, has_a_factor, observes, without_the_plate, one_site_outside,
        another_dimension, another_shape, missing_to_event, support_too_wide,
        support_too_narrow, draws_nan, a_point, scaled, centres_the_data, random_numbers, functional_dropout,
        encoder_in_training, samples_at_random, encoder_under_the_decoders_name, relaxed_for_another_site,
    )
}  # fmt: skip
