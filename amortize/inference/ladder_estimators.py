"""The estimators of a gradient ladder: which there are by default, and what each claims to estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

from amortize.errors import ArgumentError, shown
from amortize.inference.concrete import ConcreteELBO
from amortize.inference.disarm import DisARM
from amortize.inference.exact_elbo import ExactELBO
from amortize.inference.iwae import ImportanceWeighted
from amortize.inference.leave_one_out import LeaveOneOut
from amortize.inference.nvil import NVIL
from amortize.inference.objective import Objective
from amortize.inference.objectives import make_objective
from amortize.inference.reinforce import Reinforce
from amortize.inference.relax import RELAX
from amortize.inference.vimco import VIMCO
from amortize.inference.wake_sleep import WakeSleep

__all__ = ["Estimators", "claim_of", "default_estimators", "draws_of", "read_estimators"]

Estimators = dict[str, "ELBO | Objective"]
TEMPERATURES = (1.0, 0.5, 0.1)
PYROS = (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)
UNBIASED = (ExactELBO, Reinforce, VIMCO, LeaveOneOut, DisARM, RELAX, *PYROS)
BIASED = (ConcreteELBO, WakeSleep)


def default_estimators() -> Estimators:
    """A row each, in the order of the table: exact, relaxed, by the score function, wake-sleep."""
    relaxed: Estimators = {
        f"concrete T={temperature:g}": ConcreteELBO(temperature=temperature) for temperature in TEMPERATURES
    }
    return {
        "exact": ExactELBO(),
        **relaxed,
        "straight-through": ConcreteELBO(temperature=TEMPERATURES[1], straight_through=True),
        "reinforce": Reinforce(),
        "nvil": NVIL(normalise=False),
        "nvil, normalised": NVIL(),
        "leave-one-out": LeaveOneOut(),
        "disarm": DisARM(),
        "relax": RELAX(),
        "vimco": VIMCO(),
        "wake-sleep": WakeSleep(),
    }


def read_estimators(given: Any) -> Estimators:
    """Estimators as ``am.gradient_ladder`` takes them: None, labels of the default ones, or objectives by label.

    Raises
    ------
    ArgumentError
        For anything else.
    """
    known = default_estimators()
    if given is None:
        return known
    if isinstance(given, Mapping) and given:
        return {str(label): _made(objective, known) for label, objective in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        read: Estimators = {}
        for one in given:
            found = _made(one, known)
            label = one if isinstance(one, str) else _label(found)
            if label in read:
                raise ArgumentError(f"estimators: two of them are called {label!r}; name them in a dict")
            read[label] = found
        return read
    raise ArgumentError(
        f"estimators: expected a list of {', '.join(map(repr, known))} or of objectives, or a dict of objectives by "
        f"label, got {shown(given)}"
    )


def _made(one: Any, known: Estimators) -> ELBO | Objective:
    """A default one by its label, or what ``am.fit`` takes."""
    if isinstance(one, str) and one in known:
        return known[one]
    try:
        return make_objective(one)
    except ArgumentError as error:
        raise ArgumentError(f"estimators: {one!r} is none of {', '.join(map(repr, known))}, and no {error}") from error


def _label(objective: ELBO | Objective) -> str:
    return objective.name if isinstance(objective, Objective) else type(objective).__name__


def draws_of(objective: ELBO | Objective) -> int:
    """K of the bound whose gradient is estimated; 1 is the ELBO."""
    return objective.num_particles if isinstance(objective, ImportanceWeighted) else 1


def claim_of(objective: ELBO | Objective) -> str:
    """Whether it is unbiased by theory: "yes", "no", "to scale" (its direction is right, its length not), or "?"."""
    if isinstance(objective, NVIL):
        return "to scale" if objective.normalise else "yes"
    return "yes" if isinstance(objective, UNBIASED) else "no" if isinstance(objective, BIASED) else "?"
