"""What to know before trusting the means: failures, fits that didn't converge, weights that collapsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amortize.report.words import WITHOUT_ELBO

__all__ = ["notes"]

_MAX_NAMED = 12  # failed datapoints that are listed by name


def notes(document: Mapping[str, Any]) -> list[str]:
    """Sentences for the page, each only if it applies.

    Parameters
    ----------
    document : mapping
        What :func:`amortize.report.document.read_document` has read so far.
    """
    return [
        *_of_gaps(document),
        *_of_local(document),
        *_of_evidence(document.get("evidence", {})),
    ]


def _of_gaps(document: Mapping[str, Any]) -> Iterator[str]:
    family, families = document.get("guide_family", ""), document.get("families", [])
    if document.get("num_untrained"):
        num = document["num_untrained"]
        count = "1 parameter of the model was" if num == 1 else f"{num} parameters of the model were"
        yield f"{count} not trained: there is no guide."
    if document.get("gap_settings", {}).get("left_out"):
        yield f"One family was left out: {document['gap_settings']['left_out']}."
    if family == "point":
        stand_in = f" Posterior draws in the tree are of the family {families[-1]}." if families else ""
        yield (
            "The guide is a point, one code for each datapoint, as a deterministic autoencoder's is. It has no "
            "density, hence no ELBO, no importance weights and no gaps of its own; its reconstructions are shown, and "
            f"log p(x) and the fitted posteriors judge the model.{stand_in}"
        )
    if families and family not in (*families, *WITHOUT_ELBO):
        yield (
            f"The guide's family wasn't fitted to single datapoints; the best of {', '.join(families)} stands in "
            "for it where approximation and amortization are told apart."
        )
    failed, total = document.get("failed", []), document.get("num_datapoints", 0)
    if failed:
        yield f"{_count(len(failed), total)} failed and are left out of every mean: {_listed(failed)}."
    if document.get("num_negative"):
        yield (
            f"{_count(document['num_negative'], total)} with a gap more than two standard errors below zero: "
            "log p(x) is underestimated there; more temperatures or chains would raise it."
        )
    khat = document.get("khat", {})
    if khat.get("num_above"):
        yield (
            f"{_count(khat['num_above'], total)} with a k-hat above {khat['threshold']:.2f}: there the guide is "
            "too far from the posterior to be mended by weighting its draws."
        )


def _of_local(document: Mapping[str, Any]) -> Iterator[str]:
    for family, fit in document.get("local", {}).items():
        left = fit["num_datapoints"] - fit["num_converged"]
        if left:
            own = family == document.get("guide_family")
            meaning = "some approximation gap is really amortization" if own else "its rung is too low"
            yield (
                f"{_count(left, fit['num_datapoints'])} whose {family} fit had not converged when it was "
                f"stopped: the family may do better there, and then {meaning}."
            )


def _of_evidence(evidence: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, run in evidence.items():
        if run.get("interrupted"):
            yield f"{name}: the run was stopped before all datapoints were done; the others have no number."
        if run["num_nonfinite"]:
            yield f"{name}: {run['num_nonfinite']} proposals or draws were not finite, and were rejected."
        doubtful = run["num_untrusted"]
        if doubtful:
            yield (
                f"{name}: {_count(doubtful, len(run['datapoints']['trusted']))} whose log p(x) is not to be trusted; "
                "what to do about it is said beside the evidence."
            )


def _count(num: int, total: int) -> str:
    return f"{num} of {total} datapoints" if total != 1 else f"{num} of 1 datapoint"


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"
