"""What every verb takes first: a program."""

from __future__ import annotations

from amortize.errors import ArgumentError
from amortize.program.program import Program

__all__ = ["require_program"]


def require_program(program: object) -> None:
    """See that a verb was given a program, and not the model itself.

    Raises
    ------
    ArgumentError
        Otherwise.
    """
    if not isinstance(program, Program):
        raise ArgumentError(
            f"program: expected an am.Program, got {getattr(program, '__name__', type(program).__name__)!r}. Make one "
            "of a model and its guide: am.Program(model, guide)"
        )
