r"""Gaussians at the mode of each datapoint's density over u, with its curvature there.

.. math:: q(u) = \mathcal N(\hat u, H^{-1}), \qquad \hat u = \arg\max_u \log p(x_n, u), \quad
          H = - \nabla^2 \log p(x_n, \hat u)

It looks at one point and raises no ELBO: full covariance is better by that measure, by definition, and this is cheaper.
Where H is not positive definite there is no such Gaussian: its scale, and the ELBO, are NaN. Source: Tierney and Kadane
(1986), "Accurate approximations for posterior moments and marginal densities".

Letters: N datapoints, D latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.inference.families.density import GaussianDensity
from amortize.inference.families.family import Family, Fit, Parameters, Problem
from amortize.inference.families.modes import climb

__all__ = ["Laplace"]


@dataclass(frozen=True)
class Laplace(Family):
    """Gaussians over u at the mode; parameters ``loc`` (N, D) and ``scale_tril`` (N, D, D)."""

    name: ClassVar[str] = "laplace"
    raises_elbo: ClassVar[bool] = False

    def fit(self, problem: Problem) -> Fit:
        """The mode and the curvature of each datapoint."""

        def value(u: Tensor) -> Tensor:
            return problem.log_joint.terms(problem.data, u=u).joint

        mode = climb(problem, value, name=self.name)
        tril = _inverse_root(-hessian(problem, mode.u))
        return Fit(
            parameters={"loc": mode.u, "scale_tril": tril},
            stopped=mode.stopped & torch.isfinite(tril).all(-1).all(-1),
            num_steps=mode.num_steps,
            num_gradients=mode.num_steps + problem.dim,
            trace=mode.trace,
        )

    def density(self, parameters: Parameters) -> GaussianDensity:
        """Gaussians."""
        return GaussianDensity(parameters["loc"], parameters["scale_tril"])


def hessian(problem: Problem, u: Tensor) -> Tensor:
    """Second derivatives (N, D, D) of log p at u (N, D), by D backward passes through its gradient."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = problem.log_joint.terms(problem.data, u=u).joint
        (slope,) = torch.autograd.grad(value.sum(), u, create_graph=True)
        if not slope.requires_grad:  # linear in u
            return u.new_zeros(*u.shape, u.shape[-1])
        columns = [
            torch.autograd.grad(column.sum(), u, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for column in slope.unbind(-1)
        ]
    return torch.stack(columns, -1)


def _inverse_root(precision: Tensor) -> Tensor:
    """Lower L with L L^T the inverse; NaN where the precision is not positive definite."""
    wide = precision.double()
    wide = 0.5 * (wide + wide.mT)
    finite = torch.isfinite(wide).all(-1).all(-1)
    eye = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    root, failed = torch.linalg.cholesky_ex(torch.where(finite[:, None, None], wide, eye))
    good = finite & (failed == 0)
    inverse = torch.cholesky_inverse(torch.where(good[:, None, None], root, eye))
    tril = torch.linalg.cholesky(0.5 * (inverse + inverse.mT))
    return torch.where(good[:, None, None], tril, torch.nan).to(precision)
