"""Figures of codes: how evenly they are used, and how that came about in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go

from amortize.report.style import COLOURS, METHODS, SYMBOLS, apply_style, escaped

__all__ = ["code_training_figure", "codes_figure"]


def codes_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Share of the positions that each code has, the most used first, beside that of codes that are used alike."""
    figure = go.Figure()
    sites = list(dict.fromkeys(row["site"] for row in rows))
    for site, colour in zip(sites, cycle(METHODS)):
        own = [row for row in rows if row["site"] == site]
        rank = np.arange(1, len(own) + 1)
        figure.add_scatter(
            x=rank,
            y=[row["share"] for row in own],
            name=escaped(site),
            mode="lines",
            line={"color": colour, "width": 2, "shape": "hvh"},
            fill="tozeroy" if len(sites) == 1 else None,
            customdata=[row["code"] for row in own],
            hovertemplate="code %{customdata}<br>share %{y:.2%}<extra>" + escaped(site) + "</extra>",
        )
        alike = {"x": [rank[0], rank[-1]], "y": [1 / len(own)] * 2}
        dotted = {"color": colour, "width": 1.4, "dash": "dot"}
        figure.add_scatter(**alike, name=f"{escaped(site)}, all alike", mode="lines", line=dotted, hoverinfo="skip")
    apply_style(figure, height=280)
    figure.update_xaxes(title_text="codes, the most used first", showgrid=False, zeroline=False)
    figure.update_yaxes(title_text="share of positions", tickformat=".1%", rangemode="tozero")
    return figure


def code_training_figure(
    codebooks: Sequence[Mapping[str, Any]], curve: Mapping[str, Sequence[float]]
) -> go.Figure | None:
    """Perplexity by training step on the validation data, by site; None where the history has none."""
    step, figure = np.asarray(curve.get("step", []), dtype=np.float64), go.Figure()
    for row, colour, symbol in zip(codebooks, cycle(METHODS), cycle(SYMBOLS)):
        site, column = row["site"], f"{row['site']}_perplexity"
        values = np.asarray(curve.get(column, []), dtype=np.float64)
        seen = np.flatnonzero(np.isfinite(values))
        if not seen.size:
            continue
        dead = np.asarray(curve[f"{site}_num_dead"], dtype=np.float64)[seen]
        figure.add_scatter(
            x=step[seen],
            y=values[seen],
            name=escaped(site),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 6, "symbol": symbol},
            customdata=dead,
            hovertemplate="step %{x}<br>perplexity %{y:.1f}, %{customdata:.0f} dead<extra>"
            + escaped(site)
            + "</extra>",
        )
        dotted = {"color": colour, "width": 1.2, "dash": "dot"}
        figure.add_hline(
            y=row["num_codes"],
            line=dotted,
            annotation={"text": f"{row['num_codes']} codes", "font": {"size": 12, "color": COLOURS["muted"]}},
        )
    if not figure.data:
        return None
    apply_style(figure, height=280)
    figure.update_xaxes(title_text="step", zeroline=False)
    figure.update_yaxes(title_text="perplexity", rangemode="tozero")
    return figure
