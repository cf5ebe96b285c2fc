r"""A start nearer to the posterior, for datapoints whose guide is too far off: a Gaussian fitted to each by itself.

The fit is full-covariance variational inference (see ``families``), which is as good a start as the posterior is
Gaussian, and which, like every start, leaves the weights exact. What it can't be trusted with is a second mode. So
chains that were annealed from the original start, which knows nothing of the fit, must lie under it: with d the
Mahalanobis distance of a chain's end from the Gaussian, draws of the posterior have :math:`d^2` near D, and those of a
mode that the fit has missed are far beyond.

Letters: C chains, N datapoints, D latents.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from amortize.inference.families.family import Problem
from amortize.inference.families.gaussian import FullCovariance
from amortize.inference.starts import GaussianStart, Start
from amortize.program.data import Data

__all__ = ["FIT_COST", "covers", "fitted_start", "refinable"]

MOST_LATENTS = 128
"""Beyond, D^2 parameters a datapoint are more than a few thousand gradients can tell."""
NUM_DRAWS, NUM_STEPS = 8, 400  # of the fit, steps in each of its two phases
FIT_COST = 2.0 * NUM_DRAWS * NUM_STEPS
"""Gradients a datapoint that the fit takes at most."""
STRAYED = 0.05  # share of the chains' weight allowed outside


def refinable(start: Start) -> bool:
    """Whether a Gaussian can take the place of ``start``: continuous latents alone, and not too many of them."""
    structure = start.log_joint.structure
    return not structure.sampled and 0 < structure.dim <= MOST_LATENTS and not isinstance(start, GaussianStart)


def fitted_start(start: Start, data: Data, *, seed: int) -> tuple[GaussianStart, np.ndarray]:
    """A Gaussian fitted to each of the N datapoints from the moments of ``start``, and the gradients it took (N,).

    Where the fit broke down its numbers are not finite, and ``covers`` is false.
    """
    fit = FullCovariance().fit(Problem(start.log_joint, start, data, NUM_DRAWS, NUM_STEPS, seed))
    fitted = GaussianStart(start.log_joint, fit.parameters["loc"], fit.parameters["scale_tril"])
    return fitted, fit.num_gradients.double().cpu().numpy()


@torch.no_grad()
def covers(start: GaussianStart, u: Tensor, log_weights: np.ndarray) -> np.ndarray:
    """Whether chains that ended at u (C, N, D) with these log weights (C, N) lie under the Gaussians: (N,) bool."""
    loc, tril = start.loc.double().cpu(), start.scale_tril.double().cpu()
    usable = torch.isfinite(loc).all(-1) & torch.isfinite(tril).all(-1).all(-1)
    safe = torch.where(usable[:, None, None], tril, torch.eye(tril.shape[-1], dtype=tril.dtype))
    white = torch.linalg.solve_triangular(safe, (u.double().cpu() - loc).movedim(0, -1), upper=False)
    square = white.square().sum(1).T.numpy()
    dim = loc.shape[-1]
    outside = ~(square <= 2 * dim + 6 * np.sqrt(2 * dim) + 10)  # posteriors are somewhat wider than their fits
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_weights - log_weights.max(0))
        share = (weights * outside).sum(0) / weights.sum(0)
    return np.asarray(usable.numpy() & (share <= STRAYED))
