r"""Leapfrog trajectories along a tempered density, in whitened coordinates: what HMC, MALA and ULA propose.

With A the whitening, h the step size and v the velocity, a step is
:math:`v \leftarrow v + \tfrac{h}{2} A^T \nabla \log \pi_\beta(u)`, :math:`u \leftarrow u + h A v`, and the first again
(Neal 2011, "MCMC using Hamiltonian dynamics", section 2.3). Only the last step needs the density's value.

Letters: B rows (chains x datapoints, chain-major), N datapoints, D latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.kernels import Parameters, Target, choose, stratified_normal
from amortize.inference.path import Point
from amortize.inference.whitening import pull, push

__all__ = ["Proposed", "metropolis", "propose"]


class Proposed(NamedTuple):
    """Where B rows would go, the log Metropolis ratio of going there (B,), and whether the energy there is finite.

    The ratio is -inf where it isn't, or where the energy before was NaN.
    """

    point: Point
    log_ratio: Tensor
    finite: Tensor


def propose(
    state: Point, target: Target, parameters: Parameters, generator: torch.Generator, *, num_steps: int
) -> Proposed:
    r"""Follow a trajectory of ``num_steps`` from each row, with fresh velocities.

    The trajectory back from u' starts with the final velocity, its sign changed. So the ratio is the change in energy;
    and with one step, whose position has the density F,
    :math:`\log \pi(u') F(u' \to u) - \log \pi(u) F(u \to u')`.
    """
    beta = parameters.beta
    leap = _Leap(parameters)
    velocity = stratified_normal(state.u, parameters.num_strata, generator)
    before = _energy(state, beta, velocity)
    u = state.u.clone()
    leap.kick_(velocity, state.gradient(beta), 0.5)
    leap.drift_(u, velocity)
    for _ in range(num_steps - 1):
        leap.kick_(velocity, target.gradient(u, beta), 1.0)
        leap.drift_(u, velocity)
    point = target.evaluate(u)
    leap.kick_(velocity, point.gradient(beta), 0.5)
    after = _energy(point, beta, velocity)
    finite = torch.isfinite(after)
    change = after - before
    return Proposed(point, torch.where(finite & ~torch.isnan(change), change, -torch.inf), finite)


def metropolis(proposed: Proposed, state: Point, generator: torch.Generator) -> Point:
    """Accept or reject each row."""
    ratio = proposed.log_ratio
    uniform = torch.rand(ratio.shape, generator=generator, device=ratio.device, dtype=ratio.dtype)
    return choose(uniform.log() < ratio, proposed.point, state)


class _Leap:
    """Half-steps written in place; a diagonal whitening and the step size are one factor, made once a trajectory."""

    def __init__(self, parameters: Parameters) -> None:
        self.step, self.scale = parameters.step_size, parameters.scale
        self.reach = None if self.scale.dim() == 3 else push(self.scale, self.step.expand(-1, self.scale.shape[-1]))

    def kick_(self, velocity: Tensor, gradient: Tensor, share: float) -> None:
        """Add ``share`` of a step along the gradient to velocities (B, D)."""
        if self.reach is not None:
            velocity.addcmul_(self.reach, gradient, value=share)
        else:
            velocity.addcmul_(self.step, pull(self.scale, gradient), value=share)

    def drift_(self, u: Tensor, velocity: Tensor) -> None:
        """Add a step along the velocity to positions (B, D)."""
        if self.reach is not None:
            u.addcmul_(self.reach, velocity)
        else:
            u.addcmul_(self.step, push(self.scale, velocity))


def _energy(point: Point, beta: Tensor, velocity: Tensor) -> Tensor:
    return point.log_density(beta.squeeze(-1)) - 0.5 * velocity.square().sum(-1)
