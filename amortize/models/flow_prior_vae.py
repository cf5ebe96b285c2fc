r"""A variational autoencoder whose prior is a normalizing flow.

.. math:: z = T(\epsilon), \qquad \epsilon \sim N(0, I_D), \qquad
          \log p(z) = \log N(T^{-1}(z); 0, I) + \log |\det \partial T^{-1} / \partial z|

The flow, trained with the rest, moves the prior towards the aggregate posterior, so that codes cost less where codes
are. Its layers are couplings, whose draws and densities both take one pass (see ``flows``); it begins at N(0, I).
Letters: N datapoints, X features, D latents. Source: Chen et al. (2017), "Variational lossy autoencoder", section 3.2,
https://arxiv.org/abs/1611.02731.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.flows import Flow, flowing
from amortize.models.vae import VAE
from amortize.models.vae_parts import NetworkKind, bernoulli_parts

__all__ = ["FlowPrior", "FlowPriorVAE"]

LAYERS = 4


@final
class FlowPriorVAE(VAE):
    """The Bernoulli VAE with a flow as its prior.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> vae = am.models.FlowPriorVAE.from_data(x, latent_dim=2, hidden=(8,))
    >>> am.fit(vae.program(), x, objective=vae.objective, num_steps=5).bound
    'ELBO'
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        flow: Literal["coupling", "spline"] = "coupling",
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        seed: int = 0,
    ) -> Self:
        """A VAE that begins as ``BernoulliVAE.from_data`` does.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden, network
            D and the networks, as for `BernoulliVAE`.
        flow
            "coupling" or "spline".
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Settings that don't fit.
        """
        parts = bernoulli_parts(x, latent_dim, network=network, hidden=hidden, seed=seed)
        parts["prior"] = FlowPrior(latent_dim, flow=flow, seed=seed)
        return cls(**parts)


class FlowPrior(nn.Module):
    """A flow of standard normal noise as a prior.

    Parameters
    ----------
    latent_dim
        D.
    flow
        "coupling" or "spline".
    seed
        Of the initial weights.

    Examples
    --------
    >>> FlowPrior(3)().event_shape
    torch.Size([3])
    """

    zero: Tensor

    def __init__(self, latent_dim: int, *, flow: Literal["coupling", "spline"] = "coupling", seed: int = 0) -> None:
        super().__init__()
        if flow not in ("coupling", "spline"):
            raise ArgumentError(f"flow: expected 'coupling' or 'spline', got {shown(flow)}.")
        self.flow = Flow(flow, check_count("latent_dim", latent_dim), num_layers=LAYERS, seed=seed)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """The distribution, with event shape (D,)."""
        return flowing(self.flow.transforms(None), self.zero)
