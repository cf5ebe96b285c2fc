r"""Coordinates in which a start has location 0 and scale 1: u = loc + A z, for each datapoint its own.

Bridges move in z, so that one step size, and one score network, serve all datapoints. Densities of u are kept, not of
z: the Jacobian of a linear map is constant and leaves log weights as they are. Where the start is Gaussian, A is its
Cholesky factor, and log q0 and its gradient are known in z without the model:

.. math:: \log q_0(u) = -\tfrac12 |z|^2 - \log |A| - \tfrac D2 \log 2 \pi, \qquad A^T \nabla \log q_0 = -z

Letters: B rows (draw-major), N datapoints, D latents.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.bridge import Evaluate
from amortize.inference.path import Point
from amortize.inference.starts import Start
from amortize.inference.whitening import pull, push
from amortize.program.data import Data

__all__ = ["MOMENT_DRAWS", "Chart", "gaussian_evaluate", "moments_of"]

MOMENT_DRAWS = 64


class Chart(NamedTuple):
    """``loc`` (N, D) and ``scale`` A, (N, D) or (N, D, D)."""

    loc: Tensor
    scale: Tensor

    def u(self, z: Tensor) -> Tensor:
        """From z (B, D) to u."""
        moved = push(self.scale, z).reshape(-1, *self.loc.shape) + self.loc
        return moved.reshape(z.shape)

    def z(self, u: Tensor) -> Tensor:
        """From u (B, D) to z, for a diagonal A."""
        assert self.scale.dim() == 2
        return ((u.reshape(-1, *self.loc.shape) - self.loc) / self.scale).reshape(u.shape)

    def evaluate(self, terms: Evaluate) -> Evaluate:
        """Log terms as functions of z, with their gradients in z."""

        def evaluate(z: Tensor) -> Point:
            point = terms(self.u(z))
            slopes = (pull(self.scale, slope) for slope in (point.base_gradient, point.ratio_gradient))
            return Point(z, point.base, point.ratio, *slopes)

        return evaluate


def gaussian_evaluate(chart: Chart, joint: Evaluate) -> Evaluate:
    """Log terms in z of a Gaussian start; the ratio of ``joint`` is the log joint at u, its base is not used."""

    def evaluate(z: Tensor) -> Point:
        point = joint(chart.u(z))
        base = -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
        base = (base.reshape(-1, len(chart.loc)) - _log_det(chart.scale)).flatten()
        return Point(z, base, point.ratio - base, -z, pull(chart.scale, point.ratio_gradient) + z)

    return evaluate


def _log_det(scale: Tensor) -> Tensor:
    diagonal = scale if scale.dim() == 2 else scale.diagonal(dim1=-2, dim2=-1)
    return diagonal.log().sum(-1)


@torch.no_grad()
def moments_of(start: Start, data: Data, seed: int) -> Chart:
    """Mean and standard deviation of draws from the start, of a stream of their own: (N, D) each.

    Any location and positive scale are valid, so that the estimate costs no exactness.
    """
    u = start.draw(data.fold(MOMENT_DRAWS), seed, "chart").u
    u = u.reshape(MOMENT_DRAWS, data.num_datapoints, u.shape[-1])
    loc, scale = u.mean(0), u.std(0)
    usable = torch.isfinite(scale) & (scale > 0)
    return Chart(loc.nan_to_num(0.0, 0.0, 0.0), torch.where(usable, scale, torch.ones_like(scale)))
