r"""A variational autoencoder whose prior is a mixture of its encoder's posteriors of pseudo-inputs.

.. math:: p(z) = \frac1M \sum_m q(z | u_m), \qquad x | z \sim \text{Bernoulli}(\text{logits} = f(z)), \qquad
          q(z | x) = N(m(x), \mathrm{diag}(v(x)^2))

The best prior for a guide is its aggregate posterior, the mean of q(z | x_n) over the data; M trained pseudo-inputs
u_m, numbers from 0 to 1 for each pixel, stand in for the data. Prior and guide share the encoder. Letters: N
datapoints, X features, D latents, M components. Source: Tomczak and Welling (2018), "VAE with a VampPrior",
https://arxiv.org/abs/1705.07120.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import check_count
from amortize.inference.objective import Objective
from amortize.models.networks import GaussianEncoder, register
from amortize.models.vae import matrix_of
from amortize.models.vae_parts import NetworkKind, bernoulli_decoder, reading
from amortize.models.zoo import ZooModel
from amortize.random import generator

__all__ = ["VampPriorVAE"]

EDGE = 0.05  # pseudo-inputs begin this far from 0 and 1, where their logits are infinite


@final
class VampPriorVAE(ZooModel):
    """The Bernoulli VAE with a VampPrior; ``from_data`` makes it.

    Parameters
    ----------
    encoder
        Of x (N, X): mean and scale of z, (N, D) each.
    decoder
        Of z (..., D): a distribution of x with event shape (X,).
    pseudo_inputs
        Where u begins, (M, X), numbers between 0 and 1.

    Examples
    --------
    >>> import torch, amortize as am
    >>> vae = am.models.VampPriorVAE.from_data(torch.eye(6), latent_dim=2, hidden=(8,), num_components=3)
    >>> vae.prior().component_distribution.batch_shape
    torch.Size([3])
    """

    def __init__(self, *, encoder: GaussianEncoder, decoder: nn.Module, pseudo_inputs: Tensor) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.pseudo = nn.ParameterList([torch.logit(pseudo_inputs, eps=EDGE)])

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        num_components: int = 100,
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        seed: int = 0,
    ) -> Self:
        """A VAE whose decoder begins at the data's means, and whose pseudo-inputs begin at datapoints.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden, network
            D and the networks, as for `BernoulliVAE`.
        num_components
            M; with more of them than datapoints, some begin at the same one.
        seed
            Of the initial weights, and of the datapoints chosen.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Settings that don't fit.
        """
        data = matrix_of(x, binary=True)
        check_count("latent_dim", latent_dim)
        check_count("num_components", num_components)
        sizes: dict[str, Any] = {"network": network, "hidden": hidden}
        read = reading(data.shape[1], 2 * latent_dim, **sizes, generator=generator(seed, "encoder"))
        order = torch.randperm(len(data), generator=generator(seed, "pseudo-inputs"))
        chosen = order[torch.arange(num_components) % len(data)]
        return cls(
            encoder=GaussianEncoder(read),
            decoder=bernoulli_decoder(data, latent_dim, **sizes, seed=seed),
            pseudo_inputs=data[chosen].float(),
        )

    @property
    def objective(self) -> str | Objective:
        """The ELBO."""
        return "elbo"

    @property
    def pseudo_inputs(self) -> Tensor:
        """U (M, X), between 0 and 1."""
        logits: Tensor = self.pseudo[0]
        return logits.sigmoid()

    def prior(self) -> dist.TorchDistribution:
        """The mixture, with event shape (D,)."""
        loc, scale = self.encoder(self.pseudo_inputs)
        components = dist.Independent(dist.Normal(loc, scale), 1)
        mixture: dist.TorchDistribution = dist.MixtureSameFamily(
            dist.Categorical(logits=loc.new_zeros(len(loc))), components
        )
        return mixture

    def model(self, x: Tensor) -> None:
        """The generative model: site ``z`` (N, D), observed site ``x`` (N, X)."""
        register("encoder", self.encoder)
        register("pseudo", self.pseudo)
        register("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder: site ``z`` (N, D), a diagonal Gaussian."""
        register("encoder", self.encoder)
        loc, scale = self.encoder(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Independent(dist.Normal(loc, scale), 1))
