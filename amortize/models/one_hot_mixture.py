r"""A mixture of Gaussians whose component is a one-hot latent of each datapoint, which the guide infers.

.. math:: k_n \sim \mathrm{OneHot}(\pi), \qquad x_n \mid k_n \sim N(k_n^\top \mu, \; \mathrm{diag}\,
          e^{2 k_n^\top \log \sigma}), \qquad q(k_n \mid x_n) = \mathrm{OneHot}(f(x_n))

The twin of `amortize.models.GaussianMixture`: there the component is summed out in training, here an encoder is trained
to name it. The encoder's relaxation has a gradient, since means and log scales are linear in k; what is scored is the
discrete mixture, whose evidence and posterior are sums over K components. So the price of a relaxation is known to the
last digit. Letters: N datapoints, X features, K components. Sources: Dempster, Laird and Rubin (1977), "Maximum
likelihood from incomplete data via the EM algorithm"; Jang et al. (2017), "Categorical reparameterization with
Gumbel-softmax", https://arxiv.org/abs/1611.01144.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import DataError, check_count, check_number
from amortize.inference.concrete import ConcreteELBO
from amortize.inference.objective import Objective
from amortize.models.gaussian_mixture_parts import clusters_of, moments_of
from amortize.models.networks import MLP, register
from amortize.models.vae import matrix_of
from amortize.models.zoo import ZooModel
from amortize.random import generator

__all__ = ["OneHotMixture"]

MOST_ROWS = 5000  # that k-means looks at
RELAXED = ConcreteELBO(temperature=1.0, final_temperature=0.3)


class OneHotMixture(ZooModel):
    """Site ``k`` (N, K), one-hot; observed site ``x`` (N, X).

    Parameters
    ----------
    components
        Of k (..., K), one-hot or soft: a distribution of x with event shape (X,); its ``log_weights`` are log pi.
    encoder
        Of x (N, X): log odds of the components, (N, K).
    objective
        What ``am.fit`` maximises; None for a relaxation whose temperature falls from 1 to 0.3.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.cat([torch.eye(4), torch.eye(4) + 5])
    >>> mixture = am.models.OneHotMixture.from_data(x, num_components=2, hidden=(8,))
    >>> mixture.log_evidence(x).shape, mixture.responsibilities(x).shape
    (torch.Size([8]), torch.Size([8, 2]))
    """

    def __init__(
        self, components: OneHotComponents, encoder: nn.Module, *, objective: str | Objective | None = None
    ) -> None:
        super().__init__()
        self.components, self.encoder = components, encoder
        self._objective = RELAXED if objective is None else objective

    @classmethod
    def from_data(
        cls,
        x: Any,
        num_components: int = 10,
        *,
        hidden: Sequence[int] = (64,),
        floor: float = 1e-3,
        objective: str | Objective | None = None,
        seed: int = 0,
    ) -> OneHotMixture:
        """A mixture begun at the clusters that k-means finds in 5000 rows, and an encoder that knows nothing yet.

        Parameters
        ----------
        x
            Training data, (N, X).
        num_components
            K.
        hidden
            Widths of the encoder's hidden layers.
        floor
            Smallest variance, as a share of the columns' mean variance.
        objective
            As in the class; "enum-elbo" sums the component out.
        seed
            Of the clusters and of the encoder's weights.

        Raises
        ------
        DataError
            ``x`` is no matrix of finite numbers, all rows are alike, or there are fewer of them than components.
        """
        data = matrix_of(x)
        data = data if data.is_floating_point() else data.float()
        check_count("num_components", num_components)
        check_number("floor", floor)
        exact = data.double()
        spread = float(exact.var(0, correction=0).mean())
        if len(data) < num_components or not spread > 0:
            raise DataError(
                f"x: expected at least {num_components} different rows, got {len(data)} of variance {spread:g}."
            )
        few = exact[torch.randperm(len(exact), generator=generator(seed, "rows"))[:MOST_ROWS]]
        weights, means, covariances = moments_of(few, clusters_of(few, num_components, seed), num_components)
        variances = covariances.diagonal(dim1=-2, dim2=-1) + floor * spread
        network = MLP((data.shape[1], *hidden, num_components), generator=generator(seed, "encoder"))
        encoder = nn.Sequential(Standardise(data.mean(0), (data.var(0) + floor * spread).sqrt()), network)
        components = OneHotComponents(weights, means, variances, floor=floor * spread)
        return cls(components.to(data.dtype), encoder.to(data.dtype), objective=objective)

    @property
    def objective(self) -> str | Objective:
        """As it was given."""
        return self._objective

    def model(self, x: Tensor) -> None:
        """The generative model: site ``k`` (N, K), observed site ``x`` (N, X)."""
        register("components", self.components)
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.OneHotCategorical(logits=self.components.log_weights))
            pyro.sample("x", self.components(k), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder: site ``k`` (N, K)."""
        register("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.OneHotCategorical(logits=self.encoder(x)))

    @torch.no_grad()
    def log_evidence(self, x: Any) -> Tensor:
        """Log p(x_n), (N,) nats, float64, by the sum over components.

        Raises
        ------
        DataError
            ``x`` is no matrix (N, X) of finite numbers.
        """
        total: Tensor = self._log_joint(x).logsumexp(1)
        return total

    @torch.no_grad()
    def responsibilities(self, x: Any) -> Tensor:
        """Exact posterior of the component, (N, K), float64: what the encoder is to find."""
        shares: Tensor = self._log_joint(x).softmax(1)
        return shares

    @torch.no_grad()
    def encoded(self, x: Any) -> Tensor:
        """The encoder's posterior of the component, (N, K), float64."""
        shares: Tensor = self.encoder(self._data(x).to(self.components.means)).double().softmax(-1)
        return shares

    @torch.no_grad()
    def guide_elbo(self, x: Any) -> Tensor:
        """The ELBO of the encoder for the discrete mixture, (N,) nats, float64, by the sum over components."""
        shares = self.encoded(x)
        elbo: Tensor = (shares * self._log_joint(x)).sum(1) - torch.xlogy(shares, shares).sum(1)
        return elbo

    def _data(self, x: Any) -> Tensor:
        data, means = matrix_of(x), self.components.means
        if data.shape[1] != means.shape[1]:
            raise DataError(f"x: expected shape (N, {means.shape[1]}), got {tuple(data.shape)}.")
        return data.to(means.device).double()

    def _log_joint(self, x: Any) -> Tensor:
        """Log p(x_n, k), (N, K), float64."""
        parts, data = self.components, self._data(x)
        each: Any = dist.Independent(dist.Normal(parts.means.double(), parts.log_scale().double().exp()), 1)
        joint: Tensor = parts.log_weights.double().log_softmax(-1) + each.log_prob(data[:, None])
        return joint


class OneHotComponents(nn.Module):
    """Weights, means and standard deviations above a floor, mixed by a one-hot or soft vector."""

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor, *, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.log_weights = nn.Parameter(weights.log())
        self.means = nn.Parameter(means.clone())
        self.log_excess = nn.Parameter((variances - floor).log())

    def log_scale(self) -> Tensor:
        """Log standard deviations, (K, X)."""
        return 0.5 * (self.floor + self.log_excess.exp()).log()

    def forward(self, k: Tensor) -> dist.Distribution:
        """Of x given k (..., K)."""
        return dist.Independent(dist.Normal(k @ self.means, (k @ self.log_scale()).exp()), 1)


class Standardise(nn.Module):
    """Columns with the training data's mean 0 and standard deviation 1."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Of x (..., X)."""
        return (x - self.loc) / self.scale
