"""The tables ``[local]`` and ``[ledger]`` of a study: posteriors of single datapoints, and what of the gaps."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from amortize.study.tables import Count, Table, tuple_of

__all__ = ["LedgerSpec", "LocalSpec"]

Family = Literal[
    "laplace",
    "mean-field",
    "low-rank",
    "full-covariance",
    "mixture",
    "coupling",
    "iaf",
    "spline",
    "flow",
    "annealed",
]


def _families_of(value: object) -> object:
    if isinstance(value, (list, tuple)) and "point" in value:
        raise ValueError("a point has no density, hence no ELBO to compare; leave it out, and call am.fit_local for it")
    return tuple_of(value)


class LocalSpec(Table):
    """Posteriors fitted to each evaluated datapoint by itself."""

    families: Annotated[tuple[Family, ...], BeforeValidator(_families_of), Field(min_length=1)] = Field(
        default=("mean-field", "full-covariance"),
        description="families of densities in unconstrained coordinates: laplace, mean-field, low-rank,"
        " full-covariance, mixture, coupling, iaf, spline or flow, and annealed",
    )
    num_draws: Annotated[int, Field(ge=2, multiple_of=2)] = Field(
        default=8, description="draws a step, an even number (they come in antithetic pairs)"
    )
    num_steps: Count = Field(default=3000, description="optimiser steps a datapoint, at most")
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description='settings of families by their name, as low-rank = {"rank" = 2}'
    )

    @field_validator("families")
    @classmethod
    def _once(cls, families: tuple[Family, ...]) -> tuple[Family, ...]:
        if len(set(families)) < len(families):
            raise ValueError("each family may be named once")
        return families

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        for name in self.settings:
            if name not in self.families:
                raise ValueError(
                    f"settings.{name}: families are {', '.join(self.families)}; name it there, or leave it"
                )
        return self


class LedgerSpec(Table):
    """What is asked of the gaps, beside their means."""

    num_train: Count | None = Field(
        default=None,
        description="on how many training datapoints the gaps are measured too, which tells what the guide loses on"
        " unseen ones (not set: none; it takes as long again a datapoint)",
    )
    labels: str | None = Field(
        default=None,
        description="an array of the data by whose values the gaps are told apart (not set: the labels of a data set"
        " that has them)",
    )
    break_even: bool = Field(
        default=True,
        description="also fit posteriors without the guide's help, to tell from how many datapoints on its training is"
        " cheaper",
    )
    probes: bool = Field(
        default=True,
        description="try what the gaps alone can't tell: a copy of the guide trained on, posteriors searched for modes",
    )
