r"""Hamiltonian Monte Carlo on a tempered density, rows independent of one another.

Leapfrog in whitened coordinates (see ``whitening``), step size jittered by 10 % a call, Metropolis correction; a
proposal whose energy is not finite is rejected and counted (Neal 2011, "MCMC using Hamiltonian dynamics", sections 3
and 5.4). The value of the density is needed at the last step only; inner steps ask for gradients.

Velocities may be stratified over the chains of a datapoint (a Latin hypercube: in each dimension, every chain takes
another stratum of the normal distribution). Each chain by itself is as before; together they cover the distribution
more evenly, so that means over chains vary less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_count
from amortize.inference.kernels import Info, Kernel, Parameters, Target, Transition, choose, stratified_normal
from amortize.inference.path import Point
from amortize.inference.whitening import pull, push

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
        if not 0 <= self.jitter < 1:
            raise ArgumentError(f"HMC jitter: expected a number in [0, 1), got {self.jitter!r}")

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
    beta, scale, settings = parameters.beta, parameters.scale, parameters.settings
    assert isinstance(settings, HMC)
    step = _jittered(parameters.step_size, settings.jitter, generator)
    velocity = stratified_normal(state.u, parameters.num_strata, generator)
    start_energy = _energy(state, beta, velocity)
    velocity = velocity + 0.5 * step * pull(scale, state.gradient(beta))
    u = state.u + step * push(scale, velocity)
    for _ in range(settings.num_leapfrog - 1):
        velocity = velocity + step * pull(scale, target.gradient(u, beta))
        u = u + step * push(scale, velocity)
    proposal = target.evaluate(u)
    velocity = velocity + 0.5 * step * pull(scale, proposal.gradient(beta))
    energy = _energy(proposal, beta, velocity)
    finite = torch.isfinite(energy)
    change = energy - start_energy
    log_accept = torch.where(finite & ~torch.isnan(change), change, -torch.inf)
    uniform = torch.rand(log_accept.shape, generator=generator, device=u.device, dtype=u.dtype)
    accept = uniform.log() < log_accept
    info = Info(log_accept.clamp(max=0).exp(), finite, torch.zeros_like(log_accept))
    return choose(accept, proposal, state), info


def _energy(point: Point, beta: Tensor, velocity: Tensor) -> Tensor:
    return point.log_density(beta.squeeze(-1)) - 0.5 * velocity.square().sum(-1)


def _jittered(step_size: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    if jitter == 0:
        return step_size
    noise = torch.rand(step_size.shape, generator=generator, device=step_size.device, dtype=step_size.dtype)
    return step_size * (1 + jitter * (2 * noise - 1))
