r"""Jumps between the modes of a posterior, for chains that would stay in one of them.

The chains of a warm-up's pool say where modes are: places c_k and scales L_k (Cholesky factors of covariances), k = 1
to K, frozen from then on. A jump draws an ordered pair (i, j) of them, whatever the position, and proposes

.. math:: u' = c_j + L_j L_i^{-1} (u - c_i), \qquad
          \alpha = \min\Big(1, \frac{p(x, u') \, |L_j|}{p(x, u) \, |L_i|}\Big)

The way back is the pair (j, i), as probable, so that the posterior is left invariant whatever c and L are; for modes of
Gaussian shape the move is accepted in the ratio of their masses. (A deterministic involution with its Jacobian:
Green 1995, "Reversible jump Markov chain Monte Carlo", section 3; "mode jumping" in Tjelmeland and Hegstad 2001.)

Letters: K modes, P chains of the pool, Q looks at them, C chains, N datapoints, D latents, B = C * N rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortize.inference.kernels import choose
from amortize.inference.path import GeometricPath, Point

__all__ = ["DENSE_DIM", "Modes", "find_modes", "jump"]

NUM_MODES = 8
DENSE_DIM = 64
"""Most latents for which a pool says enough of their correlations."""
NEGLIGIBLE = 20.0  # nats of mass below the heaviest chain's
APART = 1.1  # R-hat of the pool from which on it may be in several modes
EFFECTIVE_LOOKS = 0.25


@dataclass(frozen=True)
class Modes:
    """Where the pool has been.

    Attributes
    ----------
    centres, roots
        (N, K, D) and (N, K, D, D) lower triangular, or for many latents (N, K, D) standard deviations.
    within
        Covariance within chains (N, D, D), or for many latents variances (N, D).
    order
        (K, N) chains of the pool, from the best on each the farthest from those before it.
    alive
        (P, N) chains of the pool that count.
    several
        Whether the chains of some datapoint do not all seem to be in one place.
    """

    centres: Tensor
    roots: Tensor
    within: Tensor
    order: Tensor
    alive: Tensor
    several: bool

    def begin(self, u: Tensor, num_chains: int) -> Tensor:
        """Positions for C chains, (C, N, D), far apart, from those of the pool (P, N, D)."""
        return u.gather(0, self.order[:num_chains].unsqueeze(-1).expand(-1, -1, u.shape[-1]))

    @property
    def log_size(self) -> Tensor:
        """Log determinants of the roots, (N, K)."""
        diagonal = self.roots.diagonal(dim1=-2, dim2=-1) if self.roots.dim() == 4 else self.roots
        return diagonal.log().sum(-1)


@torch.no_grad()
def find_modes(u: Tensor, log_joint: Tensor, num_chains: int) -> Modes:
    """Modes from looks at the pool: u (Q, P, N, D) and log p(x, u) (Q, P, N), for C chains to begin from.

    Chains whose density is not finite, or that are stuck where next to no mass can be, count for nothing.
    """
    mean, variance = u.mean(0), u.var(0, correction=0)
    mass = log_joint.mean(0) + 0.5 * variance.log().sum(-1)
    mass = torch.where(torch.isfinite(mass) & torch.isfinite(mean).all(-1), mass, -torch.inf)
    alive = (mass > mass.amax(0) - NEGLIGIBLE) & torch.isfinite(mass)  # (P, N)
    mean = torch.where(alive.unsqueeze(-1), mean, 0)
    share = alive.to(u) / alive.sum(0).clamp_min(1)
    spread = _spread(u, alive)
    within = torch.einsum("pn...,pn->n...", spread, share)
    unit = _diagonal(within).sqrt()
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    order = _far_apart(mean / unit, mass, alive, max(NUM_MODES, num_chains))
    places = mean.gather(0, order[:NUM_MODES].unsqueeze(-1).expand(-1, -1, mean.shape[-1]))  # (K, N, D)
    nearest = ((mean.unsqueeze(1) - places) / unit).square().sum(-1).argmin(1)  # (P, N)
    member = torch.nn.functional.one_hot(nearest, NUM_MODES).to(u) * alive.unsqueeze(-1)  # (P, N, K)
    several = (1 + _between(mean, share) / unit.square()).sqrt().amax() > APART
    centres, roots = _shapes(mean, spread, member, within, len(u))
    return Modes(centres, roots, within, order, alive, bool(several))


@torch.no_grad()
def jump(state: Point, target: GeometricPath, modes: Modes, noise: torch.Generator) -> tuple[Point, Tensor]:
    """Propose one jump for each row; the state after it, and (B,) whether it was made."""
    rows, (num, count, _) = len(state.u), modes.centres.shape
    device = state.u.device
    place = torch.arange(num, device=device).repeat(rows // num)
    first = torch.randint(count, (rows,), generator=noise, device=device)
    second = (first + 1 + torch.randint(count - 1, (rows,), generator=noise, device=device)) % count
    proposal = target.evaluate(_carried(state.u, modes, (place, first), (place, second)))
    ratio = proposal.base - state.base + modes.log_size[place, second] - modes.log_size[place, first]
    uniform = torch.rand(ratio.shape, generator=noise, device=device, dtype=ratio.dtype)
    accept = (uniform.log() < ratio) & torch.isfinite(proposal.base)
    return choose(accept, proposal, state), accept


def _carried(u: Tensor, modes: Modes, source: tuple[Tensor, Tensor], goal: tuple[Tensor, Tensor]) -> Tensor:
    """As far from the goal as it was from the source, each by its own measure."""
    away = u - modes.centres[source]
    if modes.roots.dim() == 3:
        return modes.centres[goal] + away * modes.roots[goal] / modes.roots[source]
    white = torch.linalg.solve_triangular(modes.roots[source], away.unsqueeze(-1), upper=False)
    moved: Tensor = modes.centres[goal] + (modes.roots[goal] @ white).squeeze(-1)
    return moved


def _spread(u: Tensor, alive: Tensor) -> Tensor:
    """Covariance of each chain (P, N, D, D), or variances (P, N, D); 0 where it counts for nothing."""
    centred = torch.where(alive.unsqueeze(-1), u - u.mean(0), 0)
    if u.shape[-1] > DENSE_DIM:
        return centred.square().mean(0)
    return torch.einsum("qpni,qpnj->pnij", centred, centred) / len(u)


def _diagonal(spread: Tensor) -> Tensor:
    return spread.diagonal(dim1=-2, dim2=-1) if spread.dim() == 3 else spread


def _between(mean: Tensor, share: Tensor) -> Tensor:
    """Variance of the means of chains that count, (N, D)."""
    weight = share.unsqueeze(-1)
    return (weight * (mean - (weight * mean).sum(0)).square()).sum(0)


def _far_apart(mean: Tensor, mass: Tensor, alive: Tensor, count: int) -> Tensor:
    """(count, N) chains: the heaviest, then always the one farthest from those chosen."""
    order = [mass.argmax(0)]
    nearest = torch.full_like(mass, torch.inf)
    for _ in range(count - 1):
        last = mean.gather(0, order[-1][None, :, None].expand(1, -1, mean.shape[-1]))
        nearest = torch.minimum(nearest, (mean - last).square().sum(-1))
        order.append(torch.where(alive, nearest, -1.0).argmax(0))
    return torch.stack(order)


def _shapes(mean: Tensor, spread: Tensor, member: Tensor, within: Tensor, looks: int) -> tuple[Tensor, Tensor]:
    """Centre and root of each mode, (N, K, D) and (N, K, D, D) or (N, K, D).

    Covariances are drawn to the common one, the more the fewer draws they rest on.
    """
    size = member.sum(0)  # (N, K)
    share = member / size.clamp_min(1)
    centre = torch.einsum("pnk,pnd->nkd", share, mean)
    away = torch.einsum("pnk,pnkd->pnkd", share.sqrt(), mean.unsqueeze(2) - centre)
    dense = spread.dim() == 4
    own = torch.einsum("pnk,pn...->nk...", share, spread)
    own = own + (torch.einsum("pnki,pnkj->nkij", away, away) if dense else away.square().sum(0))
    dim = mean.shape[-1]
    weight = (size * looks * EFFECTIVE_LOOKS / (size * looks * EFFECTIVE_LOOKS + dim + 2))[..., None]
    if not dense:
        root = torch.lerp(within.unsqueeze(1), own, weight).sqrt()
        return centre, torch.where(torch.isfinite(root) & (root > 0), root, torch.ones_like(root))
    covariance = torch.lerp(within.unsqueeze(1), own, weight.unsqueeze(-1))
    eye = torch.eye(dim, dtype=mean.dtype, device=mean.device)
    usable = torch.isfinite(covariance).all(-1).all(-1)[..., None, None]
    root, failed = torch.linalg.cholesky_ex(torch.where(usable, covariance, eye))
    return centre, torch.where((failed == 0)[..., None, None], root, eye)
