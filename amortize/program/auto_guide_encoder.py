r"""The networks of an automatic guide: from features of a datapoint to a joint density over its u.

.. math:: u = m_0 + s_0 \odot (m + L w)

where the encoder gives m and L, and m_0 and s_0 are the prior's own middle and spread, so that the last layer, which
begins at zero, begins at the prior. Letters: B rows, F features, H hidden units, D latents, R rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["FAMILIES", "FLOWS", "Encoder", "Joint", "Network", "is_factorised"]

FLOWS = ("iaf", "coupling", "spline", "flow")
FAMILIES = ("mean-field", "low-rank", "full-covariance", *FLOWS)
MOST_LOG_SCALE = 10.0  # of the prior's spread, smoothly: data far from those seen give no infinite scale
FIRST_FACTOR = 0.1  # at no factor at all, its gradient would be zero


def is_factorised(family: str) -> bool:
    """Whether the numbers of u are independent."""
    return family == "mean-field"


class Network(nn.Module):
    """A multilayer perceptron whose last layer reads the features too, and begins at zero.

    Parameters
    ----------
    num_features, hidden, num_outputs
        F, the sizes of the hidden layers, and the number of outputs.
    """

    def __init__(self, num_features: int, hidden: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        sizes = [num_features, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.num_hidden = sizes[-1]
        self.last = nn.Linear(num_features + (self.num_hidden if hidden else 0), num_outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, ...) and the last hidden layer (B, H)."""
        hidden = self.body(features)
        read = torch.cat([hidden, features], -1) if len(self.body) else features
        return self.last(read), hidden


class Joint(NamedTuple):
    """Loc and scale (B, D) of u; tril (B, D, D) where it doesn't factorise; what flows read, ``context`` (B, H)."""

    loc: Tensor
    scale: Tensor
    tril: Tensor | None
    context: Tensor


class Encoder(nn.Module):
    """The Gaussian part of a joint density over u.

    Parameters
    ----------
    num_features, hidden
        F, and the sizes of the hidden layers.
    family
        One of `FAMILIES`.
    prior
        The middle and spread (D,) of u under the prior.
    rank
        R, of the family "low-rank".
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self, num_features: int, hidden: Sequence[int], family: str, prior: tuple[Tensor, Tensor], *, rank: int
    ) -> None:
        super().__init__()
        self.family, self.rank, self.dim = family, rank, len(prior[0])
        self.register_buffer("prior_loc", prior[0].clone())
        self.register_buffer("prior_scale", prior[1].clone())
        self.network = Network(num_features, hidden, 2 * self.dim + self._num_others())
        if family == "low-rank":
            with torch.no_grad():
                self.network.last.bias[2 * self.dim :].normal_(0.0, FIRST_FACTOR)

    def forward(self, features: Tensor) -> Joint:
        """The joint of each row."""
        outputs, hidden = self.network(features)
        loc, raw, others = outputs.split([self.dim, self.dim, self._num_others()], -1)
        scale = (MOST_LOG_SCALE * torch.tanh(raw / MOST_LOG_SCALE)).exp()
        tril = self._tril(scale, others)
        spread = self.prior_scale
        return Joint(
            self.prior_loc + spread * loc,
            spread * scale,
            None if tril is None else spread.unsqueeze(-1) * tril,
            hidden,
        )

    def _tril(self, scale: Tensor, others: Tensor) -> Tensor | None:
        if is_factorised(self.family):
            return None
        if self.family == "low-rank":
            factor = others.reshape(*others.shape[:-1], self.dim, self.rank)
            covariance = factor @ factor.mT + torch.diag_embed(scale.square())
            tril: Tensor = torch.linalg.cholesky(covariance)
            return tril
        rows, columns = torch.tril_indices(self.dim, self.dim, -1, device=scale.device)
        below = torch.diag_embed(scale).flatten(-2)
        places = (rows * self.dim + columns).expand_as(others)
        lower: Tensor = below.scatter(-1, places, others).reshape(*scale.shape, self.dim)
        return lower

    def _num_others(self) -> int:
        if is_factorised(self.family):
            return 0
        return self.dim * self.rank if self.family == "low-rank" else self.dim * (self.dim - 1) // 2
