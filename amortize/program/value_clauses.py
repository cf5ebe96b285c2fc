"""What the doctor tries of the log joint: structure, randomness, rows, values, gradients, precision."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from amortize.program.blame import named, with_line
from amortize.program.clauses import Clause, Exam, Finding
from amortize.program.compile import Compiled
from amortize.program.contract import verify_deterministic, verify_outside, verify_rows, verify_static
from amortize.program.discover import HEAD
from amortize.program.finite import FINITE_ADVICE, nonfinite_rows, verify_gradient, verify_somewhere_finite
from amortize.program.precision import measure_precision
from amortize.program.probes import head_of
from amortize.random import pyro_rng

__all__ = ["LAST_CLAUSES", "VALUE_CLAUSES"]

STATIC_RUNS = 8
ROW_DRAWS = 3


def _densities(exam: Exam) -> str:
    structure = exam.get("structure")
    plain = replace(structure, scaled=())  # whether there are scales is another clause
    exam.log_joint = exam.program.unverified_log_joint(exam.get("data"), plain)
    words = [f"D = {structure.dim} unconstrained dimensions"] if structure.continuous else []
    if structure.enumerated:
        words.append(f"{named(structure.enumerated)} summed out by {structure.summation}")
    if structure.sampled:
        words.append(f"{named(structure.sampled)} drawn by Gibbs moves")
    return "; ".join(words)


def _static(exam: Exam) -> str:
    log_joint, data = exam.get("log_joint"), exam.get("data")
    words = verify_static(log_joint, data, num_runs=STATIC_RUNS)
    if data.num_datapoints > HEAD and not exam.program.whole:
        verify_static(log_joint, data.rows(slice(-HEAD, None)), num_runs=2)
    exam.fixed = words
    return words


def _deterministic(exam: Exam) -> str:
    exam.steady = verify_deterministic(exam.get("log_joint"), exam.get("data"))
    return exam.steady


def _independent(exam: Exam) -> str:
    return verify_rows(exam.get("log_joint"), exam.get("data"), num_draws=ROW_DRAWS)


def _outside(exam: Exam) -> str:
    return verify_outside(exam.get("log_joint"), exam.get("data"))


def _finite(exam: Exam) -> str | Finding:
    log_joint = exam.get("log_joint")
    seen = exam.most
    bad = nonfinite_rows(log_joint, seen)
    verify_somewhere_finite(seen, bad)
    if bad.nan or bad.infinite:
        return Finding("warn", f"{bad.in_words()} at every draw", FINITE_ADVICE)
    return f"log p(x, z) at prior draws of {seen.num_datapoints} datapoints"


def _gradient(exam: Exam) -> str | Finding:
    words = verify_gradient(exam.get("log_joint"), exam.get("data"))
    return (
        Finding("warn", words, "Keep arguments of sqrt, log and division away from 0")
        if "not finite" in words
        else words
    )


def _precision(exam: Exam) -> str | Finding:
    log_joint, data = exam.get("log_joint"), exam.get("data")
    if log_joint.like.dtype != torch.float32 or not log_joint.dim:
        return f"computed in {str(log_joint.like.dtype).removeprefix('torch.')}"
    head = data if exam.program.whole else head_of(data, 8)
    with pyro_rng(0, "check"):
        latents = log_joint.draw_prior(head)
    try:
        found = measure_precision(log_joint, head, latents)
    except Exception as error:  # tensors out of reach stay float32, and the user's code may not mix types
        return Finding("note", f"cannot be tried in float64: {with_line(error)}")
    words = f"float32 differs from float64 by at most {found.difference:.2g} nats"
    if not found.bad:
        return words
    where = f", in the term of {found.site!r}" if found.site else ""
    return Finding(
        "warn",
        f"{words}{where} (log p(x, z) = {found.log_joint:.4g})",
        "Work in float64 (torch.set_default_dtype(torch.float64), program.double(), data of dtype float64), or "
        "subtract large constants before squares and exponentials, and take logarithms in one step (log_softmax)",
    )


def _compiled(exam: Exam) -> Finding:
    """Trace the log joint of a few rows; where that fails it runs eagerly, and the reason is good to know."""
    log_joint, head = exam.get("log_joint"), head_of(exam.get("data"))
    with pyro_rng(0, "check"):
        first, other = (log_joint.draw_prior(head) for _ in range(2))

    def joint(u: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = log_joint.terms(head, u=u, choices=first.choices).joint
            return value

    form = Compiled(joint, (first.u,), (other.u,), backend="fx").describe()
    slow = form.startswith("eager")
    return Finding("note" if slow else "ok", f"runs as {form}", "Results are the same, and slower" if slow else "")


VALUE_CLAUSES = (
    Clause("densities", "latents can be inferred", ("structure",), _densities),
    Clause("static", "sites and shapes are fixed", ("log_joint",), _static),
    Clause("deterministic", "deterministic in eval mode", ("log_joint", "fixed"), _deterministic),
    Clause("independent", "rows independent", ("log_joint", "fixed", "steady"), _independent),
    Clause("outside", "nothing outside the plate depends on latents", ("log_joint", "fixed"), _outside),
    Clause("finite", "log joint is finite", ("log_joint", "fixed"), _finite),
    Clause("gradient", "gradient is finite", ("log_joint", "fixed"), _gradient),
    Clause("precision", "float32 is enough", ("log_joint", "fixed", "steady"), _precision),
)

LAST_CLAUSES = (Clause("compiled", "the log joint can be compiled", ("unbroken", "log_joint"), _compiled),)
"""What is worth its seconds only where nothing fails."""
