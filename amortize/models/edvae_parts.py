"""Evidence for each of K codes at each position, as Dirichlets, and what these cost.

Letters: N images, X pixels, P positions, K codes. Sources: Baykal et al. (2023), "EdVAE", https://arxiv.org/abs/2310.05718;
Sensoy et al. (2018), "Evidential deep learning to quantify classification uncertainty",
https://arxiv.org/abs/1806.01768.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["DirichletRates", "Evidential", "Expected", "dirichlet_rates"]

MOST = 20.0
"""Largest logarithm of an evidence, as in the authors' own code: beyond it a code is certain in single precision."""


class DirichletRates(NamedTuple):
    """What positions cost, nats: with their probabilities (``joint``), and with those summed out (``collapsed``)."""

    joint: Tensor
    collapsed: Tensor


class Evidential(nn.Module):
    """A network's outputs (N, P, K) as concentrations of Dirichlets, 1 and up."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Alpha (N, P, K) of x (N, X)."""
        logits: Tensor = self.network(x)
        return 1.0 + logits.clamp(max=MOST).exp()


class Expected(nn.Module):
    """Logits of the mean of the Dirichlets, (N, P, K): the guide of the codes with pi summed out."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Of x (N, X)."""
        alpha = self.encoder(x)
        return torch.log(alpha / alpha.sum(-1, keepdim=True))


def dirichlet_rates(alpha: Tensor) -> DirichletRates:
    """What it costs to say the codes of Dirichlets (..., K) under the prior Dirichlet(1), each (...) nats.

    Examples
    --------
    >>> sure = torch.tensor([1000.0] + [1.0] * 15)
    >>> [round(float(rate), 2) for rate in dirichlet_rates(sure)]
    [60.94, 2.66]
    """
    joint = torch.distributions.kl_divergence(
        torch.distributions.Dirichlet(alpha), torch.distributions.Dirichlet(torch.ones_like(alpha))
    )
    shares = alpha / alpha.sum(-1, keepdim=True)
    return DirichletRates(joint, (shares * torch.log(shares * alpha.shape[-1])).sum(-1))
