"""Observed data, reconstructions and prior samples as pictures: images where the data are images, else small charts.

N datapoints; a site's values are (N, ...), flattened to a vector or to the tree's ``image_shape``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from markupsafe import Markup
from numpy.typing import NDArray

from amortize.report.document import gap_name, sampled_steps
from amortize.report.images import png_data_uri, vector_svg
from amortize.report.plots import worst_first
from amortize.report.words import number, uncertain

__all__ = ["Card", "Gallery", "read_gallery"]

_MAX_VECTOR = 512
Values = NDArray[np.float64]


class Card(NamedTuple):
    """A datapoint: its name, its pictures, and facts of its gap, each with whether it is a warning."""

    name: str
    pictures: list[Markup]
    facts: list[tuple[str, str, bool]]
    failed: bool


class Gallery(NamedTuple):
    """The pictures of a page; each part may be empty."""

    site: str
    images: bool
    reconstructed: bool
    worst: list[Card]
    pairs: list[Card]
    prior: list[Markup]


class _Site(NamedTuple):
    """Values of one site, a row a datapoint (or prior sample), and how to draw them: ``shape`` is () for a chart."""

    name: str
    observed: Values
    reconstruction: Values | None
    prior: Values | None
    shape: tuple[int, ...]
    limits: tuple[float, float]


def read_gallery(tree: xr.DataTree, document: Mapping[str, Any]) -> Gallery | None:
    """Draw the first observed site that can be drawn; None if there is none.

    Parameters
    ----------
    tree : xarray.DataTree
        What :func:`amortize.to_datatree` returns.
    document : mapping
        What :func:`amortize.report.document.read_document` has read from it.
    """
    site = _find_site(tree, document.get("image_shape"))
    if site is None:
        return None
    images = bool(site.shape)
    pairs = sampled_steps(len(site.observed), 14 if images else 12)
    samples = np.empty((0, 0)) if site.prior is None else site.prior[: 24 if images else 12]
    return Gallery(
        site=site.name,
        images=images,
        reconstructed=site.reconstruction is not None,
        worst=[_card(site, document, index, facts=True) for index in _worst(document, 10 if images else 12)],
        pairs=[_card(site, document, index, facts=False) for index in pairs.tolist()],
        prior=[_draw(site, "prior sample", row) for row in samples],
    )


def _find_site(tree: xr.DataTree, image_shape: Sequence[int] | None) -> _Site | None:
    """The first site, or sequence of sites ``x_1``, ``x_2``, ..., that is an image; else the first short vector."""
    if "observed_data" not in tree.children:
        return None
    names = [str(name) for name in tree["observed_data"].to_dataset().data_vars]
    found = [
        (parts, _joined(tree, "observed_data", parts)) for parts in [*([name] for name in names), *_sequences(names)]
    ]
    sites = [(parts, values) for parts, values in found if values is not None]
    if image_shape is not None:
        for parts, values in sites:
            if values.shape[1] == math.prod(image_shape):
                return _site(tree, parts, values, tuple(image_shape))
    vectors = [(parts, values) for parts, values in sites if 2 <= values.shape[1] <= _MAX_VECTOR]
    return _site(tree, *vectors[0], ()) if vectors else None


def _site(tree: xr.DataTree, parts: list[str], observed: Values, shape: tuple[int, ...]) -> _Site:
    like = {group: _joined(tree, group, parts) for group in ("reconstruction", "prior_predictive")}
    same = {
        group: values for group, values in like.items() if values is not None and values.shape[1:] == observed.shape[1:]
    }
    name = parts[0] if len(parts) == 1 else f"{parts[0]} ... {parts[-1]}"
    return _Site(name, observed, same.get("reconstruction"), same.get("prior_predictive"), shape, _limits(observed))


def _sequences(names: list[str]) -> list[list[str]]:
    """Sites that are steps of one another, as ``x_1``, ``x_2``, ``x_3``, in that order."""
    steps: dict[str, dict[int, str]] = {}
    for name in names:
        stem, _, number = name.rpartition("_")
        if stem and number.isdecimal():
            steps.setdefault(stem, {})[int(number)] = name
    return [[found[number] for number in sorted(found)] for found in steps.values() if len(found) > 1]


def _joined(tree: xr.DataTree, group: str, names: list[str]) -> Values | None:
    """Values of sites side by side, with the rows of `_rows`; None if one is not there."""
    if group not in tree.children or not set(names) <= set(tree[group].to_dataset().data_vars):
        return None
    return np.concatenate([_rows(tree[group].to_dataset()[name]) for name in names], 1)


def _rows(array: xr.DataArray) -> Values:
    """The site's values with one row a datapoint, or a row a chain, draw and datapoint."""
    leading = [dim for dim in array.dims if dim in ("chain", "draw", "datapoint")]
    num_rows = math.prod(array.sizes[dim] for dim in leading)
    values = array.transpose(*leading, ...).values
    return np.asarray(values.reshape(num_rows, -1), dtype=np.float64)


def _limits(observed: Values) -> tuple[float, float]:
    known = observed[np.isfinite(observed)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _draw(site: _Site, name: str, values: Values, beside: Values | None = None) -> Markup:
    """One picture; a chart may show a second vector as a line."""
    if not site.shape:  # a range of its own: counts of another datapoint may be a hundred times as large
        low, high = _limits(values if beside is None else np.concatenate([values, beside]))
        return Markup(vector_svg(values, beside, low=min(low, 0.0), high=max(high, 0.0)))
    low, high = site.limits
    source = png_data_uri(values.reshape(site.shape), low=low, high=high)
    return Markup('<img class="pixels" alt="{}" src="{}">').format(name, source)


def _worst(document: Mapping[str, Any], limit: int) -> list[int]:
    """Positions of the largest gaps, then of datapoints that failed, half as many at most."""
    if "datapoints" not in document:
        return []
    order = worst_first(document["datapoints"]).tolist()
    num_measured = len(order) - len(document["failed"])
    return [*order[:num_measured][:limit], *order[num_measured:][: limit // 2]]


def _card(site: _Site, document: Mapping[str, Any], index: int, *, facts: bool) -> Card:
    datapoints = document.get("datapoints", {})
    name = str(datapoints["datapoint"][index]) if "datapoint" in datapoints else str(index)
    if "label" in datapoints:
        name = f"{name} · label {datapoints['label'][index]}"
    known = _facts(document, index) if facts else []
    failed = facts and datapoints["datapoint"][index] in document["failed"]
    return Card(name, _pictures(site, index), known, failed)


def _pictures(site: _Site, index: int) -> list[Markup]:
    """Observed and reconstruction, side by side if they are images, else in one chart."""
    observed = site.observed[index]
    reconstruction = None if site.reconstruction is None else site.reconstruction[index]
    if not site.shape:
        return [_draw(site, "observed", observed, reconstruction)]
    pictures = [_draw(site, "observed", observed)]
    return pictures if reconstruction is None else [*pictures, _draw(site, "reconstruction", reconstruction)]


def _facts(document: Mapping[str, Any], index: int) -> list[tuple[str, str, bool]]:
    columns = document["datapoints"]

    def value(name: str) -> float:
        return float(columns[name][index]) if name in columns else math.nan

    gap = gap_name(columns)
    facts = [("gap", uncertain(value(gap), value(f"{gap}_se")), False)]
    words = ("amortization", "approximation") if gap == "inference_gap" else ()
    parts = [(word, value(f"{word}_gap")) for word in words]
    facts += [(word, number(part), False) for word, part in parts if math.isfinite(part)]
    if "khat" in columns:
        high = value("khat") > document["khat"]["threshold"]
        facts.append(("k-hat", f"high: {number(value('khat'))}" if high else number(value("khat")), high))
    return facts
