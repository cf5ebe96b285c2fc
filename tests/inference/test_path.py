"""The geometric path: what it evaluates, compiled and not, with and without further inputs."""

from __future__ import annotations

import pytest
import torch

from amortize.inference.path import GeometricPath

NUM_ROWS, DIM, NUM_ATOMS = 6, 3, 4
CENTRES = torch.linspace(-1, 2, NUM_ATOMS * DIM, dtype=torch.float64).reshape(NUM_ATOMS, DIM)


def mixture_terms(u, choices):
    """A normal base; the ratio is centred where each row's choice of an atom says."""
    return -0.5 * u.square().sum(-1), -((u - CENTRES[choices.squeeze(-1)]).square()).sum(-1)


def rows(seed):
    gen = torch.Generator().manual_seed(seed)
    u = torch.randn(NUM_ROWS, DIM, generator=gen, dtype=torch.float64)
    return u, torch.randint(NUM_ATOMS, (NUM_ROWS, 1), generator=gen)


def test_further_inputs_are_inputs_of_the_graph():
    (u0, c0), (u1, c1), (u2, c2) = (rows(seed) for seed in range(3))
    path = GeometricPath(mixture_terms, (u0, u1), extra=((c0,), (c1,)))
    assert path.description == "FX graph, equal to eager"
    eager, beta = GeometricPath(mixture_terms), torch.full((NUM_ROWS, 1), 0.3, dtype=torch.float64)
    for ours, truth in zip(path.evaluate(u2, c2), eager.evaluate(u2, c2), strict=True):
        torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(path.gradient(u2, beta, c2), eager.gradient(u2, beta, c2))
    held = path.held(c2)
    torch.testing.assert_close(held.evaluate(u2).ratio, mixture_terms(u2, c2)[1])
    torch.testing.assert_close(held.gradient(u2, beta), -u2 - 0.6 * (u2 - CENTRES[c2.squeeze(-1)]))


def normal_terms(u):
    return -0.5 * u.square().sum(-1), -(u - 1).square().sum(-1)


def test_every_backend_gives_the_same_numbers():
    (u0, _), (u1, _), (u2, _) = (rows(seed) for seed in range(3))
    beta = torch.full((NUM_ROWS, 1), 0.3, dtype=torch.float64)
    for backend in ("fx", "eager", "auto"):
        path = GeometricPath(normal_terms, (u0, u1), backend=backend, num_calls=(100, 900))
        assert path.description.startswith("eager" if backend == "eager" else "FX graph")
        torch.testing.assert_close(path.evaluate(u2)[1:3], normal_terms(u2))
        torch.testing.assert_close(path.evaluate(u2).ratio_gradient, 2 * (1 - u2))
        torch.testing.assert_close(path.gradient(u2, beta), -u2 + 0.6 * (1 - u2))


def test_a_path_that_cannot_be_traced_runs_eagerly():
    def branching(u):
        base, ratio = normal_terms(u)
        return (base, ratio) if bool(u.sum() > 1e9) else (base, 2 * ratio)

    (u0, _), (u1, _), (u2, _) = (rows(seed) for seed in range(3))
    path = GeometricPath(branching, (u0, u1))
    assert path.description.startswith("eager (tracing failed: ")
    torch.testing.assert_close(path.evaluate(u2).ratio, 2 * normal_terms(u2)[1])
    beta = torch.full((NUM_ROWS, 1), 0.3, dtype=torch.float64)
    torch.testing.assert_close(path.gradient(u2, beta), -u2 + 1.2 * (1 - u2))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_row_that_is_not_finite_spoils_no_other(compiled):
    def terms(u):
        return -0.5 * u.square().sum(-1), u.log().sum(-1)

    u = torch.tensor([[0.5], [-1.0], [2.0]])
    path = GeometricPath(terms, (u.abs(), u.abs() + 1) if compiled else None)
    point = path.evaluate(u)
    assert point.ratio.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(path.gradient(u, torch.ones(3, 1))[[0, 2]], (1 / u - u)[[0, 2]])
