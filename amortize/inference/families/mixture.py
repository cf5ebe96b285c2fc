r"""Mixtures of Gaussians: posteriors with several modes, or skew ones.

.. math:: q(u; \lambda_n) = \sum_k \pi_{nk} N(\mu_{nk}, L_{nk} L_{nk}^T)

A fit begins at Gaussians that were each fitted alone (one where the family "full-covariance" begins, the others narrow
and far apart), joined by weights :math:`\pi_k \propto e^{\mathrm{ELBO}_k}`, the best weights where they don't overlap.
Then all is fitted together, with as many draws of each component (Roeder et al. 2017, "Sticking the landing", section
5; Morningstar et al. 2021, "Automatic differentiation variational inference with mixtures").

Letters: S draws, N datapoints, D latents, K components, T entries below a diagonal.
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
from amortize.inference.families.gaussian import FullCovariance
from amortize.inference.families.mixture_start import Mixed, begun
from amortize.inference.families.values import values

__all__ = ["Mixture", "MixtureDensity"]

RATE = 0.1


class MixtureDensity(Density):
    """Mixtures: ``log_weights`` (N, K), ``loc`` (N, K, D), ``scale_tril`` (N, K, D, D)."""

    def __init__(self, log_weights: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        self.log_weights, self.loc, self.scale_tril = log_weights, loc, scale_tril

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return self.loc.shape[0], self.loc.shape[2]

    def draw(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """A component by the weights, then a draw of it."""
        return self._drawn(num_draws, generator)[0]

    def draw_scored(self, num_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws, and their log density, in which the component that made them is scored by its noise."""
        u, which, own = self._drawn(num_draws, generator)
        terms = self._terms(u)
        return u, terms.scatter(2, which.unsqueeze(-1), own.unsqueeze(-1)).logsumexp(2)

    def log_density(self, u: Tensor) -> Tensor:
        """Log q at u (S, N, D): (S, N)."""
        return self._terms(u).logsumexp(2)

    def stratified(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of each component (S K, N, D) from noise (S, N, K, D), and their log density (S K, N).

        The log density hangs on u alone; its value is that by the noise, which no rounding can make too small.
        """
        u = self._push(noise).movedim(2, 1).flatten(0, 1)
        fixed = MixtureDensity(*(value.detach() for value in (self.log_weights, self.loc, self.scale_tril)))
        terms = fixed._terms(u).unflatten(0, noise.shape[:1] + noise.shape[2:3])  # type: ignore[no-untyped-call]
        own = terms.diagonal(dim1=1, dim2=3)
        exact = fixed._log_norm() - 0.5 * noise.square().sum(-1)  # (S, N, K), as own is
        terms = terms.diagonal_scatter(exact + (own - own.detach()), dim1=1, dim2=3)
        return u, terms.logsumexp(3).flatten(0, 1)

    def noise(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Standard normal (S, N, K, D)."""
        shape = (num_draws, *self.loc.shape)
        return torch.randn(shape, generator=generator, device=self.loc.device, dtype=self.loc.dtype)

    def _drawn(self, num_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws u (S, N, D), the components that made them (S, N), and log weight and density there (S, N)."""
        weights = self.log_weights.exp()
        known = torch.isfinite(weights).all(-1, keepdim=True)  # of others, the density is not known either
        weights = torch.where(known, weights, 1.0)
        which = torch.multinomial(weights, num_draws, replacement=True, generator=generator).T
        noise = self.noise(num_draws, generator)
        u = self._push(noise).gather(2, which[..., None, None].expand(-1, -1, 1, noise.shape[-1])).squeeze(2)
        every = self._log_norm() - 0.5 * noise.square().sum(-1)
        return u, which, every.gather(2, which.unsqueeze(-1)).squeeze(-1)

    def _push(self, noise: Tensor) -> Tensor:
        """Draws of each component, (S, N, K, D), from noise of that shape."""
        result: Tensor = self.loc + torch.einsum("nkij,snkj->snki", self.scale_tril, noise)
        return result

    def _terms(self, u: Tensor) -> Tensor:
        """Log weight and density of each component at u (S, N, D): (S, N, K)."""
        centred = (u.unsqueeze(2) - self.loc).movedim(0, -1)
        white = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)
        result: Tensor = self._log_norm() - 0.5 * white.square().sum(2).movedim(-1, 0)
        return result

    def _log_norm(self) -> Tensor:
        """Log weight and log density of each component at its mean, (N, K)."""
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.log_weights - log_det - 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class Mixture(Family):
    """Mixtures over u of full-covariance Gaussians; parameters ``log_weights``, ``loc`` and ``scale_tril``.

    They never end below the family "full-covariance", but for the noise of a comparison: where they would, all
    components are that Gaussian.

    Attributes
    ----------
    num_components
        K. Several may end in one mode, and some with next to no weight.

    Examples
    --------
    >>> import pyro, torch, amortize as am, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z**2, 0.1), obs=x)
    >>> local = am.fit_local(am.Program(model), torch.ones(3), family=am.Mixture(num_components=2))
    >>> [sorted(loc.round(1).flatten().tolist()) for loc in local.parameters["loc"]]
    [[-1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0]]
    """

    name: ClassVar[str] = "mixture"
    num_components: int = 4

    def __post_init__(self) -> None:
        check_count("num_components", self.num_components, 2)

    def fit(self, problem: Problem) -> Fit:
        """The best one for each datapoint."""
        single = FullCovariance().fit(problem)
        mixed, before = begun(problem, single, self.num_components)
        frame = _Frame(mixed)
        ended = ascend(problem, frame.theta(), _Draw(frame, _draws_each(problem)), name=self.name, rate=RATE)
        density = frame.density(ended.theta, slice(None))
        joint = {"log_weights": density.log_weights, "loc": density.loc, "scale_tril": density.scale_tril}
        alone = mixed.alone(single)
        fit = ended.fit(joint, before)
        worth, floor = (values(self.density(part), problem, "joint").mean(0) for part in (joint, alone))
        lower = ~(worth >= floor) & torch.isfinite(floor)
        kept = {name: torch.where(_like(lower, value), alone[name], value) for name, value in joint.items()}
        stopped = torch.where(lower, single.stopped, fit.stopped)
        return Fit(kept, stopped, fit.num_steps, fit.num_gradients, trace=fit.trace)

    def density(self, parameters: Parameters) -> MixtureDensity:
        """Mixtures."""
        return MixtureDensity(parameters["log_weights"], parameters["loc"], parameters["scale_tril"])


def _draws_each(problem: Problem) -> int:
    """Draws of each component: half of those of a Gaussian, in antithetic pairs."""
    return max(2, problem.num_draws // 4 * 2)


def _like(rows: Tensor, value: Tensor) -> Tensor:
    return rows.reshape(-1, *([1] * (value.ndim - 1)))


@dataclass(frozen=True)
class _Frame:
    """Theta (N, K (1 + D + D + T)), each component in the frame of where it begins: L' = L (e^diag + lower).

    Below the diagonal steps are shorter, as D of them add up in a row.
    """

    mixed: Mixed

    def theta(self) -> Tensor:
        """Where the fit begins."""
        num, num_components, dim = self.mixed.loc.shape
        rest = self.mixed.loc.new_zeros(num, num_components * (2 * dim + dim * (dim - 1) // 2))
        return torch.cat([self.mixed.log_weights, rest], -1)

    def density(self, theta: Tensor, index: Tensor | slice) -> MixtureDensity:
        """The members with these parameters."""
        loc, tril = self.mixed.loc[index], self.mixed.scale_tril[index]
        num, num_components, dim = loc.shape
        parts = theta[:, num_components:].reshape(num, num_components, -1)
        row, column = torch.tril_indices(dim, dim, -1, device=theta.device)
        below = theta.new_zeros(num, num_components, dim * dim)
        below = below.index_copy(2, row * dim + column, parts[..., 2 * dim :] * dim**-0.5).reshape(tril.shape)
        turn = torch.diag_embed(parts[..., dim : 2 * dim].exp()) + below
        moved = loc + torch.einsum("nkij,nkj->nki", tril, parts[..., :dim])
        return MixtureDensity(theta[:, :num_components].log_softmax(-1), moved, tril @ turn)


@dataclass(frozen=True)
class _Draw:
    """As many antithetic draws of each component, weighted."""

    frame: _Frame
    num_draws: int

    def __call__(self, theta: Tensor, index: Tensor, noise: torch.Generator) -> Drawn:
        density = self.frame.density(theta, index)
        half = density.noise(self.num_draws // 2, noise)
        u, log_q = density.stratified(torch.cat([half, -half]))
        weight = density.log_weights.exp().T.repeat(self.num_draws, 1) / self.num_draws
        return Drawn(u, log_q, weight)
