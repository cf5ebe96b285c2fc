"""Jumps between modes, and redraws from a mixture, leave the posterior as it is, whatever they were made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from amortize.inference.independent import Mixture, fit_mixture, redraw
from amortize.inference.jumps import DENSE_DIM, Modes, find_modes, jump
from amortize.inference.path import GeometricPath
from tests.statistics import z_value

SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[-4.0, 0.0], [3.0, 2.0]], dtype=torch.float64)
ROOTS = torch.tensor([[[0.5, 0.0], [0.3, 0.6]], [[1.5, 0.0], [-0.5, 0.4]]], dtype=torch.float64)
NUM = 20_000


def exact_draws(seed: int = 0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    component = torch.multinomial(SHARES, NUM, replacement=True, generator=gen)
    noise = torch.randn(NUM, 2, generator=gen, dtype=torch.float64)
    return MEANS[component] + torch.einsum("nij,nj->ni", ROOTS[component], noise)


def log_density(u: torch.Tensor) -> torch.Tensor:
    parts = torch.distributions.MultivariateNormal(MEANS, scale_tril=ROOTS).log_prob(u.unsqueeze(1))
    return (parts + SHARES.log()).logsumexp(-1)


TARGET = GeometricPath(lambda u: (log_density(u), u[:, :0].sum(-1)))


def modes(*, right: bool) -> Modes:
    centres = MEANS[None] if right else torch.tensor([[[0.0, 1.0], [1.5, -2.0], [-3.0, 0.5]]], dtype=torch.float64)
    count = centres.shape[1]
    roots = ROOTS[None] if right else torch.eye(2, dtype=torch.float64).repeat(1, count, 1, 1)
    roots = roots if right else roots * torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)[:, None, None]
    order, alive = torch.zeros(count, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    return Modes(centres, roots, torch.eye(2, dtype=torch.float64)[None], order, alive, True)


def moments(u: torch.Tensor) -> np.ndarray:
    """Means of functions of u (NUM,): position, squares, product, which mode."""
    values = [u[:, 0], u[:, 1], u[:, 0] ** 2, u[:, 1] ** 2, u[:, 0] * u[:, 1], (u[:, 0] > -1).double()]
    return np.stack([value.numpy() for value in values])


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_exact_draws_stay_exact(right, diagonal):
    """After ten jumps every mean is as before, to within the error of the change."""
    there = modes(right=right)
    there = replace(there, roots=there.roots.diagonal(dim1=-2, dim2=-1)) if diagonal else there
    begin = exact_draws()
    state, gen = TARGET.evaluate(begin), torch.Generator().manual_seed(1)
    made = torch.zeros(NUM)
    for _ in range(10):
        state, accepted = jump(state, TARGET, there, gen)
        made += accepted
    assert made.mean() > 0.2
    change = moments(state.u) - moments(begin)
    assert (np.abs(change.mean(1)) < z_value(6) * change.std(1) / np.sqrt(NUM)).all()


def test_without_the_jacobian_they_would_not():
    """The check above notices: the modes have other sizes, and the shares go wrong."""
    state, gen = TARGET.evaluate(exact_draws()), torch.Generator().manual_seed(1)
    flat = modes(right=True)
    for _ in range(10):
        state, _ = jump(state, TARGET, _Flat(**vars(flat)), gen)
    assert abs((state.u[:, 0] > -1).double().mean() - 0.7) > 0.02


class _Flat(Modes):
    @property
    def log_size(self) -> torch.Tensor:
        return torch.zeros(self.centres.shape[:2], dtype=torch.float64)


def test_jumps_between_gaussian_modes_are_made_by_their_shares():
    """From anywhere, the chance to be in a mode is its share at once."""
    state, gen = TARGET.evaluate(MEANS[:1].expand(NUM, 2).contiguous()), torch.Generator().manual_seed(2)
    for _ in range(25):
        state, _ = jump(state, TARGET, modes(right=True), gen)
    share = (state.u[:, 0] > -1).double().mean()
    assert abs(share - 0.7) < z_value() * np.sqrt(0.21 / NUM)


def mixture(*, right: bool) -> Mixture:
    """From draws of the posterior, or of something else that overlaps with it."""
    points = exact_draws(seed=1)[:640].reshape(20, 32, 1, 2) + (0.0 if right else 1.0)
    return fit_mixture(points, torch.ones(32, 1, dtype=torch.bool), torch.tensor([[2.0, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize("right", [False, True])
def test_redraws_leave_exact_draws_exact(right):
    begin = exact_draws()
    state, gen, made = TARGET.evaluate(begin), torch.Generator().manual_seed(1), torch.zeros(NUM)
    for _ in range(10):
        state, accepted = redraw(state, TARGET, mixture(right=right), gen)
        made += accepted
    assert made.mean() > (6 if right else 0.5)
    change = moments(state.u) - moments(begin)
    assert (np.abs(change.mean(1)) < z_value(6) * change.std(1) / np.sqrt(NUM)).all()


def test_the_density_of_a_mixture_is_that_of_its_draws():
    """Against torch's own, and E[p / g] = 1 over draws of g."""
    made = mixture(right=True)
    u = made.draw(NUM, torch.Generator().manual_seed(3))
    parts = torch.distributions.MultivariateNormal(made.centres[0], scale_tril=made.roots[0]).log_prob(u.unsqueeze(1))
    torch.testing.assert_close(made.log_density(u), (parts + made.log_weights[0]).logsumexp(-1))
    ratio = (log_density(u) - made.log_density(u)).exp().numpy()
    assert abs(ratio.mean() - 1) < z_value() * ratio.std() / np.sqrt(NUM)


def test_mixtures_of_several_datapoints_are_each_their_own():
    points = torch.randn(20, 32, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[:, :, 1] += 50.0
    points[:, 5] = torch.nan
    alive = torch.ones(32, 2, dtype=torch.bool)
    alive[5] = False
    made = fit_mixture(points, alive, torch.ones(2, 3, dtype=torch.float64))
    u = made.draw(2000, torch.Generator().manual_seed(0)).reshape(2000, 2, 3)
    np.testing.assert_allclose(u.mean((0, 2)), [0, 50], atol=0.3)
    log_g = made.log_density(u.flatten(0, 1)).reshape(2000, 2)
    alone = Mixture(*(part[1:] for part in made)).log_density(u[:, 1])
    torch.testing.assert_close(log_g[:, 1], alone)


def looks(dim: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty chains of one datapoint in two modes, one that is nowhere finite, one where there is no mass."""
    gen = torch.Generator().manual_seed(0)
    centre = torch.where(torch.arange(20) < 8, -6.0, 6.0)
    centre[19] = 300.0
    u = 0.5 * torch.randn(40, 20, 1, dim, generator=gen) + centre[:, None, None]
    log_joint = -0.5 * torch.randn(40, 20, 1, generator=gen).square()
    log_joint[:, 18], log_joint[:, 19] = torch.nan, -200.0
    return u, log_joint


@pytest.mark.parametrize("dim", [2, DENSE_DIM + 1])
def test_modes_are_found_and_chains_begin_in_all_of_them(dim):
    found = find_modes(*looks(dim), num_chains=4)
    assert found.several and found.order[:4, 0].tolist().count(19) == 0
    begin = found.begin(looks(dim)[0][-1], 4)
    assert begin.shape == (4, 1, dim) and sorted(np.sign(begin[:2, 0, 0].numpy())) == [-1, 1]
    assert (found.centres[0, :, 0].abs() - 6).abs().max() < 1 and torch.isfinite(found.roots).all()
    within = found.within.diagonal(dim1=-2, dim2=-1) if dim <= DENSE_DIM else found.within
    np.testing.assert_allclose(within, 0.25, rtol=0.2)


def test_one_mode_is_one_mode():
    gen = torch.Generator().manual_seed(0)
    assert not find_modes(torch.randn(64, 32, 3, 2, generator=gen), torch.zeros(64, 32, 3), num_chains=4).several


def test_where_nothing_is_finite_all_stays_finite_enough_to_go_on():
    found = find_modes(torch.full((8, 32, 2, 2), torch.nan), torch.full((8, 32, 2), torch.nan), num_chains=4)
    assert torch.isfinite(found.centres).all() and torch.isfinite(found.roots).all()
