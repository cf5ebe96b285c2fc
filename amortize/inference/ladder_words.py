"""A gradient ladder in words: the table as text and as Markdown, and what stands out in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

__all__ = ["HEADINGS", "cells_of", "markdown", "sentences", "text"]

CERTAIN = 4.0
"""Normal deviates beyond which a bias is said to be one, or a claim to be wrong: once in 16000 sound estimators."""
HEADINGS = (
    "estimator", "target", "unbiased", "bias", "noise", "z", "variance", "rows", "ELBO", "log p(x)", "ms a step",
)  # fmt: skip


def cells_of(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """A row an estimator, as it is shown under `HEADINGS`."""
    return [
        (
            str(label),
            row["target"],
            row["unbiased"],
            _number(row["bias"], "{:.2%}"),
            _number(row["bias_se"], "{:.2%}"),
            _number(row["z"], "{:.1f}"),
            _number(row["variance"], "{:.3g}"),
            str(row["rows"]),
            _with_error(row["elbo"], row["elbo_se"]),
            _with_error(row["log_evidence"], row["log_evidence_se"]),
            _number(1e3 * row["seconds"], "{:.3g}"),
        )
        for label, row in table.iterrows()
    ]


def text(table: pd.DataFrame) -> str:
    """In columns."""
    rows = [HEADINGS, *cells_of(table)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(table: pd.DataFrame) -> str:
    """As a table of Markdown."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *cells_of(table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sentences(table: pd.DataFrame, left_out: Mapping[str, str], notes: Mapping[str, str]) -> Sequence[str]:
    """What to see in it: broken claims, biases, lost draws, and who was left out and why."""
    far = table["z"] > CERTAIN
    said = []
    if (far & (table["unbiased"] == "yes")).any():
        broken = ", ".join(map(str, table.index[far & (table["unbiased"] == "yes")]))
        said.append(f"Unbiased by theory, and not on this program (z above {CERTAIN:g}): {broken}.")
    if (far & (table["unbiased"] != "yes")).any():
        biased = table[far & (table["unbiased"] != "yes")]
        parts = [f"{label} {row['bias']:.1%}" for label, row in biased.iterrows()]
        said.append(f"Biased, as a share of the exact gradient's length: {', '.join(parts)}.")
    if (table["num_nonfinite"] > 0).any():
        parts = [f"{label} {count}" for label, count in table["num_nonfinite"].items() if count]
        said.append(f"Gradients that were not finite, left out of their rows: {', '.join(parts)}.")
    if (table["trusted"] < 1).any():
        said.append(
            "log p(x) can't be relied on for every datapoint; the column trusted of the table says for what share."
        )
    said += [f"{label}: {note}" for label, note in notes.items()]
    said += [f"Left out: {label}, {reason}" for label, reason in left_out.items()]
    return said


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _with_error(value: float, error: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if error == 0 else f"{value:.3f} +- {_number(error, '{:.2g}')}"
