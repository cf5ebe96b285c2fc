"""Figures of how annealing went, and of what each datapoint took: quantile bands over datapoints, by temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go

from amortize.report.document import sampled_steps
from amortize.report.style import COLOURS, METHODS, SYMBOLS, apply_style, escaped, names_of

__all__ = ["MAX_SIDES", "cost_figure", "path_figures", "sandwich_figure"]

MAX_SIDES = 400
"""Most datapoints whose two sides are drawn one by one; of more, as many evenly spaced by rank."""

_PANELS = {"spread": ("nats", "beta"), "acceptance": ("share", "beta"), "step": ("nats", "temperature")}
"""Each panel's unit and what it is drawn along."""
_WIDE = 30.0  # a panel whose values range over more has a logarithmic axis


def path_figures(annealing: Mapping[str, Mapping[str, Any]]) -> dict[str, go.Figure]:
    """One figure a quantity, named "path-spread" and so on; lines are medians, bands hold 8 in 10 datapoints."""
    drawn = {}
    for quantity, (unit, along) in _PANELS.items():
        paths = {name: path for name, path in annealing.items() if quantity in path}
        if paths:
            drawn[f"path-{quantity}"] = _panel(paths, quantity, unit, along)
    return drawn


def _panel(paths: Mapping[str, Mapping[str, Any]], quantity: str, unit: str, along: str) -> go.Figure:
    figure = go.Figure()
    for (name, path), colour in zip(paths.items(), cycle(METHODS)):
        _add_band(figure, escaped(name), path[along], path[quantity], colour)
    apply_style(figure, height=270, legend=len(paths) > 1)
    figure.update_layout(margin={"l": 52, "r": 8})
    figure.update_xaxes(title_text="inverse temperature beta" if along == "beta" else along, zeroline=False)
    figure.update_yaxes(title_text=unit)
    if quantity == "acceptance":
        figure.update_yaxes(range=[0, 1.02])
    elif _wide([path[quantity] for path in paths.values()]):
        figure.update_yaxes(type="log", dtick=1)
    else:
        figure.update_yaxes(rangemode="tozero")
    return figure


def _add_band(
    figure: go.Figure, name: str, at: Sequence[float], band: Mapping[str, Sequence[float]], colour: str
) -> None:
    x, low, median, high = (np.asarray(values, dtype=np.float64) for values in (at, *band.values()))
    known = np.isfinite(low) & np.isfinite(high)
    figure.add_scatter(
        x=np.concatenate([x[known], x[known][::-1]]),
        y=np.concatenate([high[known], low[known][::-1]]),
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        mode="lines",
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=x,
        y=median,
        name=name,
        legendgroup=name,
        mode="lines",
        line={"color": colour, "width": 2},
        hovertemplate="at %{x:.3g}: median %{y:.3g}<extra>" + name + "</extra>",
    )


def _wide(bands: Sequence[Mapping[str, Sequence[float]]]) -> bool:
    values = np.concatenate([np.asarray(row, dtype=np.float64) for band in bands for row in band.values()])
    positive = values[np.isfinite(values) & (values > 0)]
    return bool(positive.size and positive.max() > _WIDE * positive.min())


def cost_figure(run: Mapping[str, Any]) -> go.Figure:
    """Gradients that each datapoint took against the error it was left with, by what was used for it."""
    used, gradients, se = (np.asarray(run["datapoints"][name]) for name in ("used", "num_gradients", "se"))
    called = names_of(run["datapoints"])
    figure = go.Figure()
    for row, colour, symbol in zip(run["used"], cycle(METHODS), cycle(SYMBOLS)):
        chosen = (used == row["name"]) & np.isfinite(se) & (se > 0)
        figure.add_scatter(
            x=gradients[chosen],
            y=se[chosen],
            name=escaped(row["name"]),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.7},
            customdata=called[chosen],
            hovertemplate="datapoint %{customdata}<br>%{x:.4g} gradients, error %{y:.3f} nats<extra></extra>",
        )
    apply_style(figure, height=300)
    figure.update_xaxes(title_text="gradients spent on the datapoint", type="log", dtick=1, zeroline=False)
    figure.update_yaxes(title_text="standard error, nats", rangemode="tozero")
    return figure


def sandwich_figure(sandwich: Mapping[str, Any]) -> go.Figure:
    """How far the upper side is above the lower for each datapoint, the largest first, with one standard error."""
    sides = {name: np.asarray(row, dtype=np.float64) for name, row in sandwich["datapoints"].items()}
    order = np.argsort(-np.where(np.isfinite(sides["gap"]), sides["gap"], -np.inf), kind="stable")
    order = order[np.isfinite(sides["gap"][order])]
    places = sampled_steps(len(order), MAX_SIDES)
    shown = order[places]
    error = np.hypot(sides["lower_se"], sides["upper_se"])[shown]
    figure = go.Figure()
    figure.add_scatter(
        x=places + 1,
        y=sides["gap"][shown],
        mode="markers",
        name="upper less lower",
        marker={"color": METHODS[0], "size": 6},
        error_y={"type": "data", "array": error, "color": COLOURS["muted"], "thickness": 1, "width": 0},
        customdata=np.stack([sides["lower"][shown], sides["upper"][shown]], axis=-1),
        hovertemplate="between %{customdata[0]:.3f} and %{customdata[1]:.3f}<br>gap %{y:.3f} nats<extra></extra>",
    )
    mean = sandwich["summary"]["gap"]["mean"]
    figure.add_hline(y=mean, line={"color": COLOURS["ink"], "width": 1.2, "dash": "dash"})
    apply_style(figure, height=250, legend=False)
    figure.update_xaxes(title_text="simulated datapoints, largest gap first", zeroline=False, showgrid=False)
    figure.update_yaxes(title_text="gap, nats")
    return figure
