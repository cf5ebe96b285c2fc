r"""Gaussians whose covariance is a diagonal and a few directions: between mean field and full covariance.

.. math:: q(u; \lambda_n) = N(\mu_n, \mathrm{diag}(d_n^2) + V_n V_n^T), \qquad V_n \in R^{D \times R}

(Ong, Nott and Smith 2018, "Gaussian variational approximation with a factor covariance structure"). A fit begins at the
member that is nearest to the full-covariance fit, by KL(q || full), or in many dimensions at mean field.

Letters: S draws, N datapoints, D latents, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import check_count
from amortize.inference.families.ascent import Drawn, ascend
from amortize.inference.families.density import Density
from amortize.inference.families.family import Family, Fit, Parameters, Problem
from amortize.inference.families.gaussian import FullCovariance, MeanField
from amortize.random import generator

__all__ = ["LowRank", "LowRankDensity", "nearest"]

FULL_DIM = 128
"""Up to how many dimensions a fit begins at full covariance."""
FAINT = 0.1
"""Length of the directions, in standard deviations, that are added to mean field to begin with: at 0 it is a saddle."""
RANDOM_STARTS, SCREEN_STEPS, POLISH_STEPS, RATE = 7, 200, 300, 0.05


class LowRankDensity(Density):
    """Gaussians: ``loc`` and ``scale`` (N, D), ``factor`` (N, D, R); covariance diag(scale^2) + factor factor^T."""

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        # at once: kept from a first use, they could be what a trace was made of
        self._thin = factor / scale.unsqueeze(-1)
        self._root, info = torch.linalg.cholesky_ex(_capacity(self._thin))
        self._broken = info > 0

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        num, dim = self.loc.shape
        return num, dim

    def draw(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Loc + scale * noise + factor @ noise."""
        return self.push(self.noise(num_draws, generator))

    def noise(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Standard normal (S, N, D + R)."""
        num, dim, rank = self.factor.shape
        shape = (num_draws, num, dim + rank)
        return torch.randn(shape, generator=generator, device=self.loc.device, dtype=self.loc.dtype)

    def push(self, noise: Tensor) -> Tensor:
        """Draws (S, N, D) from noise (S, N, D + R)."""
        dim = self.loc.shape[-1]
        along = torch.einsum("nir,snr->sni", self.factor, noise[..., dim:])
        result: Tensor = self.loc + self.scale * noise[..., :dim] + along
        return result

    def log_density(self, u: Tensor) -> Tensor:
        """Log q at u (S, N, D): (S, N), NaN where the covariance is not positive definite."""
        white = (u - self.loc) / self.scale
        along = torch.einsum("nir,sni->nrs", self._thin, white)
        mean = torch.cholesky_solve(along, self._root)
        # as a sum of squares, where long directions don't cancel as they do in Woodbury's difference
        rest = white - torch.einsum("nir,nrs->sni", self._thin, mean)
        square = rest.square().sum(-1) + mean.square().sum(1).T
        log_det = self.scale.log().sum(-1) + self._root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_norm = -log_det - 0.5 * u.shape[-1] * math.log(2 * math.pi)
        result: Tensor = -0.5 * square + log_norm
        return result.masked_fill(self._broken, math.nan)


@dataclass(frozen=True)
class LowRank(Family):
    """Gaussians over u of ``rank`` directions beside a diagonal; parameters ``loc``, ``scale`` and ``factor``.

    Attributes
    ----------
    rank
        R, at most D - 1 of which are used: as many make any covariance.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=4, data_dim=6, seed=0)
    >>> x = analysis.program().simulate(__import__("torch").zeros(8, 6))[1]["x"]
    >>> local = am.fit_local(analysis.program(), x, family=am.LowRank(rank=1))
    >>> local.parameters["factor"].shape
    (8, 4, 1)
    """

    name: ClassVar[str] = "low-rank"
    doubtful: ClassVar[bool] = True
    rank: int = 5

    def __post_init__(self) -> None:
        check_count("rank", self.rank)

    def fit(self, problem: Problem) -> Fit:
        """The best one for each datapoint."""
        rank = max(1, min(self.rank, problem.dim - 1))
        if problem.dim <= FULL_DIM:
            before = FullCovariance().fit(problem)
            loc = before.parameters["loc"]
            scale, factor = nearest(before.parameters["scale_tril"], rank)
        else:
            before = MeanField().fit(problem)
            loc, scale = before.parameters["loc"], before.parameters["scale"]
            factor = _faint(scale, rank, problem.seed)
        frame = _Frame(loc, scale, factor)
        ended = ascend(problem, frame.theta(), frame.draw(problem.num_draws), name=self.name)
        density = frame.density(ended.theta, slice(None))
        return ended.fit({"loc": density.loc, "scale": density.scale, "factor": density.factor}, before)

    def density(self, parameters: Parameters) -> LowRankDensity:
        """Gaussians."""
        return LowRankDensity(parameters["loc"], parameters["scale"], parameters["factor"])


def nearest(scale_tril: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""The covariance :math:`\Sigma = \mathrm{diag}(d^2) + V V^T` nearest to L L^T, by KL(N(0, Sigma) || N(0, L L^T)).

    :math:`\Lambda = (L L^T)^{-1}` is scaled to a diagonal of 1, where the best diagonal covariance is the identity.
    Begun at the best :math:`I + V V^T`, the eigenvectors of the R least eigenvalues, and at a few small random V, as
    there are local optima; the best goes on to the end. In float64.

    Parameters
    ----------
    scale_tril
        L (N, D, D).
    rank
        R < D, or 1.

    Returns
    -------
    tuple
        d (N, D) and V (N, D, R), of the dtype of ``scale_tril``.
    """
    identity = torch.eye(scale_tril.shape[-1], dtype=torch.float64, device=scale_tril.device)
    inverse = torch.linalg.solve_triangular(scale_tril.double(), identity, upper=False)
    precision = inverse.mT @ inverse
    unit = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    scaled = unit.unsqueeze(-1) * precision * unit.unsqueeze(-2)
    usable = torch.isfinite(scaled).all(-1).all(-1)[:, None, None]
    scaled = torch.where(usable, scaled, identity)
    log_scale, factor = _polished(scaled, _begin(scaled, rank), SCREEN_STEPS)
    best = _excess(scaled, log_scale, factor).argmin(-1)
    every = torch.arange(len(best), device=best.device)
    log_scale, factor = _polished(scaled, (log_scale[every, :, best, None], factor[every, :, best, None]), POLISH_STEPS)
    scale, factor = unit * log_scale.squeeze(-1).exp(), unit.unsqueeze(-1) * factor.squeeze(-2)
    return scale.to(scale_tril.dtype), factor.to(scale_tril.dtype)


def _begin(precision: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Log scales (N, D, M) and directions (N, D, M, R) of M beginnings."""
    num, dim, _ = precision.shape
    values, vectors = torch.linalg.eigh(precision)
    # a direction of length 0 would stay there
    length = (1 / values[:, :rank].clamp_min(1e-12) - 1).clamp_min(FAINT**2).sqrt()
    noise = torch.randn(dim, RANDOM_STARTS, rank, generator=generator(0, "directions"), dtype=precision.dtype)
    small = 0.3 * noise.to(precision.device) / math.sqrt(rank)
    factor = torch.cat([(vectors[..., :rank] * length.unsqueeze(1)).unsqueeze(2), small.expand(num, -1, -1, -1)], 2)
    return torch.zeros_like(factor[..., 0]), factor


@torch.enable_grad()
def _polished(precision: Tensor, begin: tuple[Tensor, Tensor], num_steps: int) -> tuple[Tensor, Tensor]:
    """Lower the KL from where it stands, by Adam."""
    log_scale, factor = (part.clone().requires_grad_() for part in begin)
    optimiser = torch.optim.Adam([log_scale, factor], lr=RATE)
    cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for _ in range(num_steps):
        optimiser.zero_grad()
        _excess(precision, log_scale, factor).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        cool.step()
    return log_scale.detach(), factor.detach()


def _excess(precision: Tensor, log_scale: Tensor, factor: Tensor) -> Tensor:
    """KL(q || p) up to a constant, (N, M) nats; the diagonal of ``precision`` is 1."""
    turned = (precision @ factor.flatten(2)).reshape(factor.shape)
    trace = (2 * log_scale).exp().sum(1) + (factor * turned).sum((1, 3))
    thin = factor * (-log_scale).exp().unsqueeze(-1)
    log_det = 2 * log_scale.sum(1) + torch.linalg.slogdet(_capacity(thin.movedim(2, 1)))[1]
    result: Tensor = 0.5 * (trace - log_det)
    return result


def _capacity(thin: Tensor) -> Tensor:
    """I + V^T diag(d^-2) V, (..., R, R), from V / d (..., D, R)."""
    identity = torch.eye(thin.shape[-1], dtype=thin.dtype, device=thin.device)
    result: Tensor = identity + thin.mT @ thin
    return result


def _faint(scale: Tensor, rank: int, seed: int) -> Tensor:
    gen = generator(seed, "directions", device=scale.device)
    shape = (*scale.shape, rank)
    noise = torch.randn(shape, generator=gen, device=scale.device, dtype=scale.dtype)
    return FAINT * scale.unsqueeze(-1) * noise / math.sqrt(rank)


@dataclass(frozen=True)
class _Frame:
    """Theta (N, D + D + D R) in units of where the fit begins, so that the posterior's scale does not matter."""

    loc: Tensor
    scale: Tensor
    factor: Tensor

    def theta(self) -> Tensor:
        """Where the fit begins."""
        wide = (self.factor / self.scale.unsqueeze(-1)).flatten(1)
        return torch.cat([torch.zeros_like(self.loc), torch.zeros_like(self.loc), wide], -1)

    def density(self, theta: Tensor, index: Tensor | slice) -> LowRankDensity:
        """The members with these parameters."""
        loc, scale = self.loc[index], self.scale[index]
        dim = loc.shape[-1]
        move, log_scale, factor = theta[:, :dim], theta[:, dim : 2 * dim], theta[:, 2 * dim :]
        wide = factor.reshape(len(theta), dim, -1) * scale.unsqueeze(-1)
        return LowRankDensity(loc + scale * move, scale * log_scale.exp(), wide)

    def draw(self, num_draws: int) -> _Draw:
        """Antithetic draws."""
        return _Draw(self, num_draws)


@dataclass(frozen=True)
class _Draw:
    frame: _Frame
    num_draws: int

    def __call__(self, theta: Tensor, index: Tensor, noise: torch.Generator) -> Drawn:
        density = self.frame.density(theta, index)
        half = density.noise(self.num_draws // 2, noise)
        u = density.push(torch.cat([half, -half]))
        return Drawn(u, self.frame.density(theta.detach(), index).log_density(u))
