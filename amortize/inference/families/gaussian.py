"""The Gaussian families whose optimiser steps in the frame of q itself: mean field and full covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from amortize.inference.families.density import GaussianDensity
from amortize.inference.families.family import Family, Fit, Parameters, Problem
from amortize.inference.families.gaussian_ascent import GaussianAscent
from amortize.inference.families.gaussians import scale_tril

__all__ = ["FullCovariance", "MeanField"]


@dataclass(frozen=True)
class MeanField(Family):
    """Gaussians over u with independent dimensions; parameters ``loc`` and ``scale``, (N, D) each."""

    name: ClassVar[str] = "mean-field"
    doubtful: ClassVar[bool] = True

    def fit(self, problem: Problem) -> Fit:
        """The best one for each datapoint."""
        ended = GaussianAscent(problem, full=False).run()
        return ended.fit({"loc": ended.q.loc, "scale": ended.q.log_scale.exp()})

    def density(self, parameters: Parameters) -> GaussianDensity:
        """Gaussians."""
        return GaussianDensity(parameters["loc"], torch.diag_embed(parameters["scale"]))


@dataclass(frozen=True)
class FullCovariance(Family):
    """Gaussians over u; parameters ``loc`` (N, D) and ``scale_tril`` (N, D, D). Fits begin at mean field."""

    name: ClassVar[str] = "full-covariance"
    doubtful: ClassVar[bool] = True

    def fit(self, problem: Problem) -> Fit:
        """The best one for each datapoint."""
        ended = GaussianAscent(problem, full=True).run()
        return ended.fit({"loc": ended.q.loc, "scale_tril": scale_tril(ended.q)})

    def density(self, parameters: Parameters) -> GaussianDensity:
        """Gaussians."""
        return GaussianDensity(parameters["loc"], parameters["scale_tril"])
