"""What importance weights say about themselves: numpy in, numpy out, no torch."""

from __future__ import annotations

from amortize.diagnostics.psis import MIN_TAIL, PSIS, khat_threshold, psis
from amortize.diagnostics.weights import effective_sample_size, log_evidence_se, log_mean_exp

__all__ = [
    "MIN_TAIL",
    "PSIS",
    "effective_sample_size",
    "khat_threshold",
    "log_evidence_se",
    "log_mean_exp",
    "psis",
]
