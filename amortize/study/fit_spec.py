"""The table ``[fit]`` of a study."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from amortize.study.tables import Count, Positive, Table, refuse_unused

__all__ = ["TAKES", "FitSpec"]

Objective = Literal[
    "auto",
    "elbo",
    "graph-elbo",
    "mean-field-elbo",
    "enum-elbo",
    "beta-elbo",
    "iwae",
    "wake-sleep",
    "l-mcvae",
    "a-mcvae",
    "dais",
    "mcd",
    "semi-amortized",
    "nvil",
    "vimco",
    "leave-one-out",
    "reinforce",
    "concrete-elbo",
    "exact-elbo",
    "disarm",
    "relax",
]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
TAKES = {
    "iwae": ("num_particles",),
    "wake-sleep": ("num_particles",),
    "nvil": ("num_particles",),
    "vimco": ("num_particles",),
    "leave-one-out": ("num_particles",),
    "l-mcvae": ("num_annealing_steps",),
    "a-mcvae": ("num_annealing_steps",),
    "dais": ("num_annealing_steps",),
    "mcd": ("num_annealing_steps",),
    "semi-amortized": ("num_refinement_steps",),
    "beta-elbo": ("num_particles", "beta", "warmup", "free_bits"),
    "concrete-elbo": ("num_particles", "beta", "warmup", "temperature", "final_temperature", "straight_through"),
    "exact-elbo": ("num_particles",),
    "reinforce": (),
    "disarm": (),
    "relax": ("num_particles",),
}
"""Settings by the objective that takes them."""


class FitSpec(Table):
    """Training of the guide, and of the model's parameters if it has any."""

    objective: Objective = Field(
        default="auto",
        description="Pyro's ELBO to maximise (auto: a zoo model's own objective, and enum-elbo where the guide of"
        " another program leaves discrete latents out), or a"
        " tighter bound on each datapoint's log p(x)",
    )
    num_particles: Count | None = Field(
        default=None,
        description="draws a datapoint of iwae, wake-sleep and vimco (not set: 5), leave-one-out (4), and of beta-elbo,"
        " concrete-elbo, nvil, relax and exact-elbo (1)",
    )
    num_annealing_steps: Count | None = Field(
        default=None, description="annealing steps of l-mcvae, a-mcvae, dais and mcd (not set: 5)"
    )
    num_refinement_steps: Count | None = Field(
        default=None, description="steps of semi-amortized from the guide, trained through (not set: 5)"
    )
    beta: NonNegative | None = Field(
        default=None, description="price of a nat of rate in beta-elbo and concrete-elbo (not set: 1)"
    )
    warmup: Share | None = Field(
        default=None,
        description="share of steps over which beta climbs from 0 in beta-elbo and concrete-elbo (not set: 0)",
    )
    free_bits: NonNegative | None = Field(
        default=None, description="nats of each latent variable that beta-elbo does not charge (not set: 0)"
    )
    temperature: Positive | None = Field(
        default=None, description="of concrete-elbo at the start (not set: the guide's own, or 1 falling to 0.5)"
    )
    final_temperature: Positive | None = Field(
        default=None, description="to which that of concrete-elbo falls over half of the steps (not set: it stays)"
    )
    straight_through: bool | None = Field(
        default=None, description="hard values with soft gradients in concrete-elbo (not set: soft values)"
    )
    aggressive: bool = Field(
        default=False,
        description="train the guide ahead of the model until its bound stops rising, while their mutual information"
        " grows",
    )
    num_steps: Count = Field(default=5000, description="optimiser steps, at most")
    learning_rate: Positive = Field(default=1e-3, description="Adam's learning rate at the start")
    batch_size: Count | None = Field(
        default=128, description="datapoints a step (a smaller training part is used whole)"
    )
    schedule: Literal["constant", "cosine", "exponential"] = Field(
        default="constant", description="how the learning rate falls"
    )
    clip_norm: Positive | None = Field(default=None, description="largest norm of the gradient")
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the training part kept back for a validation ELBO; 0 for none"
    )
    validate_every: Count = Field(default=100, description="steps between two looks at the validation ELBO")
    patience: Count | None = Field(default=None, description="stop early after this many looks without a gain")

    @model_validator(mode="after")
    def _patience_looks_at_something(self) -> Self:
        if self.patience is not None and self.validation == 0:
            raise ValueError("patience needs a validation share above 0")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        refuse_unused(self, "objective", TAKES)
        return self
