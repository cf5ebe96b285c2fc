"""The zoo: one Pyro model and its guide a file, with the exact evidence where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from amortize.models.bernoulli_vae import BernoulliVAE
from amortize.models.factor_analysis import FactorAnalysis
from amortize.models.linear_gaussian import LinearGaussian
from amortize.models.linear_regression import LinearRegression
from amortize.models.networks import MLP
from amortize.models.unknown_gaussian import NormalInverseGamma, UnknownGaussian

__all__ = [
    "MLP",
    "MODELS",
    "BernoulliVAE",
    "FactorAnalysis",
    "LinearGaussian",
    "LinearRegression",
    "ModelEntry",
    "NormalInverseGamma",
    "UnknownGaussian",
]


@dataclass(frozen=True)
class ModelEntry:
    """A line of the zoo's list: what the model is, how to make one, and whether log p(x) is known exactly."""

    description: str
    constructor: Callable[..., nn.Module]
    has_exact_evidence: bool = False


MODELS: dict[str, ModelEntry] = {
    "factor-analysis": ModelEntry(
        "Factor analysis or probabilistic PCA with a linear encoder; every gap in closed form",
        FactorAnalysis,
        has_exact_evidence=True,
    ),
    "bernoulli-vae": ModelEntry("Variational autoencoder for binary data", BernoulliVAE),
}
"""The models by name; adding one is adding a line."""
