"""What is known of Pyro's AutoGuides: which are densities over u, and where their parameters are.

Letters: N datapoints that the guide was made on, D latents.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import MultivariateNormal
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuide,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from torch import Tensor

from amortize.errors import GuideMismatchError
from amortize.program.data import Data
from amortize.program.density import LogJoint

__all__ = [
    "BY_DATAPOINT",
    "FACTORISED",
    "GAUSSIAN",
    "laplace_tril",
    "loc_scale",
    "refuse",
    "rows_of",
    "shapes",
    "single_guides",
]

FACTORISED = (AutoNormal, AutoDiagonalNormal)
BY_DATAPOINT = (*FACTORISED, AutoLaplaceApproximation)
"""Posteriors of each datapoint by itself."""
GAUSSIAN = (AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoLaplaceApproximation)
KNOWN = (*BY_DATAPOINT, *GAUSSIAN, AutoNormalizingFlow)
FORWARDS = (AutoNormal.forward, AutoContinuous.forward)


def single_guides(guide: Any) -> list[Any]:
    """The guides in a list of guides, and in lists in it."""
    return [one for part in guide for one in single_guides(part)] if isinstance(guide, AutoGuideList) else [guide]


def shapes(guide: Any) -> dict[str, torch.Size]:
    """Unconstrained shapes of an AutoGuide's sites, in the order of its flat vector."""
    if not isinstance(guide, AutoContinuous):
        names = [name for name, _ in guide.prototype_trace.iter_stochastic_nodes()]
        return {name: guide._get_loc_and_scale(name)[0].shape for name in names}
    shapes: dict[str, torch.Size] = guide._unconstrained_shapes
    return shapes


def loc_scale(guide: Any) -> tuple[Tensor, Tensor]:
    """Means and scales of a guide that factorises, as flat vectors."""
    if not isinstance(guide, AutoContinuous):  # AutoNormal keeps them site by site
        pairs = [guide._get_loc_and_scale(name) for name in shapes(guide)]
        loc, scale = (torch.cat([pair[i].flatten() for pair in pairs]) for i in range(2))
        return loc, scale
    return guide.loc, guide.scale


def refuse(guide: AutoGuide, num_datapoints: int) -> None:
    """Refuse AutoGuides that are no density over a datapoint's u."""
    name = type(guide).__name__
    if isinstance(guide, AutoDelta):
        raise GuideMismatchError(
            f"{name} is a point, which has no density over u. Start from the prior (start='prior'), use AutoNormal, or "
            "AutoLaplaceApproximation, which is a Gaussian around such a point"
        )
    if not isinstance(guide, KNOWN) or type(guide).forward not in FORWARDS:
        raise GuideMismatchError(
            f"{name}: its density over u can't be read off its parameters. Use AutoNormal, AutoDiagonalNormal, for a "
            "single datapoint AutoMultivariateNormal, AutoLowRankMultivariateNormal or AutoIAFNormal, or start from "
            "the prior (start='prior')"
        )
    if num_datapoints > 1 and not isinstance(guide, BY_DATAPOINT):
        raise GuideMismatchError(
            f"{name} correlates the {num_datapoints} datapoints with one another, so it is no posterior of each by "
            "itself. Use AutoNormal or AutoDiagonalNormal, or am.fit_local(program, x, family='full-covariance'); or "
            "take the whole data set as one datapoint, am.Program(model, guide, whole=True)"
        )


def rows_of(gaussians: tuple[Tensor, Tensor], index: Tensor) -> Any:
    """The Gaussians of some rows."""
    loc, tril = gaussians
    return MultivariateNormal(loc[index], scale_tril=tril[index])


def laplace_tril(log_joint: LogJoint, data: Data, loc: Tensor) -> Tensor:
    """Cholesky factors (N, D, D) of the inverse of minus each datapoint's Hessian at ``loc`` (N, D)."""
    with torch.enable_grad():
        u = loc.clone().requires_grad_()
        (slope,) = torch.autograd.grad(log_joint.terms(data, u=u).joint.sum(), u, create_graph=True)
        columns = [torch.autograd.grad(slope[:, i].sum(), u, retain_graph=True)[0] for i in range(u.shape[1])]
    precision = -torch.stack(columns, -1).detach()
    _, wrong = torch.linalg.cholesky_ex(0.5 * (precision + precision.mT))
    if wrong.any():
        rows = ", ".join(str(int(row)) for row in torch.nonzero(wrong).flatten()[:5])
        raise GuideMismatchError(
            f"AutoLaplaceApproximation: the log joint has no maximum where the guide stands, at datapoints {rows}. "
            "Train it longer (am.fit), or use AutoNormal"
        )
    covariance = torch.linalg.inv(0.5 * (precision + precision.mT))
    tril: Tensor = torch.linalg.cholesky(0.5 * (covariance + covariance.mT))
    return tril
