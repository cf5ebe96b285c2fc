"""Figures of the ledger's own tables: what each latent dimension carries, and quality against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go

from amortize.report.style import COLOURS, METHODS, SYMBOLS, apply_style, escaped, finite

__all__ = ["curve_figure", "latents_figure"]

_FEW = 12
_ENDS = {"guide": "the guide (one draw)", "log_evidence": "log p(x)"}


def latents_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """KL divergence of each latent dimension from the prior, largest first; dimensions at rest are paler."""
    order = sorted(range(len(rows)), key=lambda place: -np.nan_to_num(rows[place]["kl"], nan=-np.inf))
    figure = go.Figure()
    for active, name, colour in ((True, "active", "approximation"), (False, "at rest", "pale")):
        chosen = [
            (rank, rows[place]) for rank, place in enumerate(order, start=1) if bool(rows[place]["active"]) == active
        ]
        if chosen:
            figure.add_bar(
                x=[rank for rank, _ in chosen],
                y=[row["kl"] for _, row in chosen],
                name=name,
                marker={"color": COLOURS[colour], "line": {"color": COLOURS["approximation"], "width": 1}},
                error_y={
                    "type": "data",
                    "array": [row["kl_se"] for _, row in chosen],
                    "color": COLOURS["ink"],
                    "thickness": 1,
                    "width": 2,
                },
                customdata=[[f"{escaped(row['site'])}[{row['index']}]", row["activity"]] for _, row in chosen],
                hovertemplate="%{customdata[0]}<br>%{y:.3f} nats, activity %{customdata[1]:.3f}"
                f"<extra>{name}</extra>",
            )
    apply_style(figure, height=280)
    figure.update_layout(bargap=0.25)
    figure.update_xaxes(title_text="latent dimension, largest first", showgrid=False, zeroline=False)
    if len(rows) <= _FEW:  # where plotly would put ticks between them
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(title_text="nats a datapoint", rangemode="tozero")
    return figure


def curve_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Mean ELBO of each method against seconds a datapoint: lines are fits on their way, marks where they end."""
    figure = go.Figure()
    methods = list(dict.fromkeys(row["method"] for row in rows))
    ends = []
    for method, colour, symbol in zip(methods, cycle(METHODS), cycle(SYMBOLS)):
        own = [row for row in rows if row["method"] == method and row["seconds_per_datapoint"] > 0]
        if not own:
            continue
        ends.append(own[-1]["elbo"])
        single = len(own) == 1
        figure.add_scatter(
            x=[row["seconds_per_datapoint"] for row in own],
            y=[row["elbo"] for row in own],
            name=_ENDS.get(method, escaped(method)),
            mode="markers" if single else "lines+markers",
            line={"color": colour, "width": 1.8, "dash": "dot" if method.endswith("from the prior") else "solid"},
            marker={"color": colour, "symbol": symbol, "size": [0] * (len(own) - 1) + [10]},
            error_y=None,
            hovertemplate="%{x:.2g} s a datapoint<br>%{y:.3f} nats<extra>" + escaped(method) + "</extra>",
        )
    apply_style(figure, height=360)
    figure.update_xaxes(title_text="seconds a datapoint", type="log", zeroline=False)
    figure.update_yaxes(title_text="nats a datapoint", range=_range(finite(ends)))
    return figure


def _range(ends: np.ndarray) -> list[float] | None:
    """Limits that show where methods end; the first looks of their fits may lie below."""
    if not ends.size:
        return None
    low, high = float(ends.min()), float(ends.max())
    pad = max(0.25 * (high - low), 0.05)
    return [low - 4 * pad, high + pad]
