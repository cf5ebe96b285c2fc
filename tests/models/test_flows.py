"""Flows as parts: densities that integrate to one, inverses, kept Jacobians, and the start at the identity."""

from __future__ import annotations

import math

import pytest
import torch

from amortize.errors import ArgumentError
from amortize.models.flows import Flow, Triangular, flowing
from amortize.random import pyro_rng

KINDS = ("iaf", "coupling", "spline")


def moved(kind, dim, num_context=0):
    """A flow whose weights are no longer those of the identity, in float64."""
    flow = Flow(kind, dim, num_context, hidden=(8,), num_layers=2).double()
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in flow.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=stream, dtype=torch.float64))
    return flow


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2])
def test_densities_integrate_to_one(kind, dim):
    grid = torch.linspace(-12, 12, 401, dtype=torch.float64)
    points = torch.cartesian_prod(*[grid] * dim).reshape(-1, dim)
    density = flowing(moved(kind, dim).transforms(None), points.new_zeros(dim))
    with torch.no_grad():
        log_density = density.log_prob(points)
    mass = log_density.exp().sum() * (24 / 400) ** dim
    assert float(mass) == pytest.approx(1.0, abs=5e-3)
    assert (log_density - torch.distributions.Normal(0.0, 1.0).log_prob(points).sum(-1)).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 3])
def test_the_kept_density_of_a_draw_is_that_of_any_point(kind, dim):
    context = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    density = flowing(moved(kind, dim, 4).transforms(context), torch.zeros(5, dim, dtype=torch.float64))
    with pyro_rng(0, "test"):
        z = density.rsample()
    torch.testing.assert_close(density.log_prob(z), density.log_prob(z.clone()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_jacobian_is_autograd_s(kind):
    (transform,) = moved(kind, 3).transforms(None)
    noise = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    jacobian = torch.autograd.functional.jacobian(transform, noise)
    torch.testing.assert_close(transform.log_abs_det_jacobian(noise, transform(noise)), jacobian.slogdet().logabsdet)
    torch.testing.assert_close(transform.inv(transform(noise).clone()), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_each_dimension_moves_with_another(kind):
    (transform,) = moved(kind, 3).transforms(None)
    slopes = torch.autograd.functional.jacobian(transform, torch.zeros(3, dtype=torch.float64))
    away = slopes - torch.diag(slopes.diagonal())
    assert bool((away.abs().amax(1) > 1e-3).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "num_context"), [(1, 0), (1, 3), (4, 0), (4, 3)])
def test_a_flow_begins_at_the_identity(kind, dim, num_context):
    flow = Flow(kind, dim, num_context)
    context = torch.ones(6, num_context) if num_context else None
    noise = torch.linspace(-2, 2, 6 * dim).reshape(6, dim)
    torch.testing.assert_close(flow.transforms(context)[0](noise), noise, atol=1e-5, rtol=1e-5)


def test_a_triangular_frame_is_a_gaussian_with_that_covariance():
    loc = torch.tensor([1.0, -2.0], dtype=torch.float64)
    tril = torch.tensor([[0.5, 0.0], [0.3, 2.0]], dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(loc, scale_tril=tril)
    z = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flowing([Triangular(loc, tril)], loc).log_prob(z), exact.log_prob(z))
    with pyro_rng(0, "test"):
        drawn = flowing([Triangular(loc, tril)], loc).rsample((40_000,))
    assert (drawn.T.cov() - tril @ tril.T).abs().max() < 0.1
    assert math.isclose(float(drawn[:, 0].mean()), 1.0, abs_tol=0.02)


def test_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (Flow("coupling", 3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_what_it_refuses():
    with pytest.raises(ArgumentError, match="'iaf', 'coupling', 'spline'"):
        Flow("planar", 3)
    for settings in ({"dim": 0}, {"dim": 2, "num_layers": 0}, {"dim": 2, "num_context": -1}):
        with pytest.raises(ArgumentError):
            Flow("iaf", **settings)
