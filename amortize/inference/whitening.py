"""Whitening: the linear map under which a datapoint's density looks like a standard normal, hence HMC's mass matrix.

A map is kept as scales (N, D), or for few dimensions as matrices A (N, D, D) whose columns are the principal axes of u
times their standard deviations. Any invertible map is valid; a good one lets every direction move alike, and turns a
Gaussian's log density into a sum over the coordinates of A, one by one.

Letters: C chains, N datapoints, D latents, B = C * N rows (chain-major), T temperatures, K chains of the pilot.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DENSE_DIM", "learn", "log_size", "pull", "push", "spread_over_chains"]

DENSE_DIM = 16
"""Most latent dimensions for which correlations are learned."""
SMALLEST, LARGEST = 1e-3, 1e1  # standard deviations, in units of the start's


def push(scale: Tensor, velocity: Tensor) -> Tensor:
    """From whitened coordinates to u: A v, for v (B, D)."""
    rows = velocity.reshape(-1, *scale.shape[:2])
    moved = rows * scale if scale.dim() == 2 else torch.einsum("nij,cnj->cni", scale, rows)
    return moved.reshape(velocity.shape)


def pull(scale: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in u as one in whitened coordinates: A^T g, for g (B, D)."""
    return push(scale if scale.dim() == 2 else scale.mT, gradient)


def spread_over_chains(u: Tensor, num: int) -> Tensor:
    """Variance over chains of u (B, D), for N datapoints (N, D); for few dimensions the covariance (N, D, D)."""
    rows = u.reshape(-1, num, u.shape[-1])
    if u.shape[-1] > DENSE_DIM:
        return rows.var(0)
    centred = rows - rows.mean(0)
    return torch.einsum("cni,cnj->nij", centred, centred) / (len(rows) - 1)


def learn(spread: Tensor, start: Tensor, num_draws: int) -> Tensor:
    """Maps (T, N, D) or (T, N, D, D) from variances or covariances that rest on ``num_draws`` draws each.

    ``start`` (N, D) holds the start's standard deviations: the units, and what is taken where the pilot broke down.
    """
    if spread.dim() == 3:
        scale = (spread.sqrt() / start).clamp(SMALLEST, LARGEST)
        usable: Tensor = torch.where(torch.isfinite(scale), scale, torch.ones_like(scale))
        return usable * start
    unit = spread / (start.unsqueeze(-1) * start.unsqueeze(-2))
    dim = unit.shape[-1]
    diagonal = torch.diag_embed(unit.diagonal(dim1=-2, dim2=-1))
    unit = unit + (diagonal - unit) * (dim / (dim + num_draws))  # shrink correlations that few draws can't tell
    good = torch.isfinite(unit).all(-1).all(-1)[..., None, None]
    values, axes = torch.linalg.eigh(torch.where(good, unit, torch.eye(dim, dtype=unit.dtype, device=unit.device)))
    lengths: Tensor = values.clamp(SMALLEST**2, LARGEST**2).sqrt()
    dense: Tensor = start.unsqueeze(-1) * axes * lengths.unsqueeze(-2)
    return dense


def log_size(scale: Tensor) -> Tensor:
    """Mean log scale of maps (T, N, D) or (T, N, D, D): (T, N)."""
    if scale.dim() == 3:
        return scale.log().mean(-1)
    size: Tensor = torch.linalg.slogdet(scale).logabsdet / scale.shape[-1]
    return size
