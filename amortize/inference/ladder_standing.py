"""Where a program stands as the discrete model that it is: the guide's ELBO, and log p(x). N datapoints, K draws."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from amortize.errors import AmortizeWarning
from amortize.inference.chunks import slices
from amortize.inference.evidence import evidence
from amortize.inference.exact_elbo import ExactELBO
from amortize.inference.importance import ImportanceSampling
from amortize.inference.method import Method
from amortize.inference.objective import MAX_ROWS
from amortize.program.data import Data
from amortize.program.program import Program
from amortize.program.trained import TrainedProgram
from amortize.random import pyro_rng

__all__ = ["NOWHERE", "Standing", "standing_of"]

NUM_PARTICLES = 100


@dataclass(frozen=True)
class Standing:
    """Means over datapoints in nats, with Monte Carlo standard errors, 0 where nothing was drawn.

    Attributes
    ----------
    elbo, elbo_se, log_evidence, log_evidence_se
        Of the discrete program.
    trusted
        Share of datapoints whose log evidence can be relied on within its standard error.
    method
        What log p(x) was measured by.
    """

    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    trusted: float
    method: str


NOWHERE = Standing(math.nan, math.nan, math.nan, math.nan, math.nan, "")
"""Where nothing was measured."""


def standing_of(program: Program, data: Data, *, exact: bool, method: Method | None, seed: int) -> Standing:
    """Of a program now; ``exact`` where its ELBO can be summed, ``method`` of the evidence where that can't be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)  # said by the share of datapoints that can be trusted
        found = evidence(program, data, method=ImportanceSampling() if method is None else method, seed=seed)
    elbo, elbo_se = _exact_elbo(program, data) if exact else _sampled_elbo(program, data, seed)
    error = math.sqrt(float(np.square(found.se).sum())) / data.num_datapoints
    by = str(found.used[0]) if len(set(found.used)) == 1 else found.method
    return Standing(elbo, elbo_se, float(found.log_evidence.mean()), error, float(found.trusted.mean()), by)


def _exact_elbo(program: Program, data: Data) -> tuple[float, float]:
    with program.evaluating():
        loss = ExactELBO().on(program, data, seed=0)
        return float(loss.measured(data, 1, seed=0).mean()), 0.0


def _sampled_elbo(program: Program, data: Data, seed: int) -> tuple[float, float]:
    """From draws of the guide; the error is that of the mean over datapoints, which have draws of their own."""
    with program.evaluating(), pyro_rng(seed, "ladder", "elbo"), torch.no_grad():
        trained = TrainedProgram(program, data, pathwise=False)
        parts = []
        size = max(1, MAX_ROWS // (data.num_datapoints * trained.log_joint.num_tiles))
        for block in slices(NUM_PARTICLES, size):
            particles = trained.particles(data, block.stop - block.start, cut=True)
            parts.append((particles.log_joint - particles.log_q).double().cpu())
    values = torch.cat(parts)
    error = (values.var(0) / len(values)).sum().sqrt() / data.num_datapoints
    return float(values.mean()), float(error)
