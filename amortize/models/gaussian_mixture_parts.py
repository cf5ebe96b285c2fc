"""Parts of mixtures of Gaussians: the components' parameters, and their start by k-means.

Letters: N datapoints, X features, K components. Source of the start: Arthur and Vassilvitskii (2007), "k-means++".
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError
from amortize.random import generator

__all__ = ["Components", "clusters_of", "moments_of"]

ROUNDS = 20  # of k-means


class Components(nn.Module):
    """Their parameters, free ones; variances stay above the floor."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, floor: float) -> None:
        super().__init__()
        self.floor, self.full = floor, covariances.ndim == 3
        self.log_weights = nn.Parameter(weights.detach().log())
        self.means = nn.Parameter(means.detach().clone())
        lower = _lower(covariances.detach(), floor) if self.full else covariances.detach() - floor
        diagonal = lower.diagonal(dim1=-2, dim2=-1) if self.full else lower
        if not bool((diagonal > 0).all()):
            raise ArgumentError(f"GaussianMixture covariances: expected variances above the floor, {floor:g}")
        self.log_excess = nn.Parameter(diagonal.log())
        if self.full:
            self.below = nn.Parameter(lower.tril(-1))

    def scale(self) -> Tensor:
        """Standard deviations (K, X), of the diagonal kind; on the diagonal of the factor, of the other."""
        scale: Tensor = (self.floor + self.log_excess.exp()).sqrt()
        return scale

    def scale_tril(self) -> Tensor:
        """Cholesky factors (K, X, X)."""
        factor: Tensor = self.below.tril(-1) + self.scale().diag_embed()
        return factor

    def forward(self, k: Tensor) -> dist.Distribution:
        """Of x given the component k (...)."""
        if self.full:
            return dist.MultivariateNormal(self.means[k], scale_tril=self.scale_tril()[k])
        return dist.Independent(dist.Normal(self.means[k], self.scale()[k]), 1)


def _lower(covariances: Tensor, floor: float) -> Tensor:
    """Cholesky factors, their diagonal squared and less the floor."""
    factor, failed = torch.linalg.cholesky_ex(covariances)
    if bool(failed.any()):
        raise ArgumentError("GaussianMixture covariances: expected positive definite matrices")
    lower: Tensor = factor.tril(-1) + (factor.diagonal(dim1=-2, dim2=-1).square() - floor).diag_embed()
    return lower


def clusters_of(data: Tensor, num: int, seed: int) -> Tensor:
    """Labels (N,) by k-means, begun far apart."""
    stream = generator(seed, "k-means")
    centres = data[torch.randint(len(data), (1,), generator=stream)]
    while len(centres) < num:
        nearest = torch.cdist(data, centres).amin(1).square()
        chance = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        centres = torch.cat([centres, data[torch.multinomial(chance, 1, generator=stream)]])
    labels = torch.cdist(data, centres).argmin(1)
    for _ in range(ROUNDS):
        member = torch.nn.functional.one_hot(labels, num).to(data)
        count = member.sum(0)
        moved = member.T @ data / count.clamp(min=1)[:, None]
        centres = torch.where((count > 0)[:, None], moved, centres)
        labels = torch.cdist(data, centres).argmin(1)
    return labels


def moments_of(data: Tensor, labels: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of clusters, shrunk to those of all the data as if it had ten rows in each."""
    weights, means, covariances = [], [], []
    overall = torch.cov(data.T, correction=0).reshape(data.shape[1], -1)
    for k in range(num):
        rows = data[labels == k]
        weights.append((len(rows) + 1.0) / (len(data) + num))
        means.append(rows.mean(0) if len(rows) else data.mean(0))
        away = rows - means[-1]
        covariances.append((away.T @ away + 10 * overall) / (len(rows) + 10))
    return data.new_tensor(weights), torch.stack(means), torch.stack(covariances)
