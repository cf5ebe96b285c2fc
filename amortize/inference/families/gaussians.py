r"""Gaussian families of local posteriors over u, one set of parameters a datapoint.

.. math:: u = \mu_n + L_n \epsilon, \qquad L_n \text{ diagonal, or lower triangular, with diagonal } e^{s_n}

Gradients follow the path alone ("sticking the landing", Roeder et al. 2017): with
:math:`h = \nabla_u [\log p(x, u) - \log q(u)]` they are expectations of h, whose variance vanishes where q is the
posterior. They are taken, and steps are made, in the frame of q itself, :math:`\mu' = \mu + L a` and
:math:`L' = L (e^{\mathrm{diag} A} + \mathrm{stril} A)`: :math:`\nabla_a = E[L^T h]`,
:math:`\nabla_A = \mathrm{tril}\, E[L^T h \epsilon^T]`. There the Fisher information is near the identity, so neither
the posterior's scale nor its correlations matter. Letters: S draws, N datapoints, D latents.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.errors import ArgumentError

__all__ = ["FAMILIES", "Gaussians", "check_family", "draw", "entropy", "gradients", "moved", "scale_tril"]

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
    """Gradient of the ELBO in the frame of q, from ``slope`` = gradient of log p at the draws (S, N, D)."""
    if q.lower is None:
        white = slope * q.log_scale.exp() + noise
        return Gaussians(white.mean(0), (white * noise).mean(0), None)
    white = torch.einsum("nji,snj->sni", scale_tril(q), slope) + noise
    outer = torch.einsum("sni,snj->nij", white, noise) / len(noise)
    return Gaussians(white.mean(0), outer.diagonal(dim1=-2, dim2=-1), outer.tril(-1))


def moved(q: Gaussians, step: Gaussians) -> Gaussians:
    """Q after a step in its own frame."""
    if q.lower is None or step.lower is None:
        return Gaussians(q.loc + q.log_scale.exp() * step.loc, q.log_scale + step.log_scale, None)
    tril = scale_tril(q)
    turned = tril @ (torch.diag_embed(step.log_scale.exp()) + step.lower)
    loc = q.loc + torch.einsum("nij,nj->ni", tril, step.loc)
    return Gaussians(loc, q.log_scale + step.log_scale, turned.tril(-1))
