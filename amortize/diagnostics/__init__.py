"""What importance weights and the runs behind them say about themselves: numpy in, numpy out, no torch."""

from __future__ import annotations

from amortize.diagnostics.bits import bits_per_dim
from amortize.diagnostics.codebooks import CodebookUsage, code_information, codebook_usage
from amortize.diagnostics.psis import MIN_TAIL, PSIS, khat_threshold, psis
from amortize.diagnostics.trust import Trust, assess
from amortize.diagnostics.weights import effective_sample_size, log_evidence_se, log_mean_exp

__all__ = [
    "MIN_TAIL",
    "PSIS",
    "CodebookUsage",
    "Trust",
    "assess",
    "bits_per_dim",
    "code_information",
    "codebook_usage",
    "effective_sample_size",
    "khat_threshold",
    "log_evidence_se",
    "log_mean_exp",
    "psis",
]
