r"""A posterior cut into soft parts, one a component of a mixture fitted to it, so that each can be annealed alone.

.. math:: p(x_n, u) = \sum_m p(x_n, u)\, r_m(u), \qquad r_m(u) = \frac{\pi_m q_m(u)}{\sum_l \pi_l q_l(u)}

If a chain from q_m bounds the mass of its part, :math:`E[\log w_m] \le \log Z_m`, then for any weights
:math:`\omega`

.. math:: \sum_m \omega_m (E[\log w_m] - \log \omega_m) \le \log \sum_m Z_m = \log p(x_n),

best at :math:`\omega_m \propto e^{E[\log w_m]}`. With one component it is the plain annealed bound, and without
steps that of the mixture.

Letters: S draws, N datapoints, D latents, M parts, J = N * M rows, a datapoint's parts side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.families.family import Parameters

__all__ = ["Parts", "Weighed", "best_weights", "weighed"]

NO_WEIGHT = 1e-9


@dataclass(frozen=True)
class Parts:
    """The mixtures: ``log_weights`` (N, M), ``loc`` (N, M, D), ``scale_tril`` (N, M, D, D)."""

    log_weights: Tensor
    loc: Tensor
    scale_tril: Tensor

    @classmethod
    def of(cls, parameters: Parameters) -> Parts:
        """Those of a fitted mixture, or of a Gaussian, the only part then."""
        loc, tril = parameters["loc"], parameters["scale_tril"]
        if "log_weights" in parameters:
            return cls(parameters["log_weights"], loc, tril)
        return cls(loc.new_zeros(len(loc), 1), loc.unsqueeze(1), tril.unsqueeze(1))

    @property
    def count(self) -> int:
        """M."""
        return self.log_weights.shape[1]

    def rows(self, index: Tensor) -> Shares:
        """The shares of the rows ``index`` (j,) of the J, each of its own part."""
        return Shares(self, index)


class Shares:
    """Log r of some rows; whitening is by a product, which can be traced and differentiated twice."""

    def __init__(self, parts: Parts, index: Tensor) -> None:
        datapoint, self._own = index // parts.count, index % parts.count
        self._alone = parts.count == 1
        tril = parts.scale_tril[datapoint]
        eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device).expand_as(tril)
        self._white = torch.linalg.solve_triangular(tril, eye, upper=False)
        self._loc = parts.loc[datapoint]
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._log_norm = parts.log_weights[datapoint] - log_det - 0.5 * tril.shape[-1] * math.log(2 * math.pi)

    def log_share(self, u: Tensor) -> Tensor:
        """Log r (S * j,) at u (S * j, D), nats."""
        if self._alone:
            return torch.zeros_like(u[:, 0])
        rows = u.reshape(-1, len(self._own), 1, u.shape[-1])
        white = torch.einsum("jmab,sjmb->sjma", self._white, rows - self._loc)
        log_parts = (self._log_norm - 0.5 * white.square().sum(-1)).log_softmax(-1)
        own = self._own.reshape(1, -1, 1).expand(len(rows), -1, 1)
        return log_parts.gather(-1, own).flatten()


class Weighed(NamedTuple):
    """The bound of each datapoint and its standard error, (N,) nats each."""

    bound: Tensor
    se: Tensor


def best_weights(bounds: Tensor) -> Tensor:
    """Log weights (N, M) of parts with these bounds (N, M); NaN where no bound is finite."""
    known = torch.nan_to_num(bounds, -torch.inf, torch.inf, -torch.inf)
    return known.log_softmax(-1)


def weighed(log_omega: Tensor, means: Tensor, errors: Tensor) -> Weighed:
    """Put parts together: weights, mean log weights and their standard errors, (N, M) each."""
    omega = log_omega.exp()
    none = omega < NO_WEIGHT
    terms = torch.where(none, 0.0, omega * (means - log_omega))
    spread = torch.where(none, 0.0, omega * errors)
    lost = torch.isnan(log_omega).all(-1)
    bound = torch.where(lost, torch.nan, terms.sum(-1))
    return Weighed(bound, torch.where(lost, torch.nan, spread.square().sum(-1).sqrt()))
