"""What a clause of the doctor's is: it takes the exam so far, adds to it, and says what it measured.

A clause that does not hold raises the error that a verb would raise; what is worth a look but refused by no verb is a
``Finding`` with the verdict "warn", and what is good to know a "note".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from amortize.errors import (
    ContractError,
    DataError,
    DiscreteLatentError,
    DynamicStructureError,
    GlobalLatentError,
    NoDataPlateError,
    ParameterNameError,
    PlateSizeError,
)
from amortize.program.blame import Modes, modes_of
from amortize.program.data import Data

if TYPE_CHECKING:
    from amortize.program.density import LogJoint
    from amortize.program.guide import TracedGuide
    from amortize.program.program import Program
    from amortize.program.sites import Structure

__all__ = ["HOMES", "Clause", "Exam", "Finding"]

MOST_ROWS = 2048  # datapoints looked at one by one

HOMES: dict[type[BaseException], str] = {
    ContractError: "densities",
    DataError: "data",
    ParameterNameError: "parameters",
    NoDataPlateError: "plate",
    PlateSizeError: "plate",
    GlobalLatentError: "local",
    DiscreteLatentError: "densities",
    DynamicStructureError: "static",
}
"""The clause that an error is about, whichever one it came up in."""


class Finding(NamedTuple):
    """A verdict ("ok", "note", "warn"), what was measured, and what to do."""

    verdict: str
    measured: str
    remedy: str = ""


@dataclass
class Exam:
    """What has been found out about a program so far; None where it could not be."""

    program: Program
    x: Any
    modes: Modes = field(init=False)
    unbroken: bool | None = True
    data: Data | None = None
    head: Data | None = None
    fixed: str | None = None
    steady: str | None = None
    adopted: bool | None = None
    messages: Mapping[str, Mapping[str, Any]] | None = None
    structure: Structure | None = None
    log_joint: LogJoint | None = None
    guide_ran: Mapping[str, Mapping[str, Any]] | None = None
    guide_named: Mapping[str, Mapping[str, Any]] | None = None
    guide_plate: str | None = None
    guide: TracedGuide | None = None
    guide_drew: str | None = None

    def __post_init__(self) -> None:
        self.modes = modes_of(self.program)

    def get(self, name: str) -> Any:
        """What a clause needs and the engine has seen to be there."""
        value = getattr(self, name)
        assert value is not None
        return value

    @property
    def most(self) -> Data:
        """All datapoints, or the first so many."""
        data: Data = self.get("data")
        return data if self.program.whole or data.num_datapoints <= MOST_ROWS else data.rows(slice(0, MOST_ROWS))


@dataclass(frozen=True)
class Clause:
    """A clause by key and title, what it needs to be tried, the trial, and what it is about.

    That is a "model", a "traced" guide that is run row by row, or an "other" guide (AutoGuides, whole data sets).
    """

    key: str
    title: str
    needs: tuple[str, ...]
    run: Callable[[Exam], str | Finding]
    kind: str = "model"
