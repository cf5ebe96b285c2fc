r"""Standard normal draws that are spread more evenly than independent ones: sets of S, each draw exactly normal.

Up to 8 dimensions they are the normal quantiles of an additive lattice, shifted at random as a whole (Cranley and
Patterson 1976); in more dimensions those of a Latin hypercube (McKay, Beckman and Conover 1979). Means over a set are
unbiased either way, with less noise: a flow with steep walls between two modes is otherwise moved by the rare draw that
falls between them. Letters: S draws, N datapoints, D latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["even_normal"]

LATTICE_DIM = 8
EDGE = 1e-12
"""Shares are kept this far from 0 and 1, where quantiles are infinite."""


def even_normal(num_draws: int, num: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A set of S standard normal draws for each of N datapoints: (S, N, D), with D the last size of ``like``."""
    shape = (num_draws, num, like.shape[-1])
    share = _lattice(shape, generator) if shape[-1] <= LATTICE_DIM else _hypercube(shape, generator)
    normal: Tensor = torch.special.ndtri(share.clamp(EDGE, 1 - EDGE))
    return normal.to(like)


def _lattice(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Point k is k alpha + shift, modulo 1, with alpha_d = phi^-d and phi^(D + 1) = phi + 1, a badly rational one."""
    num_draws, num, dim = shape
    phi = 2.0
    for _ in range(64):
        phi = (1 + phi) ** (1 / (dim + 1))
    step = phi ** -torch.arange(1, dim + 1, dtype=torch.float64, device=generator.device)
    shift = torch.rand((num, dim), generator=generator, dtype=torch.float64, device=generator.device)
    number = torch.arange(num_draws, dtype=torch.float64, device=generator.device)
    return (number[:, None, None] * step + shift) % 1


def _hypercube(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """One draw in each of S slices of every dimension, their order random."""
    within, order = (
        torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device) for _ in range(2)
    )
    return (order.argsort(0) + within) / shape[0]
