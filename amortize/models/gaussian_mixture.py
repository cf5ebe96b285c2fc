r"""A mixture of Gaussians: which component a datapoint is of is its one latent, summed out exactly.

.. math:: k_n \sim \mathrm{Categorical}(\pi), \qquad x_n \mid k_n \sim N(\mu_{k_n}, \Sigma_{k_n}), \qquad
          \log p(x_n) = \log \sum_k \pi_k N(x_n; \mu_k, \Sigma_k)

The guide leaves k out, so there is nothing to approximate: the ELBO is the evidence, and training is maximum likelihood
by gradients. Letters: N datapoints, X features, K components. Sources: Dempster, Laird and Rubin (1977),
"Maximum likelihood from incomplete data via the EM algorithm"; Arthur and Vassilvitskii (2007), "k-means++", for the
start.
"""

from __future__ import annotations

from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from amortize.errors import ArgumentError, DataError, check_count, check_number, shown
from amortize.models.gaussian_mixture_parts import Components, clusters_of, moments_of
from amortize.models.networks import register
from amortize.models.vae import matrix_of
from amortize.models.zoo import ZooModel

__all__ = ["Covariance", "GaussianMixture"]

Covariance = Literal["diagonal", "full"]
COVARIANCES = ("diagonal", "full")


class GaussianMixture(ZooModel):
    """Site ``k`` (N,), the component, summed out; observed site ``x`` (N, X).

    Parameters
    ----------
    weights
        pi, (K,), positive; they are divided by their sum.
    means
        mu, (K, X).
    covariances
        Sigma, (K, X, X), or its diagonals (K, X).
    floor
        Smallest variance that training may reach, on the diagonal: without one the likelihood has no maximum.

    Raises
    ------
    ArgumentError
        Shapes that don't fit, weights that are not positive, or covariances that are not above the floor.

    Examples
    --------
    >>> import torch, amortize as am
    >>> mixture = am.models.GaussianMixture(
    ...     torch.tensor([0.5, 0.5]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2)
    ... )
    >>> mixture.responsibilities(torch.zeros(1, 2))
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, *, floor: float = 1e-6) -> None:
        super().__init__()
        _check(weights, means, covariances)
        self.components = Components(weights, means, covariances, check_number("GaussianMixture floor", floor))

    @classmethod
    def from_data(
        cls,
        x: Any,
        num_components: int = 10,
        *,
        covariance: Covariance = "diagonal",
        floor: float = 1e-3,
        seed: int = 0,
    ) -> GaussianMixture:
        """A mixture begun at the clusters of k-means.

        Parameters
        ----------
        x
            Training data, (N, X).
        num_components
            K.
        covariance
            "diagonal" or "full".
        floor
            Smallest variance, as a share of the columns' mean variance.
        seed
            Of the first clusters.

        Raises
        ------
        DataError
            ``x`` is no matrix of finite numbers, all rows are alike, or there are fewer of them than components.
        """
        data = matrix_of(x)
        data = data if data.is_floating_point() else data.float()
        check_count("num_components", num_components)
        check_number("floor", floor)
        if covariance not in COVARIANCES:
            raise ArgumentError(f"covariance: expected one of {COVARIANCES}, got {covariance!r}")
        spread = float(data.double().var(0, correction=0).mean())
        if len(data) < num_components or not spread > 0:
            raise DataError(
                f"x: expected at least {num_components} different rows, got {len(data)} of variance {spread:g}."
            )
        labels = clusters_of(data.double(), num_components, seed)
        weights, means, covariances = moments_of(data.double(), labels, num_components)
        if covariance == "diagonal":
            covariances = covariances.diagonal(dim1=-2, dim2=-1)
        least = floor * spread
        lifted = covariances + 2 * least * (torch.eye(data.shape[1]) if covariance == "full" else 1.0)
        return cls(weights.to(data), means.to(data), lifted.to(data), floor=least)

    @property
    def objective(self) -> str:
        """The ELBO with the component summed out."""
        return "enum-elbo"

    def model(self, x: Tensor) -> None:
        """The generative model: site ``k`` (N,), observed site ``x`` (N, X)."""
        register("components", self.components)
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(logits=self.components.log_weights))
            pyro.sample("x", self.components(k), obs=x)

    def guide(self, x: Tensor) -> None:
        """Nothing: the component is summed out."""

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
        """Posterior of the component, (N, K), float64."""
        shares: Tensor = self._log_joint(x).softmax(1)
        return shares

    def _log_joint(self, x: Any) -> Tensor:
        parts = self.components
        data = matrix_of(x).to(parts.means.device).double()
        if data.shape[1] != parts.means.shape[1]:
            raise DataError(f"x: expected shape (N, {parts.means.shape[1]}), got {tuple(data.shape)}.")
        away = data[:, None] - parts.means.double()
        scale = parts.scale_tril().double() if parts.full else parts.scale().double().diag_embed()
        white = torch.linalg.solve_triangular(scale, away.permute(1, 2, 0), upper=False)
        log_size = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * data.shape[1] * torch.log(data.new_tensor(2 * torch.pi))
        log_weights = parts.log_weights.double().log_softmax(-1)
        log_joint: Tensor = log_weights - 0.5 * white.square().sum(1).T - log_size - constant
        return log_joint


def _check(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    expected_ndims = {"weights": (weights, (1,)), "means": (means, (2,)), "covariances": (covariances, (2, 3))}
    for name, (value, ndims) in expected_ndims.items():
        if not isinstance(value, Tensor) or value.ndim not in ndims:
            raise ArgumentError(f"GaussianMixture {name}: expected a tensor of {ndims} dimensions, got {shown(value)}")
    expected = (*means.shape, means.shape[1])[: covariances.ndim]
    if len(weights) != len(means) or covariances.shape != expected or not bool((weights > 0).all()):
        raise ArgumentError(
            f"GaussianMixture: expected positive weights (K,), means (K, X) and covariances (K, X) or (K, X, X), got "
            f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(covariances.shape)}"
        )
