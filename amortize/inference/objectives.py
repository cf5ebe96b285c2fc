"""Training objectives by name: Pyro's ELBOs as losses that torch optimisers can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.program.data import Data
from amortize.program.program import Program

__all__ = ["OBJECTIVES", "loss_of", "make_objective"]

OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "elbo": Trace_ELBO,
    "graph-elbo": TraceGraph_ELBO,
    "mean-field-elbo": TraceMeanField_ELBO,
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
    """Negative ELBO of a batch in nats, with the gradient the objective stands for."""
    if isinstance(objective, TraceGraph_ELBO):  # it has no differentiable_loss of its own
        parts: Any = objective._loss_and_surrogate_loss
        elbo, surrogate = parts(program.model, program.guide, data.args, data.kwargs)
        return cast("Tensor", surrogate + (-elbo - surrogate).detach())
    differentiable: Any = objective
    return cast("Tensor", differentiable.differentiable_loss(program.model, program.guide, *data.args, **data.kwargs))
