"""The table ``[evidence]`` of a study."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from amortize.study.tables import Count, Positive, Table, refuse_unused

__all__ = ["TAKES", "EvidenceSpec"]

TAKES = {
    "ais": ("num_chains", "num_temperatures", "schedule", "kernel", "num_leapfrog"),
    "smc": ("num_particles", "kernel", "num_leapfrog"),
    "langevin": ("num_chains", "num_temperatures", "schedule"),
    "importance": (),
    "auto": ("num_chains", "num_temperatures", "kernel", "num_leapfrog", "target_se", "max_gradients"),
}
"""Settings by the method that takes them."""
REVERSIBLE = ("ais", "langevin", "importance")


class EvidenceSpec(Table):
    """How log p(x) of each evaluated datapoint is measured."""

    method: Literal["ais", "smc", "langevin", "importance", "auto"] = Field(
        default="ais",
        description="annealed importance sampling, sequential Monte Carlo, annealed Langevin, plain importance"
        " sampling, or auto: as much as each datapoint needs",
    )
    num_chains: Count | None = Field(
        default=None, description="chains a datapoint, of ais, langevin and auto (not set: 16)"
    )
    num_temperatures: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="of ais (not set: 100), of langevin (1000), and of auto's first annealing (25)"
    )
    num_particles: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="particles a datapoint, of smc (not set: 512)"
    )
    kernel: Literal["hmc", "mala", "ula"] | None = Field(
        default=None, description="what moves the chains of ais, smc and auto (not set: hmc)"
    )
    num_leapfrog: Count | None = Field(
        default=None, description="leapfrog steps of a move by hmc (not set: 10, of auto 4)"
    )
    schedule: Literal["pilot", "pilot-per-datapoint", "linear", "power", "sigmoid"] | None = Field(
        default=None,
        description="where ais and langevin put their temperatures: by a pilot run for all datapoints (not set: this)"
        " or for each, or by a formula",
    )
    target_se: Positive | None = Field(
        default=None, description="standard error that auto works for, nats a datapoint (not set: 0.05)"
    )
    max_gradients: Count | None = Field(
        default=None, description="most gradients that auto spends on a datapoint (not set: 200000)"
    )
    start: Literal["guide", "prior"] | None = Field(
        default=None,
        description="where chains and draws start (not set: the guide; posteriors"
        " fitted to each datapoint where it is a point; the prior where there is none)",
    )
    num_draws: Annotated[int, Field(ge=2)] = Field(
        default=1000,
        description="draws of the guide a datapoint: its ELBO, k-hat and effective sample size; also those of"
        " importance and of auto's first stage",
    )
    error: Literal["monte-carlo", "simulated"] = Field(
        default="monte-carlo",
        description="what is known of the error: that of the weights alone, or also the one that the method makes on"
        " data simulated from the model (two to three times as long)",
    )
    sandwich: bool = Field(
        default=False,
        description="also bound log p(x) from both sides on data simulated from the model (ais, langevin, importance)",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        refuse_unused(self, "method", TAKES)
        if self.num_leapfrog is not None and self.kernel not in (None, "hmc"):
            raise ValueError(f"num_leapfrog is for kernel 'hmc', and kernel is {self.kernel!r}: leave it out")
        if self.sandwich and self.error == "simulated":
            raise ValueError("sandwich is part of error 'simulated': leave it out")
        if self.sandwich and self.method not in REVERSIBLE:
            raise ValueError(
                f"sandwich needs a method whose run can be reversed ({', '.join(REVERSIBLE)}), and method is"
                f" {self.method!r}"
            )
        return self
