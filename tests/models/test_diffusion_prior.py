"""The diffusion prior: its start, its bound, its densities step by step, and that it learns what is not normal."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from amortize.errors import ArgumentError
from amortize.models.diffusion_prior import DiffusionPrior
from amortize.random import generator, pyro_rng
from tests.statistics import z_value


def prior(num_noisings=4, *, moved=True, latent_dim=2):
    """In float64; ``moved`` away from its start."""
    made = DiffusionPrior(latent_dim, num_noisings, hidden=(6,)).double()
    made.left, made.kept = made.left.double(), made.kept.double()
    if moved:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.uniform_(-0.4, 0.4, generator=generator(0, "weights"))
    return made


def codes(num, latent_dim=2):
    return torch.randn(num, latent_dim, generator=generator(1, "z"), dtype=torch.float64)


def log_joint_over_q(made, z):
    """Log p(z, path) - log q(path | z) at one draw of the path for each code."""
    path = made.noised(z).sample()
    return made().log_prob(path) + made.code(path).log_prob(z) - made.noised(z).log_prob(path)


@pytest.mark.parametrize("num_noisings", [1, 2, 7])
def test_it_begins_as_the_standard_normal_on_every_path(num_noisings):
    z = codes(20)
    with pyro_rng(0, "paths"):
        found = log_joint_over_q(prior(num_noisings, moved=False), z)
    torch.testing.assert_close(found, Normal(0.0, 1.0).log_prob(z).sum(-1), rtol=0, atol=1e-5)  # a float32 schedule


@pytest.mark.parametrize("num_noisings", [1, 2, 5])
def test_the_bound_of_each_step_in_closed_form_is_the_sampled_one(num_noisings):
    made, num = prior(num_noisings), 40_000
    z = codes(3)
    many = z.expand(num, 3, 2)
    with pyro_rng(0, "paths"), torch.no_grad():
        sampled, closed = -log_joint_over_q(made, many), made.cost(many)
    error = (sampled.var(0) / num + closed.var(0) / num).sqrt()
    assert bool(((sampled.mean(0) - closed.mean(0)).abs() < z_value(3) * error).all())


def test_closed_forms_make_gradients_less_noisy():
    made, z = prior(5, moved=False), codes(200)
    last = made.network.layers[-1].weight

    def spread(loss):
        slopes = [torch.autograd.grad(loss(z).mean(), last)[0] for _ in range(60)]
        return float(torch.stack(slopes).var(0).mean())

    with pyro_rng(0, "paths"):
        assert spread(made.cost) < 0.7 * spread(lambda codes: -log_joint_over_q(made, codes))


def test_densities_are_those_of_their_steps():
    made, z = prior(), codes(3)
    with pyro_rng(0, "paths"), torch.no_grad():
        path = made.noised(z).sample()
    expected, forward = Normal(0.0, 1.0).log_prob(path[:, -1]).sum(-1), torch.zeros(3, dtype=torch.float64)
    for step in range(2, 5):
        back = made.reverse(path[:, step - 1 : step], step)
        expected = expected + back.log_prob(path[:, step - 2 : step - 1]).sum((-2, -1))
    for step in range(1, 5):
        before = z if step == 1 else path[:, step - 2]
        kept = made.kept[step - 1]
        forward = forward + Normal(kept.sqrt() * before, (1 - kept).sqrt()).log_prob(path[:, step - 1]).sum(-1)
    torch.testing.assert_close(made().log_prob(path), expected)
    torch.testing.assert_close(made.noised(z).log_prob(path), forward)


def test_paths_are_as_noisy_as_the_schedule_says():
    made, num = prior(3), 20_000
    z = torch.tensor([1.5, -0.5], dtype=torch.float64)
    with pyro_rng(0, "paths"):
        paths = made.noised(z.expand(num, 2)).sample()
    left = made.left[1:].unsqueeze(-1)
    error = (1 - left).sqrt() / num**0.5
    assert bool(((paths.mean(0) - left.sqrt() * z).abs() < z_value(12) * error).all())
    assert bool(((paths.var(0) - (1 - left)).abs() < z_value(12) * (1 - left) * (2 / num) ** 0.5).all())


def test_drawn_paths_are_those_of_the_density():
    """E_p[q(z) / p(z)] = 1 for draws of the prior's path and a reference q: the density of what is drawn."""
    made, num = prior(2), 100_000
    with pyro_rng(0, "paths"), torch.no_grad():
        path = made().sample((num,))
        reference = Normal(0.0, 0.7).log_prob(path).sum((-2, -1))
        ratio = (reference - made().log_prob(path)).exp()
    assert abs(ratio.mean() - 1.0) < z_value() * ratio.std() / num**0.5


def test_it_learns_two_modes():
    """The bound on codes near +-1: above N(0, 1)'s density, below minus the entropy, which no density beats."""
    made, steps = DiffusionPrior(1, 4, hidden=(32,)), 1000
    signs = torch.randint(0, 2, (2000, 1), generator=generator(0, "modes")) * 2.0 - 1.0
    z = 0.97 * signs + 0.2 * torch.randn(2000, 1, generator=generator(1, "modes"))
    optimiser = torch.optim.Adam(made.parameters(), 1e-2)
    with pyro_rng(0, "steps"):
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            optimiser.zero_grad()
            made.cost(z[torch.randint(len(z), (128,))]).mean().backward()
            optimiser.step()
        with torch.no_grad():
            bound = -torch.stack([made.cost(z) for _ in range(10)]).mean()
            drawn = made.code(made().sample((2000,))).sample()
    truth = (Normal(0.97, 0.2).log_prob(z).exp() / 2 + Normal(-0.97, 0.2).log_prob(z).exp() / 2).log().mean()
    assert truth - 0.6 < bound < truth + 0.05
    assert Normal(0.0, 1.0).log_prob(z).mean() < truth - 0.8
    assert float((drawn.abs() < 0.4).float().mean()) < 0.15  # of N(0, 1) it is 0.31


def test_batches_and_gradients():
    made = prior(3)
    z = codes(4).reshape(2, 2, 2).requires_grad_()
    with pyro_rng(0, "paths"):
        path = made.noised(z).rsample((5,))
    assert path.shape == (5, 2, 2, 3, 2)
    log_joint = made().expand((2, 2)).log_prob(path) + made.code(path).log_prob(z)
    assert log_joint.shape == (5, 2, 2)
    (slope,) = torch.autograd.grad(log_joint.sum(), z)
    assert bool((slope != 0).all())
    assert made().expand((2, 2)).sample((5,)).shape == (5, 2, 2, 3, 2)


@pytest.mark.parametrize(("sizes", "named"), [((0, 4), "latent_dim"), ((2, 0), "num_noisings")])
def test_sizes_must_be_positive(sizes, named):
    with pytest.raises(ArgumentError, match=named):
        DiffusionPrior(*sizes)
