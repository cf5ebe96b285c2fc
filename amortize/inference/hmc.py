r"""Hamiltonian Monte Carlo on a tempered density, rows independent of one another.

Leapfrog in whitened coordinates (see ``whitening``), step size jittered by 10 % a call, Metropolis correction; a
proposal whose energy is not finite is rejected and counted (Neal 2011, "MCMC using Hamiltonian dynamics", sections 3
and 5.4). The value of the density is needed at the last step only; inner steps ask for gradients.

Velocities may be stratified over the chains of a datapoint (a Latin hypercube: in each dimension, every chain takes
another stratum of the normal distribution). Each chain by itself is as before; together they cover the distribution
more evenly, so that means over chains vary less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_count
from amortize.inference.path import GeometricPath, HeldPath, Point
from amortize.inference.whitening import pull, push

__all__ = ["HMC", "HMCInfo", "HMCParameters", "hmc", "stratified_normal"]

TINY = 1e-12  # a uniform number may be 0


@dataclass(frozen=True)
class HMC:
    """Settings of the kernel.

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


class HMCParameters(NamedTuple):
    """``beta`` and ``step_size`` (B, 1), the whitening ``scale`` (N, D) or (N, D, D), strata of velocities."""

    beta: Tensor
    step_size: Tensor
    scale: Tensor
    settings: HMC
    num_strata: int = 1


class HMCInfo(NamedTuple):
    """Probability of acceptance (0 where the proposal's energy is not finite) and whether it was finite, (B,)."""

    acceptance: Tensor
    finite: Tensor


@torch.no_grad()
def hmc(
    state: Point, target: GeometricPath | HeldPath, parameters: HMCParameters, generator: torch.Generator
) -> tuple[Point, HMCInfo]:
    """One transition of B independent chains that leaves the tempered density invariant."""
    beta, scale, settings = parameters.beta, parameters.scale, parameters.settings
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
    change = _energy(proposal, beta, velocity) - start_energy
    finite = torch.isfinite(_energy(proposal, beta, velocity))
    log_accept = torch.where(finite & ~torch.isnan(change), change, -torch.inf)
    uniform = torch.rand(log_accept.shape, generator=generator, device=u.device, dtype=u.dtype)
    accept = uniform.log() < log_accept
    moved = Point(*(_choose(accept, new, old) for new, old in zip(proposal, state, strict=True)))
    return moved, HMCInfo(log_accept.clamp(max=0).exp(), finite)


def _energy(point: Point, beta: Tensor, velocity: Tensor) -> Tensor:
    return point.log_density(beta.squeeze(-1)) - 0.5 * velocity.square().sum(-1)


def _jittered(step_size: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    if jitter == 0:
        return step_size
    noise = torch.rand(step_size.shape, generator=generator, device=step_size.device, dtype=step_size.dtype)
    return step_size * (1 + jitter * (2 * noise - 1))


def stratified_normal(like: Tensor, num_strata: int, generator: torch.Generator) -> Tensor:
    """Standard normal (B, D); in each dimension every chain of a datapoint takes another stratum."""
    if num_strata == 1:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    shape = (num_strata, len(like) // num_strata, like.shape[-1])
    noise = torch.rand((2, *shape), generator=generator, device=like.device, dtype=torch.float64)
    level = (noise[0].argsort(0) + noise[1]) / num_strata
    normal: Tensor = torch.special.ndtri(level.clamp(TINY, 1 - TINY))
    return normal.to(like.dtype).reshape(like.shape)


def _choose(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.unsqueeze(-1) if new.dim() > 1 else accept, new, old)
