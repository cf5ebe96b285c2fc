r"""The learned part of a bridge's backward kernels, amortized over datapoints and over time.

.. math:: c(u, v, t, x) = a_t \odot z + b_t \odot v + \mathrm{MLP}(z, v, e_t, \phi(x))

with z the whitened location and e_t a learned embedding of the step. All last layers begin at zero: Monte Carlo
diffusion then starts out as the unadjusted Langevin bridge, and the underdamped one as uncorrected Hamiltonian
annealing. phi(x) are the leaves of the data that have an entry a datapoint, flattened and standardised by the training
data; where a number is missing (NaN), 0 and an indicator stand in its place. A whole data set as one datapoint has no
phi.

Letters: B rows (draw-major), N datapoints, D latents, K steps, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortize.program.data import Data

__all__ = ["Features", "ScoreNetwork"]

SMALLEST_SPREAD = 1e-6  # of a feature, below which it is taken for constant


@dataclass(frozen=True)
class Features:
    """How data become features: location and spread (P,) of the flattened leaves, and which were ever missing (P,)."""

    loc: Tensor
    scale: Tensor
    missing: Tensor

    @classmethod
    def of(cls, data: Data) -> Features:
        """Learn the standardisation from N datapoints."""
        flat = _flat(data)
        seen = ~flat.isnan()
        count = seen.sum(0).clamp_min(1)
        loc = flat.nan_to_num(0.0).sum(0) / count
        scale = (torch.where(seen, flat - loc, 0.0).square().sum(0) / count).sqrt()
        return cls(loc, torch.where(scale > SMALLEST_SPREAD, scale, torch.ones_like(scale)), ~seen.all(0))

    @property
    def dim(self) -> int:
        """F, features a datapoint."""
        return len(self.loc) + int(self.missing.sum())

    def fit(self, data: Data) -> bool:
        """Whether datapoints have as many numbers as those that these were learned from."""
        return _flat(data).shape[1] == len(self.loc)

    def __call__(self, data: Data) -> Tensor:
        """Features (N, F) of datapoints."""
        flat = _flat(data)
        gaps = flat.isnan()
        values = torch.where(gaps, 0.0, (flat - self.loc.to(flat)) / self.scale.to(flat))
        return torch.cat([values, gaps[:, self.missing.to(gaps.device)].to(values)], -1)


def _flat(data: Data) -> Tensor:
    """Leaves with an entry a datapoint, (N, P); integers and booleans as numbers."""
    like = torch.zeros(data.num_datapoints, 0, device=data.index.device, dtype=torch.get_default_dtype())
    leaves = [
        leaf.flatten(1) if leaf.dim() > 1 else leaf.unsqueeze(-1)
        for leaf, own in zip(data.leaves, data.per_datapoint, strict=True)
        if own and isinstance(leaf, Tensor)
    ]
    return torch.cat([like, *(leaf.to(like) for leaf in leaves)], -1)


class ScoreNetwork(nn.Module):
    """An MLP beside maps that are linear in z and v, one for each step.

    The weights of its first layers are drawn from torch's global generator; to draw them from a seed, make it inside
    ``pyro_rng``.

    Parameters
    ----------
    dim
        D.
    num_steps
        K.
    momentum
        Whether the kind carries a momentum, an input of its own then.
    num_features
        F; 0 where there is nothing to be amortized over.
    hidden
        Sizes of the hidden layers.

    Examples
    --------
    >>> network = ScoreNetwork(2, 4, momentum=False, num_features=0, hidden=(8,))
    >>> network(torch.ones(3, 2), None, 1).abs().max().item()
    0.0
    """

    def __init__(
        self, dim: int, num_steps: int, *, momentum: bool, num_features: int = 0, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        width = hidden[0]
        self.first = nn.Linear(dim * (2 if momentum else 1), width)
        self.embedding = nn.Parameter(torch.randn(num_steps, width) / width**0.5)
        self.context = nn.Linear(num_features, width, bias=False) if num_features else None
        layers: list[nn.Module] = [nn.SiLU()]
        for size, following in itertools.pairwise(hidden):
            layers += [nn.Linear(size, following), nn.SiLU()]
        last = nn.Linear(hidden[-1], dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(*layers, last)
        self.linear = nn.Parameter(torch.zeros(num_steps, 2 if momentum else 1, dim))

    def forward(self, z: Tensor, v: Tensor | None, t: int, features: Tensor | None = None) -> Tensor:
        """The correction c (B, D) at the step t from 1 to K; ``features`` (N, F), of each row's datapoint."""
        inputs = z if v is None else torch.cat([z, v], -1)
        hidden = self.first(inputs) + self.embedding[t - 1]
        if self.context is not None:
            assert features is not None
            hidden = (hidden.unflatten(0, (-1, len(features))) + self.context(features)).flatten(0, 1)
        straight = self.linear[t - 1, 0] * z
        if v is not None:
            straight = straight + self.linear[t - 1, 1] * v
        result: Tensor = self.rest(hidden) + straight
        return result
