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
from amortize.inference.families.modes import climb

__all__ = ["Point"]


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
            stopped=mode.stopped,
            num_steps=mode.num_steps,
            num_gradients=mode.num_steps,
            elbo=mode.value,
            elbo_se=torch.zeros_like(mode.value),
            trace=mode.trace,
        )

    def draw(self, parameters: Parameters, problem: Problem) -> Tensor:
        """The point, over and over."""
        return parameters["u"].expand(problem.num_draws, -1, -1)
