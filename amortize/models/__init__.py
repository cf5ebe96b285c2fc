"""The zoo: one Pyro model and its guide a file, with the exact evidence where there is one."""

from __future__ import annotations

from amortize.models.bernoulli_vae import BernoulliVAE
from amortize.models.factor_analysis import FactorAnalysis
from amortize.models.linear_gaussian import LinearGaussian
from amortize.models.linear_regression import LinearRegression
from amortize.models.networks import MLP
from amortize.models.unknown_gaussian import NormalInverseGamma, UnknownGaussian
from amortize.models.vae import VAE
from amortize.models.zoo import ModelEntry, ZooModel

__all__ = [
    "MLP",
    "MODELS",
    "VAE",
    "BernoulliVAE",
    "FactorAnalysis",
    "LinearGaussian",
    "LinearRegression",
    "ModelEntry",
    "NormalInverseGamma",
    "UnknownGaussian",
    "ZooModel",
]


MODELS: dict[str, ModelEntry] = {
    "factor-analysis": ModelEntry(
        "Factor analysis or probabilistic PCA with a linear encoder; every gap in closed form",
        FactorAnalysis,
        data="real",
    ),
    "bernoulli-vae": ModelEntry("Variational autoencoder for binary data", BernoulliVAE),
}
"""The models by name; adding one is adding a line."""
