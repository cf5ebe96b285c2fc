"""The page's figures, in plotly, from the document: what is drawn is what ``report.json`` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from amortize.report.code_plots import code_training_figure, codes_figure
from amortize.report.document import gap_name, sampled_steps
from amortize.report.ledger_plots import curve_figure, latents_figure
from amortize.report.path_plots import cost_figure, path_figures, sandwich_figure
from amortize.report.run_plots import diagnostics_of, evidence_figure, training_figure
from amortize.report.style import COLOURS, apply_style, error_bars, finite, mark_failed, names_of
from amortize.report.words import number, quantity, uncertain

__all__ = ["MAX_SHOWN", "figures", "worst_first"]

MAX_SHOWN = 400
"""Most datapoints that a figure draws one by one; of more, as many evenly spaced by rank."""

_RANK = "rank by gap, worst first"
_PARTS = {"approximation_gap": "approximation (family)", "amortization_gap": "amortization (network)"}


def figures(document: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw the figures that the document has numbers for.

    Parameters
    ----------
    document : mapping
        What :func:`amortize.report.document.read_document` returns.

    Returns
    -------
    dict of str to Figure
        Some of "ladder", "gaps", "khat", "latents", "codes", "codes-training", "curve", "training", "evidence",
        "sandwich", "cost-0" (by method), and "path-spread", "path-acceptance", "path-step".
    """
    drawn: dict[str, go.Figure] = {}
    datapoints = document.get("datapoints", {})
    if len(document.get("ladder", [])) > 1:
        drawn["ladder"] = ladder_figure(document["ladder"])
    if finite(datapoints.get(gap_name(datapoints), [])).size:
        drawn["gaps"] = gaps_figure(datapoints)
    if finite(datapoints.get("khat", [])).size:
        drawn["khat"] = khat_figure(datapoints, document["khat"]["threshold"])
    if document.get("latents"):
        drawn["latents"] = latents_figure(document["latents"])
    if document.get("codes"):
        drawn["codes"] = codes_figure(document["codes"])
        followed = code_training_figure(document["codebooks"], document.get("training", {}).get("curve", {}))
        drawn |= {} if followed is None else {"codes-training": followed}
    if finite([row["elbo"] for row in document.get("curve", [])]).size > 1:
        drawn["curve"] = curve_figure(document["curve"])
    if "training" in document:
        drawn["training"] = training_figure(document["training"]["curve"], document["training"]["bound"])
    if diagnostics_of(document.get("evidence", {})):
        drawn["evidence"] = evidence_figure(document["evidence"])
    if document.get("sandwich", {}).get("num_datapoints"):
        drawn["sandwich"] = sandwich_figure(document["sandwich"])
    for place, run in enumerate(document.get("evidence", {}).values()):
        if len(run["used"]) > 1 and {"num_gradients", "se"} <= run["datapoints"].keys():
            drawn[f"cost-{place}"] = cost_figure(run)
    return drawn | path_figures(document.get("annealing", {}))


def worst_first(datapoints: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
    """Positions of the datapoints by gap, the largest first and those without one last."""
    gap = np.asarray(datapoints.get(gap_name(datapoints), [np.nan] * len(datapoints["datapoint"])), dtype=np.float64)
    return np.argsort(np.where(np.isfinite(gap), -gap, np.inf), kind="stable")


def ladder_figure(rungs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Steps from the guide's ELBO up to the evidence; a bar is a paired rise with its standard error."""
    labels, means = [quantity(rung["name"]).label for rung in rungs], [rung["mean"] for rung in rungs]
    figure = go.Figure()
    for index in range(1, len(rungs)):
        _add_rise(figure, rungs[index], labels[index], start=means[index - 1])
        ends = {"x0": means[index - 1], "x1": means[index - 1], "y0": labels[index - 1], "y1": labels[index]}
        figure.add_shape(type="line", **ends, line={"color": COLOURS["muted"], "width": 1, "dash": "dot"})
    figure.add_scatter(
        y=labels,
        x=means,
        mode="markers",
        marker={"symbol": "line-ns", "size": 34, "line": {"width": 3, "color": COLOURS["ink"]}},
        hovertemplate="%{y}<br>mean %{x:.3f} nats<extra></extra>",
    )
    for rung, label in zip(rungs, labels, strict=True):
        beside = {
            "x": 1.0,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 14,
            "align": "left",
            "showarrow": False,
        }
        figure.add_annotation(y=label, text=_rung_text(rung), **beside)
    apply_style(figure, height=80 + 54 * len(rungs), legend=False)
    pad = 0.08 * (max(means) - min(means)) or 1.0
    figure.update_layout(margin={"l": 190, "r": 230}, barmode="overlay")
    figure.update_xaxes(title_text="mean over datapoints, nats", range=[min(means) - pad, max(means) + pad])
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=False)
    return figure


def _add_rise(figure: go.Figure, rung: Mapping[str, Any], label: str, *, start: float) -> None:
    text = f"{label}<br>rise {uncertain(rung['rise'], rung['rise_se'])} nats"
    figure.add_bar(
        y=[label],
        x=[rung["rise"]],
        base=[start],
        orientation="h",
        width=0.55,
        marker_color=COLOURS[rung["part"]],
        error_x={
            "type": "data",
            "array": [rung["rise_se"]],
            "color": COLOURS["ink"],
            "thickness": 1.4,
            "width": 5,
        },
        hovertemplate=f"{text}<extra>{rung['part']}</extra>",
    )


def _rung_text(rung: Mapping[str, Any]) -> str:
    if "rise" not in rung:
        return number(rung["mean"])
    sign = "+" if rung["rise"] >= 0 else ""
    return f"{number(rung['mean'])}   <b>{sign}{uncertain(rung['rise'], rung['rise_se'])}</b>"


def gaps_figure(datapoints: Mapping[str, Sequence[Any]]) -> go.Figure:
    """Approximation and amortization gap of each datapoint, stacked, worst first; failed ones are marked."""
    columns, gap = {name: np.asarray(datapoints[name]) for name in datapoints}, gap_name(datapoints)
    order, total, names = worst_first(datapoints), columns[gap], names_of(datapoints)
    measured, failed = order[np.isfinite(total[order])], order[~np.isfinite(total[order])]
    shown = sampled_steps(len(measured), MAX_SHOWN)
    rows, rank = measured[shown], shown + 1
    figure = go.Figure()
    for name, label in _PARTS.items():
        if name in columns and finite(columns[name][rows]).size:
            figure.add_bar(
                x=rank,
                y=columns[name][rows],
                name=label,
                marker={"color": COLOURS[name.removesuffix("_gap")], "line": {"width": 0}},
                customdata=names[rows],
                hovertemplate=f"datapoint %{{customdata}}<br>%{{y:.3f}} nats<extra>{label}</extra>",
            )
    figure.add_scatter(
        x=rank,
        y=total[rows],
        name=f"{gap.replace('_', ' ')} \N{PLUS-MINUS SIGN} one standard error",
        mode="markers",
        marker={"size": 4, "color": COLOURS["ink"]},
        error_y=error_bars(columns.get(f"{gap}_se"), rows),
        customdata=names[rows],
        hovertemplate="datapoint %{customdata}<br>%{y:.3f} nats<extra>gap</extra>",
    )
    if failed.size:
        mark_failed(figure, np.arange(failed.size) + len(measured) + 1, names[failed])
    apply_style(figure, height=360)
    figure.update_layout(barmode="relative", bargap=0.15)
    figure.update_xaxes(title_text=_RANK, showgrid=False, zeroline=False, range=[0, len(order) + 1])
    figure.update_yaxes(title_text="nats")
    return figure


def khat_figure(datapoints: Mapping[str, Sequence[Any]], threshold: float) -> go.Figure:
    """K-hat of each datapoint, in the order of the gaps, with its threshold."""
    order = worst_first(datapoints)
    shown = sampled_steps(len(order), MAX_SHOWN)
    rank, names = shown + 1, names_of(datapoints)[order[shown]]
    khat = np.asarray(datapoints["khat"], dtype=np.float64)[order[shown]]
    top = max(1.0, float(finite(datapoints["khat"]).max()))
    kinds = {
        "below the threshold": ("circle", "approximation", khat <= threshold),
        "above it": ("diamond", "amortization", (khat > threshold) & np.isfinite(khat)),
        "infinite (drawn at the top)": ("triangle-up", "amortization", np.isposinf(khat)),
    }
    figure = go.Figure()
    for label, (symbol, colour, chosen) in kinds.items():
        if chosen.any():
            figure.add_scatter(
                x=rank[chosen],
                y=np.minimum(khat[chosen], top + 0.1),
                name=label,
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 8,
                    "color": COLOURS[colour],
                    "line": {"width": 0.6, "color": "white"},
                },
                customdata=names[chosen],
                hovertemplate="datapoint %{customdata}<br>k-hat %{y:.2f}<extra></extra>",
            )
    if np.isnan(khat).any():
        mark_failed(figure, rank[np.isnan(khat)], names[np.isnan(khat)])
    figure.add_hline(
        y=threshold,
        line={"dash": "dash", "color": COLOURS["ink"], "width": 1.2},
        annotation={"text": f"threshold<br>{threshold:.2f}", "font": {"size": 12}, "align": "left"},
        annotation_position="right",
    )
    apply_style(figure, height=290)
    figure.update_layout(margin_r=80)
    figure.update_xaxes(title_text=_RANK, showgrid=False, zeroline=False, range=[0, len(order) + 1])
    figure.update_yaxes(title_text="k-hat", range=[min(0.0, float(finite(khat).min(initial=0.0))) - 0.1, top + 0.2])
    return figure
