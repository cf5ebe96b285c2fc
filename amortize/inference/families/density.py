r"""Densities over u, one a datapoint: draws, and the value at any u. What every family of local posteriors makes.

Letters: S draws, N datapoints, D latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Density", "GaussianDensity"]


class Density(ABC):
    """N densities over u, each by itself."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """N and D."""

    @abstractmethod
    def draw(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Exact draws u (S, N, D)."""

    @abstractmethod
    def log_density(self, u: Tensor) -> Tensor:
        """Log q_n(u_sn) in nats, (S, N), of any u (S, N, D); differentiable in u."""

    def draw_scored(self, num_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws u (S, N, D) and their log density (S, N), where the two together are cheaper."""
        u = self.draw(num_draws, generator)
        return u, self.log_density(u)


class GaussianDensity(Density):
    """Gaussians: ``loc`` (N, D), ``scale_tril`` (N, D, D) lower triangular."""

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        self.loc, self.scale_tril = loc, scale_tril

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        num, dim = self.loc.shape
        return num, dim

    def draw(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Loc + scale_tril @ noise."""
        return self._push(self._noise(num_draws, generator))

    def draw_scored(self, num_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws, and their log density from the noise that made them."""
        noise = self._noise(num_draws, generator)
        return self._push(noise), -0.5 * noise.square().sum(-1) + self._log_norm()

    def log_density(self, u: Tensor) -> Tensor:
        """Log q at u (S, N, D): (S, N)."""
        centred = (u - self.loc).movedim(0, -1)
        white = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)
        result: Tensor = -0.5 * white.square().sum(1).T + self._log_norm()
        return result

    def _noise(self, num_draws: int, generator: torch.Generator) -> Tensor:
        shape = (num_draws, *self.loc.shape)
        return torch.randn(shape, generator=generator, device=self.loc.device, dtype=self.loc.dtype)

    def _push(self, noise: Tensor) -> Tensor:
        return self.loc + torch.einsum("nij,snj->sni", self.scale_tril, noise)

    def _log_norm(self) -> Tensor:
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -log_det - 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)
