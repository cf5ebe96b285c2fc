"""The figures of a grid: what each of its rows loses and to what, and where its bounds lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from amortize.report.style import COLOURS, METHODS, SYMBOLS, apply_style, escaped
from amortize.report.words import quantity

__all__ = ["grid_figures"]

_PARTS = {"approximation_gap": "approximation", "amortization_gap": "amortization"}


def grid_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, go.Figure]:
    """Draw "gaps" and "bounds", those of them that some row has numbers for."""
    known = [row for row in rows if row["values"]]
    drawn = {}
    if any(_finite(row, name) for row in known for name in (*_PARTS, "inference_gap")):
        drawn["gaps"] = _gaps(known)
    bounds = list(dict.fromkeys(name for row in known for name in row["values"] if name.startswith(("elbo", "log_"))))
    bounds = [name for name in bounds if any(_finite(row, name) for row in known)]
    if bounds:
        drawn["bounds"] = _bounds(known, bounds)
    return drawn


def _gaps(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Both parts of the gap, stacked, and the whole of it with its standard error."""
    labels = _labels(rows)
    figure = go.Figure()
    for name, part in _PARTS.items():
        if any(_finite(row, name) for row in rows):
            figure.add_bar(
                y=labels,
                x=[_mean(row, name) for row in rows],
                orientation="h",
                name=part,
                marker={"color": COLOURS[part]},
                hovertemplate=f"%{{y}}<br>%{{x:.3f}} nats<extra>{part}</extra>",
            )
    whole = "inference_gap" if any(_finite(row, "inference_gap") for row in rows) else "approximation_gap"
    _add_marks(figure, rows, whole, colour=COLOURS["ink"], symbol="circle")
    apply_style(figure, height=_height(rows))
    figure.update_layout(barmode="relative", bargap=0.35, margin={"l": _margin(labels), "r": 16})
    figure.update_xaxes(title_text="nats a datapoint")
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=labels[::-1], showgrid=False)
    return figure


def _bounds(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> go.Figure:
    labels = _labels(rows)
    figure = go.Figure()
    for place, name in enumerate(names):
        colour = COLOURS["ink"] if name == "log_evidence" else METHODS[place % len(METHODS)]
        _add_marks(figure, rows, name, colour=colour, symbol=SYMBOLS[place % len(SYMBOLS)])
    apply_style(figure, height=_height(rows))
    figure.update_layout(margin={"l": _margin(labels), "r": 16})
    figure.update_xaxes(title_text="nats a datapoint", zeroline=False)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=labels[::-1])
    return figure


def _add_marks(figure: go.Figure, rows: Sequence[Mapping[str, Any]], name: str, *, colour: str, symbol: str) -> None:
    label = quantity(name).label
    figure.add_scatter(
        y=_labels(rows),
        x=[_mean(row, name) for row in rows],
        mode="markers",
        name=f"{label} \N{PLUS-MINUS SIGN} one standard error",
        marker={"color": colour, "size": 8, "symbol": symbol},
        error_x={
            "type": "data",
            "array": [_error(row, name) for row in rows],
            "color": colour,
            "thickness": 1.4,
            "width": 4,
        },
        hovertemplate=f"%{{y}}<br>%{{x:.3f}} nats<extra>{label}</extra>",
    )


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [escaped(", ".join(row["coords"])) or "all" for row in rows]


def _height(rows: Sequence[Mapping[str, Any]]) -> int:
    return 130 + 34 * len(rows)


def _margin(labels: Sequence[str]) -> int:
    return min(360, 24 + 7 * max(len(label) for label in labels))


def _mean(row: Mapping[str, Any], name: str) -> float | None:
    value = row["values"].get(name, (None, None))[0]
    return value if value is not None and math.isfinite(value) else None


def _error(row: Mapping[str, Any], name: str) -> float:
    value = row["values"].get(name, (None, None))[1]
    return value if value is not None and math.isfinite(value) else 0.0


def _finite(row: Mapping[str, Any], name: str) -> bool:
    return _mean(row, name) is not None
