"""Simulated observations back in a program's arguments: where they are read, what is refused, exact latents."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import amortize as am
from amortize.errors import ArgumentError, ReplayError
from amortize.program.provenance import Provenance
from amortize.program.simulated import exact_latents, shares_observations
from amortize.random import pyro_rng
from tests.programs import PROGRAMS
from tests.statistics import z_value

NUM = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def read(model, x, **options):
    program = am.Program(model, **options)
    return program, program.prepare(x)


def a_latent(x):
    return pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float64), 1.0))


# What is found: each model, its data, and the observed site "x" as a function of the leaf that holds it


def plain(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a_latent(x), 0.5), obs=x)


def image(x):
    flat = x.reshape(len(x), -1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a_latent(x)[:, None], 0.5).expand(flat.shape).to_event(1), obs=flat)


def permuted(x):
    with pyro.plate("time", x.shape[1], dim=-2), pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x.permute(1, 0).contiguous())


def stacked(x):
    columns = torch.stack([x[:, t] for t in (2, 0, 1)], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a_latent(x)[:, None], 0.5).expand(columns.shape).to_event(1), obs=columns)


def cast_to_labels(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=a_latent(x)), obs=x.bool().long())


def cast_to_numbers(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Binomial(255, logits=a_latent(x)), obs=x.to(torch.float64))


FOUND = {
    "plain": (plain, normal(NUM), lambda leaf: leaf),
    "image": (image, normal(NUM, 1, 2, 3), lambda leaf: leaf.flatten(1)),
    "permuted": (permuted, normal(NUM, 3), lambda leaf: leaf.T),
    "stacked": (stacked, normal(NUM, 3), lambda leaf: leaf[:, [2, 0, 1]]),
    "cast to labels": (cast_to_labels, torch.tensor([0.0, 1, 1, 0, 1, 1]), lambda leaf: leaf),
    "cast to numbers": (cast_to_numbers, torch.tensor([3, 255, 0, 17, 200, 4], dtype=torch.uint8), lambda leaf: leaf),
}


@pytest.mark.parametrize("name", FOUND)
def test_simulated_observations_are_where_the_model_reads_them(name):
    model, x, view = FOUND[name]
    program, data = read(model, x)
    drawn = program.simulated(data, seed=1)
    (leaf,) = drawn.data.leaves
    assert leaf.dtype == x.dtype and leaf.shape == x.shape and not torch.equal(leaf, x)
    torch.testing.assert_close(view(leaf).double(), drawn.observed["x"].double())


@pytest.mark.parametrize("name", FOUND)
def test_the_data_stay_as_they_were(name):
    model, x, _ = FOUND[name]
    before = x.clone()
    program, data = read(model, x)
    program.simulated(data, seed=1)
    assert torch.equal(x, before) and torch.equal(data.leaves[0], before)


def test_values_can_be_put_by_hand():
    program, data = read(image, normal(NUM, 1, 2, 3))
    wanted = normal(NUM, 6, seed=9)
    changed = program.replaced(data, {"x": wanted})
    assert torch.equal(changed.leaves[0].flatten(1), wanted)


def test_several_sites_from_several_arguments_and_slices():
    def model(x, covariate, y):
        with pyro.plate("data", len(x)):
            z = a_latent(x)
            pyro.sample("y", dist.Poisson(z.exp()), obs=y)
            pyro.sample("second", dist.Normal(z + covariate, 0.5), obs=x[..., 1])
            pyro.sample("first", dist.Normal(z, 0.5), obs=x[..., 0])

    covariate, unread = normal(NUM, seed=1), normal(NUM, 3)
    program, data = read(model, (unread, covariate, torch.arange(NUM)))
    drawn = program.simulated(data, seed=1)
    x, same, y = drawn.data.args
    assert torch.equal(same, covariate) and torch.equal(x[:, 2], unread[:, 2])
    assert torch.equal(torch.stack([drawn.observed["first"], drawn.observed["second"]], -1), x[:, :2])
    assert y.dtype == torch.int64 and torch.equal(y, drawn.observed["y"])


def test_data_keep_their_form():
    def model(*, x, dose=2.0):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a_latent(x) * dose, 0.5), obs=x)

    program, data = read(model, {"x": normal(NUM), "dose": 3.0})
    given = program.simulated(data, seed=1).data.as_given()
    assert set(given) == {"x", "dose"} and given["dose"] == 3.0
    program, data = read(plain, normal(NUM))
    assert program.simulated(data, seed=1).data.as_given().shape == (NUM,)


# What a mask hides


@pytest.mark.parametrize("fill", ["nan_to_num", "where", "write"])
def test_missing_entries_stay_missing(fill):
    def model(x):
        seen = ~torch.isnan(x)
        filled = x.nan_to_num() if fill == "nan_to_num" else torch.where(seen, x, 0.0)
        if fill == "write":
            filled = x.clone()
            filled[~seen] = 0.0
        with pyro.plate("data", len(x)):
            pixels = dist.Normal(a_latent(x)[:, None], 0.5).expand(x.shape).mask(seen)
            pyro.sample("x", pixels.to_event(1), obs=filled)

    x = normal(NUM, 3)
    x[1, 2] = x[4, 0] = torch.nan
    program, data = read(model, x, allow_nan=True)
    (leaf,) = program.simulated(data, seed=1).data.leaves
    assert torch.equal(torch.isnan(leaf), torch.isnan(x))
    assert bool((leaf != x)[~torch.isnan(x)].all())


def test_what_a_mask_hides_stays():
    def model(x, lengths):
        seen = torch.arange(x.shape[1]) < lengths[:, None]
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0))
            with pyro.plate("time", x.shape[1], dim=-1), poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x, lengths = normal(NUM, 3), torch.tensor([3, 1, 2, 0, 3, 1])
    program, data = read(model, (x, lengths))
    leaf = program.simulated(data, seed=1).data.leaves[0]
    assert torch.equal(leaf == x, torch.arange(3) >= lengths[:, None])


# Programs whose sites read data


def autoregressive(x):
    """Each step reads the one before in the data; the latent of each step does too."""
    with pyro.plate("data", len(x)):
        before = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Normal(0.5 * before, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z + 0.5 * before, 0.5), obs=x[:, t])
            before = x[:, t]


def test_a_sequence_that_reads_its_own_past_is_drawn_step_after_step():
    program, data = read(autoregressive, torch.zeros(2000, 3, dtype=torch.float64))
    drawn = program.simulated(data, seed=1)
    x = drawn.data.leaves[0]
    variance = [1.25]
    for _ in range(2):  # x_t = x_(t-1) + N(0, 1) + N(0, 0.25)
        variance.append(variance[-1] + 1.25)
    error = np.sqrt(2 / len(x)) * np.array(variance)
    assert (np.abs(x.var(0).numpy() - variance) < z_value(3) * error).all()
    residual = (x[:, 1:] - 0.5 * x[:, :-1] - torch.stack([drawn.latents["z_1"], drawn.latents["z_2"]], -1)) / 0.5
    assert abs(float(residual.mean())) < z_value() / np.sqrt(residual.numel())


def reads_itself(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.3 * x, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def reads_itself_coarsely(x):
    """The sign alone, which a simulation often leaves as it is."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(5.0 * (x - 0.5), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=4 * z), obs=x)


def within_one_site(x):
    """Autoregressive inside one site: a density, but not drawn so."""
    shifted = torch.nn.functional.pad(x[:, :-1], (1, 0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a_latent(x)[:, None] + 0.5 * shifted, 0.5).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (reads_itself, normal(NUM)),
        (reads_itself_coarsely, torch.tensor([0.0, 1, 1, 0, 1, 1], dtype=torch.float64)),
        (within_one_site, normal(NUM, 3)),
    ],
)
def test_sites_that_read_what_they_observe_are_refused(model, x):
    program, data = read(model, x)
    with pytest.raises(ReplayError, match="reads the entries of the data that 'x' observes"):
        program.simulated(data, seed=1)


# What is refused, by name and with a way out


def logarithm(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a_latent(x), 0.5), obs=x.log())


def one_hot(x):
    coded = torch.nn.functional.one_hot(x, 3).double()
    with pyro.plate("data", len(x)):
        logits = a_latent(x)[:, None] * torch.arange(3)
        pyro.sample("y", dist.OneHotCategorical(logits=logits), obs=coded)


def typed_in(x):
    with pyro.plate("data", len(x)):
        z = a_latent(x)
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        pyro.sample("y", dist.Normal(z, 0.5), obs=torch.zeros(len(x), dtype=torch.float64))


def through_numpy(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a_latent(x), 0.5), obs=torch.from_numpy(x.numpy().copy()))


def clamped(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a_latent(x), 0.5), obs=x.clamp(-0.1, 0.1))


def twice(x):
    with pyro.plate("data", len(x)):
        z = a_latent(x)
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        pyro.sample("y", dist.Normal(z, 1.5), obs=x)


def by_a_factor(x):
    with pyro.plate("data", len(x)):
        pyro.factor("y", -(x - a_latent(x)).abs())


def scaled(x):
    with pyro.plate("data", len(x)):
        z = a_latent(x)
        with poutine.scale(scale=2.0):
            pyro.sample("y", dist.Normal(z, 0.5), obs=x)


def of_whole_numbers(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a_latent(x), 0.5), obs=x.double())


class Unsampled(dist.TorchDistribution):
    support = dist.constraints.real
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.loc).square()


def without_a_sampler(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", Unsampled(a_latent(x)), obs=x)


REFUSED = {
    "logarithm": (logarithm, normal(NUM).exp(), "'y': its value is no entry of the data.*LogNormal.*replace=function"),
    "one-hot": (one_hot, torch.tensor([0, 1, 2, 0, 1, 2]), "'y': its value is no entry of the data"),
    "typed in": (typed_in, normal(NUM), "'y': its value is no entry of the data, but computed from them or typed in"),
    "through numpy": (through_numpy, normal(NUM), "'y': its value is no entry of the data"),
    "clamped": (clamped, normal(NUM), "'y' does not see its simulated values.*clamps"),
    "twice": (twice, normal(NUM), "sites 'x', 'y' read an entry of the data 2 times"),
    "factor": (by_a_factor, normal(NUM), "'y' is a pyro.factor"),
    "scaled": (scaled, normal(NUM), "poutine.scale multiplies.*'y'.*Take the scale off"),
    "whole numbers": (of_whole_numbers, torch.arange(NUM), "type int64 can't hold"),
    "no sampler": (without_a_sampler, normal(NUM), "'y' can't be simulated: .* has no sampler"),
}


@pytest.mark.filterwarnings("ignore:poutine.scale")
@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_put_back_is_named(name):
    model, x, message = REFUSED[name]
    program, data = read(model, x)
    with pytest.raises(ReplayError, match=message):
        program.simulated(data, seed=1)


# replace=


def test_a_function_puts_derived_observations_back():
    program, data = read(logarithm, normal(NUM).exp(), replace=lambda observed, x: observed["y"].exp())
    drawn = program.simulated(data, seed=1)
    torch.testing.assert_close(drawn.data.leaves[0].log(), drawn.observed["y"])
    program, data = read(
        one_hot, torch.tensor([0, 1, 2, 0, 1, 2]), replace=lambda observed, x: observed["y"].argmax(-1)
    )
    drawn = program.simulated(data, seed=1)
    assert torch.equal(torch.nn.functional.one_hot(drawn.data.leaves[0], 3).double(), drawn.observed["y"])


def test_a_function_that_puts_them_wrongly_is_found_out():
    program, data = read(logarithm, normal(NUM).exp(), replace=lambda observed, x: observed["y"].exp() + 0.1)
    with pytest.raises(ReplayError, match="'y' does not see its simulated values"):
        program.simulated(data, seed=1)
    program, data = read(logarithm, normal(NUM).exp(), replace=lambda observed, x: observed["y"][:2].exp())
    with pytest.raises(ReplayError, match=r"expected argument 0 of shape \(6,\), got \(2,\)"):
        program.simulated(data, seed=1)
    program, data = read(logarithm, normal(NUM).exp(), replace=lambda observed, x: (x, x))
    with pytest.raises(ReplayError, match="replace: expected data as the program takes them"):
        program.simulated(data, seed=1)
    with pytest.raises(ArgumentError, match="replace"):
        am.Program(logarithm, replace="exp")


# A whole data set as one datapoint


def test_a_whole_data_set():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        noise = pyro.sample("noise", dist.LogNormal(torch.zeros((), dtype=torch.float64), 0.1))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, noise), obs=y)

    x = normal(40)
    program, data = read(model, (x, normal(40, seed=1)), whole=True)
    drawn = program.simulated(data, seed=1)
    assert torch.equal(drawn.data.args[0], x) and torch.equal(drawn.data.args[1], drawn.observed["y"])
    with program.evaluating():
        log_joint = program.log_joint(drawn.data)
        latents = exact_latents(log_joint, drawn, seed=0)
    expected = torch.stack([drawn.latents["slope"], drawn.latents["noise"].log()])
    torch.testing.assert_close(latents.u, expected[None])
    assert shares_observations(program, data)


# Exact latents


def test_latents_are_exact_draws_of_their_posterior():
    """Rank of z in its conjugate posterior is uniform; a discrete class has its posterior frequencies."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
            z = pyro.sample("z", dist.LogNormal(torch.zeros(len(x), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z.log(), 0.5), obs=x[:, 0])
            pyro.sample("y", dist.Normal(k.double(), 1.0), obs=x[:, 1])

    num = 4000
    program, data = read(model, torch.zeros(num, 2, dtype=torch.float64), discrete="sample")
    drawn = program.simulated(data, seed=2)
    with program.evaluating():
        latents = exact_latents(program.log_joint(drawn.data), drawn, seed=2)
    x, y = drawn.data.leaves[0].T
    rank = dist.Normal(0.8 * x, 0.2**0.5).cdf(latents.u[:, 0])
    assert abs(float(rank.mean()) - 0.5) < z_value(3) * (1 / 12 / num) ** 0.5
    assert abs(float(rank.square().mean()) - 1 / 3) < z_value(3) * (4 / 45 / num) ** 0.5
    p = 0.7 * dist.Normal(1.0, 1.0).log_prob(y).exp()
    p = p / (p + 0.3 * dist.Normal(0.0, 1.0).log_prob(y).exp())
    excess = (latents.choices[:, 0] - p).mean()
    assert abs(float(excess)) < z_value(3) * float((p * (1 - p)).sum().sqrt()) / num


def test_hidden_latents_are_drawn_from_what_stands_in():
    def model(x, seen):
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(torch.full((), 50.0, dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    seen = torch.arange(NUM) % 2 == 0
    program, data = read(model, (normal(NUM), seen))
    drawn = program.simulated(data, seed=1)
    with program.evaluating():
        u = exact_latents(program.log_joint(drawn.data), drawn, seed=1).u[:, 0]
    assert torch.equal(u > 25, seen)


def test_seeds_tell_simulations_apart_and_the_global_generator_stays():
    program, data = read(plain, normal(NUM))
    state = torch.get_rng_state()
    first, again, other = (program.simulated(data, seed=seed).data.leaves[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


# Every program of the contract suite

UNSIMULATED = {
    "ragged list by hook": "pyro.factor",
    "factor as likelihood": "pyro.factor",
    "factor beside observations": "pyro.factor",
    "scaled likelihood": "poutine.scale",
    "support of the data": "site 'z', which comes before it, reads",
    "lazy network": "site 'z', which comes before it, reads",
}
"""Those without an exact draw, and what is said of them."""


@pytest.mark.filterwarnings("ignore::amortize.errors.AmortizeWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_contract_programs_see_their_simulated_data(name):
    """The densities at the latents behind the data are finite, and equal those of the run that drew them."""
    case = PROGRAMS[name]()
    program, data = read(case.model, case.data, **case.options)
    if name in UNSIMULATED:
        with pytest.raises(ReplayError, match=UNSIMULATED[name]):
            program.simulated(data, seed=1)
        return
    drawn = program.simulated(data, seed=1)
    assert shares_observations(program, data) == (name == "indices of a subsample")
    with program.evaluating(), torch.no_grad(), pyro_rng(0, "test"):
        log_joint = program.log_joint(drawn.data)
        latents = exact_latents(log_joint, drawn, seed=1)
        joint = log_joint.terms(drawn.data, u=latents.u, choices=latents.choices).joint
    assert bool(torch.isfinite(joint).all())


# Provenance by itself


def test_tags_follow_what_moves_and_not_what_is_computed():
    x = torch.arange(6.0).reshape(2, 3)
    with Provenance() as provenance, torch.no_grad():
        provenance.tag(x, first=0)
        moved = {
            "a view written to": torch.zeros(2, 4),
            "gathered": x.gather(1, torch.tensor([[2, 0], [1, 1]])),
            "picked": x[x > 2.5],
            "joined": torch.cat([x.flip(1), torch.ones(2, 1)], 1),
            "filled": x.masked_fill(x > 4.5, 0.0),
        }
        moved["a view written to"][:, 1:] = x
        computed, spoiled = x * 1, x.clone()
        spoiled += 1
        added = x.clone().index_put_((torch.tensor([0]),), torch.ones(3), accumulate=True)
    tags = {name: provenance.tags(value).tolist() for name, value in moved.items()}
    assert tags == {
        "a view written to": [[-1, 0, 1, 2], [-1, 3, 4, 5]],
        "gathered": [[2, 0], [4, 4]],
        "picked": [3, 4, 5],
        "joined": [[2, 1, 0, -1], [5, 4, 3, -1]],
        "filled": [[0, 1, 2], [3, 4, -1]],
    }
    assert bool((provenance.tags(computed) == -1).all()) and bool((provenance.tags(spoiled) == -1).all())
    assert bool((provenance.tags(added) == -1).all())
