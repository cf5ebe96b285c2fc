"""The evidence where the guide may have missed a mode: annealing a second time, from all the modes there are.

Chains that begin at a guide with one of two modes seldom reach the other, and their estimate is too low without
saying so. Where posteriors have several modes, annealing therefore begins a second time, at mixtures fitted to each
datapoint by itself from draws of the prior. Both estimates are right in expectation, and a mode that was missed makes
them low, so the higher one counts where they differ by more than noise.

A guide that is a point has no draws to begin at. Its model is most often one of narrow posteriors far from the prior,
so annealing then begins at the best of the posteriors that were fitted to each datapoint. Letters: N datapoints.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np

from amortize.errors import AmortizeWarning
from amortize.inference.evidence import Evidence, evidence
from amortize.inference.importance import ImportanceSampling
from amortize.inference.local import LocalPosterior, fit_local
from amortize.inference.method import Method
from amortize.program.data import Data
from amortize.program.points import has_density
from amortize.program.program import Program
from amortize.random import stream_seed
from amortize.study.findings import NUM_SE
from amortize.study.modes import share_multimodal

__all__ = ["SOME", "beginning", "measure_twice"]

SOME = 0.1
"""Share of datapoints with several modes from which on the evidence is measured a second time."""


def beginning(program: Program, data: Data, local: Mapping[str, LocalPosterior]) -> LocalPosterior | None:
    """Where the evidence of a program whose guide is a point begins: at the family of the highest mean ELBO.

    None for other programs, or without families that have a density: then it is for ``am.evidence`` to say.
    """
    if program.guide is None or has_density(program, data):
        return None
    means = {name: float(np.mean(part.elbo)) for name, part in local.items() if name != "annealed"}
    finite = [name for name, mean in means.items() if math.isfinite(mean)]
    return local[max(finite, key=means.__getitem__)] if finite else None


def measure_twice(
    program: Program,
    data: Data,
    *,
    method: Method,
    start: LocalPosterior | None = None,
    seed: int = 0,
    device: str | None = None,
) -> tuple[Evidence, float]:
    """The evidence, and the share of datapoints with several modes (NaN where that does not matter).

    Importance sampling is left as it is: where it begins is what it is asked about.
    """
    first = evidence(program, data, method=method, start=start, seed=seed, device=device)
    if isinstance(method, ImportanceSampling) or not program.structure(data).dim or not has_density(program, data):
        return first, math.nan
    share = share_multimodal(program, data, seed=stream_seed(seed, "modes"))
    if not share >= SOME:
        return first, share
    begin = fit_local(program, data, family="mixture", init="prior", seed=seed, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)  # said again if it is the one that counts
        again = evidence(
            program, data, method=method, start=begin, seed=stream_seed(seed, "second start"), device=device
        )
    return (again if _higher(again, first) else first), share


def _higher(again: Evidence, first: Evidence) -> bool:
    gain = again.log_evidence - first.log_evidence
    gain = gain[np.isfinite(gain)]
    return len(gain) > 1 and bool(gain.mean() > NUM_SE * gain.std(ddof=1) / np.sqrt(len(gain)))
