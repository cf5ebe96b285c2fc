r"""Resampling of weighted particles, every datapoint by itself, and the families that particles descend from.

Systematic resampling: one uniform number V a datapoint, and the C points (c + V) / C read off the cumulative weights.
Particle c has floor(C w_c) or ceil(C w_c) children, C w_c on average, so that every mean over particles keeps its
expectation. No scheme has counts nearer to C w_c, and equal weights pass unchanged, which multinomial or stratified
resampling would disturb (Douc, Cappe and Moulines 2005, "Comparison of resampling schemes for particle filtering").

Children stand in the order of their parents, so that the descendants of one particle of the first generation - a
*family* - stay side by side, and a family of total weight W has C W children to within one. Resampling thus adds next
to nothing to the variance over families, and the plain variance of the mean of C family weights,

.. math:: F_k = \sum_{c:\, \mathrm{founder}(c) = k} w_c, \qquad \hat Z = \tfrac1C \sum_k F_k, \qquad
          \mathrm{se}^2(\hat Z) = \tfrac{1}{C (C-1)} \sum_k (F_k - \hat Z)^2,

estimates that of one run's mean weight (Chan and Lai 2013, "A general theory of particle filters in hidden Markov
models and some applications", section 2). Lee and Whiteley (2018, "Variance estimation in the particle filter",
equation 8) multiply by (C / (C - 1)) for every generation, which takes off what *multinomial* resampling adds.
The roundings that are left let the error err upward: by less than a tenth where a run resamples when half of its
particles are still effective, by a third where it resamples at every temperature.

Letters: C particles, N datapoints, B = C * N rows (particle-major).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["effective_share", "family_weights", "rows_of", "systematic"]


def systematic(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Parents of the next generation, (C, N) indices in increasing order.

    Parameters
    ----------
    log_weights
        (C, N) nats; a particle of weight zero (-inf) has no children. A datapoint needs one positive weight.
    uniform
        (N,) float64, uniform on [0, 1).

    Examples
    --------
    >>> import torch
    >>> log_weights = torch.tensor([[0.5], [0.25], [0.25], [0.0]]).log()
    >>> systematic(log_weights, torch.tensor([0.1], dtype=torch.float64)).flatten()
    tensor([0, 0, 1, 2])
    """
    count = len(log_weights)
    level = log_weights.double().softmax(0).cumsum(0)
    level = level / level[-1:]
    points = (torch.arange(count, device=level.device).unsqueeze(-1) + uniform) / count
    parents = torch.searchsorted(level.T.contiguous(), points.T.contiguous(), right=True)
    return parents.clamp(max=count - 1).T


def effective_share(log_weights: Tensor) -> Tensor:
    """Effective sample size as a share of C, in (0, 1], of log weights (C, N): (N,); NaN without a positive weight."""
    share = log_weights.softmax(0)
    return 1 / (len(log_weights) * share.square().sum(0))


def family_weights(log_weights: Tensor, founders: Tensor) -> Tensor:
    """Log total weight of each founder's descendants, (C, N); -inf where they have died out.

    Their mean is that of the weights; unlike these, they are as good as independent of one another.
    """
    largest = log_weights.max(0).values
    largest = torch.where(torch.isfinite(largest), largest, 0)
    total = torch.zeros_like(log_weights).scatter_add_(0, founders, (log_weights - largest).exp())
    return total.log() + largest


def rows_of(parents: Tensor) -> Tensor:
    """Rows (B,) in which the parents (C, N) stand."""
    num = parents.shape[1]
    return (parents * num + torch.arange(num, device=parents.device)).flatten()
