"""Log p(x) itself, where every latent is discrete and summed out and nothing is left to sample. N datapoints."""

from __future__ import annotations

import numpy as np
import torch

from amortize.inference.chunks import slices
from amortize.inference.method import MAX_ROWS
from amortize.program.data import Data
from amortize.program.density import LogJoint

__all__ = ["exact_log_evidence", "is_exact"]


def is_exact(log_joint: LogJoint) -> bool:
    """Whether no latent is left when the discrete ones are summed out."""
    return not (log_joint.dim or log_joint.structure.sampled)


@torch.no_grad()
def exact_log_evidence(log_joint: LogJoint, data: Data) -> np.ndarray:
    """Log p(x_n) of each datapoint, (N,) nats, rows chunked."""
    parts = []
    for rows in slices(data.num_datapoints, max(1, MAX_ROWS // log_joint.num_tiles)):
        chunk = data.rows(rows)
        u = log_joint.like.new_zeros(chunk.num_datapoints, 0)
        parts.append(log_joint.terms(chunk, u=u).joint.double().cpu().numpy())
    return np.concatenate(parts)
