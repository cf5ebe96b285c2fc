r"""The importance-weighted bound by the score function, each draw's credit told from the datapoint's others.

.. math:: \hat L = \log \frac1K \sum_j w_j, \qquad
          \hat L_{-k} = \log \frac1K \Big( \sum_{j \ne k} w_j + \bar w_{-k} \Big), \qquad
          \log \bar w_{-k} = \frac{1}{K - 1} \sum_{j \ne k} \log w_j

Letters: K particles, N datapoints; w_k = p(x, z_k) / q(z_k | x), their logs in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import check_count
from amortize.inference.iwae import ImportanceWeighted, log_mean_exp
from amortize.inference.objective import BatchLoss
from amortize.inference.score import ScoreLoss, Shares
from amortize.program.data import Data
from amortize.program.program import Program

__all__ = ["VIMCO"]


@dataclass(frozen=True)
class VIMCO(ImportanceWeighted):
    r"""The importance-weighted bound of K draws, for guides that sample discrete latents.

    Parameters
    ----------
    num_particles
        K, draws of the guide for each datapoint, at least 2.

    Notes
    -----
    With normalised weights v_k, the gradient

    .. math:: \nabla_\phi = \sum_k \big( \hat L - \hat L_{-k} - v_k \big) \nabla_\phi \log q(z_k | x), \qquad
              \nabla_\theta = \sum_k v_k \nabla_\theta \log p(x, z_k)

    is unbiased for that of the bound of K draws (not for the ELBO's: with K > 1 it is another target), as
    :math:`\hat L_{-k}`, in which the geometric mean of the others stands in for the k-th weight, knows nothing of z_k.
    Source: Mnih and Rezende (2016), "Variational inference for Monte Carlo objectives", equations 7 to 10,
    https://arxiv.org/abs/1602.06725.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.VIMCO(num_particles=8), num_steps=20)
    >>> fitted.bound
    'importance-weighted bound, 8 particles'
    """

    name: ClassVar[str] = "vimco"

    def __post_init__(self) -> None:
        check_count("VIMCO num_particles", self.num_particles, 2)

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(program, data, self.num_particles)


class _Loss(ScoreLoss):
    def shares(self, batch: Data, log_weights: Tensor) -> Shares:  # noqa: ARG002 (the baseline reads no data)
        bound, weights = log_mean_exp(log_weights), log_weights.softmax(0)
        return Shares(bound, weights, bound - without_each(log_weights) - weights)


def without_each(log_weights: Tensor) -> Tensor:
    """The bound with each log weight of (K, N) in turn replaced by the mean of the others, (K, N) nats.

    Examples
    --------
    >>> import torch
    >>> without_each(torch.tensor([[0.0], [3.0]])).flatten()
    tensor([3., 0.])
    """
    num = len(log_weights)
    apart = torch.eye(num, dtype=torch.bool, device=log_weights.device).unsqueeze(-1)
    others = log_weights.expand(num, num, -1)  # a total less each one would cancel digits, and is NaN at -inf
    means = torch.where(apart, 0.0, others).sum(1) / (num - 1)
    return torch.where(apart, means.unsqueeze(1), others).logsumexp(1) - math.log(num)
