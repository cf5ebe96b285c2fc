r"""The Metropolis-adjusted Langevin algorithm on a tempered density, rows independent of one another.

A trajectory of one leapfrog step (see ``leapfrog``) is a Langevin step: with A the whitening, h the step size and
:math:`\xi` standard normal,

.. math:: u' = u + \tfrac{h^2}{2} A A^T \nabla \log \pi_\beta(u) + h A \xi,

then a Metropolis correction (Roberts and Tweedie 1996, "Exponential convergence of Langevin
distributions"). A proposal whose energy is not finite is rejected and counted.

Letters: B rows (chains x datapoints, chain-major), N datapoints, D latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from amortize.errors import check_number
from amortize.inference.kernels import Info, Kernel, Parameters, Target, Transition
from amortize.inference.leapfrog import metropolis, propose
from amortize.inference.path import Point

__all__ = ["LARGEST_STEP", "MALA", "mala"]

LARGEST_STEP = math.sqrt(2.0)
"""Where the step from a whitened Gaussian's u forgets where it was: u' = (1 - h^2 / 2) u + h xi."""


@dataclass(frozen=True)
class MALA(Kernel):
    """Settings of the kernel.

    Parameters
    ----------
    target_acceptance
        What the pilot run tunes step sizes for. The default is the most efficient one in many dimensions (Roberts and
        Rosenthal 1998, "Optimal scaling of discrete approximations to Langevin diffusions").

    Examples
    --------
    >>> import amortize as am
    >>> am.AIS(kernel=am.MALA(), num_temperatures=1000).kernel
    MALA(target_acceptance=0.574)
    """

    target_acceptance: float = 0.574

    def __post_init__(self) -> None:
        check_number("MALA target_acceptance", self.target_acceptance, "(0, 1)")

    @property
    def transition(self) -> Transition:
        """``mala``."""
        return mala

    @property
    def num_gradients(self) -> int:
        """One."""
        return 1

    @property
    def largest_step(self) -> float:
        """The square root of 2."""
        return LARGEST_STEP


@torch.no_grad()
def mala(state: Point, target: Target, parameters: Parameters, generator: torch.Generator) -> tuple[Point, Info]:
    """One transition of B independent chains that leaves the tempered density invariant."""
    proposed = propose(state, target, parameters, generator, num_steps=1)
    info = Info(proposed.log_ratio.clamp(max=0).exp(), proposed.finite, torch.zeros_like(proposed.log_ratio))
    return metropolis(proposed, state, generator), info
