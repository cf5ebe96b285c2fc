"""Where annealing starts: the prior, the guide, or a local posterior. Each draws exactly from its own density.

Letters: C chains, N datapoints, D continuous latents, M sampled discrete variables, B = C * N rows (chain-major).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amortize.inference.families.density import Density, GaussianDensity
from amortize.program.data import Data
from amortize.program.density import Latents, LogJoint
from amortize.program.guide import GuideDensity
from amortize.random import generator, pyro_rng

if TYPE_CHECKING:
    from amortize.inference.families.family import Family, Parameters

__all__ = ["FamilyStart", "GaussianStart", "GuideStart", "PriorStart", "Start", "scale_of"]

SCALE_DRAWS = 64


class Start(ABC):
    """A density q0 over the latents to start from."""

    name: str
    log_joint: LogJoint

    @abstractmethod
    def draw(self, data: Data, seed: int, stream: str) -> Latents:
        """One exact draw for each of the B rows of ``data``."""

    @abstractmethod
    def terms(self, data: Data, u: Tensor, choices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log q0(u) and log p(x, u) - log q0(u) at u (B, D), each (B,) nats; with ``choices`` (B, M), of both."""

    @abstractmethod
    def rows(self, index: slice | Tensor) -> Start:
        """The start for some of the datapoints, by a slice or their numbers."""


class PriorStart(Start):
    """The model's prior; the ratio is the likelihood."""

    name = "prior"

    def __init__(self, log_joint: LogJoint) -> None:
        self.log_joint = log_joint

    def draw(self, data: Data, seed: int, stream: str) -> Latents:
        """Run the model's latent sites."""
        with pyro_rng(seed, stream):
            return self.log_joint.draw_prior(data)

    def terms(self, data: Data, u: Tensor, choices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log prior and log likelihood."""
        terms = self.log_joint.terms(data, u=u, choices=choices)
        return terms.prior, terms.likelihood

    def rows(self, index: slice | Tensor) -> PriorStart:  # noqa: ARG002
        """The same prior: it is read from the model for whatever data come."""
        return self


class GuideStart(Start):
    """The amortized guide."""

    name = "guide"

    def __init__(self, guide: GuideDensity) -> None:
        self.guide, self.log_joint = guide, guide.log_joint

    def draw(self, data: Data, seed: int, stream: str) -> Latents:
        """Run the guide."""
        with pyro_rng(seed, stream):
            return self.guide.draw(data).latents

    def terms(self, data: Data, u: Tensor, choices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log density of the guide, and the log importance ratio."""
        terms = self.log_joint.terms(data, u=u, choices=choices)
        log_q = self.guide.log_q(data, u, terms)
        return log_q, terms.joint - log_q

    def rows(self, index: slice | Tensor) -> GuideStart:  # noqa: ARG002
        """The same guide: it is read for whatever data come."""
        return self


class GaussianStart(Start):
    """A Gaussian in u for each datapoint: ``loc`` (N, D) and ``scale_tril`` (N, D, D)."""

    name = "local posterior"

    def __init__(self, log_joint: LogJoint, loc: Tensor, scale_tril: Tensor) -> None:
        self.log_joint, self.loc, self.scale_tril = log_joint, loc, scale_tril
        self.density = GaussianDensity(loc, scale_tril)

    def draw(self, data: Data, seed: int, stream: str) -> Latents:
        """Loc + scale_tril @ noise."""
        return _draw(self.density, data, seed, stream)

    def terms(self, data: Data, u: Tensor, choices: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Gaussian log density, and the log importance ratio; there are no sampled discrete variables."""
        return _terms(self.density, self.log_joint, data, u)

    def log_density(self, u: Tensor) -> Tensor:
        """Log q0 at u (C, N, D): (C, N)."""
        return self.density.log_density(u)

    def rows(self, index: slice | Tensor) -> GaussianStart:
        """The Gaussians of some datapoints."""
        return GaussianStart(self.log_joint, self.loc[index], self.scale_tril[index])


class FamilyStart(Start):
    """Members of any other family of local posteriors: ``parameters`` by name, (N, ...) each."""

    name = "local posterior"

    def __init__(self, log_joint: LogJoint, family: Family, parameters: Parameters) -> None:
        self.log_joint, self.family, self.parameters = log_joint, family, parameters
        self.density = family.density(parameters)

    def draw(self, data: Data, seed: int, stream: str) -> Latents:
        """Exact draws of the family."""
        return _draw(self.density, data, seed, stream)

    def terms(self, data: Data, u: Tensor, choices: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Log density, and the log importance ratio; there are no sampled discrete variables."""
        return _terms(self.density, self.log_joint, data, u)

    def rows(self, index: slice | Tensor) -> FamilyStart:
        """The members of some datapoints."""
        return FamilyStart(self.log_joint, self.family, {name: t[index] for name, t in self.parameters.items()})


def _draw(density: Density, data: Data, seed: int, stream: str) -> Latents:
    chains = data.num_datapoints // density.shape[0]
    u = density.draw(chains, generator(seed, stream, device=data.index.device)).flatten(0, 1)
    return Latents(u, u.new_zeros(len(u), 0, dtype=torch.long))


def _terms(density: Density, log_joint: LogJoint, data: Data, u: Tensor) -> tuple[Tensor, Tensor]:
    log_q = density.log_density(u.reshape(-1, *density.shape)).flatten()
    return log_q, log_joint.terms(data, u=u).joint - log_q


def scale_of(start: Start, data: Data, seed: int) -> Tensor:
    """Standard deviation of the start in each dimension, (N, D): the whitening, hence the mass matrix.

    Estimated from draws of a stream of its own; any positive value is valid, so the estimate costs no exactness.
    """
    u = start.draw(data.fold(SCALE_DRAWS), seed, "scale").u
    if not u.shape[-1]:
        return u.new_zeros(data.num_datapoints, 0)
    scale = u.reshape(SCALE_DRAWS, data.num_datapoints, u.shape[-1]).std(0)
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
