"""How the page's figures look, and the small helpers that they share.

Colours are those of Okabe and Ito, told apart by colour-blind readers, and no colour stands alone: failed or
doubtful points have a marker of their own. Everything is drawn as SVG (``scatter``, never ``scattergl``).
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

__all__ = ["COLOURS", "METHODS", "SYMBOLS", "apply_style", "error_bars", "escaped", "finite", "mark_failed", "names_of"]

COLOURS = {
    "amortization": "#C65300",  # Okabe and Ito's vermilion, darkened until white text on it can be read
    "approximation": "#0072B2",
    "": "#98A2B3",  # a part that can't be told apart
    "pale": "#A9CBE3",
    "ink": "#1F2937",
    "muted": "#667085",
    "grid": "#E7EAEE",
}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
METHODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def apply_style(figure: go.Figure, *, height: int, legend: bool = True) -> None:
    """Give a figure the page's font, margins and grid."""
    figure.update_layout(
        template="none",
        height=height,
        font={"family": _FONT, "size": 13, "color": COLOURS["ink"]},
        margin={"l": 64, "r": 16, "t": 40 if legend else 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        hoverlabel={"bgcolor": "white", "bordercolor": COLOURS["grid"], "font": {"color": COLOURS["ink"]}},
    )
    axis = {
        "gridcolor": COLOURS["grid"],
        "zerolinecolor": "#CDD3DB",
        "zerolinewidth": 1,
        "linecolor": "#CDD3DB",
    }
    figure.update_xaxes(**axis, title_font_size=12, ticks="outside", ticklen=4, tickcolor="#CDD3DB")
    figure.update_yaxes(**axis, title_font_size=12, ticks="", automargin=True)


def mark_failed(figure: go.Figure, rank: ArrayLike, names: NDArray[np.str_]) -> None:
    """Mark datapoints without a number by a cross on the axis."""
    figure.add_scatter(
        x=rank,
        y=np.zeros(len(names)),
        name="failed: no number",
        mode="markers",
        marker={"symbol": "x", "size": 9, "color": COLOURS["ink"]},
        customdata=names,
        hovertemplate="datapoint %{customdata}<br>failed<extra></extra>",
    )


def error_bars(se: ArrayLike | None, rows: NDArray[np.int64]) -> dict[str, Any] | None:
    """One standard error up and down, or no bar where there is none."""
    if se is None:
        return None
    values = np.asarray(se, dtype=np.float64)[rows]
    return {"type": "data", "array": values, "color": COLOURS["ink"], "thickness": 1, "width": 0}


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """The values that are finite numbers."""
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(array[np.isfinite(array)])


def names_of(datapoints: Mapping[str, Sequence[Any]]) -> NDArray[np.str_]:
    """What a reader calls each datapoint: its index, and its label where it has one."""
    index = [str(name) for name in datapoints["datapoint"]]
    if "label" in datapoints:
        index = [f"{name} (label {label})" for name, label in zip(index, datapoints["label"], strict=True)]
    return np.array([escaped(name) for name in index])


def escaped(text: object) -> str:
    """Text that plotly must not read as markup."""
    return html.escape(str(text))
