r"""Parts of models with discrete codes: a prior, an encoder and a decoder of bits, or of one-hot categories.

.. math:: p(z) = \prod_d \mathrm{Cat}(\pi_d), \qquad q(z | x) = \prod_d \mathrm{Cat}(\pi_d(x)), \qquad
          x | z \sim \mathrm{Bernoulli}(\mathrm{logits} = f(z))

Values are numbers, zeros and ones, so that a relaxation of them in between can stand in their place in training.
Letters: N datapoints, X features, D latent variables of K categories each; K = 2 are bits: values (..., D), otherwise
one-hot, (..., D, K).
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import check_count

__all__ = ["DiscreteEncoder", "DiscretePrior", "FromCode", "codes_from_logits", "num_logits"]


def num_logits(latent_dim: int, categories: int) -> int:
    """How many numbers say the distribution of D variables of K categories: D for bits, otherwise D K."""
    return latent_dim if categories == 2 else latent_dim * categories


def codes_from_logits(logits: Tensor, categories: int) -> dist.TorchDistribution:
    """Independent bits or one-hot variables from logits (..., D) or (..., D K); event shape (D,) or (D, K)."""
    if categories == 2:
        return dist.Independent(dist.Bernoulli(logits=logits), 1)
    apart = logits.reshape(*logits.shape[:-1], -1, categories)
    return dist.Independent(dist.OneHotCategorical(logits=apart), 1)


class DiscretePrior(nn.Module):
    """Independent variables, whose logits are learned or stay even.

    Parameters
    ----------
    latent_dim, categories
        D and K.
    learned
        Whether the logits, which begin even, are trained.
    """

    def __init__(self, latent_dim: int, categories: int, *, learned: bool) -> None:
        super().__init__()
        self.categories = categories
        even = torch.zeros(num_logits(latent_dim, categories))
        self.logits = nn.Parameter(even, requires_grad=learned)

    def forward(self) -> dist.Distribution:
        """The distribution, without batch shape."""
        return codes_from_logits(self.logits, self.categories)


class DiscreteEncoder(nn.Module):
    """A network of centred data to the logits of each variable.

    Parameters
    ----------
    network
        Of x - centre (N, X): logits (N, D) or (N, D K).
    centre
        The training data's means, (X,).
    categories
        K.
    """

    centre: Tensor

    def __init__(self, network: nn.Module, centre: Tensor, categories: int) -> None:
        super().__init__()
        self.network, self.categories = network, check_count("categories", categories, 2)
        self.register_buffer("centre", centre.clone())

    def forward(self, x: Tensor) -> dist.Distribution:
        """Of z given x."""
        return codes_from_logits(self.network(x - self.centre), self.categories)


class FromCode(nn.Module):
    """A network behind a code: bits are given to it as -1 and 1, one-hot variables side by side.

    Parameters
    ----------
    network
        Of (..., D), or (..., D K): logits (..., X).
    categories
        K.
    """

    def __init__(self, network: nn.Module, categories: int = 2) -> None:
        super().__init__()
        self.network, self.categories = network, check_count("categories", categories, 2)

    def forward(self, z: Tensor) -> Tensor:
        """Logits (..., X) of codes (..., D) or (..., D, K), which may be soft."""
        flat = 2.0 * z - 1.0 if self.categories == 2 else z.flatten(-2)
        logits: Tensor = self.network(flat)
        return logits
