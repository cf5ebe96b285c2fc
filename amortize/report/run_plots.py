"""Figures of how the numbers were made: the training curve, and how evidence's diagnostics are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from amortize.report.style import COLOURS, METHODS, apply_style, error_bars, escaped, finite

__all__ = ["diagnostics_of", "evidence_figure", "training_figure"]

_DIAGNOSTICS = {"se": "standard error, nats", "ess": "effective share of draws", "acceptance": "acceptance"}
_WINDOW = 25  # drawn points of the training curve in one running mean


def training_figure(curve: Mapping[str, Sequence[float]], bound: str = "ELBO") -> go.Figure:
    """The bound that was trained by step: minibatches thin, their running mean and the validation set bold."""
    step, elbo = (np.asarray(curve.get(name, []), dtype=np.float64) for name in ("step", "elbo"))
    figure = go.Figure()
    drawn = [_running_mean(elbo)]
    if elbo.size:
        pale = {"color": COLOURS["pale"], "width": 1}
        figure.add_scatter(x=step, y=elbo, name="training, a minibatch", mode="lines", line=pale, hoverinfo="skip")
        figure.add_scatter(
            x=step,
            y=drawn[0],
            name="training, running mean",
            mode="lines",
            line={"color": COLOURS["approximation"], "width": 2.2},
            hovertemplate="step %{x}<br>%{y:.2f} nats<extra>training</extra>",
        )
    validation = np.asarray(curve.get("validation_elbo", []), dtype=np.float64)
    seen = np.flatnonzero(np.isfinite(validation))
    if seen.size:
        drawn.append(validation[seen])
        figure.add_scatter(
            x=step[seen],
            y=validation[seen],
            name="validation \N{PLUS-MINUS SIGN} one standard error",
            mode="lines+markers",
            line={"color": COLOURS["amortization"], "width": 2, "dash": "dash"},
            marker={"size": 6, "symbol": "diamond"},
            error_y=error_bars(curve.get("validation_elbo_se"), seen),
            hovertemplate="step %{x}<br>%{y:.2f} nats<extra>validation</extra>",
        )
    apply_style(figure, height=340)
    figure.update_xaxes(title_text="step", zeroline=False)
    figure.update_yaxes(
        title_text=f"{_short(bound)}, nats per datapoint",
        range=_range(np.concatenate(drawn)),
    )
    return figure


def _short(bound: str) -> str:
    """What was trained in a word or two; its full name says whether it is a bound."""
    if bound == "ELBO":
        return bound
    return "what is trained" if bound.endswith("no bound") else "bound"


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a centred window of the points that are finite, shorter at both ends."""
    known = np.isfinite(values)
    window = np.ones(min(_WINDOW, max(values.size, 1)))
    total = np.convolve(np.where(known, values, 0.0), window, mode="same") if values.size else values
    count = np.convolve(known.astype(np.float64), window, mode="same") if values.size else values
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0.5)


def _range(values: NDArray[np.float64]) -> list[float] | None:
    """Limits that show the curve's last nine tenths well; the plunge of the first steps may leave the frame."""
    known = finite(values)
    if known.size < 2:
        return None
    low, high = float(np.quantile(known, 0.1)), float(known.max())
    pad = 0.15 * (high - low) or 1.0
    return [low - pad, high + pad]


def diagnostics_of(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The diagnostics that some method has a number for."""
    return [field for field in _DIAGNOSTICS if any(_values(run, field).size for run in methods.values())]


def evidence_figure(methods: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """How each method's diagnostics are spread over the datapoints."""
    fields = diagnostics_of(methods)
    figure = make_subplots(rows=1, cols=len(fields), horizontal_spacing=0.08)
    for column, field in enumerate(fields, start=1):
        for (name, run), colour in zip(methods.items(), cycle(METHODS)):
            figure.add_histogram(
                x=_values(run, field),
                name=escaped(name),
                legendgroup=name,
                showlegend=column == 1,
                marker={"color": colour},
                opacity=0.75,
                nbinsx=20,
                hovertemplate="%{x}<br>%{y} datapoints<extra>" + escaped(name) + "</extra>",
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=_DIAGNOSTICS[field], row=1, col=column)
    apply_style(figure, height=270, legend=len(methods) > 1)
    figure.update_layout(barmode="overlay", bargap=0.06)
    figure.update_yaxes(title_text="datapoints", col=1)
    return figure


def _values(run: Mapping[str, Any], field: str) -> NDArray[np.float64]:
    if field != "ess":
        return finite(run["datapoints"].get(field, []))
    ess = np.asarray(run["datapoints"].get("ess", []), dtype=np.float64)
    return finite(ess / np.asarray(run["datapoints"].get("num_draws", run["num_weights"]))) if ess.size else ess
