r"""The geometric path between a start and a posterior, and its gradients.

.. math:: \log \pi_\beta(u) = \log q_0(u) + \beta \, r(u), \qquad r(u) = \log p(x, u) - \log q_0(u)

A point keeps the base term and the *untempered* ratio, each with its gradient, so that moving on to the next
temperature, and the weight :math:`\Delta\beta \, r`, cost nothing. Letters: B rows (chains x datapoints), D latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.program.compile import Compiled

__all__ = ["GeometricPath", "HeldPath", "Point"]

LogTerms = Callable[..., tuple[Tensor, Tensor]]
Inputs = tuple[Tensor, ...]


class Point(NamedTuple):
    """A position u (B, D) with the base log density and log ratio there (B,), and their gradients (B, D)."""

    u: Tensor
    base: Tensor
    ratio: Tensor
    base_gradient: Tensor
    ratio_gradient: Tensor

    def log_density(self, beta: Tensor) -> Tensor:
        """Tempered log density at inverse temperature ``beta``, (B,)."""
        return self.base + beta * self.ratio

    def gradient(self, beta: Tensor) -> Tensor:
        """Gradient of the tempered log density, (B, D)."""
        return self.base_gradient + beta * self.ratio_gradient


class GeometricPath:
    """A path from tensors alone: nothing here knows of Pyro.

    Parameters
    ----------
    terms
        Maps u (B, D), and further inputs if there are any, to the base log density log q0(u) and the log ratio r(u),
        each (B,) in nats.
    example
        Two positions (B, D) at which the compiled functions are traced and checked; None runs eagerly.
    extra
        Further inputs of ``terms`` at each of the two positions, for example the atom indices (B, M) of discrete
        latents. They are inputs of the graph too, get no gradient, and are given with every call.
    backend
        As for ``Compiled``.
    num_calls
        How often ``evaluate`` and ``gradient`` are going to be called, as far as that is known.

    Examples
    --------
    >>> import torch
    >>> path = GeometricPath(lambda u: (-0.5 * u.square().sum(-1), -0.5 * (u - 1).square().sum(-1)))
    >>> path.evaluate(torch.zeros(2, 3)).ratio
    tensor([-1.5000, -1.5000])
    """

    def __init__(
        self,
        terms: LogTerms,
        example: tuple[Tensor, Tensor] | None = None,
        *,
        extra: tuple[Inputs, Inputs] = ((), ()),
        backend: str = "auto",
        num_calls: tuple[int, int] = (0, 0),
    ) -> None:
        def everything(u: Tensor, *extra: Tensor) -> tuple[Tensor, ...]:
            return _evaluate(terms, u, extra)

        self._terms = terms
        self._evaluate: Callable[..., tuple[Tensor, ...]] = everything
        self._slopes: Compiled | None = None
        self.description = "eager"
        if example is not None:
            first, second = ((u, *more) for u, more in zip(example, extra, strict=True))
            whole = Compiled(everything, first, second, backend=backend, num_calls=num_calls[0])
            slopes = whole.part((2, 3), num_calls=num_calls[1])
            self._evaluate, self._slopes = whole, None if slopes.reason else slopes
            self.description = _described(whole, slopes)

    def evaluate(self, u: Tensor, *extra: Tensor) -> Point:
        """Everything known at u (B, D)."""
        return Point(u, *self._evaluate(u, *extra))

    def gradient(self, u: Tensor, beta: Tensor, *extra: Tensor) -> Tensor:
        """Gradient of the tempered log density at u, for ``beta`` (B, 1): (B, D)."""
        if self._slopes is None:
            return _gradient(self._terms, u, beta, extra)
        base, ratio = self._slopes(u, *extra)
        return torch.addcmul(base, beta, ratio)

    def held(self, *extra: Tensor) -> HeldPath:
        """The path over u alone, the further inputs held at these values: what a kernel over u moves on."""
        return HeldPath(self, extra)


class HeldPath:
    """A path whose further inputs are fixed; a view, with nothing compiled anew."""

    def __init__(self, path: GeometricPath, extra: Inputs) -> None:
        self._path, self._extra = path, extra

    def evaluate(self, u: Tensor) -> Point:
        """Everything known at u (B, D)."""
        return self._path.evaluate(u, *self._extra)

    def gradient(self, u: Tensor, beta: Tensor) -> Tensor:
        """Gradient of the tempered log density at u, for ``beta`` (B, 1): (B, D)."""
        return self._path.gradient(u, beta, *self._extra)


def _evaluate(terms: LogTerms, u: Tensor, extra: Inputs) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        base, ratio = terms(u, *extra)
        (base_gradient,) = torch.autograd.grad(
            base.sum(), u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        (ratio_gradient,) = torch.autograd.grad(ratio.sum(), u, allow_unused=True, materialize_grads=True)
    return base.detach(), ratio.detach(), base_gradient.detach(), ratio_gradient.detach()


def _gradient(terms: LogTerms, u: Tensor, beta: Tensor, extra: Inputs) -> Tensor:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        base, ratio = terms(u, *extra)
        (gradient,) = torch.autograd.grad((base + beta.squeeze(-1) * ratio).sum(), u)
    return gradient.detach()


def _described(whole: Compiled, slopes: Compiled) -> str:
    first, second = whole.describe(), slopes.describe()
    return first if first == second else f"values: {first}; gradients: {second}"
