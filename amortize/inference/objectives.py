"""Training objectives by name, and Pyro's ELBOs as losses that torch optimisers can use."""

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

from amortize.errors import ArgumentError, DiscreteLatentError, shown
from amortize.inference.amcvae import AMCVAE
from amortize.inference.annealed_objectives import DAIS, LMCVAE, MCD
from amortize.inference.beta import BetaELBO
from amortize.inference.concrete import ConcreteELBO
from amortize.inference.disarm import DisARM
from amortize.inference.exact_elbo import ExactELBO
from amortize.inference.iwae import IWAE
from amortize.inference.leave_one_out import LeaveOneOut
from amortize.inference.nvil import NVIL
from amortize.inference.objective import Objective
from amortize.inference.penalty import Penalty
from amortize.inference.reinforce import Reinforce
from amortize.inference.relax import RELAX
from amortize.inference.semi_amortized import SemiAmortized
from amortize.inference.vimco import VIMCO
from amortize.inference.wake_sleep import WakeSleep
from amortize.program.data import Data
from amortize.program.direct import direct_elbo, has_paths
from amortize.program.discover import run_recorded
from amortize.program.points import point_sites
from amortize.program.program import Program
from amortize.program.relaxing import says_relaxed

__all__ = ["BOUNDS", "OBJECTIVES", "is_direct", "loss_of", "make_objective", "name_of", "resolve_objective"]

OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "elbo": Trace_ELBO,
    "graph-elbo": TraceGraph_ELBO,
    "mean-field-elbo": TraceMeanField_ELBO,
    "enum-elbo": TraceEnum_ELBO,
}
"""Pyro's own, summed over the data plate."""
_BOUNDS = (
    BetaELBO, ConcreteELBO, IWAE, WakeSleep, LMCVAE, AMCVAE, DAIS, MCD, SemiAmortized, NVIL, VIMCO, LeaveOneOut,
    Reinforce, ExactELBO, DisARM, RELAX,
)  # fmt: skip
BOUNDS: dict[str, Callable[[], Objective]] = {kind.name: kind for kind in _BOUNDS}
"""Tighter bounds, one for each datapoint."""


def make_objective(objective: str | ELBO | Objective) -> ELBO | Objective:
    """The objective for a name, with its defaults; an object is taken as it is.

    Raises
    ------
    ArgumentError
        For an unknown name.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, ELBO):
        if not (isinstance(objective, TraceGraph_ELBO) or hasattr(objective, "differentiable_loss")):
            raise ArgumentError(f"objective: {type(objective).__name__} offers no differentiable loss; use Trace_ELBO")
        return objective
    makers: dict[str, Callable[[], ELBO | Objective]] = {**OBJECTIVES, **BOUNDS}
    if isinstance(objective, Penalty):
        raise ArgumentError(
            f"objective: {shown(objective)} is a penalty, part of an objective: "
            f"am.BetaELBO(penalties=(am.{type(objective).__name__}(...),))"
        )
    if not isinstance(objective, str) or objective not in makers:
        raise ArgumentError(
            f"objective: expected one of 'auto', {', '.join(map(repr, makers))}, their settings, as am.IWAE(...), or a "
            f"pyro.infer ELBO, got {shown(objective)}"
        )
    return makers[objective]()


def name_of(objective: ELBO | Objective) -> str:
    """As it is written down."""
    if isinstance(objective, Objective):
        return objective.name
    known = {kind: name for name, kind in OBJECTIVES.items()}
    return known.get(type(objective), type(objective).__name__)


def loss_of(objective: ELBO, program: Program, data: Data, *, direct: bool = False) -> Tensor:
    """Negative ELBO of a batch in nats, with the gradient the objective stands for.

    TraceEnum_ELBO sums out every discrete site of model and guide that the user has not marked otherwise. Where
    ``direct``, and every draw has a path, Pyro's traces are left out: the numbers are the same.
    """
    elbo = direct_elbo(program, data) if direct else None
    if elbo is not None:
        return -elbo
    if isinstance(objective, TraceGraph_ELBO):  # it has no differentiable_loss of its own
        parts: Any = objective._loss_and_surrogate_loss
        elbo, surrogate = parts(program.trained_model, program.guide, data.args, data.kwargs)
        return cast("Tensor", surrogate + (-elbo - surrogate).detach())
    differentiable: Any = objective
    model: Any = program.trained_model
    guide: Any = program.guide
    if isinstance(objective, TraceEnum_ELBO):
        mark: Any = config_enumerate
        model, guide = mark(model, "parallel"), mark(guide, "parallel")
    return cast("Tensor", differentiable.differentiable_loss(model, guide, *data.args, **data.kwargs))


def is_direct(objective: ELBO | Objective, program: Program, data: Data) -> bool:
    """Whether an objective is Trace_ELBO as it comes, on a guide that draws everything with a gradient."""
    plain = type(objective) is Trace_ELBO and objective.num_particles == 1 and not objective.vectorize_particles
    return plain and has_paths(program, data)


def resolve_objective(objective: str | ELBO | Objective, program: Program, data: Data) -> ELBO | Objective:
    """The objective; "auto" is the program's own, "enum-elbo" where the guide leaves discrete latents out, or "elbo".

    A guide whose discrete latents are all relaxed is trained so, ``ConcreteELBO()``.

    The ELBO of a guide that is a point is ``BetaELBO()``, which takes the log joint there.

    Raises
    ------
    ArgumentError
        If the guide leaves discrete latents out and the objective does not sum over them.
    DiscreteLatentError
        If the guide draws discrete latents and the objective is the mean-field ELBO.
    """
    left_out = _left_out(program, data)
    if objective == "auto" and program.objective is not None:
        objective = program.objective
    if objective in ("auto", "elbo") and not left_out and point_sites(program, data):
        return BetaELBO()
    if objective == "auto" and not left_out and says_relaxed(program, data):
        return ConcreteELBO()
    if objective == "auto":
        return make_objective("enum-elbo" if left_out else "elbo")
    made = make_objective(objective)
    if left_out and not isinstance(made, (TraceEnum_ELBO, Objective)):
        raise ArgumentError(
            f"objective: the guide leaves out {', '.join(map(repr, left_out))}, and {type(made).__name__} does not sum "
            "over discrete latents, so it would be no bound. Use objective='enum-elbo', or 'auto'"
        )
    if isinstance(made, TraceMeanField_ELBO) and (drawn := program.structure(data).discrete):
        raise DiscreteLatentError(
            f"objective: the guide draws {', '.join(map(repr, drawn))}, and {type(made).__name__} has no score for "
            "draws without a path, so that its gradient would be wrong. Use objective='graph-elbo', 'leave-one-out' or "
            "'auto'"
        )
    return made


def _left_out(program: Program, data: Data) -> list[str]:
    discrete = set(program.structure(data).discrete)
    if not discrete:
        return []
    assert program.guide is not None
    head = data.rows(slice(0, 2)) if program.bound is None else data
    with program.evaluating():  # running statistics are those of training's own batches
        return sorted(discrete - set(run_recorded(program.guide, head)))
