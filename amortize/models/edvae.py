r"""The evidential discrete VAE: the encoder says how much evidence there is for each code, not how probable it is.

.. math:: \pi_p \sim \mathrm{Dirichlet}(1, \dots, 1), \quad k_p \sim \mathrm{Categorical}(\pi_p), \quad
          x \sim \mathrm{Bernoulli}(\mathrm{decoder}(e_{k_1}, \dots, e_{k_P}))

The encoder gives :math:`\alpha_p = 1 + \exp(\mathrm{encoder}(x)_p)`, and in training the guide is
:math:`q(\pi_p | x) = \mathrm{Dirichlet}(\alpha_p)` with the model's own :math:`q(k_p | \pi_p) = \pi_{p k_p}`. Given pi
the codes cost nothing, and the bound is

.. math:: \log p(x) \ge E_q[\log p(x | k)] - \sum_p \mathrm{KL}(\mathrm{Dirichlet}(\alpha_p) \| \mathrm{Dirichlet}(1)).

Saying pi is dear, K - 1 numbers where one code is to be named, hence a price below 1 in training. But nothing beyond
the codes depends on pi, and a guide may as well draw the codes first, with the same probabilities, and then pi from its
exact conditional:

.. math:: q(k_p | x) = \alpha_{p k_p} / \textstyle\sum_j \alpha_{pj}, \qquad
          q(\pi_p | k_p) = \mathrm{Dirichlet}(1 + \delta_{k_p}) = p(\pi_p | k_p).

Its bound is :math:`E_q[\log p(x | k)] - \sum_p \mathrm{KL}(q(k_p | x) \| 1 / K)`, and better by

.. math:: \sum_p E_{q(k_p | x)}
          \mathrm{KL}(\mathrm{Dirichlet}(\alpha_p + \delta_{k_p}) \| \mathrm{Dirichlet}(1 + \delta_{k_p})) \text{ nats}.

This is the guide in eval mode, by which the model is judged. `EdVAE.collapsed` is the same without pi, a discrete VAE.
Letters: N images, X pixels, P positions, K codes. Sources: Baykal et al. (2023), "EdVAE: Mitigating codebook collapse
with evidential discrete variational autoencoders", https://arxiv.org/abs/2310.05718; Sensoy et al. (2018), "Evidential
deep learning to quantify classification uncertainty", https://arxiv.org/abs/1806.01768.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.inference.concrete import ConcreteELBO
from amortize.inference.objective import Objective
from amortize.models.discrete_vae_parts import grid_parts
from amortize.models.dvae import ANNEAL, COLDEST, DVAE, WARMUP, UniformOneHot
from amortize.models.networks import register
from amortize.models.zoo import ZooModel

__all__ = ["DirichletRates", "EdVAE", "Evidential", "dirichlet_rates"]

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


class EdVAE(ZooModel):
    """Binary images from a grid of codes, Dirichlets over the codes' probabilities as guide.

    Parameters
    ----------
    num_positions, num_codes
        P and K.
    decoder
        Of codes (..., P, K), one-hot or soft: a distribution of x with event shape (X,).
    encoder
        Of x (N, X): concentrations (N, P, K).
    objective
        What ``am.fit`` should maximise.

    Examples
    --------
    >>> import amortize as am
    >>> x = torch.eye(16)
    >>> edvae = EdVAE.from_data(x, num_codes=4, channels=(4, 4))
    >>> fitted = am.fit(edvae.program(), x, num_steps=10)
    >>> edvae.codes(x).shape
    torch.Size([16, 1])
    """

    ones: Tensor

    def __init__(
        self,
        num_positions: int,
        num_codes: int,
        *,
        decoder: nn.Module,
        encoder: nn.Module,
        objective: str | Objective = "concrete-elbo",
    ) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(num_positions, num_codes), persistent=False)
        self.decoder, self.encoder = decoder, encoder
        self._objective = objective

    @classmethod
    def from_data(
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        code_dim: int = 16,
        channels: Sequence[int] = (16, 32),
        beta: float = 0.01,
        seed: int = 0,
    ) -> EdVAE:
        """A model for square binary images whose pixels begin at their means; settings are those of `DVAE.from_data`.

        ``beta`` below 1 is the rule: a position that names one of K codes costs far more than log K nats here.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        parts = grid_parts(x, num_codes=num_codes, code_dim=code_dim, channels=channels, seed=seed)
        return cls(
            parts["encoder"].num_positions,
            num_codes,
            decoder=parts["decoder"],
            encoder=Evidential(parts["encoder"]),
            objective=ConcreteELBO(temperature=1.0, final_temperature=COLDEST, anneal=ANNEAL, beta=beta, warmup=WARMUP),
        )

    @property
    def objective(self) -> str | Objective:
        """As it was given."""
        return self._objective

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The code of each position with the most evidence, integers (N, P)."""
        codes: Tensor = self.encoder(x).argmax(-1)
        return codes

    def model(self, x: Tensor) -> None:
        """The generative model: sites ``pi`` and ``codes`` (N, P, K), the latter one-hot, observed ``x`` (N, X)."""
        register("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            pi = pyro.sample("pi", dist.Independent(dist.Dirichlet(self.ones), 1))
            codes = pyro.sample("codes", _one_hot(pi))
            pyro.sample("x", self.decoder(codes), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder: in training ``pi``, and ``codes`` given it as in the model; in eval mode the other way about."""
        register("encoder", self.encoder)
        alpha = self.encoder(x)
        with pyro.plate("data", x.shape[0]):
            if self.training:
                pi = pyro.sample("pi", dist.Independent(dist.Dirichlet(alpha), 1))
                pyro.sample("codes", _one_hot(pi))
            else:
                codes = pyro.sample("codes", _one_hot(alpha / alpha.sum(-1, keepdim=True)))
                pyro.sample("pi", dist.Independent(dist.Dirichlet(1.0 + codes), 1))

    def collapsed(self) -> DVAE:
        """The same with pi summed out of model and guide, sharing all parameters: the same log p(x) and ELBO."""
        prior = UniformOneHot(*self.ones.shape).to(self.ones)
        return DVAE(prior=prior, decoder=self.decoder, encoder=Expected(self.encoder))


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


def _one_hot(pi: Tensor) -> dist.TorchDistribution:
    return dist.Independent(dist.OneHotCategorical(probs=pi), 1)
