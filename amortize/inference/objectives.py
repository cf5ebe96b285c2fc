"""Training objectives by name: Pyro's ELBOs as losses that torch optimisers can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pyro.infer import (
    ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.program.data import Data
from amortize.program.discover import run_recorded
from amortize.program.program import Program

__all__ = ["OBJECTIVES", "loss_of", "make_objective", "require_sites"]

OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "elbo": Trace_ELBO,
    "graph-elbo": TraceGraph_ELBO,
    "mean-field-elbo": TraceMeanField_ELBO,
    "enum-elbo": TraceEnum_ELBO,
}


def make_objective(objective: str | ELBO) -> ELBO:
    """The Pyro ELBO for a name; one of Pyro's own objects is taken as it is.

    Raises
    ------
    ArgumentError
        For an unknown name.
    """
    if isinstance(objective, ELBO):
        if not (isinstance(objective, TraceGraph_ELBO) or hasattr(objective, "differentiable_loss")):
            raise ArgumentError(f"objective: {type(objective).__name__} offers no differentiable loss; use Trace_ELBO")
        return objective
    if objective not in OBJECTIVES:
        raise ArgumentError(
            f"objective: expected one of {', '.join(map(repr, OBJECTIVES))} or a pyro.infer ELBO, got {objective!r}"
        )
    return OBJECTIVES[objective]()


def loss_of(objective: ELBO, program: Program, data: Data) -> Tensor:
    """Negative ELBO of a batch in nats, with the gradient the objective stands for.

    TraceEnum_ELBO sums out every discrete site of model and guide that the user has not marked otherwise.
    """
    if isinstance(objective, TraceGraph_ELBO):  # it has no differentiable_loss of its own
        parts: Any = objective._loss_and_surrogate_loss
        elbo, surrogate = parts(program.model, program.guide, data.args, data.kwargs)
        return cast("Tensor", surrogate + (-elbo - surrogate).detach())
    differentiable: Any = objective
    model: Any = program.model
    guide: Any = program.guide
    if isinstance(objective, TraceEnum_ELBO):
        mark: Any = config_enumerate
        model, guide = mark(model, "parallel"), mark(guide, "parallel")
    return cast("Tensor", differentiable.differentiable_loss(model, guide, *data.args, **data.kwargs))


def require_sites(objective: ELBO, program: Program, data: Data) -> None:
    """Say so where the guide leaves discrete sites out and the objective does not sum over them.

    Raises
    ------
    ArgumentError
        Naming the sites, and the objective that does.
    """
    assert program.guide is not None
    head = data.rows(slice(0, 2)) if program.bound is None else data
    left_out = set(program.structure(data).discrete) - set(run_recorded(program.guide, head))
    if left_out and not isinstance(objective, TraceEnum_ELBO):
        raise ArgumentError(
            f"objective: the guide leaves out {', '.join(map(repr, sorted(left_out)))}, and {type(objective).__name__} "
            "does not sum over discrete latents, so it would be no bound. Use objective='enum-elbo'"
        )
