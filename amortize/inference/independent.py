r"""Independent proposals: a mixture of Gaussians fitted to a pool of chains and frozen, from which chains are redrawn.

.. math:: g(u) = \sum_k w_k \, N(u; c_k, \Sigma_k), \qquad
          \alpha = \min\Big(1, \frac{p(x, u') \, g(u)}{p(x, u) \, g(u')}\Big), \qquad u' \sim g

In few dimensions, where some Gaussians cover a posterior, a chain forgets at once where it was, in whatever mode,
however small (Tierney 1994, "Markov chains for exploring posterior distributions", section 2.3.2). The posterior is
left invariant whatever the mixture.

Letters: K parts of the mixture, P chains of the pool, Q looks at them, N datapoints, D latents, B = C * N rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.kernels import choose
from amortize.inference.path import GeometricPath, Point

__all__ = ["MOST_DIMENSIONS", "Mixture", "fit_mixture", "redraw"]

MOST_DIMENSIONS = 10
NUM_PARTS = 12
LOOKS = 16  # a chain, of which the mixture is made
ROUNDS = 10
WIDER = 1.2  # scales of the proposal, lest it miss the tails
PRIOR_COUNT = 4.0  # points' worth of the common covariance in that of a part
LEAST_VARIANCE = 1e-6  # in squared units
UNIFORM = 0.1  # share of the weight that all parts have alike


class Mixture(NamedTuple):
    """``log_weights`` (N, K), ``centres`` (N, K, D), ``roots`` (N, K, D, D) lower triangular."""

    log_weights: Tensor
    centres: Tensor
    roots: Tensor

    def draw(self, num_chains: int, noise: torch.Generator) -> Tensor:
        """U (C * N, D)."""
        num, _, dim = self.centres.shape
        part = torch.multinomial(self.log_weights.exp(), num_chains, replacement=True, generator=noise).T.flatten()
        place = torch.arange(num, device=part.device).repeat(num_chains)
        normal = torch.randn(num_chains * num, dim, 1, generator=noise, device=part.device, dtype=self.centres.dtype)
        drawn: Tensor = self.centres[place, part] + (self.roots[place, part] @ normal).squeeze(-1)
        return drawn

    def log_density(self, u: Tensor) -> Tensor:
        """Log g at u (C * N, D): (C * N,) nats."""
        num, _, dim = self.centres.shape
        away = (u.reshape(-1, num, 1, dim) - self.centres).permute(1, 2, 3, 0)  # (N, K, D, C)
        white = torch.linalg.solve_triangular(self.roots, away, upper=False)
        size = self.roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        parts = self.log_weights - size - 0.5 * dim * math.log(2 * math.pi)
        value: Tensor = (parts.unsqueeze(-1) - 0.5 * white.square().sum(2)).logsumexp(1)
        return value.T.flatten()


@torch.no_grad()
def fit_mixture(u: Tensor, alive: Tensor, unit: Tensor) -> Mixture:
    """A mixture by k-means of looks u (Q, P, N, D) at the chains ``alive`` (P, N), in units (N, D)."""
    picked = torch.linspace(0, len(u) - 1, min(LOOKS, len(u))).round().long()
    points = (u[picked] / unit).flatten(0, 1)  # (M, N, D)
    counts = alive.repeat(len(picked), 1)
    points = torch.where(counts.unsqueeze(-1), points, 0)
    centres, member = _clustered(points, counts)
    size = member.sum(0)
    away = points.unsqueeze(2) - centres  # (M, N, K, D)
    scatter = torch.einsum("mnk,mnki,mnkj->nkij", member, away, away)
    eye = torch.eye(points.shape[-1], dtype=u.dtype, device=u.device)
    common = scatter.sum(1) / size.sum(1).clamp_min(1)[:, None, None] + LEAST_VARIANCE * eye
    covariance = (scatter + PRIOR_COUNT * common.unsqueeze(1)) / (size + PRIOR_COUNT)[..., None, None]
    root, failed = torch.linalg.cholesky_ex(covariance)
    root = torch.where((failed == 0)[..., None, None], root, eye)
    weights = (1 - UNIFORM) * size / size.sum(1, keepdim=True).clamp_min(1) + UNIFORM / NUM_PARTS
    log_weights = (weights / weights.sum(1, keepdim=True)).log()
    return Mixture(log_weights, centres * unit.unsqueeze(1), WIDER * root * unit[:, None, :, None])


@torch.no_grad()
def redraw(state: Point, target: GeometricPath, mixture: Mixture, noise: torch.Generator) -> tuple[Point, Tensor]:
    """Propose a draw of the mixture for each row; the state after it, and (B,) whether it was taken."""
    proposal = target.evaluate(mixture.draw(len(state.u) // len(mixture.centres), noise))
    ratio = proposal.base - state.base + mixture.log_density(state.u) - mixture.log_density(proposal.u)
    uniform = torch.rand(ratio.shape, generator=noise, device=ratio.device, dtype=ratio.dtype)
    accept = (uniform.log() < ratio) & torch.isfinite(proposal.base)
    return choose(accept, proposal, state), accept


def _far_apart(points: Tensor, counts: Tensor) -> Tensor:
    """Points (N, K, D) each as far as can be from those before it, so that no mode is overlooked."""
    weight = counts.unsqueeze(-1).to(points)
    chosen = [(points * weight).sum(0) / weight.sum(0).clamp_min(1)]
    nearest = torch.full_like(points[..., 0], torch.inf)
    for _ in range(NUM_PARTS - 1):
        nearest = torch.minimum(nearest, (points - chosen[-1]).square().sum(-1))
        far = torch.where(counts, nearest, -1.0).argmax(0)
        chosen.append(points[far, torch.arange(points.shape[1], device=points.device)])
    return torch.stack(chosen, 1)


def _clustered(points: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (N, K, D) by k-means of the points (M, N, D) that count, and whose each is (M, N, K)."""
    centres = _far_apart(points, counts)
    for _ in range(ROUNDS):
        member = _members(points, centres) * counts.unsqueeze(-1)
        size = member.sum(0).unsqueeze(-1)
        mean = torch.einsum("mnk,mnd->nkd", member, points) / size.clamp_min(1)
        centres = torch.where(size > 0, mean, centres)
    return centres, _members(points, centres) * counts.unsqueeze(-1)


def _members(points: Tensor, centres: Tensor) -> Tensor:
    """(M, N, K) one where a point is nearest to a centre, else zero."""
    nearest = (points.unsqueeze(2) - centres).square().sum(-1).argmin(-1)
    return torch.nn.functional.one_hot(nearest, NUM_PARTS).to(points)
