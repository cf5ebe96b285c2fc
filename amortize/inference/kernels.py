r"""What transition kernels share: their parameters, what they report, and the abstract class of their settings.

A kernel is a function ``(state, target, parameters, generator) -> (state, info)`` on B independent rows. Those that
leave the tempered density :math:`\pi_\beta` invariant keep annealing's weights as they are. One that doesn't -
unadjusted Langevin - is made exact by its ``log_correction``, which the weight absorbs:

.. math:: c = \log \frac{\pi_\beta(u') \, F(u' \to u)}{\pi_\beta(u) \, F(u \to u')}

with F the kernel's transition density. It is the logarithm of a Metropolis ratio, and 0 for a reversible kernel.

Letters: B rows (chains x datapoints, chain-major), N datapoints, D latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.path import GeometricPath, HeldPath, Point

__all__ = ["Info", "Kernel", "Parameters", "Target", "Transition", "choose", "stratified_normal"]

Target = GeometricPath | HeldPath


class Kernel(ABC):
    """Settings of a kernel; each subclass is a frozen dataclass and names the function that moves."""

    @property
    @abstractmethod
    def transition(self) -> Transition:
        """The function ``(state, target, parameters, generator) -> (state, info)``."""

    @property
    @abstractmethod
    def num_gradients(self) -> int:
        """Gradients of the density a transition takes."""

    @property
    @abstractmethod
    def target_acceptance(self) -> float:
        """What the pilot run tunes step sizes for: the mean probability of acceptance."""

    @property
    @abstractmethod
    def largest_step(self) -> float:
        """Step size in whitened coordinates beyond which the pilot does not go."""


class Parameters(NamedTuple):
    """``beta`` and ``step_size`` (B, 1), the whitening ``scale`` (N, D) or (N, D, D), strata of velocities."""

    beta: Tensor
    step_size: Tensor
    scale: Tensor
    settings: Kernel
    num_strata: int = 1


class Info(NamedTuple):
    """Of B moves, (B,) each.

    ``acceptance`` is the Metropolis probability (0 where the proposal's energy is not finite), ``finite`` whether it
    was, ``log_correction`` what the weight absorbs.
    """

    acceptance: Tensor
    finite: Tensor
    log_correction: Tensor


Transition = Callable[[Point, Target, Parameters, torch.Generator], tuple[Point, Info]]


def stratified_normal(like: Tensor, num_strata: int, generator: torch.Generator) -> Tensor:
    """Standard normal (B, D); in each dimension every chain of a datapoint takes another stratum."""
    if num_strata == 1:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    rows = like.numel() // num_strata
    noise = torch.rand((2, rows, num_strata), generator=generator, device=like.device, dtype=like.dtype)
    level = (noise[0].argsort(-1) + noise[1]).mul_(2 / num_strata).sub_(1)
    most = 1 - 0.5 * torch.finfo(like.dtype).eps  # where rounding gives 1, whose quantile is infinite
    normal: Tensor = torch.erfinv(level.clamp_(-most, most)).mul_(math.sqrt(2))
    return normal.t().reshape(like.shape)


def choose(accept: Tensor, proposal: Point, state: Point) -> Point:
    """The proposal where ``accept`` (B,), else the state; what is rejected may be NaN and doesn't spread."""
    column = accept.unsqueeze(-1)
    return Point(
        *(torch.where(column if new.dim() > 1 else accept, new, old) for new, old in zip(proposal, state, strict=True))
    )
