"""What a step of a hidden Markov model shows, given its state.

Letters: N datapoints, T steps, F features of a step, K states.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import DataError

__all__ = ["BernoulliEmission", "NormalEmission", "means_of"]

FLOOR = 1e-2  # smallest scale of a Normal emission, as a share of the data's


class BernoulliEmission(nn.Module):
    """Independent ones and zeros given the state; ``logits`` (K, F)."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.detach().clone())
        self.num_features = logits.shape[1]

    @classmethod
    def counted(cls, parts: Tensor, labels: Tensor, num_states: int) -> BernoulliEmission:
        """From the steps of each cluster, as if each had two more of the overall mean."""
        return cls(torch.logit(means_of(parts, labels, num_states).clamp(1e-3, 1 - 1e-3)))

    def forward(self, state: Tensor, *, double: bool = False) -> dist.Distribution:
        """Of a step given its state (...)."""
        logits = self.logits.double() if double else self.logits
        return dist.Independent(dist.Bernoulli(logits=logits[state]), 1)


class NormalEmission(nn.Module):
    """Independent normals given the state, ``loc`` (K, F) and scales above a floor."""

    def __init__(self, loc: Tensor, scale: Tensor, *, floor: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_excess = nn.Parameter((scale.detach() - floor).log())
        self.floor, self.num_features = floor, loc.shape[1]

    @classmethod
    def counted(cls, parts: Tensor, labels: Tensor, num_states: int) -> NormalEmission:
        """From the steps of each cluster, as if each had two more of the overall moments."""
        spread = float(parts.std())
        if not spread > 0:
            raise DataError("x: expected numbers that vary, got one value everywhere.")
        mean = means_of(parts, labels, num_states)
        scale = (means_of(parts.square(), labels, num_states) - mean.square()).clamp(min=0).sqrt()
        return cls(mean, scale + 2 * FLOOR * spread, floor=FLOOR * spread)

    def forward(self, state: Tensor, *, double: bool = False) -> dist.Distribution:
        """Of a step given its state (...)."""
        loc: Tensor = self.loc
        scale = self.floor + self.log_excess.exp()
        if double:
            loc, scale = loc.double(), scale.double()
        return dist.Independent(dist.Normal(loc[state], scale[state]), 1)


def means_of(parts: Tensor, labels: Tensor, num_states: int) -> Tensor:
    """Of the steps (N, T, F) with each label (N, T), (K, F), shrunk to the overall mean."""
    steps = parts.reshape(-1, parts.shape[-1])
    member = nn.functional.one_hot(labels.reshape(-1), num_states).to(steps)
    return (member.T @ steps + 2 * steps.mean(0)) / (member.sum(0)[:, None] + 2)
