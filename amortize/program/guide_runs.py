r"""A guide on one batch in training: particles as functions of its parameters, and their density.

A guide whose sites read none of its own draws runs once a batch, whatever the number of particles: these are drawn from
the distributions that it stated. Other guides run once on the batch folded K times. Where the gradient is cut at the
draws, values are leaves of their own, z' = z, with which the guide goes on; `Drawn.through` takes a gradient at them
back to the guide's parameters, site by site from the last:

.. math:: \nabla_\phi = \sum_i g_i \frac{\partial z_i(\phi, z'_{<i})}{\partial \phi}, \qquad
          g_i = \frac{\partial f}{\partial z'_i} + \sum_{j > i} g_j \frac{\partial z_j}{\partial z'_i}

Letters: K particles, N datapoints, B = K * N rows (particle-major), D continuous latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortize.errors import DiscreteLatentError
from amortize.program.data import Data

__all__ = ["Drawn", "Gate", "GuideRun", "frozen_statistics", "leaf", "require_path"]


class Drawn(NamedTuple):
    """Draws (B, ...) by site, and log q (B,) at them, nats; ``auxiliary`` is a term of the loss alone, a scalar.

    Where the gradient is cut, ``values`` are leaves and ``sources`` the same numbers as functions of the guide's
    parameters and, where they are ``chained``, of earlier leaves; elsewhere both are one. ``log_qs`` (B,) by site add
    up to log q; there are none where all latents are drawn as one.
    """

    values: dict[str, Tensor]
    sources: dict[str, Tensor]
    log_q: Tensor
    auxiliary: Tensor
    chained: bool = False
    log_qs: Mapping[str, Tensor] = MappingProxyType({})

    def through(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """A scalar whose gradient in the guide's parameters is that of f, given ``gradients`` of f at the values."""
        names = [name for name in self.values if name in gradients]
        total = dict(gradients)
        for place in range(len(names) - 1, 0, -1) if self.chained else ():
            source, earlier = self.sources[names[place]], names[:place]
            if not source.requires_grad:
                continue
            leaves = [self.values[name] for name in earlier]
            more = torch.autograd.grad(source, leaves, total[names[place]], retain_graph=True, allow_unused=True)
            total |= {name: total[name] + g for name, g in zip(earlier, more, strict=True) if g is not None}
        parts = [(self.sources[name] * total[name]).sum() for name in names]
        return torch.stack(parts).sum()


class Gate:
    """Lets gradients through to the guide's draws, each row's times a share that is known only later.

    One pass backwards through a model then serves two weightings: its own parameters', and that of the draws.
    """

    def __init__(self) -> None:
        self.shares: Tensor | None = None

    def behind(self, source: Tensor, front: int) -> Tensor:
        """The value (B rows at axis ``front``), its gradient to be weighted by ``shares`` (B,)."""
        if not source.requires_grad:
            return source

        def weigh(gradient: Tensor) -> Tensor:
            assert self.shares is not None
            return gradient * self.shares.reshape(-1, *[1] * (gradient.dim() - front - 1))

        value = source.view_as(source)
        value.register_hook(weigh)  # type: ignore[no-untyped-call]
        return value


class GuideRun(ABC):
    """A guide on a batch of N datapoints, with its parameters as they are now."""

    @abstractmethod
    def draw(self, num_particles: int, *, cut: bool, pathwise: bool) -> Drawn:
        """K draws for each datapoint from the global generators, differentiable in them where ``pathwise``."""

    @abstractmethod
    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Log q (B,) at values on the batch folded, differentiable in them and in the guide's parameters."""

    def moments(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Mean and standard deviation of each site, in the shape of its value; None where they are not known."""
        return None


def require_path(name: str, fn: Any, pathwise: bool) -> None:
    """Refuse draws without a gradient where one is needed.

    Raises
    ------
    DiscreteLatentError
        Naming the site and the way out.
    """
    if pathwise and not fn.has_rsample:
        raise DiscreteLatentError(
            f"guide site {name!r} ({type(fn).__name__}) can't be drawn with a gradient, which this objective needs. "
            "Give it a distribution with rsample, or train by objective='wake-sleep' or 'graph-elbo'"
        )


def leaf(value: Tensor, *, differentiable: bool) -> Tensor:
    """A value cut off from what made it; where ``differentiable``, gradients can be asked for at it."""
    return value.detach().requires_grad_(differentiable and value.is_floating_point())


@contextmanager
def frozen_statistics(module: torch.nn.Module) -> Iterator[None]:
    """Copies of the buffers (running statistics) inside: a second run on the same batch is no second batch."""
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    try:
        for part, buffers in kept:
            part._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)
