"""The autoregressive-flow prior: its start, its normalisation, its order, and draws of its own density."""

from __future__ import annotations

import math

import pytest
import torch

from amortize.errors import ArgumentError
from amortize.models.autoregressive_prior import AutoregressiveFlow
from amortize.random import generator, pyro_rng
from tests.statistics import z_value


def prior(latent_dim=2, **settings):
    """A flow far from its start, in float64."""
    made = AutoregressiveFlow(latent_dim, hidden=(8,), **settings).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-0.8, 0.8, generator=generator(0, "weights"))
    return made


def test_it_begins_as_the_standard_normal():
    z = torch.randn(5, 3, generator=generator(0, "z"))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(AutoregressiveFlow(3)().log_prob(z), expected)


def test_its_density_has_mass_one():
    grid = torch.linspace(-20, 20, 1001, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    mass = prior()().log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2
    torch.testing.assert_close(mass, torch.ones((), dtype=torch.float64), rtol=1e-6, atol=0)


def test_two_layers_let_each_latent_move_with_every_other():
    """Their orders turn round: with one order for both, the first latent would lean on no other."""

    def noise(z):
        for transform in prior(3)().transforms:
            z = transform(z)
        return z

    jacobian = torch.autograd.functional.jacobian(
        noise, torch.randn(3, dtype=torch.float64, generator=generator(1, "z"))
    )
    assert bool((jacobian.abs() > 1e-9).all())


def test_one_layer_conditions_each_latent_on_those_before():
    layer = prior(3, num_layers=1).layers[0]()
    jacobian = torch.autograd.functional.jacobian(layer, torch.randn(3, dtype=torch.float64))
    assert bool((jacobian.tril() == jacobian).all())
    assert bool((jacobian.tril().abs() > 0).sum() == 6)


def test_draws_are_those_of_the_density():
    """E[h(z)] over draws against quadrature, for h = z and z^2; and it is no normal."""
    fn, num = prior()(), 100_000
    with pyro_rng(0, "draws"), torch.no_grad():
        z = fn.sample((num,))
    grid = torch.linspace(-20, 20, 1001, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    weights = fn.log_prob(points).exp() * (grid[1] - grid[0]) ** 2
    for power in (1, 2):
        truth = (weights.unsqueeze(1) * points**power).sum(0)
        found, error = (z**power).mean(0), (z**power).std(0) / num**0.5
        assert bool(((found - truth).abs() < z_value(4) * error).all())
    assert bool(((z.mean(0)).abs() > 0.1).any())


def test_larger_batches_and_a_single_latent():
    fn = prior()().expand([4])
    assert fn.sample((3,)).shape == (3, 4, 2)
    z = torch.randn(2, generator=generator(1, "z"), dtype=torch.float64)
    torch.testing.assert_close(fn.log_prob(z), prior()().log_prob(z).expand(4))
    alone = AutoregressiveFlow(1)
    assert not list(alone.parameters())
    torch.testing.assert_close(alone().log_prob(torch.zeros(1)), torch.tensor(-0.5) * math.log(2 * math.pi))


def test_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (AutoregressiveFlow(3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("settings", "named"), [({"latent_dim": 0}, "latent_dim"), ({"num_layers": 0}, "num_layers")])
def test_sizes_must_be_positive(settings, named):
    with pytest.raises(ArgumentError, match=named):
        AutoregressiveFlow(**{"latent_dim": 2} | settings)
