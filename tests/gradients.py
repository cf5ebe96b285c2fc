"""Gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Slopes"]

STEP = 1e-5


class Slopes:
    """The slope of a loss along a random direction in the space of its parameters, in two ways.

    Parameters
    ----------
    loss
        A scalar; the same at every call, its noise held.
    parameters
        What it hangs on.
    generator
        Of the direction.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[Tensor], generator: torch.Generator) -> None:
        self._loss, self._parameters = loss, list(parameters)
        self._directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in self._parameters]

    def by_gradient(self) -> float:
        """The gradient along the direction."""
        self._loss().backward()
        pairs = zip(self._parameters, self._directions, strict=True)
        return sum(float((p.grad * d).sum()) for p, d in pairs if p.grad is not None)

    def by_difference(self) -> float:
        """A central difference."""
        return (self.loss_at(STEP) - self.loss_at(-STEP)) / (2 * STEP)

    def loss_at(self, shift: float) -> float:
        """The loss so far along the direction; parameters come back to where they were."""
        self._move(shift)
        moved = float(self._loss().detach())
        self._move(-shift)
        return moved

    @torch.no_grad()
    def _move(self, shift: float) -> None:
        for parameter, direction in zip(self._parameters, self._directions, strict=True):
            parameter.add_(shift * direction)
