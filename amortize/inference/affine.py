r"""Affine maps of a posterior's draws, one map a datapoint: any guide, moved, stretched and sheared.

.. math:: u' = c + s \odot (b + L w), \qquad w = (u - c) / s, \qquad \log q'(u') = \log q(u) - \log |\det L|

with c and s the guide's mean and standard deviations (its frame) and L lower triangular with a positive diagonal. The
identity is b = 0, L = 1. The guide's density need not be known to move it, nor be Gaussian: with g the gradient of
log p(x, u') in the frame of q', the ELBO's natural gradient is, for noise w of mean 0 and variance 1,

.. math:: \delta b = E[g + w], \qquad \delta L_{ii} = \tfrac12 E[(g_i + w_i) w_i], \qquad
          \delta L_{ij} = E[(g_i + w_i) w_j]

(for a Gaussian, exactly; Opper and Archambeau 2009, "The variational Gaussian approximation revisited",
https://doi.org/10.1162/neco.2008.08-07-592). The terms in w have known means, those of log|det L|; taken from the same
draws they cancel most of the noise, all of it where q' is the posterior and Gaussian (Roeder et al. 2017, "Sticking the
landing", https://arxiv.org/abs/1703.09194). Letters: S draws, N datapoints, D latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Affine", "Frame", "ascent", "identity", "limited", "log_det", "moved", "push"]


class Frame(NamedTuple):
    """Where the guide lies and how wide it is: ``loc`` and ``scale``, (N, D) each."""

    loc: Tensor
    scale: Tensor

    def white(self, u: Tensor) -> Tensor:
        """W of u (S, N, D)."""
        return (u - self.loc) / self.scale


class Affine(NamedTuple):
    """Maps, or steps between maps: ``shift`` b (N, D), ``log_scale`` the logarithm of the diagonal of L (N, D).

    ``lower`` (N, D, D) holds what is strictly below that diagonal; None where L is diagonal.
    """

    shift: Tensor
    log_scale: Tensor
    lower: Tensor | None = None

    def times(self, factor: Tensor) -> Affine:
        """Every part times a number of each datapoint's, (N,)."""
        wide = factor[:, None]
        lower = None if self.lower is None else wide[..., None] * self.lower
        return Affine(wide * self.shift, wide * self.log_scale, lower)

    def where(self, condition: Tensor, other: Affine) -> Affine:
        """The rows of self where ``condition`` (N,), else those of ``other``."""
        wide, lower = condition[:, None], None
        if self.lower is not None and other.lower is not None:
            lower = torch.where(wide[..., None], self.lower, other.lower)
        return Affine(
            torch.where(wide, self.shift, other.shift), torch.where(wide, self.log_scale, other.log_scale), lower
        )

    def square_norm(self) -> Tensor:
        """Sum of the squares of each datapoint's numbers, (N,)."""
        square = self.shift.square().sum(-1) + self.log_scale.square().sum(-1)
        return square if self.lower is None else square + self.lower.square().sum((-1, -2))


def identity(frame: Frame, *, full: bool) -> Affine:
    """The maps that leave every draw where it is."""
    zero = torch.zeros_like(frame.loc)
    return Affine(zero, zero.clone(), torch.diag_embed(zero) if full else None)


def push(frame: Frame, maps: Affine, white: Tensor) -> Tensor:
    """U' (S, N, D) of w (S, N, D)."""
    stretched = maps.log_scale.exp() * white
    if maps.lower is not None:
        stretched = stretched + torch.einsum("nij,snj->sni", maps.lower, white)
    return frame.loc + frame.scale * (maps.shift + stretched)


def log_det(maps: Affine) -> Tensor:
    """Log |det L|, (N,): what each map adds to the entropy."""
    return maps.log_scale.sum(-1)


def ascent(frame: Frame, maps: Affine, white: Tensor, slope: Tensor) -> Affine:
    """The natural gradient of the ELBO, from the gradient of log p in u' (S, N, D) at the draws that w was made of."""
    inner = frame.scale * slope
    own = maps.log_scale.exp() * inner
    if maps.lower is not None:
        own = own + torch.einsum("nji,snj->sni", maps.lower, inner)
    left = own + white
    lower = None
    if maps.lower is not None:
        lower = (torch.einsum("sni,snj->nij", left, white) / len(white)).tril(-1)
    return Affine(left.mean(0), 0.5 * (left * white).mean(0), lower)


def moved(maps: Affine, step: Affine) -> Affine:
    """The maps after a step that is meant in the frame of the posteriors as they stand: b + L db, L exp(dL)."""
    shift = maps.log_scale.exp() * step.shift
    log_scale = maps.log_scale + step.log_scale
    if maps.lower is None or step.lower is None:
        return Affine(maps.shift + shift, log_scale)
    shift = shift + torch.einsum("nij,nj->ni", maps.lower, step.shift)
    stretch = torch.diag_embed(step.log_scale.exp()) + step.lower
    lower = (torch.diag_embed(maps.log_scale.exp()) + maps.lower) @ stretch
    return Affine(maps.shift + shift, log_scale, lower.tril(-1))


def limited(step: Affine, longest: float) -> Affine:
    """The step, where it is longer than ``longest`` cut to that length, datapoint by datapoint."""
    length = step.square_norm().clamp_min(longest**2).sqrt()  # the root of 0 would have no gradient
    return step.times(longest / length)
