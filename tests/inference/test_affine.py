"""Affine maps of draws: their Jacobian, and their natural gradient against the exact one of a Gaussian posterior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amortize.inference.affine import Affine, Frame, ascent, identity, limited, log_det, moved, push

NUM, DIM = 3, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_frame() -> Frame:
    return Frame(random(NUM, DIM, seed=1), random(NUM, DIM, seed=2).exp())


def some_maps(full: bool) -> Affine:
    lower = 0.3 * random(NUM, DIM, DIM, seed=5).tril(-1) if full else None
    return Affine(random(NUM, DIM, seed=3), 0.3 * random(NUM, DIM, seed=4), lower)


@pytest.mark.parametrize("full", [False, True])
def test_the_identity_leaves_draws_alone(full):
    frame, u = some_frame(), random(5, NUM, DIM)
    torch.testing.assert_close(push(frame, identity(frame, full=full), frame.white(u)), u)
    assert (log_det(identity(frame, full=full)) == 0).all()


@pytest.mark.parametrize("full", [False, True])
def test_the_log_determinant_is_that_of_the_map(full):
    frame, maps, u = some_frame(), some_maps(full), random(1, NUM, DIM)
    jacobian = torch.autograd.functional.jacobian(lambda u: push(frame, maps, frame.white(u)), u)
    for n in range(NUM):
        exact = torch.linalg.slogdet(jacobian[0, n, :, 0, n]).logabsdet
        torch.testing.assert_close(log_det(maps)[n], exact)


def posterior() -> tuple[Tensor, Tensor]:
    root = random(NUM, DIM, DIM, seed=7)
    return random(NUM, DIM, seed=8), root @ root.mT + torch.eye(DIM)


def exact_elbo(frame: Frame, maps: Affine) -> Tensor:
    """Of a standard normal guide in the frame, mapped, up to a constant: (N,)."""
    mean, precision = posterior()
    tril = torch.diag_embed(maps.log_scale.exp()) + (0 if maps.lower is None else maps.lower)
    root = frame.scale[..., None] * tril
    off = frame.loc + frame.scale * maps.shift - mean
    square = torch.einsum("ni,nij,nj->n", off, precision, off)
    return -0.5 * square - 0.5 * torch.einsum("nij,njk,nik->n", precision, root, root) + log_det(maps)


def slopes(u: Tensor) -> Tensor:
    mean, precision = posterior()
    return -torch.einsum("nij,snj->sni", precision, u - mean)


def cubature() -> Tensor:
    """Points of mean 0 and covariance 1, so that means of squares are exact: (2 D, N, D)."""
    points = DIM**0.5 * torch.eye(DIM, dtype=torch.float64)
    return torch.cat([points, -points])[:, None].expand(-1, NUM, -1)


@pytest.mark.parametrize("full", [False, True])
def test_ascent_is_the_exact_natural_gradient(full):
    """The gradient in the step, the diagonal of L halved: its Fisher information is 2, that of the rest 1."""
    frame, maps, white = some_frame(), some_maps(full), cubature()
    found = ascent(frame, maps, white, slopes(push(frame, maps, white)))
    step = Affine(*(None if part is None else torch.zeros_like(part).requires_grad_() for part in maps))
    parts = [part for part in step if part is not None]
    exact = torch.autograd.grad(exact_elbo(frame, moved(maps, step)).sum(), parts)
    torch.testing.assert_close(found.shift, exact[0])
    torch.testing.assert_close(found.log_scale, 0.5 * exact[1])
    if full:
        torch.testing.assert_close(found.lower, exact[2].tril(-1))


def test_full_maps_reach_the_posterior():
    frame, white = some_frame(), cubature()
    maps = identity(frame, full=True)
    for _ in range(300):
        maps = moved(maps, limited(ascent(frame, maps, white, slopes(push(frame, maps, white))), 0.3))
    mean, precision = posterior()
    torch.testing.assert_close(frame.loc + frame.scale * maps.shift, mean)
    root = frame.scale[..., None] * (torch.diag_embed(maps.log_scale.exp()) + maps.lower)
    torch.testing.assert_close(root @ root.mT, precision.inverse())


def test_long_steps_are_cut_and_short_ones_are_not():
    step = some_maps(full=True)
    torch.testing.assert_close(limited(step, 0.01).square_norm(), torch.full((NUM,), 1e-4, dtype=torch.float64))
    torch.testing.assert_close(limited(step, 1e3).shift, step.shift)
