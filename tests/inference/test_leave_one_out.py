"""The leave-one-out estimator: its gradient is the ELBO's, and it asks nothing of the program's sites."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.leave_one_out import _Loss
from amortize.inference.score import Shares
from amortize.random import pyro_rng
from tests.discrete_toys import TOYS, OneLayer, gradients, largest_z


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("num_particles", [2, 5])
def test_the_gradient_is_the_elbos(kind, num_particles):
    toy = TOYS[kind]()
    found, allowed = largest_z(gradients(toy, am.LeaveOneOut(num_particles)), toy.exact_gradient())
    assert found < allowed


def test_a_baseline_that_looks_at_its_own_draw_is_found_out(monkeypatch):
    """The mean of all draws, each its own among them, at the weight of a mean: too short by 1 / K."""

    def shares(self, batch, log_weights):
        bound = log_weights.mean(0)
        model = torch.full_like(log_weights, 1 / len(log_weights))
        return Shares(bound, model, (log_weights - bound) / len(log_weights))

    monkeypatch.setattr(_Loss, "shares", shares)
    toy = OneLayer()
    found, allowed = largest_z(gradients(toy, am.LeaveOneOut(2)), toy.exact_gradient())
    assert found > allowed


def test_the_bound_is_the_mean_log_weight():
    toy = OneLayer()
    data = toy.program().prepare(toy.x.repeat(4000, 1))
    loss = am.LeaveOneOut(3).on(toy.program(), data, seed=0)
    bound = loss.measured(data, 1, seed=0)
    exact = toy.exact_bound().item()
    assert abs(bound.mean() - exact) < 4 * bound.std() / len(bound) ** 0.5


def test_more_draws_are_less_noise_a_draw():
    """The variance of K draws' mean falls faster than 1 / K: each has a better baseline."""
    toy = OneLayer()
    few, many = (gradients(toy, am.LeaveOneOut(k), num_blocks=60).var(0).sum() for k in (2, 8))
    assert many < few / 4


def test_continuous_sites_beside_discrete_ones_get_their_score_too():
    """A group and a location, both drawn by the guide, against quadrature."""
    slope = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    loc = torch.nn.Parameter(torch.tensor([-0.5, 0.8], dtype=torch.float64))
    x = torch.tensor([1.0, -0.3], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.3)))
            z = pyro.sample("z", dist.Normal(2 * k - 1, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Guide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.loc = slope, loc

        def forward(self, x):
            with pyro.plate("data", x.shape[0]):
                k = pyro.sample("k", dist.Bernoulli(logits=self.slope * x))
                pyro.sample("z", dist.Normal(self.loc[k.long()], 0.8))

    program = am.Program(model, Guide())
    data = program.prepare(x.repeat(200))
    loss = am.LeaveOneOut(4).on(program, data, seed=0)
    with pyro_rng(0, "test"):
        rows = [torch.autograd.grad(-loss(data).loss, [slope, loc]) for _ in range(30)]
    exact = torch.autograd.grad(by_quadrature(x, slope, loc), [slope, loc])
    flat = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    found, allowed = largest_z(flat, torch.cat([part.flatten() for part in exact]))
    assert found < allowed


def by_quadrature(x, slope, loc):
    """The ELBO of that program, mean over datapoints."""
    grid = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    total = x.new_zeros(())
    for k in (0.0, 1.0):
        log_k = dist.Bernoulli(logits=slope * x).log_prob(torch.tensor(k, dtype=torch.float64))
        q = dist.Normal(loc[int(k)], 0.8)
        log_joint = dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)).log_prob(x.new_tensor(k))
        log_joint = log_joint + dist.Normal(2 * k - 1, 1.0).log_prob(grid)
        log_joint = log_joint + dist.Normal(grid, 1.0).log_prob(x.unsqueeze(-1))
        inside = q.log_prob(grid).exp() * (log_joint - q.log_prob(grid) - log_k.unsqueeze(-1))
        total = total + (log_k.exp() * torch.trapezoid(inside, grid)).mean()
    return total


@pytest.mark.parametrize("value", [1, 0, 2.5, True])
def test_one_draw_has_no_others(value):
    with pytest.raises(ArgumentError, match="LeaveOneOut num_particles: expected an integer of at least 2"):
        am.LeaveOneOut(num_particles=value)
