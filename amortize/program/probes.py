"""Small runs of a program that the clauses of the contract are tried with.

Letters: N datapoints, B rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from amortize.program.blame import named
from amortize.program.data import Data
from amortize.program.discover import HEAD, run_recorded

if TYPE_CHECKING:
    from amortize.program.density import Latents, LogJoint

__all__ = ["drawn_values", "head_of", "in_terms", "joint_at", "rows_in_words", "take"]

SHOWN = 8  # rows listed in a message


def head_of(data: Data, size: int = HEAD) -> Data:
    """The first few datapoints."""
    return data.rows(slice(0, min(data.num_datapoints, size)))


def drawn_values(log_joint: LogJoint, data: Data, number: int) -> dict[str, Tensor]:
    """Values of all latents, discrete ones too, of one run of the model."""
    messages = run_recorded(log_joint.program.model, data, number, "check")
    return {name: messages[name]["value"] for name in log_joint.structure.sites}


def take(latents: Latents, index: Tensor | slice) -> Latents:
    """Some rows of latents."""
    return type(latents)(*(part[index] for part in latents))


def joint_at(log_joint: LogJoint, data: Data, latents: Latents) -> Tensor:
    """Log joint of each row at its latents, (B,) nats."""
    return log_joint.terms(data, u=latents.u, choices=latents.choices).joint


def rows_in_words(rows: list[int]) -> str:
    """Row numbers, the first few."""
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(map(str, rows[:SHOWN])) + more


def in_terms(names: list[str]) -> str:
    """Where a difference is, for a message."""
    return f" (in the term of {named(names[:3])})" if names else ""
