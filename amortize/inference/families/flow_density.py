r"""Densities that a flow makes in a frame: u = loc + L T(eps), with eps standard normal.

Letters: S draws, N datapoints, D latents, P weights a datapoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortize.inference.families.density import Density
from amortize.inference.families.flow_map import FlowMap

__all__ = ["FlowDensity", "Frame"]


@dataclass(frozen=True)
class Frame:
    """Where each datapoint's flow works: ``loc`` (N, D), and ``scale`` (N, D) or lower triangular (N, D, D)."""

    loc: Tensor
    scale: Tensor

    @property
    def full(self) -> bool:
        """Whether the scale is triangular."""
        return self.scale.dim() == 3

    def rows(self, index: Tensor) -> Frame:
        """Those of some datapoints."""
        return Frame(self.loc[index], self.scale[index])

    def out(self, y: Tensor) -> Tensor:
        """U (S, N, D) at the coordinates y (S, N, D)."""
        return self.loc + (torch.einsum("nij,snj->sni", self.scale, y) if self.full else self.scale * y)

    def into(self, u: Tensor) -> Tensor:
        """The coordinates of u (S, N, D)."""
        centred = u - self.loc
        if not self.full:
            return centred / self.scale
        white: Tensor = torch.linalg.solve_triangular(self.scale, centred.movedim(0, -1), upper=False)
        return white.movedim(-1, 0)

    def log_det(self) -> Tensor:
        """Log |det L|, (N,)."""
        return (self.scale.diagonal(dim1=-2, dim2=-1) if self.full else self.scale).log().sum(-1)


class FlowDensity(Density):
    """A flow of its own for each datapoint: maps, their ``weights`` (N, P), and frames."""

    def __init__(self, flow: FlowMap, weights: Tensor, frame: Frame) -> None:
        self.flow, self.weights, self.frame = flow, weights, frame

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        num, dim = self.frame.loc.shape
        return num, dim

    def draw(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """The noise, pushed through flow and frame."""
        return self.draw_scored(num_draws, generator)[0]

    def draw_scored(self, num_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws, and their log density from the noise that made them."""
        loc = self.frame.loc
        shape = (num_draws, *loc.shape)
        return self.pushed(torch.randn(shape, generator=generator, device=loc.device, dtype=loc.dtype))

    def pushed(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws u (S, N, D) from standard normal ``noise`` (S, N, D), and their log density (S, N)."""
        y, log_det = self.flow.push(self.weights, noise)
        return self.frame.out(y), _normal(noise) - log_det - self.frame.log_det()

    def log_density(self, u: Tensor) -> Tensor:
        """Log q at u (S, N, D): (S, N), through the inverse of the flow."""
        noise, log_det = self.flow.pull(self.weights, self.frame.into(u))
        return _normal(noise) - log_det - self.frame.log_det()


def _normal(noise: Tensor) -> Tensor:
    return -0.5 * noise.square().sum(-1) - 0.5 * noise.shape[-1] * math.log(2 * math.pi)
