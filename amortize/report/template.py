"""What the pages share: their templates, filters, figures and the script that draws them."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup

from amortize.report.words import cause_words, count, number, percent, quantity, uncertain

__all__ = ["embedded", "environment", "plotly_js"]


def environment() -> jinja2.Environment:
    """Where templates are, and the filters that they use."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("amortize.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "cause": cause_words,
        "count": count,
        "number": number,
        "uncertain": uncertain,
        "percent": percent,
        "ceiled": _ceiled,
        "quantity": lambda name: quantity(name).label,
        "rung": _rung,
        "value": _value,
    }
    return made


def plotly_js() -> Markup:
    """Version 4.1.1 of plotly.js, of the npm package plotly.js-cartesian-dist-min.

    It is a third of the bundle that the Python package ships, and a page with it opens twice as fast. It
    holds no ``</script``, so it can stand in one.
    """
    file = resources.files("amortize.report").joinpath("vendor/plotly-cartesian.min.js")
    return Markup(file.read_text(encoding="utf-8"))


def embedded(figure: go.Figure) -> Markup:
    """A figure as JSON that can stand inside a script element."""
    text = str(figure.to_json())
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _value(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _rung(name: str) -> str:
    """A rung of the tower, or a method, in words."""
    return {"guide": "guide", "log_evidence": "log p(x)"}.get(name, name)


def _ceiled(value: float | None) -> str:
    """The least whole number that is as large."""
    return count(value if value is None or not math.isfinite(value) else math.ceil(value))
