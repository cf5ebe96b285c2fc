r"""Hard draws of binary and one-hot latents, and the continuous variables behind them.

.. math:: z = \alpha + \epsilon, \quad b = H(z), \quad \tilde z \sim p(z | b), \qquad
          \epsilon \sim \text{logistic (a bit) or Gumbel (each category)}

H takes the sign of z, or its largest entry; z and z~ are differentiable in the logits alpha with b held. With v uniform
and E exponential, alpha normalised where there are categories,

.. math:: \tilde z = \pm \log\left(1 + \frac{v}{1 - v} \, e^{\mathrm{softplus}(\pm \alpha)}\right), \qquad
          \tilde z_k = -\log E_k, \quad \tilde z_i = -\log(E_i e^{-\alpha_i} + E_k) \text{ where } b = k \ne i

Letters: M rows, C categories. Sources: Tucker et al. (2017), "REBAR", appendix; Maddison et al. (2017), appendix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

__all__ = ["BitDraw", "HiddenDraw", "OneHotDraw"]


@dataclass(frozen=True)
class HiddenDraw(ABC):
    """Of one site: ``logits`` (M, ...) with the guide's graph, ``free`` the same as a leaf, and what was drawn there.

    ``free`` carries the graph of ``z`` and ``z_given``; ``noise`` and ``hard`` are numbers.
    """

    logits: Tensor
    free: Tensor
    noise: Tensor
    z: Tensor
    z_given: Tensor
    hard: Tensor

    @property
    @abstractmethod
    def score(self) -> Tensor:
        """The slope of log q(b) in the logits, (M, ...)."""

    @abstractmethod
    def soft(self, z: Tensor, temperature: Tensor) -> Tensor:
        """What stands for a hard value: near it where the temperature is low."""

    def again(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """The soft value at other logits (R, M, ...), by the same noise."""
        return self.soft(logits + self.noise, temperature)


class BitDraw(HiddenDraw):
    """Zeros and ones."""

    @classmethod
    def of(cls, logits: Tensor) -> BitDraw:
        """From the global generator."""
        free = logits.detach().requires_grad_()
        noise, other = logistic(free), logistic(free)
        z = free + noise
        hard = (z > 0).to(free)
        given = torch.where(z > 0, softplus(other + softplus(free)), -softplus(other + softplus(-free)))
        return cls(logits, free, noise, z, given, hard)

    @property
    def score(self) -> Tensor:
        """Of a Bernoulli."""
        return self.hard - torch.sigmoid(self.free.detach())

    def soft(self, z: Tensor, temperature: Tensor) -> Tensor:
        """From 0 to 1."""
        return torch.sigmoid(z / temperature)


class OneHotDraw(HiddenDraw):
    """One of C, along the last axis."""

    @classmethod
    def of(cls, logits: Tensor) -> OneHotDraw:
        """From the global generator."""
        free = logits.detach().requires_grad_()
        log_probs = free.log_softmax(-1)
        noise, log_other = gumbel(free), -gumbel(free)  # minus a Gumbel is the log of an exponential
        z = log_probs + noise
        hard = one_hot(z.argmax(-1), z.shape[-1]).to(free)
        log_top = (hard * log_other).sum(-1, keepdim=True)
        given = torch.where(hard > 0, -log_other, -torch.logaddexp(log_other - log_probs, log_top))
        return cls(logits, free, noise, z, given, hard)

    @property
    def score(self) -> Tensor:
        """Of a categorical."""
        return self.hard - self.free.detach().softmax(-1)

    def soft(self, z: Tensor, temperature: Tensor) -> Tensor:
        """On the simplex."""
        return (z / temperature).softmax(-1)


def uniform(like: Tensor) -> Tensor:
    """Strictly between 0 and 1."""
    info = torch.finfo(like.dtype)
    return torch.rand_like(like, requires_grad=False).clamp(min=info.tiny, max=1 - info.eps / 2)


def logistic(like: Tensor) -> Tensor:
    """Standard logistic noise."""
    share = uniform(like)
    return share.log() - torch.log1p(-share)


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise."""
    return -(-uniform(like).log()).log()
