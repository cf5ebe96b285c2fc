"""Every number of the page, read from the tree alone: what ``report.json`` holds and the template shows.

Lists are in the order of the tree's datapoints; log densities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import numpy as np
import xarray as xr

from amortize.diagnostics.psis import khat_threshold
from amortize.report.attrs import decode_attrs
from amortize.report.frames import FRAMES, read_frame
from amortize.report.notes import notes
from amortize.report.provenance import provenance
from amortize.report.readings import read_annealing, read_evidence, read_sandwich, spread_of
from amortize.report.words import WITHOUT_ELBO, verdict

__all__ = ["gap_name", "read_document", "rung_names", "sampled_steps"]

_DEFAULT_TITLE = "Amortized inference: a study"
_FACTS = ("seed", "settings", "versions", "protocol", "data_hash", "spec_hash", "created", "command", "image_shape")
_KHAT_LIMIT = 0.7
_MAX_STEPS = 600  # points of the training curve


def read_document(tree: xr.DataTree, title: str | None = None) -> dict[str, Any]:
    """Read the facts of a tree.

    Parameters
    ----------
    tree : xarray.DataTree
        What :func:`amortize.to_datatree` returns.
    title : str, optional
        Instead of the tree's own.

    Returns
    -------
    dict
        JSON-able but for numbers that aren't finite. A part whose group is absent is absent.
    """
    attrs = decode_attrs(tree.attrs)
    document: dict[str, Any] = {
        "title": title or attrs.get("title") or _DEFAULT_TITLE,
        "units": "nats per datapoint",
        "not_finite": "null",
    }
    if "gaps" in tree.children:
        document |= _gaps(tree["gaps"].to_dataset())
    if "evidence" in tree.children:
        document["evidence"] = read_evidence(tree["evidence"].to_dataset())
    if "annealing" in tree.children:
        document["annealing"] = read_annealing(tree["annealing"].to_dataset())
    if "sandwich" in tree.children:
        document["sandwich"] = read_sandwich(tree["sandwich"].to_dataset())
    document |= {name: rows for name in FRAMES if (rows := read_frame(tree, name))}
    if "local" in tree.children:
        document["local"] = _local(tree["local"].to_dataset())
    if "training" in tree.children:
        document["training"] = {"bound": attrs.pop("trained_bound", "ELBO"), **_training(tree["training"].to_dataset())}
    if "num_untrained" in attrs:
        document["num_untrained"] = attrs.pop("num_untrained")
    document["notes"] = notes(document)
    document["provenance"] = provenance(document)
    document |= {name: attrs.pop(name) for name in _FACTS if name in attrs}
    attrs.pop("title", None)
    return document | ({"attrs": attrs} if attrs else {})


def rung_names(families: list[str], columns: list[str]) -> list[str]:
    """Columns of the ledger from the guide's ELBO up to the evidence.

    Examples
    --------
    >>> rung_names(["mean-field"], ["log_evidence", "elbo_guide", "elbo_mean_field"])
    ['elbo_guide', 'elbo_mean_field', 'log_evidence']
    """
    names = ["elbo_guide", *(column_of(family) for family in families), "log_evidence"]
    return [name for name in names if name in columns]


def gap_name(columns: Container[str]) -> str:
    """The gap that the page is about: the guide's, or without a guide that of the best fitted posterior.

    Examples
    --------
    >>> gap_name(["log_evidence", "elbo_mean_field", "approximation_gap"])
    'approximation_gap'
    """
    return "inference_gap" if "inference_gap" in columns or "approximation_gap" not in columns else "approximation_gap"


def column_of(family: str) -> str:
    """The ledger's column for the best ELBO of a family."""
    return f"elbo_{family.replace('-', '_')}"


def sampled_steps(num: int, limit: int) -> np.ndarray:
    """At most ``limit`` indices below ``num``, evenly spaced, with both ends."""
    return np.unique(np.linspace(0, num - 1, min(num, limit)).round().astype(int)) if num else np.arange(0)


def _gaps(gaps: xr.Dataset) -> dict[str, Any]:
    attrs = decode_attrs(gaps.attrs)
    columns = [str(name) for name in gaps.data_vars if gaps[name].dims == ("datapoint",)]
    family, families = str(attrs.get("guide_family") or ""), list(attrs.get("families", []))
    summary = _summary(gaps["summary"])
    datapoints = {"datapoint": gaps["datapoint"].values.tolist()}
    if "label" in gaps.coords:
        datapoints["label"] = gaps["label"].values.tolist()
    datapoints |= {name: gaps[name].values.tolist() for name in columns}
    failed = _failed(gaps)
    return {
        "verdict": verdict(summary, family, gaps.sizes["datapoint"] - int(failed.sum())),
        "advice": attrs.get("advice", ""),
        "cause": attrs.get("cause", ""),
        "clues": attrs.get("clues", {}),
        "guide_family": family,
        "families": families,
        "num_datapoints": gaps.sizes["datapoint"],
        "failed": gaps["datapoint"].values[failed].tolist(),
        "summary": summary,
        "ladder": _ladder(gaps, rung_names(families, columns), family),
        "khat": _khat(gaps, attrs.get("settings", {})),
        "num_negative": _num_negative(gaps),
        "gap_settings": attrs.get("settings", {}),
        "datapoints": datapoints,
    }


def _summary(table: xr.DataArray) -> dict[str, dict[str, float | int]]:
    rows = {
        str(name): {str(column): float(table.loc[name, column]) for column in table["statistic"].values}
        for name in table["quantity"].values
    }
    for row in rows.values():
        if math.isfinite(row.get("num_failed", math.nan)):
            row["num_failed"] = int(row["num_failed"])
    return rows


def _failed(gaps: xr.Dataset) -> np.ndarray:
    """(N,) whether a datapoint lacks the gap that everything rests on."""
    name = gap_name([str(column) for column in gaps.data_vars])
    return np.asarray(~np.isfinite(gaps[name if name in gaps else "log_evidence"].values))


def _num_negative(gaps: xr.Dataset) -> int:
    """Count gaps that are below zero by more than two of their standard errors, which a true gap can't be."""
    name = gap_name([str(column) for column in gaps.data_vars])
    if f"{name}_se" not in gaps:
        return 0
    return int((gaps[name] < -2 * gaps[f"{name}_se"]).sum())


def _ladder(gaps: xr.Dataset, names: list[str], family: str) -> list[dict[str, Any]]:
    """Rungs with their mean over the datapoints that have all of them, and the paired rise from the one below.

    A rise up to the best ELBO of the guide's own family is amortization, one above it approximation; where the
    guide has none all is approximation.
    """
    if not names:
        return []
    values = np.stack([gaps[name].values for name in names])
    values = values[:, np.isfinite(values).all(axis=0)]
    num = values.shape[1]
    if num == 0:
        return []
    own = names[0] if family in WITHOUT_ELBO else column_of(family)
    last_amortized = names.index(own) if own in names else -1
    rungs = []
    for index, name in enumerate(names):
        rung: dict[str, Any] = {"name": name, "mean": float(values[index].mean())}
        if index:
            rise = values[index] - values[index - 1]
            rung["rise"] = float(rise.mean())
            rung["rise_se"] = float(rise.std(ddof=1) / math.sqrt(num)) if num > 1 else math.nan
            rung["part"] = _part(index, last_amortized)
        rungs.append(rung)
    return rungs


def _part(index: int, last_amortized: int) -> str:
    if last_amortized < 0:
        return ""
    return "amortization" if index <= last_amortized else "approximation"


def _khat(gaps: xr.Dataset, settings: dict[str, Any]) -> dict[str, Any]:
    if "khat" not in gaps:
        return {}
    num_draws = settings.get("num_draws")
    if not isinstance(num_draws, int) or num_draws < 2:
        num_draws = None
    threshold = _KHAT_LIMIT if num_draws is None else khat_threshold(num_draws)
    khat = gaps["khat"].values
    return {
        "num_draws": num_draws,
        "threshold": threshold,
        "num_above": int((khat > threshold).sum()),
        "num_unknown": int(np.isnan(khat).sum()),
    }


def _local(local: xr.Dataset) -> dict[str, dict[str, Any]]:
    fits = decode_attrs(local.attrs).get("fits", {})
    families = {}
    for name in local["family"].values.tolist():
        one = local.sel(family=name)
        families[name] = {
            **fits.get(name, {}),
            "num_datapoints": one.sizes["datapoint"],
            "num_converged": int(one["converged"].sum()),
            "median_steps": float(np.median(one["num_steps"].values)),
            "elbo": spread_of(one["elbo"].values),
            "mean_elbo_se": spread_of(one["elbo_se"].values).get("mean", math.nan),
        }
    return families


def _training(training: xr.Dataset) -> dict[str, Any]:
    """Points of the curve, every validation among them, and the last value of each column."""
    validated = np.zeros(training.sizes["step"], dtype=bool)
    if "validation_elbo" in training:
        validated = np.isfinite(training["validation_elbo"].values)
    drawn = np.union1d(sampled_steps(training.sizes["step"], _MAX_STEPS), np.flatnonzero(validated)).astype(int)
    names = ["step", *(str(name) for name in training.data_vars)]
    final = {}
    for name in names:
        finite = training[name].values[np.isfinite(training[name].values.astype(float))]
        final[name] = finite[-1].item() if finite.size else math.nan
    return {"final": final, "curve": {name: training[name].values[drawn].tolist() for name in names}}
