"""Where each number of the page comes from: the method, its settings and seed, and its place in the tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amortize.report.words import quantity

__all__ = ["flatten", "provenance"]

_DIFFERENCES = {
    "inference_gap": "log_evidence - elbo_guide, row by row",
    "amortization_gap": "inference_gap - approximation_gap, row by row",
}


def provenance(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """For each quantity of the summary: its label, how it was computed, and where it is in the tree.

    Parameters
    ----------
    document : mapping
        What :func:`amortize.report.document.read_document` has read so far.
    """
    return [
        {"name": name, "label": quantity(name).label, "how": _how(name, document), "where": f"/gaps {name}"}
        for name in document.get("summary", {})
    ]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names.

    Examples
    --------
    >>> flatten({"fit": {"seed": 0, "schedule": None}, "out": "runs"})
    {'fit.seed': 0, 'fit.schedule': None, 'out': 'runs'}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _how(name: str, document: Mapping[str, Any]) -> str:
    draws = document.get("gap_settings", {}).get("num_draws")
    count = f"{draws} draws" if draws else "draws"
    if name == "approximation_gap":
        reference = document.get("gap_settings", {}).get("reference") or "the guide's own family"
        return f"log_evidence - ELBO of the posterior fitted to the datapoint by itself ({reference}), row by row"
    if name in _DIFFERENCES:
        return _DIFFERENCES[name]
    if name == "log_evidence":
        return "; ".join(_run(run) for run in document.get("evidence", {}).values())
    if name == "elbo_guide":
        return f"mean of log p(x, z) - log q(z) over {count} from the guide"
    if name in ("khat", "ess"):
        return f"importance weights of {count} from the guide"
    for family, fit in document.get("local", {}).items():
        if name == f"elbo_{family.replace('-', '_')}":
            return f"a {family} posterior for each datapoint by itself, on fresh draws ({_listed(fit['settings'])})"
    return ""


def _run(run: Mapping[str, Any]) -> str:
    listed = _listed(run.get("settings", {}))
    drawn = f"{run.get('method', '')} from the {run.get('start', '')}, seed {run.get('seed', '')}"
    return f"{drawn} ({listed})" if listed else drawn


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in flatten(settings).items())
