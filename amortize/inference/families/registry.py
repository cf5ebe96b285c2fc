"""The families of local posteriors by name: adding one is adding a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amortize.errors import ArgumentError, shown
from amortize.inference.families.annealed import Annealed
from amortize.inference.families.family import Family
from amortize.inference.families.flow import IAF, Coupling, Flow, Spline
from amortize.inference.families.gaussian import FullCovariance, MeanField
from amortize.inference.families.laplace import Laplace
from amortize.inference.families.low_rank import LowRank
from amortize.inference.families.mixture import Mixture
from amortize.inference.families.point import Point

__all__ = ["FAMILIES", "family_of", "make_family"]

FAMILIES: dict[str, Callable[..., Family]] = {
    "point": Point,
    "laplace": Laplace,
    "mean-field": MeanField,
    "low-rank": LowRank,
    "full-covariance": FullCovariance,
    "mixture": Mixture,
    "coupling": Coupling,
    "iaf": IAF,
    "spline": Spline,
    "flow": Flow,
    "annealed": Annealed,
}
"""By the name that ``am.fit_local`` takes, from poor to rich."""


def make_family(family: str | Family, *, argument: str = "family") -> Family:
    """Settings of a family, by its name or as they are; messages speak of ``argument``.

    Raises
    ------
    ArgumentError
        If there is none of that name.
    """
    if isinstance(family, Family):
        return family
    if isinstance(family, str) and family in FAMILIES:
        return FAMILIES[family]()
    raise ArgumentError(f"{argument}: expected one of {tuple(FAMILIES)}, or its settings, got {shown(family)}")


def family_of(name: str, settings: Mapping[str, Any]) -> Family:
    """The family with settings that were written down."""
    return type(FAMILIES[name]()).of(settings)
