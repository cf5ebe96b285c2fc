"""The doctor: every clause of the contract tried on data, and a table with a verdict and a remedy a line.

A clause that fails hides none that can be tried without it; what each one needs is said beside it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from amortize.errors import AmortizeError
from amortize.program.blame import with_line
from amortize.program.clauses import HOMES, Clause, Exam, Finding
from amortize.program.contract import verify_independent
from amortize.program.finite import verify_finite
from amortize.program.guide_clauses import GUIDE_CLAUSES
from amortize.program.guide_contract import verify_guide
from amortize.program.model_clauses import MODEL_CLAUSES
from amortize.program.value_clauses import LAST_CLAUSES, VALUE_CLAUSES
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["CheckReport", "CheckRow", "check_program", "verify_finite", "verify_guide", "verify_independent"]

CLAUSES = MODEL_CLAUSES + VALUE_CLAUSES + GUIDE_CLAUSES + LAST_CLAUSES


@dataclass(frozen=True)
class CheckRow:
    """One clause of the contract.

    ``key`` is a short name of the clause; ``verdict`` is "ok", "note", "warn", "fails" or "not tried"; ``error`` names
    the error that a verb raises where the clause fails; ``measured`` says what was found and ``remedy`` what to do.
    """

    key: str
    clause: str
    verdict: str
    measured: str = ""
    remedy: str = ""
    error: str = ""

    @property
    def text(self) -> str:
        """What was found and what to do, on one line."""
        found = f"{self.error}: {self.measured}" if self.error else self.measured
        return f"{found.rstrip('.')}. {self.remedy}" if found and self.remedy else found or self.remedy


@dataclass(frozen=True)
class CheckReport:
    """Verdicts on the clauses of the contract."""

    rows: tuple[CheckRow, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing fails."""
        return all(row.verdict != "fails" for row in self.rows)

    def __getitem__(self, key: str) -> CheckRow:
        """The row of a clause by its key."""
        return next(row for row in self.rows if row.key == key)

    def __str__(self) -> str:
        width = max(len(row.clause) for row in self.rows)
        return "\n".join(f"{row.clause:<{width}}  {row.verdict:<9}  {row.text}".rstrip() for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ok": self.ok, "rows": [asdict(row) for row in self.rows]}


def check_program(program: Program, x: Any) -> CheckReport:
    """Try each clause that can be tried."""
    exam = Exam(program, x)
    kinds = {"model", _guide_kind(program)}
    wanted = [clause for clause in CLAUSES if clause.kind in kinds]
    found: dict[str, CheckRow] = {}
    with program.evaluating(), _buffers_kept(program), pyro_rng(0, "check"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a verb warns of is a row here
        for clause in wanted:
            for row in _rows(clause, exam):
                if row.key not in found or found[row.key].verdict != "fails":
                    found[row.key] = row
    return CheckReport(tuple(found[clause.key] for clause in wanted))


def _guide_kind(program: Program) -> str:
    if program.guide is None:
        return "model"
    return "other" if program.whole or program.bound is not None or program.guide.per_datapoint else "traced"


@contextmanager
def _buffers_kept(program: Program) -> Iterator[None]:
    """Running statistics as they were: a program that trains in the call would change them."""
    kept = [(buffer, buffer.clone()) for buffer in program.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def _rows(clause: Clause, exam: Exam) -> Iterator[CheckRow]:
    """The clause's row, and that of another one where its error is about that one."""
    missing = [name for name in clause.needs if getattr(exam, name) is None]
    if missing:
        yield CheckRow(clause.key, clause.title, "not tried", f"needs {NEEDS[missing[0]]}")
        return
    try:
        finding = clause.run(exam)
    except Exception as error:  # the user's own code runs here; whatever it raises is the verdict
        home = next((HOMES[kind] for kind in type(error).__mro__ if kind in HOMES), clause.key)
        keys = [each.key for each in CLAUSES]
        place = home if clause.key in MAY_SPEAK_FOR.get(home, ()) else clause.key
        title = next(each.title for each in CLAUSES if each.key == place)
        if place != clause.key:
            verdict = "ok" if keys.index(place) > keys.index(clause.key) else "not tried"
            yield CheckRow(clause.key, clause.title, verdict)
        exam.unbroken = None
        yield CheckRow(place, title, "fails", *in_two(error), type(error).__name__)
        return
    finding = finding if isinstance(finding, Finding) else Finding("ok", finding)
    yield CheckRow(clause.key, clause.title, finding.verdict, finding.measured, finding.remedy)


NEEDS = {
    "unbroken": "a program in which nothing fails",
    "data": "data that can be read",
    "adopted": "parameters",
    "messages": "a model that runs",
    "structure": "a data plate with latents inside",
    "log_joint": "latents with a density",
    "fixed": "sites that are fixed",
    "steady": "a deterministic program",
    "guide_ran": "a guide that runs",
    "guide_named": "a guide with the model's sites",
    "guide_plate": "a guide with the model's plate",
    "guide": "a guide with a density",
    "guide_drew": "a guide that draws finite values",
}
MAY_SPEAK_FOR = {
    "parameters": ("runs", "guide-runs"),
    "local": ("plate",),
    "static": ("plate", "independent", "finite"),
    "densities": ("plate", "densities"),
    "plate": ("parameters", "runs"),
}
"""Clauses in which the error of another one may come up."""


def in_two(error: BaseException) -> tuple[str, str]:
    """What was found, and what to do: a message's first sentence and the rest."""
    if not isinstance(error, AmortizeError):
        return with_line(error).partition(": ")[2], ""
    parts = re.split(r"(?<=[a-z0-9)'\"`])[.?] (?=[A-Z])", " ".join(str(error).split()), maxsplit=1)
    return parts[0], parts[1] if len(parts) > 1 else ""
