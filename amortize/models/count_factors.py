r"""What the factor models of counts share: log rates linear in the latents, and an encoder of log counts.

.. math:: z_n \sim N(0, I_D), \qquad \eta_n = W z_n + b, \qquad E[x_{nj} \mid z_n] = e^{\eta_{nj}}

How many words a document has, or how many molecules a cell, is one of the directions of z: the first column of W begins
as equal numbers, the spread of the log totals. So the model needs no size factor made from the very counts that it
explains. Letters: N datapoints, X features, D latents, G points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError, check_count
from amortize.models.networks import MLP, seeded_linear
from amortize.models.quadrature import log_integral
from amortize.models.vae import DiagonalNormal, matrix_of
from amortize.random import generator

__all__ = ["count_encoder", "counts_of", "evidence_of_one_latent", "log_linear"]

SMALL = 0.1  # standard deviation of the first weights


def counts_of(x: Any) -> Tensor:
    """Training data as a matrix (N, X) of counts, in float.

    Raises
    ------
    DataError
        If they are anything else.
    """
    data = matrix_of(x)
    data = data if data.is_floating_point() else data.float()
    if not bool(((data >= 0) & (data == data.round())).all()):
        raise DataError(
            f"x: expected counts (0, 1, 2, ...), got values from {data.min().item():g} to {data.max().item():g}"
            f"{'' if bool((data == data.round()).all()) else ', not all of them whole'}."
        )
    return data


def log_linear(counts: Tensor, latent_dim: int, *, seed: int) -> nn.Linear:
    """From z (..., D) to log rates (..., X), begun at the means of the counts (N, X) and the spread of their totals."""
    check_count("latent_dim", latent_dim)
    rates = (counts.double().sum(0) + 0.5) / (len(counts) + 1.0)
    spread = float((counts.double().sum(1) + 0.5).log().std(correction=0))
    linear = seeded_linear(latent_dim, counts.shape[1], generator=generator(seed, "loadings")).to(counts.dtype)
    with torch.no_grad():
        linear.weight.normal_(0.0, SMALL, generator=generator(seed, "loadings"))
        linear.weight[:, 0] = spread
        linear.bias.copy_(rates.log() - 0.5 * spread**2)
    return linear


def count_encoder(counts: Tensor, latent_dim: int, *, hidden: Sequence[int], seed: int) -> DiagonalNormal:
    """From x (N, X) to a mean-field Gaussian, by a multilayer perceptron of log(1 + x), centred."""
    network = MLP((counts.shape[1], *hidden, 2 * latent_dim), generator=generator(seed, "encoder"))
    return DiagonalNormal(nn.Sequential(_LogCounts(counts), network.to(counts.dtype)))


def evidence_of_one_latent(linear: nn.Linear, log_density: Callable[[Tensor, Tensor], Tensor], x: Any) -> Tensor:
    """Log p(x_n), (N,) nats, float64, where D = 1; ``log_density`` is of counts (N, X) at log rates (G, X): (N, G).

    Raises
    ------
    ArgumentError
        D is not 1.
    DataError
        ``x`` is no matrix of counts (N, X).
    """
    if linear.in_features != 1:
        raise ArgumentError(f"latent_dim: expected 1 for quadrature, got {linear.in_features}; use am.evidence.")
    counts = counts_of(x).to(linear.weight.device).double()
    if counts.shape[1] != linear.out_features:
        raise DataError(f"x: expected shape (N, {linear.out_features}), got {tuple(counts.shape)}.")
    slope, intercept = linear.weight[:, 0].double(), linear.bias.double()
    return log_integral(lambda z: log_density(counts, z[:, None] * slope + intercept), device=counts.device)


class _LogCounts(nn.Module):
    mean: Tensor

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        logs = counts.double().log1p()
        self.register_buffer("mean", logs.mean(0).to(counts.dtype))
        self.scale = 1.0 / max(float(logs.std(0, correction=0).mean()) * math.sqrt(counts.shape[1]) / 4.0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Log counts, of a length of about 4."""
        return (x.log1p() - self.mean) * self.scale
