r"""The Metropolis-adjusted Langevin algorithm on a tempered density, rows independent of one another.

One leapfrog step in whitened coordinates (see ``whitening``) is a Langevin step: with A the whitening, h the step size
and :math:`\xi` standard normal,

.. math:: u' = u + \tfrac{h^2}{2} A A^T \nabla \log \pi_\beta(u) + h A \xi,

then a Metropolis correction (Roberts and Tweedie 1996, "Exponential convergence of Langevin
distributions"). A proposal whose energy is not finite is rejected and counted.

Letters: B rows (chains x datapoints, chain-major), N datapoints, D latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.inference.kernels import Info, Kernel, Parameters, Target, Transition, choose, stratified_normal
from amortize.inference.path import Point
from amortize.inference.whitening import pull, push

__all__ = ["LARGEST_STEP", "MALA", "Proposed", "mala", "propose"]

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
        if not 0 < self.target_acceptance < 1:
            raise ArgumentError(f"MALA target_acceptance: expected a number in (0, 1), got {self.target_acceptance!r}")

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


class Proposed(NamedTuple):
    """A Langevin proposal for B rows, the log Metropolis ratio of moving there (B,), and whether that is finite.

    The ratio is -inf where the proposal's energy, or the change in energy, is not finite.
    """

    proposal: Point
    log_ratio: Tensor
    finite: Tensor


@torch.no_grad()
def mala(state: Point, target: Target, parameters: Parameters, generator: torch.Generator) -> tuple[Point, Info]:
    """One transition of B independent chains that leaves the tempered density invariant."""
    move = propose(state, target, parameters, generator)
    uniform = torch.rand(move.log_ratio.shape, generator=generator, device=state.u.device, dtype=move.log_ratio.dtype)
    accept = uniform.log() < move.log_ratio
    info = Info(move.log_ratio.clamp(max=0).exp(), move.finite, torch.zeros_like(move.log_ratio))
    return choose(accept, move.proposal, state), info


@torch.no_grad()
def propose(state: Point, target: Target, parameters: Parameters, generator: torch.Generator) -> Proposed:
    r"""Propose a step for each of B rows.

    With F the density of the step, the log ratio is
    :math:`\log \pi(u') F(u' \to u) - \log \pi(u) F(u \to u')`. The velocity that leads back from u' is the final one
    with its sign changed, so that this is the change in energy of a leapfrog step.
    """
    beta, step, scale = parameters.beta, parameters.step_size, parameters.scale
    noise = stratified_normal(state.u, parameters.num_strata, generator)
    velocity = torch.addcmul(noise, step, pull(scale, state.gradient(beta)), value=0.5)
    proposal = target.evaluate(torch.addcmul(state.u, step, push(scale, velocity)))
    velocity = torch.addcmul(velocity, step, pull(scale, proposal.gradient(beta)), value=0.5)
    before = state.log_density(beta.squeeze(-1)) - 0.5 * noise.square().sum(-1)
    after = proposal.log_density(beta.squeeze(-1)) - 0.5 * velocity.square().sum(-1)
    finite = torch.isfinite(after)
    change = after - before
    return Proposed(proposal, torch.where(finite & ~torch.isnan(change), change, -torch.inf), finite)
