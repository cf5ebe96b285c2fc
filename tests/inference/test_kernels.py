"""Every transition kernel through one contract: exact draws stay exact, or their weights say by how much they don't."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.kernels import Info, Kernel, Parameters
from amortize.inference.path import GeometricPath, Point
from tests.statistics import z_value

KERNELS: dict[str, Callable[[], Kernel]] = {
    "hmc": lambda: am.HMC(num_leapfrog=5),
    "hmc-without-jitter": lambda: am.HMC(num_leapfrog=3, jitter=0.0),
    "mala": am.MALA,
    "ula": am.ULA,
}
ADJUSTED = [name for name in KERNELS if name != "ula"]
ROWS = 20_000
MOMENTS = {1: 0.0, 2: 1.0, 4: 3.0}


@dataclass(frozen=True)
class Tempered:
    """A path whose every tempered density is known: exact draws, their width, and the map to a standard normal."""

    path: GeometricPath
    scale: float
    draw: Callable[[float, int, torch.Generator], Tensor]
    whiten: Callable[[Tensor, float], np.ndarray]


def gaussians() -> Tempered:
    """From N(0, I) to a correlated Gaussian; precisions mix linearly."""
    precision = torch.linalg.inv(torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64))

    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        base = -0.5 * u.square().sum(-1)
        return base, -0.5 * torch.einsum("bi,ij,bj->b", u, precision, u) - base

    def root(beta: float) -> Tensor:
        mixed = (1 - beta) * torch.eye(2, dtype=torch.float64) + beta * precision
        return torch.linalg.cholesky(torch.linalg.inv(mixed))

    def draw(beta: float, rows: int, gen: torch.Generator) -> Tensor:
        return torch.randn(rows, 2, generator=gen, dtype=torch.float64) @ root(beta).T

    def whiten(u: Tensor, beta: float) -> np.ndarray:
        return torch.linalg.solve_triangular(root(beta), u.T, upper=False).T.numpy()

    return Tempered(GeometricPath(terms), 1.0, draw, whiten)


def gammas() -> Tempered:
    """The log of a Gamma rate under tempered Poisson counts: skewed, and a Gamma's at every temperature."""
    shape, rate, total, count = 3.0, 1.0, 11.0, 4.0

    def terms(u: Tensor) -> tuple[Tensor, Tensor]:
        value = u.squeeze(-1)
        return shape * value - rate * value.exp(), total * value - count * value.exp()

    def draw(beta: float, rows: int, gen: torch.Generator) -> Tensor:
        uniform = torch.rand(rows, generator=gen, dtype=torch.float64)
        value = special.gammaincinv(shape + beta * total, uniform.numpy()) / (rate + beta * count)
        return torch.tensor(np.log(value)).unsqueeze(-1)

    def whiten(u: Tensor, beta: float) -> np.ndarray:
        level = special.gammainc(shape + beta * total, (rate + beta * count) * u.exp().numpy())
        return special.ndtri(level)

    return Tempered(GeometricPath(terms), 0.35, draw, whiten)


TARGETS = {"gaussians": gaussians, "gammas": gammas}


def parameters(
    u: Tensor, kernel: Kernel, *, beta: float = 1.0, step_size: float = 0.5, num_strata: int = 1
) -> Parameters:
    column = u.new_ones(len(u), 1)
    scale = u.new_ones(len(u) // num_strata, u.shape[-1])
    return Parameters(beta * column, step_size * column, scale, kernel, num_strata)


def several(kernel: Kernel, state: Point, target: Tempered, given: Parameters, count: int) -> tuple[Point, Tensor]:
    """Where some transitions lead, and the sum of their corrections."""
    gen = torch.Generator().manual_seed(1)
    total = torch.zeros_like(state.ratio)
    for _ in range(count):
        state, info = kernel.transition(state, target.path, given, gen)
        total = total + info.log_correction
    return state, total


def distances(white: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many standard errors the weighted moments are off those of a standard normal."""
    found = []
    for power, expected in MOMENTS.items():
        values = weights[:, None] * (white**power - expected)
        found.append(values.mean(0) / (values.std(0, ddof=1) / np.sqrt(len(values))))
    return np.abs(found)


@pytest.mark.parametrize("num_strata", [1, 10])
@pytest.mark.parametrize("step_size", [0.2, 0.7])
@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ADJUSTED)
def test_exact_draws_stay_exact(name, target, beta, step_size, num_strata):
    kernel, problem = KERNELS[name](), TARGETS[target]()
    u = problem.draw(beta, ROWS, torch.Generator().manual_seed(0))
    given = parameters(u, kernel, beta=beta, step_size=step_size * problem.scale, num_strata=num_strata)
    state, correction = several(kernel, problem.path.evaluate(u), problem, given, 3)
    assert bool((correction == 0).all())
    assert (distances(problem.whiten(state.u, beta), np.ones(ROWS)) < z_value(48 * 3)).all()
    assert bool((state.u != u).any(-1).double().mean() > 0.5)


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("target", TARGETS)
def test_unadjusted_steps_are_biased_and_their_weights_are_not(target, beta):
    """At a step size at which the adjusted kernel is exact, a check of moments notices; weighted, it doesn't."""
    problem = TARGETS[target]()
    u = problem.draw(beta, ROWS, torch.Generator().manual_seed(0))
    state, correction = several(
        am.ULA(),
        problem.path.evaluate(u),
        problem,
        parameters(u, am.ULA(), beta=beta, step_size=0.9 * problem.scale),
        3,
    )
    white, weights = problem.whiten(state.u, beta), correction.exp().numpy()
    assert distances(white, np.ones(ROWS)).max() > 10
    assert (distances(white, weights) < z_value(4 * 7)).all()
    assert abs(weights.mean() - 1) < z_value(4 * 7) * weights.std(ddof=1) / np.sqrt(ROWS)


@pytest.mark.parametrize("name", KERNELS)
def test_state_and_info_belong_together(name):
    kernel, problem = KERNELS[name](), gaussians()
    u = problem.draw(1.0, 200, torch.Generator().manual_seed(0))
    given = parameters(u, kernel, step_size=0.9)
    before = problem.path.evaluate(u)
    runs = [kernel.transition(before, problem.path, given, torch.Generator().manual_seed(2)) for _ in range(2)]
    for first, again in zip((*runs[0][0], *runs[0][1]), (*runs[1][0], *runs[1][1]), strict=True):
        assert torch.equal(first, again)
    state, info = runs[0]
    assert isinstance(info, Info) and all(value.shape == (200,) for value in info)
    assert bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all()) and bool(info.finite.all())
    for kept, anew in zip(state, problem.path.evaluate(state.u), strict=True):
        torch.testing.assert_close(kept, anew)
    assert torch.equal(before.u, u)  # what came in was not written over


def wall(u: Tensor) -> tuple[Tensor, Tensor]:
    """A Gaussian that is NaN beyond 0.5 in the first dimension, its gradient too."""
    beyond = torch.where(u[:, 0] > 0.5, u.new_tensor(float("nan")), 0.0)
    return -0.5 * u.square().sum(-1), beyond * u[:, 0]


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_finite_is_counted_and_does_not_spread(name):
    kernel, path = KERNELS[name](), GeometricPath(wall)
    u = torch.full((400, 2), -0.2)
    u[7, 0] = 2.0  # a row that begins beyond the wall
    state, info = kernel.transition(
        path.evaluate(u), path, parameters(u, kernel, step_size=0.6), torch.Generator().manual_seed(2)
    )
    others = torch.arange(400) != 7
    stayed = ~info.finite & others
    assert 0 < int(stayed.sum()) < 200
    assert torch.equal(state.u[stayed], u[stayed]) and bool((info.acceptance[~info.finite] == 0).all())
    assert all(bool(torch.isfinite(value[others]).all()) for value in state)
    expected = torch.where(stayed, -torch.inf if name == "ula" else 0.0, info.log_correction)
    assert torch.equal(info.log_correction[others], expected[others])
    assert not bool(torch.isnan(info.log_correction).any())


def test_a_row_of_density_zero_weighs_nothing_wherever_it_goes():
    path = GeometricPath(lambda u: (-0.5 * u.square().sum(-1), 0 * u[:, 0] + torch.where(u[:, 0] > 0, 0.0, -torch.inf)))
    u = torch.tensor([[-0.1], [-0.1], [5.0]]).repeat(50, 1)
    state, info = am.ULA().transition(path.evaluate(u), path, parameters(u, am.ULA()), torch.Generator().manual_seed(0))
    outside = u[:, 0] < 0
    assert bool(torch.isneginf(info.log_correction[outside]).all()) and bool((state.u[outside] > 0).any())
    assert bool(torch.isfinite(info.log_correction[~outside]).all())


def test_jitter_breaks_a_resonance():
    """Ten steps of a full period's tenth lead back to where they began, unless they are jittered."""
    problem = GeometricPath(lambda u: (-0.5 * u.square().sum(-1), 0 * u.sum(-1)))
    u = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    period = math.sqrt(2 * (1 - math.cos(2 * math.pi / 10)))
    moved = {}
    for jitter in (0.0, 0.1):
        kernel = am.HMC(num_leapfrog=10, jitter=jitter)
        state, _ = kernel.transition(
            problem.evaluate(u), problem, parameters(u, kernel, step_size=period), torch.Generator().manual_seed(1)
        )
        moved[jitter] = (state.u - u).abs().max()
    assert moved[0.0] < 1e-12 and moved[0.1] > 0.1


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_whitening_is_a_change_of_coordinates(name, dense):
    """Rows of three datapoints, each with a map A of its own: u = A z moves as z does, draw for draw."""
    kernel, problem = KERNELS[name](), gaussians()
    gen = torch.Generator().manual_seed(0)
    maps = torch.eye(2, dtype=torch.float64) * torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)[:, None, None]
    maps = maps + (0.3 * torch.randn(3, 2, 2, generator=gen, dtype=torch.float64) if dense else 0)
    by_row, inverse = maps.repeat(40, 1, 1), torch.linalg.inv(maps).repeat(40, 1, 1)
    stretched = GeometricPath(lambda u: problem.path._terms(torch.einsum("bij,bj->bi", inverse, u)))
    z = problem.draw(1.0, 120, gen)
    plain = parameters(z, kernel, beta=0.7)
    scaled = plain._replace(scale=maps if dense else maps.diagonal(dim1=1, dim2=2))
    first, said = kernel.transition(problem.path.evaluate(z), problem.path, plain, torch.Generator().manual_seed(3))
    u = torch.einsum("bij,bj->bi", by_row, z)
    second, also = kernel.transition(stretched.evaluate(u), stretched, scaled, torch.Generator().manual_seed(3))
    torch.testing.assert_close(torch.einsum("bij,bj->bi", inverse, second.u), first.u)
    for a, b in zip(said, also, strict=True):
        torch.testing.assert_close(a, b)


def test_settings_are_checked():
    with pytest.raises(ArgumentError, match="target_acceptance"):
        am.MALA(target_acceptance=1.0)
