"""Programs that breach the contract, each with the error it must be refused with and what the message must name.

Adding a breach is adding a function to ``BREACHES`` (or ``WARNINGS``, for what is said but not refused); the contract
test runs over all of them. Guides that breach are in ``tests.guide_breaches``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn
from torch.distributions import constraints
from torch.nn import functional

import amortize as am
from amortize.errors import (
    AmortizeError,
    ContractError,
    DataError,
    DynamicStructureError,
    GlobalLatentError,
    NoDataPlateError,
    NotIndependentError,
    ParameterNameError,
    PlateSizeError,
    UnboundedDiscreteError,
)

__all__ = ["BREACHES", "WARNINGS", "Breach"]

NUM = 10
X = torch.linspace(-1, 1, NUM)
WIDE = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Breach:
    """A program that breaches one clause.

    ``error`` is what verbs raise (None where it is only said); ``clause`` and ``verdict`` are what the report must
    hold; the row must contain each word of ``names`` (sites, arguments) and of ``remedy``.
    """

    model: Callable[..., Any]
    clause: str
    error: type[AmortizeError] | None
    names: tuple[str, ...]
    remedy: tuple[str, ...]
    guide: Callable[..., Any] | None = None
    data: Any = field(default_factory=X.clone)
    options: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = "fails"
    verb: str = "evidence"

    def program(self) -> am.Program:
        return am.Program(self.model, self.guide, **self.options)


def normal_pair(x: torch.Tensor, loc: Any = None) -> None:
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if loc is None else loc(z), 1.0), obs=x)


def mapped(change: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], None]:
    """z -> x with the observation's mean changed."""

    def model(x: torch.Tensor) -> None:
        normal_pair(x, change)

    return model


# The plate


def no_plate() -> Breach:
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return Breach(model, "plate", NoDataPlateError, ("pyro.plate",), ("with pyro.plate('data', x.shape[0])",))


def sequential_plate() -> Breach:
    def model(x):
        for i in pyro.plate("data", x.shape[0]):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    return Breach(model, "plate", NoDataPlateError, ("sequential",), ("with pyro.plate('data', x.shape[0])",))


def typed_in_plate_size() -> Breach:
    def model(x):
        with pyro.plate("data", NUM):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "plate", PlateSizeError, ("'data' of size 10",), ("x.shape[0]",))


def typed_in_tensor_size() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + torch.zeros(100), 1.0), obs=x)

    return Breach(
        model, "plate", PlateSizeError, ("torch.zeros(100)", "100"), ("x.shape[0]",), data=torch.linspace(-1, 1, 100)
    )


def ambiguous_plates() -> Breach:
    def model(x):
        n = x.shape[0]
        with pyro.plate("rows", n, dim=-1), pyro.plate("columns", n, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(n, n))

    return Breach(model, "plate", NoDataPlateError, ("'rows'", "'columns'"), ("plate='",))


def wrongly_named_plate() -> Breach:
    return Breach(normal_pair, "plate", NoDataPlateError, ("'rows'", "'data'"), ("plate=",), options={"plate": "rows"})


def global_latent() -> Breach:
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "local", GlobalLatentError, ("'w'",), ("condition={'w': value}",))


def missing_to_event() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "runs", ContractError, ("'z'", "'data'"), (".to_event(1)",), data=WIDE)


def observation_broadcast() -> Breach:
    def model(x):  # x is (N, 1): (N,) against (N, 1) makes (N, N)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "independent", NotIndependentError, ("'x'", "(3, 1)"), ("shape",), data=X[:, None].clone())


def duplicated_site() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("z", dist.Normal(0.0, 1.0))
            b = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    return Breach(model, "runs", ContractError, ("'z'", "two"), ("name",))


# Independent rows


def centred_over_the_batch() -> Breach:
    return Breach(
        mapped(lambda z: z - z.mean(0)), "independent", NotIndependentError, ("'x'",), ("z - z.mean(0)", "batch")
    )


def softmax_over_the_batch() -> Breach:
    return Breach(mapped(lambda z: z.softmax(0)), "independent", NotIndependentError, ("'x'",), ("batch",))


def standardised_data() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x - x.mean())

    return Breach(model, "independent", NotIndependentError, ("'x'",), ("batch",))


def batch_norm_switched_to_training() -> Breach:
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def decode(z):
        net.train()
        return net(z.unsqueeze(-1)).squeeze(-1)

    return Breach(mapped(decode), "independent", NotIndependentError, ("BatchNorm1d",), (".train()",))


def batch_norm_without_statistics() -> Breach:
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1))
    return Breach(
        mapped(lambda z: net(z.unsqueeze(-1)).squeeze(-1)),
        "independent",
        NotIndependentError,
        ("BatchNorm1d",),
        ("track_running_stats=True",),
    )


def squeezed() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 1), 1.0).to_event(1))
            rows = torch.stack(list(z.squeeze()))
            pyro.sample("x", dist.Normal(rows, 1.0), obs=x)

    return Breach(model, "independent", NotIndependentError, ("single datapoint", "z.squeeze()"), ("squeeze(-1)",))


def factor_outside() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("penalty", -z.square().sum())

    return Breach(model, "outside", NotIndependentError, ("'penalty'", "outside"), ("into the plate",))


def observation_outside() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("total", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.3))

    return Breach(model, "outside", NotIndependentError, ("'total'", "outside"), ("into the plate",))


# Fixed structure, no hidden randomness


def branch_that_adds_a_site() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if z.mean() > 0:
                z = z + pyro.sample("extra", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "static", DynamicStructureError, ("'extra'",), ("mask",))


def branch_that_changes_a_shape() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            size = 2 if z.mean() > 0 else 3
            w = pyro.sample("w", dist.Normal(torch.zeros(size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + w.sum(-1), 1.0), obs=x)

    return Breach(model, "static", DynamicStructureError, ("'w'", "shape"), ("mask",))


def site_at_random() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if torch.rand(()) < 0.5:
                pyro.sample("y", dist.Normal(z, 1.0), obs=x)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "static", DynamicStructureError, ("'y'",), ("mask",))


def shape_follows_the_batch() -> Breach:
    def model(x):
        n = x.shape[0]
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(torch.zeros(n), 1.0).to_event(1).expand([n]))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    return Breach(model, "static", DynamicStructureError, ("'z'",), ("mask",))


def branch_on_a_value() -> Breach:
    return Breach(
        mapped(lambda z: z + 1 if bool((z > 0).any()) else z),
        "independent",
        NotIndependentError,
        ("'x'",),
        ("torch.where",),
    )


def functional_dropout() -> Breach:
    return Breach(
        mapped(lambda z: functional.dropout(z, 0.5, training=True)),
        "deterministic",
        DynamicStructureError,
        ("'x'", "two runs"),
        ("training=self.training",),
    )


def random_numbers() -> Breach:
    return Breach(
        mapped(lambda z: z + torch.randn_like(z)),
        "deterministic",
        DynamicStructureError,
        ("'x'", "two runs"),
        ("pyro.sample",),
    )


# Densities


def unbounded_discrete() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    return Breach(model, "densities", UnboundedDiscreteError, ("'k'",), ("Categorical",))


def circular() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            angle = pyro.sample("angle", dist.VonMises(0.0, 1.0))
            pyro.sample("x", dist.Normal(angle.sin(), 1.0), obs=x)

    return Breach(model, "densities", ContractError, ("'angle'", "circular"), ("Uniform",))


class _Annulus(constraints.Constraint):
    """Numbers between 1 and 2 in size, of either sign: torch knows no bijection to it."""

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return (value.abs() > 1) & (value.abs() < 2)


class _OnAnnulus(dist.Uniform):
    support = _Annulus()


def no_bijection() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", _OnAnnulus(torch.tensor(1.0), torch.tensor(2.0)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    return Breach(model, "densities", ContractError, ("'c'",), ("Reparameterise",))


def point_latent() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Delta(torch.zeros(x.shape[0])))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "densities", ContractError, ("'z'", "Delta"), ("pyro.deterministic",))


def no_latents() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return Breach(model, "densities", ContractError, ("no latent", "'data'"), ("pyro.sample",))


def nothing_observed() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0))

    return Breach(model, "densities", ContractError, ("observes nothing", "'data'"), ("obs=x",))


def scaled_latent() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "scales", ContractError, ("'z'", "poutine.scale"), ("Take the scale off",))


def nowhere_possible() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(z + 50, z + 60), obs=x)

    return Breach(model, "finite", ContractError, ("'x'", "-inf"), ("support",), verb="check")


def nan_everywhere() -> Breach:
    return Breach(mapped(lambda z: (z - 100).log()), "finite", ContractError, ("'x'", "NaN"), ("logarithm",))


def gradient_not_finite() -> Breach:
    def radius(z):
        zero = z - z
        return z + zero.sqrt()  # 0 at every z, and its slope infinite times 0

    return Breach(mapped(radius), "gradient", ContractError, ("'z'", "gradient"), ("sqrt",))


# Parameters


def two_networks_of_one_name() -> Breach:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(x):
        pyro.module("net", first)
        pyro.module("net", second)
        normal_pair(x, lambda z: second(first(z[:, None])).squeeze(-1))

    return Breach(model, "parameters", ParameterNameError, ("'net$$$weight'",), ("a name of its own",))


def parameter_of_two_shapes() -> Breach:
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        normal_pair(x, lambda z: z + loc.sum())

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x + loc.sum(), 1.0))

    return Breach(model, "parameters", ParameterNameError, ("'loc'", "(2,)", "(3,)"), ("name",), guide=guide)


# Data


def data_with_nan() -> Breach:
    x = X.clone()
    x[3] = float("nan")
    return Breach(normal_pair, "data", DataError, ("argument 0", "3"), ("allow_nan=True",), data=x)


def data_with_infinity() -> Breach:
    x = X.clone()
    x[7] = float("inf")
    return Breach(normal_pair, "data", DataError, ("argument 0", "7"), ("Drop those rows",), data=x)


BREACHES: dict[str, Callable[[], Breach]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        no_plate, sequential_plate, typed_in_plate_size, typed_in_tensor_size, ambiguous_plates, wrongly_named_plate,
        global_latent, missing_to_event, observation_broadcast, duplicated_site, centred_over_the_batch,
        softmax_over_the_batch, standardised_data, batch_norm_switched_to_training, batch_norm_without_statistics,
        squeezed, factor_outside, observation_outside, branch_that_adds_a_site, branch_that_changes_a_shape,
        site_at_random, shape_follows_the_batch, branch_on_a_value, functional_dropout, random_numbers,
        unbounded_discrete, circular, no_bijection, point_latent, no_latents, nothing_observed, scaled_latent,
        nowhere_possible, nan_everywhere, gradient_not_finite, two_networks_of_one_name,
        parameter_of_two_shapes, data_with_nan, data_with_infinity,
    )
}  # fmt: skip


# Said, but not refused


def impossible_rows() -> Breach:
    x = X.clone()
    x[2], x[5] = 70.0, -80.0

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(z - 20, z + 20), obs=x)

    return Breach(model, "finite", None, ("'x'", "-inf", "2, 5"), ("support",), data=x, verdict="warn")


def observation_outside_the_support() -> Breach:
    x = 1 + X.abs()
    x[2], x[5] = -1.0, -2.0

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Exponential(z.exp()), obs=x)

    return Breach(model, "valid", None, ("'x'", "2, 5"), ("range",), data=x, verdict="warn")


def row_without_a_number() -> Breach:
    x = X.clone()
    x[4] = -2.0

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, (x + 1.5).log1p().exp().log().sqrt().add(1)), obs=x)

    return Breach(model, "finite", None, ("'x'", "NaN", "4"), ("support",), data=x, verdict="warn")


def float32_trouble() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 3e6, 0.01), obs=x)

    return Breach(model, "precision", None, ("'x'", "nats"), ("float64",), data=X + 3e6, verdict="warn")


def untouched_batch_norm() -> Breach:
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    return Breach(
        mapped(lambda z: net(z.unsqueeze(-1)).squeeze(-1)), "modes", None, ("BatchNorm1d",), ("rain",), verdict="note"
    )


def scaled_observation() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Breach(model, "scales", None, ("'x'", "scaled likelihood"), ("Take the scale off",), verdict="warn")


def unexplained_dimension() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z.sum(0), 1.0), obs=x)

    return Breach(model, "dimensions", None, ("'z'", "(3,"), (".to_event(1)",), verdict="warn")


def parameters_that_are_not_valid() -> Breach:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, -0.1), obs=x)

    return Breach(model, "valid", None, ("scale", "line"), ("valid parameters",), verdict="warn")


WARNINGS: dict[str, Callable[[], Breach]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        impossible_rows, observation_outside_the_support, row_without_a_number, float32_trouble, untouched_batch_norm,
        scaled_observation,
        unexplained_dimension, parameters_that_are_not_valid,
    )
}  # fmt: skip
