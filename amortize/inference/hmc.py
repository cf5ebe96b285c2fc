r"""Hamiltonian Monte Carlo on a tempered density, rows independent of one another.

Leapfrog in whitened coordinates (see ``leapfrog``), step size jittered by 10 % a call, Metropolis correction; a
proposal whose energy is not finite is rejected and counted (Neal 2011, "MCMC using Hamiltonian dynamics", sections 3
and 5.4).

Velocities may be stratified over the chains of a datapoint (a Latin hypercube: in each dimension, every chain takes
another stratum of the normal distribution). Each chain by itself is as before; together they cover the distribution
more evenly, so that means over chains vary less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortize.errors import check_count, check_number
from amortize.inference.kernels import Info, Kernel, Parameters, Target, Transition
from amortize.inference.leapfrog import metropolis, propose
from amortize.inference.path import Point

__all__ = ["HMC", "hmc"]


@dataclass(frozen=True)
class HMC(Kernel):
    """Settings of Hamiltonian Monte Carlo.

    Parameters
    ----------
    num_leapfrog
        Leapfrog steps a transition.
    jitter
        Relative half-width of the uniform jitter of the step size.
    """

    num_leapfrog: int = 10
    jitter: float = 0.1

    def __post_init__(self) -> None:
        check_count("HMC num_leapfrog", self.num_leapfrog)
        check_number("HMC jitter", self.jitter, "[0, 1)")

    @property
    def transition(self) -> Transition:
        """``hmc``."""
        return hmc

    @property
    def num_gradients(self) -> int:
        """One a leapfrog step."""
        return self.num_leapfrog

    @property
    def target_acceptance(self) -> float:
        """0.8."""
        return 0.8

    @property
    def largest_step(self) -> float:
        """A quarter of a standard normal's period, L * step = pi / 2: there u forgets where it was."""
        return math.pi / (2 * self.num_leapfrog)


@torch.no_grad()
def hmc(state: Point, target: Target, parameters: Parameters, generator: torch.Generator) -> tuple[Point, Info]:
    """One transition of B independent chains that leaves the tempered density invariant."""
    settings = parameters.settings
    assert isinstance(settings, HMC)
    jittered = parameters._replace(step_size=_jittered(parameters.step_size, settings.jitter, generator))
    proposed = propose(state, target, jittered, generator, num_steps=settings.num_leapfrog)
    info = Info(proposed.log_ratio.clamp(max=0).exp(), proposed.finite, torch.zeros_like(proposed.log_ratio))
    return metropolis(proposed, state, generator), info


def _jittered(step_size: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    if jitter == 0:
        return step_size
    noise = torch.rand(step_size.shape, generator=generator, device=step_size.device, dtype=step_size.dtype)
    return step_size * (1 + jitter * (2 * noise - 1))
