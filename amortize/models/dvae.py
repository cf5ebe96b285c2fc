r"""The discrete VAE: at each position of a grid the encoder says by a softmax which code vector it is.

.. math:: k_p \sim \mathrm{Categorical}(1/K), \quad
          x \sim \mathrm{Bernoulli}(\mathrm{decoder}(e_{k_1}, \dots, e_{k_P}))

.. math:: q(k_p | x) = \mathrm{softmax}(\mathrm{encoder}(x)_p)

It is trained with Gumbel-softmax draws whose temperature falls, and judged as the discrete model that it is. Letters: N
images, X pixels, P positions, K codes. Sources: Ramesh et al. (2021), "Zero-shot text-to-image generation",
https://arxiv.org/abs/2102.12092, section 2.1 and appendix A; Jang et al. (2017), "Categorical reparameterization with
Gumbel-softmax", https://arxiv.org/abs/1611.01144.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.inference.concrete import ConcreteELBO
from amortize.inference.objective import Objective
from amortize.models.discrete_vae_parts import grid_parts
from amortize.models.networks import register
from amortize.models.zoo import ZooModel

__all__ = ["DVAE", "UniformOneHot"]

COLDEST = 1 / 16
"""At which the relaxed bound and the discrete one are close (Ramesh et al., section 2.1)."""
ANNEAL, WARMUP = 0.75, 0.1


class UniformOneHot(nn.Module):
    """Codes that are all alike at every position: the prior 1 / K, one-hot.

    Parameters
    ----------
    num_positions, num_codes
        P and K.
    """

    zero: Tensor

    def __init__(self, num_positions: int, num_codes: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(num_positions, num_codes), persistent=False)

    def forward(self) -> dist.Distribution:
        """The distribution, event shape (P, K)."""
        return dist.Independent(dist.OneHotCategorical(logits=self.zero), 1)


class DVAE(ZooModel):
    """Binary images from a grid of codes, a softmax over the codebook as guide.

    Parameters
    ----------
    prior
        Called without arguments: a distribution of one-hot codes, event shape (P, K).
    decoder
        Of codes (..., P, K), one-hot or soft: a distribution of x with event shape (X,).
    encoder
        Of x (N, X): logits (N, P, K).
    objective
        What ``am.fit`` should maximise.

    Examples
    --------
    >>> import amortize as am
    >>> x = torch.eye(16)
    >>> dvae = DVAE.from_data(x, num_codes=4, channels=(4, 4))
    >>> fitted = am.fit(dvae.program(), x, num_steps=10)
    >>> dvae.codes(x).shape
    torch.Size([16, 1])
    """

    def __init__(
        self, *, prior: nn.Module, decoder: nn.Module, encoder: nn.Module, objective: str | Objective = "concrete-elbo"
    ) -> None:
        super().__init__()
        self.prior, self.decoder, self.encoder = prior, decoder, encoder
        self._objective = objective

    @classmethod
    def from_data(
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        code_dim: int = 16,
        channels: Sequence[int] = (16, 32),
        beta: float = 1.0,
        seed: int = 0,
    ) -> DVAE:
        """A model for square binary images whose pixels begin at their means.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        num_codes, code_dim
            K, and the length of a code vector.
        channels
            Of each step that halves the side: two of them make a grid of a quarter of the image's side.
        beta
            Price of a nat of the codes in training.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        parts = grid_parts(x, num_codes=num_codes, code_dim=code_dim, channels=channels, seed=seed)
        return cls(
            prior=UniformOneHot(parts["encoder"].num_positions, num_codes),
            **parts,
            objective=ConcreteELBO(temperature=1.0, final_temperature=COLDEST, anneal=ANNEAL, beta=beta, warmup=WARMUP),
        )

    @property
    def objective(self) -> str | Objective:
        """As it was given."""
        return self._objective

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The most probable code of each position, integers (N, P)."""
        codes: Tensor = self.encoder(x).argmax(-1)
        return codes

    def model(self, x: Tensor) -> None:
        """The generative model: site ``codes`` (N, P, K), one-hot, observed site ``x`` (N, X)."""
        register("prior", self.prior)
        register("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            codes = pyro.sample("codes", self.prior())
            pyro.sample("x", self.decoder(codes), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder: site ``codes``, one-hot."""
        register("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("codes", dist.Independent(dist.OneHotCategorical(logits=self.encoder(x)), 1))
