"""The spread of weighted particles in u, every datapoint by itself: what whitening is made of.

Two measures that agree on a Gaussian. Moments see everything; quartiles see the bulk, and what lies further out counts
as lying at ``REACH`` standard deviations. With tails so heavy that the variance is all theirs - a hierarchical
posterior before it is reparametrised - moments give steps far too long for most particles.

Letters: C particles, N datapoints, D latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MEASURES", "spread"]

MEASURES = ("moments", "quartiles")
REACH = 2.5  # standard deviations
INTERQUARTILE = 1.349  # of a standard normal distribution


def spread(u: Tensor, share: Tensor, *, measure: str, dense: bool) -> Tensor:
    """Variance (N, D), or covariance (N, D, D), of particles ``u`` (C, N, D) with weights ``share`` (C, N)."""
    weights = share.to(u).unsqueeze(-1)
    u = torch.where(weights > 0, u, 0)  # a lost particle may be anywhere
    if measure == "quartiles":
        u = _within_reach(u, weights)
    centred = u - (weights * u).sum(0)
    if dense:
        return torch.einsum("cni,cnj->nij", weights * centred, centred)
    return (weights * centred.square()).sum(0)


def _within_reach(u: Tensor, weights: Tensor) -> Tensor:
    """What lies far out, brought in to ``REACH`` standard deviations from the median."""
    values, order = u.sort(0)
    level = weights.expand_as(u).gather(0, order).cumsum(0)
    low, middle, high = (_quantile(values, level, at) for at in (0.25, 0.5, 0.75))
    reach = REACH * (high - low) / INTERQUARTILE
    return torch.minimum(torch.maximum(u, middle - reach), middle + reach)


def _quantile(values: Tensor, level: Tensor, at: float) -> Tensor:
    place = (level < at).sum(0, keepdim=True).clamp(max=len(values) - 1)
    return values.gather(0, place).squeeze(0)
