r"""Importance sampling of each datapoint's evidence from a start density.

.. math:: w_s = p(x, u_s) / q_0(u_s), \quad u_s \sim q_0, \qquad
          \mathrm{ELBO} = E[\log w] \le E[\log \tfrac1S \textstyle\sum_s w_s] \le \log p(x)

The middle term is the importance-weighted bound (Burda et al. 2016), reported as ``lower``; the estimate smooths the
tail of the weights (Vehtari et al. 2024), which is not a bound, and its k-hat says whether to believe it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from amortize.diagnostics.psis import psis
from amortize.diagnostics.weights import log_evidence_se, log_mean_exp
from amortize.errors import check_count
from amortize.inference.method import MAX_ROWS, MAX_WORK, VALUE_COST, Estimate, Method, estimate_of
from amortize.inference.starts import Start
from amortize.program.data import Data

__all__ = ["ImportanceSampling", "log_ratios", "smoothed"]

NAME = "importance sampling (PSIS)"
FEWEST_DATAPOINTS = 128


@dataclass(frozen=True)
class ImportanceSampling(Method):
    """Settings of importance sampling: S = ``num_draws`` draws a datapoint."""

    num_draws: int = 1000

    def __post_init__(self) -> None:
        check_count("ImportanceSampling num_draws", self.num_draws)

    def chunk_size(self, start: Start) -> int:
        """Draws are chunked within a datapoint too, so that it is the work that limits a chunk."""
        rows = min(MAX_ROWS, max(FEWEST_DATAPOINTS, int(MAX_WORK / (VALUE_COST * self.num_draws))))
        return max(1, rows // start.log_joint.num_tiles)

    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """Draw, weigh and smooth."""
        return smoothed(log_ratios(start, data, self.num_draws, seed=seed, stream="draws"))


def smoothed(log_weights: np.ndarray) -> Estimate:
    """The estimate from independent draws' log weights (S, N), their tails smoothed."""
    tail = psis(log_weights)
    raw = estimate_of(log_weights, name=NAME, num_gradients=VALUE_COST * len(log_weights))
    return replace(
        raw,
        log_evidence=log_mean_exp(tail.log_weights),
        se=np.maximum(log_evidence_se(tail.log_weights), raw.se),
        khat=tail.khat,
    )


def log_ratios(start: Start, data: Data, num_draws: int, *, seed: int, stream: str) -> np.ndarray:
    """Log importance weights of ``num_draws`` exact draws from ``start``, (S, N) float64, rows chunked."""
    size = max(1, MAX_ROWS // (data.num_datapoints * start.log_joint.num_tiles))
    parts = []
    for first in range(0, num_draws, size):
        folded = data.fold(min(size, num_draws - first))
        latents = start.draw(folded, seed, f"{stream}-{first}")
        with torch.no_grad():
            ratio = start.terms(folded, *latents)[1]
        parts.append(ratio.reshape(-1, data.num_datapoints).double().cpu().numpy())
    return np.concatenate(parts)
