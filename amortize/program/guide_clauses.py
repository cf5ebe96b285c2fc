"""What the doctor tries of a guide, clause by clause."""

from __future__ import annotations

from amortize.errors import GuideMismatchError
from amortize.program.clauses import Clause, Exam, Finding
from amortize.program.guide import TracedGuide
from amortize.program.guide_contract import (
    verify_guide_densities,
    verify_guide_draws,
    verify_guide_names,
    verify_guide_plates,
    verify_guide_rows,
    verify_guide_static,
    verify_guide_supports,
)
from amortize.program.model_clauses import run_part
from amortize.program.points import is_point, verify_point_rows
from amortize.program.probes import head_of
from amortize.random import pyro_rng

__all__ = ["GUIDE_CLAUSES"]

MOST_ROWS = 256


def _runs(exam: Exam) -> str:
    assert exam.program.guide is not None
    exam.guide_ran, _, words = run_part(exam.program.guide, exam.get("data"))
    return words


def _names(exam: Exam) -> str:
    messages = {name: msg for name, msg in exam.get("guide_ran").items() if name not in exam.program.condition}
    words = verify_guide_names(exam.get("structure"), messages)
    exam.guide_named = messages
    return words


def _static(exam: Exam) -> str:
    return verify_guide_static(exam.program, exam.get("data"))


def _plates(exam: Exam) -> str:
    head = head_of(exam.get("data"))
    exam.guide_plate = verify_guide_plates(exam.get("structure"), exam.get("guide_named"), head.num_datapoints)
    return f"{exam.guide_plate!r}, the model's dimension and shapes"


def _densities(exam: Exam) -> str:
    structure, messages, plate = exam.get("structure"), exam.get("guide_named"), exam.get("guide_plate")
    words = verify_guide_densities(structure, messages, plate, points=True)
    drawn = {name for name in structure.sites if name in messages}
    exam.guide = TracedGuide(exam.get("log_joint"), plate, head_of(exam.get("data")), drawn)
    return words


def _draws(exam: Exam) -> str:
    exam.guide_drew = verify_guide_draws(exam.get("log_joint"), exam.get("data").rows(slice(0, MOST_ROWS)))
    return exam.guide_drew


def _rows(exam: Exam) -> str:
    head = head_of(exam.get("data"))
    if any(is_point(msg) for msg in exam.get("guide_named").values()):
        return verify_point_rows(exam.get("guide"), head)
    return verify_guide_rows(exam.get("guide"), head)


def _supports(exam: Exam) -> str | Finding:
    return verify_guide_supports(exam.get("log_joint"), head_of(exam.get("data")))


def _other(exam: Exam) -> str:
    """An AutoGuide, or the guide of a whole data set: it is checked where its density is made."""
    exam.program.prepare(exam.get("data"))
    guide = exam.program.guide_density(exam.get("data"))
    with pyro_rng(0, "check"):
        draw = guide.draw(exam.get("data"))
    if not bool(draw.log_q.isfinite().all()):
        raise GuideMismatchError(
            "the guide's log density is not finite at its own draws. Look at its scales: one may be 0 or NaN"
        )
    return f"{type(guide).__name__}: finite at its own draws"


GUIDE_CLAUSES = (
    Clause("guide-runs", "the guide runs on the data", ("data", "adopted"), _runs, "traced"),
    Clause("guide-sites", "guide samples the model's sites, and no more", ("guide_ran", "structure"), _names, "traced"),
    Clause("guide-static", "guide's sites are fixed", ("guide_ran",), _static, "traced"),
    Clause("guide-plate", "guide has the model's plate and shapes", ("guide_named",), _plates, "traced"),
    Clause("guide-density", "guide has a normalised density", ("guide_plate", "log_joint"), _densities, "traced"),
    Clause("guide-draws", "guide draws finite values", ("guide_plate", "log_joint"), _draws, "traced"),
    Clause("guide-rows", "guide's rows independent", ("guide", "guide_drew"), _rows, "traced"),
    Clause("guide-support", "guide matches the model's supports", ("guide", "guide_drew"), _supports, "traced"),
    Clause("guide", "guide matches the model", ("log_joint", "fixed"), _other, "other"),
)
