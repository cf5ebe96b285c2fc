"""The geometric path: what it evaluates, with and without further inputs."""

from __future__ import annotations

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
