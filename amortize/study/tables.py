"""What the tables of a study share: no unknown keys, no silent conversions, not changed once made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Count", "Positive", "Table", "refuse_unused", "tuple_of"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Table(BaseModel):
    """A table of the study."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def tuple_of(value: object) -> object:
    """A TOML array as a tuple; anything else is left for validation to refuse."""
    return tuple(value) if isinstance(value, list) else value


def refuse_unused(table: Table, choice: str, takes: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse settings that the chosen one of several alternatives doesn't take; what isn't set is ``None``.

    Raises
    ------
    ValueError
        The message names the setting and the alternatives that take it.
    """
    chosen = getattr(table, choice)
    for name in dict.fromkeys(name for names in takes.values() for name in names):
        if getattr(table, name) is not None and name not in takes.get(chosen, ()):
            takers = [repr(key) for key, names in takes.items() if name in names]
            raise ValueError(
                f"{name} is for {choice} {' or '.join(takers)}, and {choice} is {chosen!r}: leave it out, or set "
                f"{choice} = {takers[0]}"
            )
