r"""Relaxed discrete distributions whose values live in log space, and the discrete distributions they stand for.

.. math:: y_k = \frac{\alpha_k + G_k}{T} - \log \sum_j \exp \frac{\alpha_j + G_j}{T}, \qquad
          \log q(y) = \log \Gamma(K) + (K - 1) \log T + \sum_k (\alpha_k - T y_k)
          - K \log \sum_k \exp(\alpha_k - T y_k)

with logits alpha and Gumbel noise G. A point on the simplex, exp(y), underflows at low temperatures, and with it its
density: in log space both stay finite. A draw is a plain tensor, so it can be stored, cloned and scored again; what a
model is given, soft or straight-through, is made of it by ``point``. Letters: K categories. Sources: Maddison et al.
(2017), "The Concrete distribution", appendix C.3, https://arxiv.org/abs/1611.00712; Jang et al. (2017), "Categorical
reparameterization with Gumbel-softmax", https://arxiv.org/abs/1611.01144.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Self

import torch
from pyro.distributions import Bernoulli, Independent, OneHotCategorical, TorchDistribution
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all, probs_to_logits
from torch.nn.functional import one_hot, softplus

from amortize.errors import ArgumentError, DiscreteLatentError

__all__ = ["Relaxed", "RelaxedBernoulli", "RelaxedOneHotCategorical", "discrete_twin", "is_relaxed", "relaxed_twin"]


class Relaxed(TorchDistribution):
    """A relaxation of a discrete distribution, over values in log space."""

    has_rsample = True
    temperature: Tensor
    logits: Tensor

    @property
    @abstractmethod
    def discrete(self) -> Any:
        """The discrete distribution that it stands for: its twin, to which it falls as the temperature goes to 0."""

    @abstractmethod
    def point(self, value: Tensor, *, straight_through: bool = False) -> Tensor:
        """What a model is given for a draw: the soft value, or the hard one with the soft one's gradient."""

    @abstractmethod
    def at(self, temperature: float | Tensor) -> Self:
        """The same at another temperature."""


class RelaxedBernoulli(Relaxed):
    """A relaxed (binary Concrete) Bernoulli over values y in logit space; ``sigmoid(y)`` is the soft zero or one.

    Parameters
    ----------
    temperature
        T, above 0.
    logits, probs
        Of a one, any batch shape; give one of them.

    Examples
    --------
    >>> import torch
    >>> fn = RelaxedBernoulli(0.1, logits=torch.tensor([-30.0, 0.0, 30.0]))
    >>> y = fn.rsample()
    >>> bool(fn.log_prob(y.clone()).isfinite().all()), fn.point(y, straight_through=True)[[0, 2]]
    (True, tensor([0., 1.]))
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real}  # noqa: RUF012 (torch's way)
    support = constraints.real

    def __init__(
        self,
        temperature: float | Tensor,
        *,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        given = _given(logits, probs, is_binary=True)
        self.logits, self.temperature = broadcast_all(given, _temperature(temperature, given))
        super().__init__(self.logits.shape, validate_args=validate_args)

    @property
    def discrete(self) -> Any:
        """A Bernoulli of the same logits."""
        return Bernoulli(logits=self.logits, validate_args=False)

    def at(self, temperature: float | Tensor) -> RelaxedBernoulli:
        """The same at another temperature."""
        return RelaxedBernoulli(temperature, logits=self.logits, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedBernoulli:
        """The same for a larger batch shape."""
        logits, temperature = self.logits.expand(batch_shape), self.temperature.expand(batch_shape)
        return RelaxedBernoulli(temperature, logits=logits, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Logits and logistic noise, over T."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = _uniform(shape, self.logits)
        value: Tensor = (self.logits + uniform.log() - torch.log1p(-uniform)) / self.temperature
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Density of y, (batch shape) nats."""
        away = self.logits - self.temperature * value
        result: Tensor = self.temperature.log() + away - 2 * softplus(away)
        return result

    def point(self, value: Tensor, *, straight_through: bool = False) -> Tensor:
        """A number from 0 to 1, or 0 or 1 with its gradient."""
        soft = torch.sigmoid(value)
        return (value > 0).to(soft) + (soft - soft.detach()) if straight_through else soft


class RelaxedOneHotCategorical(Relaxed):
    """A relaxed (Concrete, Gumbel-softmax) one-hot categorical over values y in log space, (..., K).

    ``exp(y)`` is a point on the simplex.

    Parameters
    ----------
    temperature
        T, above 0: a number, or of the batch shape.
    logits, probs
        Of the categories, (..., K); give one of them.

    Examples
    --------
    >>> import torch
    >>> fn = RelaxedOneHotCategorical(0.1, logits=torch.tensor([30.0, 0.0, -30.0]))
    >>> y = fn.rsample()
    >>> bool(fn.log_prob(y.clone()).isfinite()), fn.point(y, straight_through=True)
    (True, tensor([1., 0., 0.]))
    """

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(
        self,
        temperature: float | Tensor,
        *,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        given = _given(logits, probs, is_binary=False)
        if given.dim() < 1:
            raise ArgumentError("RelaxedOneHotCategorical logits: expected (..., K) of K categories, got a number")
        self.temperature, _ = broadcast_all(_temperature(temperature, given), given[..., 0])
        self.logits = given.expand(self.temperature.shape + given.shape[-1:])
        super().__init__(self.temperature.shape, given.shape[-1:], validate_args=validate_args)

    @property
    def discrete(self) -> Any:
        """A OneHotCategorical of the same logits."""
        return OneHotCategorical(logits=self.logits, validate_args=False)

    def at(self, temperature: float | Tensor) -> RelaxedOneHotCategorical:
        """The same at another temperature."""
        return RelaxedOneHotCategorical(temperature, logits=self.logits, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedOneHotCategorical:
        """The same for a larger batch shape."""
        batch = torch.Size(batch_shape)
        logits, temperature = self.logits.expand(batch + self.event_shape), self.temperature.expand(batch)
        return RelaxedOneHotCategorical(temperature, logits=logits, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Logits and Gumbel noise, over T, normalised."""
        shape = self._extended_shape(torch.Size(sample_shape))
        gumbel = -(-_uniform(shape, self.logits).log()).log()
        return ((self.logits + gumbel) / self.temperature.unsqueeze(-1)).log_softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Density of y over its K - 1 differences y_k - y_K, (batch shape) nats."""
        count = self.event_shape[0]
        away = self.logits - self.temperature.unsqueeze(-1) * value
        result: Tensor = (
            math.lgamma(count) + (count - 1) * self.temperature.log() + away.sum(-1) - count * away.logsumexp(-1)
        )
        return result

    def point(self, value: Tensor, *, straight_through: bool = False) -> Tensor:
        """A point on the simplex, or a corner of it with its gradient."""
        soft = value.exp()
        if not straight_through:
            return soft
        return one_hot(value.argmax(-1), value.shape[-1]).to(soft) + (soft - soft.detach())


_THEIRS = (td.RelaxedBernoulli, td.RelaxedOneHotCategorical)


def is_relaxed(fn: Any) -> bool:
    """Whether a distribution is a relaxation, ours, Pyro's or torch's, under ``to_event`` and masks."""
    while isinstance(fn, (td.Independent, MaskedDistribution)):
        fn = fn.base_dist
    return isinstance(fn, (Relaxed, *_THEIRS))


def discrete_twin(fn: Any) -> Any:
    """The discrete distribution that a relaxed one stands for, ``to_event`` and masks kept; others as they are."""
    if not is_relaxed(fn):
        return fn
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(discrete_twin(fn.base_dist), fn._mask)  # type: ignore[no-untyped-call]
    if isinstance(fn, td.Independent):
        return Independent(discrete_twin(fn.base_dist), fn.reinterpreted_batch_ndims, validate_args=False)
    return fn.discrete if isinstance(fn, Relaxed) else _ours(fn).discrete


def relaxed_twin(name: str, fn: Any, temperature: float | Tensor | None) -> Relaxed:
    """The relaxation of a discrete distribution, its event dimensions taken for batch dimensions.

    Parameters
    ----------
    name
        Of the site, for messages.
    fn
        Bernoulli or OneHotCategorical, or a relaxation of them; under ``to_event`` and masks.
    temperature
        None for the relaxation's own.

    Raises
    ------
    DiscreteLatentError
        If it is another distribution, which can't be relaxed.
    """
    while isinstance(fn, (td.Independent, MaskedDistribution)):
        fn = fn.base_dist
    if isinstance(fn, (Relaxed, *_THEIRS)):
        made = fn if isinstance(fn, Relaxed) else _ours(fn)
        return made if temperature is None else made.at(temperature)
    kind = RelaxedBernoulli if isinstance(fn, td.Bernoulli) else RelaxedOneHotCategorical
    if not isinstance(fn, (td.Bernoulli, td.OneHotCategorical)):
        raise DiscreteLatentError(
            f"guide site {name!r} is {type(fn).__name__}, which has no relaxation. Write it as OneHotCategorical (the "
            "model then reads z @ table in place of table[z]) or Bernoulli, or train by another objective: "
            "'graph-elbo', 'wake-sleep'"
        )
    return kind(1.0 if temperature is None else temperature, logits=fn.logits, validate_args=False)


def _ours(fn: Any) -> Relaxed:
    kind = RelaxedBernoulli if isinstance(fn, td.RelaxedBernoulli) else RelaxedOneHotCategorical
    return kind(fn.temperature, logits=fn.logits, validate_args=False)


def _given(logits: Tensor | None, probs: Tensor | None, *, is_binary: bool) -> Tensor:
    if (logits is None) == (probs is None):
        raise ArgumentError("logits: expected either logits or probs, got " + ("none" if logits is None else "both"))
    if logits is not None:
        return torch.as_tensor(logits)
    made: Tensor = probs_to_logits(torch.as_tensor(probs), is_binary=is_binary)
    return made


def _temperature(temperature: float | Tensor, like: Tensor) -> Tensor:
    value = torch.as_tensor(temperature, dtype=like.dtype, device=like.device)
    if not isinstance(temperature, Tensor) and not float(value) > 0:
        raise ArgumentError(f"temperature: expected a number above 0, got {temperature!r}")
    return value


def _uniform(shape: Any, like: Tensor) -> Tensor:
    """Strictly between 0 and 1."""
    info = torch.finfo(like.dtype)
    uniform = torch.rand(shape, dtype=like.dtype, device=like.device)
    return uniform.clamp(min=info.tiny, max=1 - info.eps / 2)
