r"""One point a datapoint: the maximum a posteriori (MAP) of the latents in their own space.

.. math:: z_n = \arg\max_z \log p(x_n, z), \qquad \text{over } u,\ z = T(u), \text{ without the Jacobian of } T

as Pyro's AutoDelta has it; it is not the image of the mode of u. ``elbo`` is log p(x, z) there, no bound on log p(x): a
point has no entropy. Where the density is highest at the edge of the support, at z = 0 say, no u is the mode: the point
comes within a millionth of a nat of it or, where the density grows without bound, runs on and is not ``converged``.
Discrete latents that are summed out stay summed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.inference.families.family import Fit, Implicit, Parameters, Problem
from amortize.inference.families.modes import Value, climb
from amortize.random import generator

__all__ = ["Point"]

PULL, GROWTH, HALVINGS = 3.0, 1e-2, 12
"""How far back in u, and by how many nats a density still grew there on its way to where rounding holds a point up."""


@dataclass(frozen=True)
class Point(Implicit):
    """The mode of the latents in their own space; its parameters are ``u`` (N, D), draws are all the same."""

    name: ClassVar[str] = "point"
    is_bound: ClassVar[bool] = False
    raises_elbo: ClassVar[bool] = False

    def fit(self, problem: Problem) -> Fit:
        """The mode of each datapoint."""

        def value(u: Tensor) -> Tensor:
            terms = problem.log_joint.terms(problem.data, u=u)
            stand_ins = sum(terms.hidden.values(), torch.zeros_like(terms.jacobian))
            return terms.joint - terms.jacobian - stand_ins

        mode = climb(problem, value, name=self.name)
        return Fit(
            parameters={"u": mode.u},
            stopped=mode.stopped & ~_held_up(problem, value, mode.u),
            num_steps=mode.num_steps,
            num_gradients=mode.num_steps,
            elbo=mode.value,
            elbo_se=torch.zeros_like(mode.value),
            trace=mode.trace,
        )

    def draw(self, parameters: Parameters, problem: Problem) -> Tensor:
        """The point, over and over."""
        return parameters["u"].expand(problem.num_draws, -1, -1)


def _held_up(problem: Problem, value: Value, u: Tensor) -> Tensor:
    """Whether points (N,) stand where T moves no more for want of digits, and the density grew on the way there."""
    far = _still(problem, u)
    if not bool(far.any()):
        return far.any(-1)
    near, edge = problem.moments()[0], u
    for _ in range(HALVINGS):  # where it is that T comes to rest
        middle = 0.5 * (near + edge)
        still = _still(problem, torch.where(far, middle, u))
        near, edge = torch.where(still, near, middle), torch.where(still, middle, edge)
    with torch.no_grad():
        back = torch.where(far, near - PULL * (u - near).sign(), u)
        return far.any(-1) & (value(u) - value(back) > GROWTH)


@torch.enable_grad()
def _still(problem: Problem, u: Tensor) -> Tensor:
    """Which numbers of u (N, D) do not move z = T(u) at all: (N, D) bool."""
    u = u.detach().requires_grad_()
    latents = problem.log_joint.terms(problem.data, u=u).values
    noise = generator(0, "still", device=u.device)  # as the sum of a simplex is 1 wherever it is
    moving = [z for z in latents.values() if z.requires_grad]
    shares = [torch.rand(z.shape, generator=noise, device=z.device, dtype=z.dtype) for z in moving]
    total = sum(((z * share).sum() for z, share in zip(moving, shares, strict=True)), u.new_zeros(()))
    (slope,) = torch.autograd.grad(total, u, materialize_grads=True)
    return slope == 0
