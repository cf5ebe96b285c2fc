r"""Gaussian families of local posteriors over u, one set of parameters a datapoint.

.. math:: u = \mu_n + L_n \epsilon, \qquad L_n \text{ diagonal, or lower triangular, with diagonal } e^{s_n}

Gradients follow the path alone ("sticking the landing", Roeder et al. 2017): with
:math:`h = \nabla_u [\log p(x, u) - \log q(u)]`, :math:`\nabla_\mu = E[h]` and :math:`\nabla_L = E[h \epsilon^T]`, whose
variance vanishes where q is the posterior. Letters: S draws, N datapoints, D latents.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.errors import ArgumentError

__all__ = ["FAMILIES", "Gaussians", "check_family", "draw", "entropy", "gradients", "scale_tril"]

FAMILIES = ("mean-field", "full-covariance")


class Gaussians(NamedTuple):
    """``loc`` and ``log_scale`` (N, D); ``lower`` (N, D, D) strictly lower triangular, None for mean field."""

    loc: Tensor
    log_scale: Tensor
    lower: Tensor | None

    def rows(self, index: Tensor) -> Gaussians:
        """The parameters of some datapoints."""
        return Gaussians(self.loc[index], self.log_scale[index], None if self.lower is None else self.lower[index])


def check_family(family: str) -> str:
    """Return ``family``, or say which there are."""
    if family not in FAMILIES:
        raise ArgumentError(f"family: expected one of {FAMILIES}, got {family!r}")
    return family


def scale_tril(q: Gaussians) -> Tensor:
    """L, (N, D, D)."""
    diagonal = torch.diag_embed(q.log_scale.exp())
    return diagonal if q.lower is None else diagonal + q.lower.tril(-1)


def entropy(q: Gaussians) -> Tensor:
    """Entropy in nats, (N,)."""
    dim = q.loc.shape[-1]
    return q.log_scale.sum(-1) + 0.5 * dim * (1 + math.log(2 * math.pi))


def draw(q: Gaussians, noise: Tensor) -> Tensor:
    """U (S, N, D) from standard normal ``noise``."""
    if q.lower is None:
        return q.loc + q.log_scale.exp() * noise
    return q.loc + torch.einsum("nij,snj->sni", scale_tril(q), noise)


def gradients(q: Gaussians, noise: Tensor, slope: Tensor) -> Gaussians:
    """Gradient of the ELBO from ``slope`` = gradient of log p at the draws (S, N, D)."""
    if q.lower is None:
        path = slope + noise * (-q.log_scale).exp()
        return Gaussians(path.mean(0), (path * noise).mean(0) * q.log_scale.exp(), None)
    tril = scale_tril(q)
    inverse = torch.linalg.solve_triangular(tril.mT, noise.movedim(0, -1), upper=True).movedim(-1, 0)
    path = slope + inverse
    outer = torch.einsum("sni,snj->nij", path, noise) / len(noise)
    diagonal = outer.diagonal(dim1=-2, dim2=-1) * q.log_scale.exp()
    return Gaussians(path.mean(0), diagonal, outer.tril(-1))
