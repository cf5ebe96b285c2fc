"""What the doctor tries, clause by clause: each takes the exam so far, adds to it, and says what it measured.

A clause that does not hold raises the error that a verb would raise; what is worth a look but refused by no verb is a
``Finding`` with the verdict "warn", and what is good to know a "note".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from pyro.distributions import Unit
from torch import Tensor

from amortize.errors import (
    AmortizeError,
    ContractError,
    DataError,
    DiscreteLatentError,
    DynamicStructureError,
    GlobalLatentError,
    NoDataPlateError,
    ParameterNameError,
    PlateSizeError,
)
from amortize.program.blame import Modes, modes_of, named, with_line
from amortize.program.compile import Compiled
from amortize.program.contract import (
    FINITE_ADVICE,
    head_of,
    nonfinite_rows,
    recorded,
    rows_in_words,
    verify_deterministic,
    verify_gradient,
    verify_outside,
    verify_rows,
    verify_somewhere_finite,
    verify_static,
)
from amortize.program.data import Data
from amortize.program.discover import HEAD, support_name
from amortize.program.explain import explained
from amortize.program.handlers import unvalidated
from amortize.program.precision import measure_precision
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.adopt import Adopted
    from amortize.program.density import LogJoint
    from amortize.program.guide import TracedGuide
    from amortize.program.program import Program
    from amortize.program.sites import Structure

__all__ = ["HOMES", "LAST_CLAUSES", "MODEL_CLAUSES", "Clause", "Exam", "Finding"]

SHOWN = 2  # modules by name
MOST_ROWS = 2048  # datapoints looked at one by one
STATIC_RUNS = 8
ROW_DRAWS = 3

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


# Data, modules, parameters


def _data(exam: Exam) -> str:
    program = exam.program
    try:
        data = exam.data = program.read(exam.x)
    except DataError:
        with suppress(AmortizeError):
            exam.data = _finite_rows(program, exam.x)
        raise
    words = []
    for key, leaf, per in zip(data.keys, data.leaves, data.per_datapoint, strict=True):
        kind = (
            f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
            if isinstance(leaf, Tensor)
            else type(leaf).__name__
        )
        how = "shared" if not per else "a row a datapoint, by its size" if key in data.guessed else "a row a datapoint"
        words.append(f"{key!r}: {kind} {how}")
    return f"{data.num_datapoints} datapoints; {', '.join(words)}"


def _finite_rows(program: Program, x: Any) -> Data | None:
    data = Data.of(x, dtype=program.dtype, allow_nan=True, arguments=program.arguments)
    good = torch.ones(data.num_datapoints, dtype=torch.bool)
    for leaf, per in zip(data.leaves, data.per_datapoint, strict=True):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            finite = leaf.isfinite()
            good &= finite.reshape(len(leaf), -1).all(1).cpu() if per else finite.all().cpu()
    return data.rows(torch.nonzero(good).flatten()) if good.any() else None


def _modes(exam: Exam) -> str | Finding:
    modes, notes, ways = exam.modes, [], []
    if modes.fresh:
        notes.append(f"{_few(modes.fresh)} never saw data in training: eval mode uses a mean of 0 and a variance of 1")
        ways.append("Train first (am.fit trains in train mode)")
    if modes.training:
        notes.append(f"{_few(modes.training)} in train mode, put to eval mode while amortize evaluates")
        ways.append("Where you call the networks yourself, call .eval() first")
    return Finding("note", "; ".join(notes), ". ".join(ways)) if notes else "no dropout or batch statistics are on"


def _few(modules: list[str]) -> str:
    more = f" and {len(modules) - SHOWN} more" if len(modules) > SHOWN else ""
    return ", ".join(modules[:SHOWN]) + more


def _parameters(exam: Exam) -> str:
    try:
        exam.program.prepare(exam.get("data"))
    except ParameterNameError:
        raise
    except Exception:  # the model or the guide does not run: the clauses that follow say which, and why
        exam.adopted = True
        return ""
    exam.adopted = True
    count = sum(parameter.numel() for parameter in exam.program.parameters())
    return f"{count} numbers, each network and parameter under a name of its own"


def _runs(exam: Exam) -> str:
    exam.messages, exam.head, words = _run(exam.program.model, exam.get("data"))
    return words


def _guide_runs(exam: Exam) -> str:
    assert exam.program.guide is not None
    exam.guide_ran, _, words = _run(exam.program.guide, exam.get("data"))
    return words


def _run(part: Adopted, data: Data) -> tuple[Mapping[str, Mapping[str, Any]], Data, str]:
    """Run on a few datapoints, or on all of them where only that works: then the plate's clause says why."""
    head = head_of(data)
    try:
        with explained(part.name, head):
            return recorded(part, head, 0, "discover"), head, f"on {head.num_datapoints} datapoints"
    except Exception:
        if head.num_datapoints == data.num_datapoints:
            raise
        try:
            messages = recorded(part, data, 0, "discover")
        except Exception:
            messages = None
        if messages is None:
            raise
        return messages, data, f"on all {data.num_datapoints} datapoints, but not on {head.num_datapoints}"


# What distributions are given


def _valid(exam: Exam) -> str | Finding:
    head = exam.get("head")
    try:
        with pyro_rng(0, "check"), pyro.validation_enabled(True), torch.no_grad():
            exam.program.model(*head.args, **head.kwargs)
    except Exception as error:  # the user's own code, with every check of Pyro's on
        return Finding("warn", f"Pyro's validation refuses the model: {with_line(error)}", "Give valid parameters")
    messages = recorded(exam.program.model, _most(exam), 0)
    for name, msg in messages.items():
        with unvalidated():
            share, rows = _outside_support(msg)
        if share:
            return Finding(
                "warn",
                f"what is observed at {name!r} lies outside the support ({support_name(msg['fn'].support)}) in "
                f"{share:.2g} of its entries{rows}: its density means nothing there",
                "Binarise, round or rescale the data, or take a distribution on their range",
            )
    return "parameters and observations are in their supports"


def _most(exam: Exam) -> Data:
    """All datapoints, or the first so many."""
    data: Data = exam.get("data")
    return data if exam.program.whole or data.num_datapoints <= MOST_ROWS else data.rows(slice(0, MOST_ROWS))


def _outside_support(msg: Mapping[str, Any]) -> tuple[float, str]:
    """Share of an observed site's entries that are outside the support but get a finite density; their datapoints.

    Where the density is -inf it is right, and the data are impossible at this draw alone or at all of them.
    """
    fn, value, mask = msg["fn"], msg["value"], msg["mask"]
    if not msg["is_observed"] or isinstance(fn, Unit) or not isinstance(value, Tensor):
        return 0.0, ""
    try:
        outside = ~fn.support.check(value) & fn.log_prob(value).isfinite()
    except NotImplementedError:
        return 0.0, ""
    if mask is not None:
        outside = outside & mask
    rows = torch.nonzero(outside)
    plate = [frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized]
    if len(plate) != 1 or not len(rows):
        return float(outside.float().mean()), ""
    found = sorted(set(rows[:, plate[0]].tolist()))
    return float(outside.float().mean()), f" (datapoints {rows_in_words(found)})"


def _dimensions(exam: Exam) -> str | Finding:
    for name, msg in exam.get("messages").items():
        shape = msg["fn"].batch_shape
        plates = {frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}
        loose = [-1 - i for i, size in enumerate(reversed(shape)) if size > 1 and -1 - i not in plates]
        if loose:
            return Finding(
                "warn",
                f"site {name!r} has batch shape {tuple(shape)}, and no plate for dimension {loose[0]}: its entries are "
                "taken as one event of the datapoint",
                "Say so with .to_event(1), the data plate to the left of it, or put them into a plate of their own, "
                f"pyro.plate('{name}_entries', {shape[loose[0]]}, dim={loose[0]}). Pyro's ELBOs want one of the two",
            )
    return "every batch dimension has a plate"


# Structure


def _plate(exam: Exam) -> str:
    data = exam.get("data")
    with unvalidated():
        structure = exam.structure = exam.program.structure(data)
    if exam.program.whole:
        return "the whole data set is one datapoint"
    full = f", of {structure.full_size} declared" if structure.full_size else ""
    return f"{structure.plate!r}, of the data's size{full}"


def _local(exam: Exam) -> str:
    structure = exam.get("structure")
    given = f"; given: {named(sorted(exam.program.condition))}" if exam.program.condition else ""
    return f"{named(structure.sites)}{given}"


def _scales(exam: Exam) -> str | Finding:
    structure = exam.get("structure")
    exam.program.unverified_log_joint(exam.get("data"), structure)  # refuses a scaled latent
    if structure.scaled:
        return Finding(
            "warn",
            f"poutine.scale multiplies {named(structure.scaled)}: the evidence is that of the scaled likelihood, which "
            "is not normalised",
            "Take the scale off before you compare models",
        )
    if structure.full_size:
        return Finding("note", f"the data plate declares {structure.full_size} entries; that scale is divided out")
    return "none"


def _densities(exam: Exam) -> str:
    structure = exam.get("structure")
    plain = replace(structure, scaled=())  # whether there are scales is another clause
    exam.log_joint = exam.program.unverified_log_joint(exam.get("data"), plain)
    words = [f"D = {structure.dim} unconstrained dimensions"] if structure.continuous else []
    if structure.enumerated:
        words.append(f"{named(structure.enumerated)} summed out by {structure.summation}")
    if structure.sampled:
        words.append(f"{named(structure.sampled)} drawn by Gibbs moves")
    return "; ".join(words)


def _static(exam: Exam) -> str:
    log_joint, data = exam.get("log_joint"), exam.get("data")
    words = verify_static(log_joint, data, num_runs=STATIC_RUNS)
    if data.num_datapoints > HEAD and not exam.program.whole:
        verify_static(log_joint, data.rows(slice(-HEAD, None)), num_runs=2)
    exam.fixed = words
    return words


def _deterministic(exam: Exam) -> str:
    exam.steady = verify_deterministic(exam.get("log_joint"), exam.get("data"))
    return exam.steady


# Values


def _finite(exam: Exam) -> str | Finding:
    log_joint = exam.get("log_joint")
    seen = _most(exam)
    bad = nonfinite_rows(log_joint, seen)
    verify_somewhere_finite(seen, bad)
    if bad.nan or bad.infinite:
        return Finding("warn", f"{bad.in_words()} at every draw", FINITE_ADVICE)
    return f"log p(x, z) at prior draws of {seen.num_datapoints} datapoints"


def _gradient(exam: Exam) -> str | Finding:
    words = verify_gradient(exam.get("log_joint"), exam.get("data"))
    return (
        Finding("warn", words, "Keep arguments of sqrt, log and division away from 0")
        if "not finite" in words
        else words
    )


def _precision(exam: Exam) -> str | Finding:
    log_joint, data = exam.get("log_joint"), exam.get("data")
    if log_joint.like.dtype != torch.float32 or not log_joint.dim:
        return f"computed in {str(log_joint.like.dtype).removeprefix('torch.')}"
    head = data if exam.program.whole else head_of(data, 8)
    with pyro_rng(0, "check"):
        latents = log_joint.draw_prior(head)
    try:
        found = measure_precision(log_joint, head, latents)
    except Exception as error:  # tensors out of reach stay float32, and the user's code may not mix types
        return Finding("note", f"cannot be tried in float64: {with_line(error)}")
    words = f"float32 differs from float64 by at most {found.difference:.2g} nats"
    if not found.bad:
        return words
    where = f", in the term of {found.site!r}" if found.site else ""
    return Finding(
        "warn",
        f"{words}{where} (log p(x, z) = {found.log_joint:.4g})",
        "Work in float64 (torch.set_default_dtype(torch.float64), program.double(), data of dtype float64), or "
        "subtract large constants before squares and exponentials, and take logarithms in one step (log_softmax)",
    )


def _compiled(exam: Exam) -> Finding:
    """Trace the log joint of a few rows; where that fails it runs eagerly, and the reason is good to know."""
    log_joint, head = exam.get("log_joint"), head_of(exam.get("data"))
    with pyro_rng(0, "check"):
        first, other = (log_joint.draw_prior(head) for _ in range(2))

    def joint(u: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = log_joint.terms(head, u=u, choices=first.choices).joint
            return value

    form = Compiled(joint, (first.u,), (other.u,), backend="fx").describe()
    slow = form.startswith("eager")
    return Finding("note" if slow else "ok", f"runs as {form}", "Results are the same, and slower" if slow else "")


LAST_CLAUSES = (Clause("compiled", "the log joint can be compiled", ("unbroken", "log_joint"), _compiled),)
"""What is worth its seconds only where nothing fails."""

MODEL_CLAUSES = (
    Clause("data", "data are finite numbers", (), _data),
    Clause("modes", "modules in eval mode", (), _modes),
    Clause("parameters", "each parameter has a name of its own", ("data",), _parameters),
    Clause("runs", "the model runs on the data", ("data", "adopted"), _runs),
    Clause("valid", "values inside supports (Pyro's validation)", ("messages",), _valid),
    Clause("dimensions", "batch dimensions have plates (to_event)", ("messages",), _dimensions),
    Clause("plate", "one data plate, of the data's size", ("messages",), _plate),
    Clause("local", "latents inside the plate", ("structure",), _local),
    Clause("scales", "no poutine.scale", ("structure",), _scales),
    Clause("densities", "latents can be inferred", ("structure",), _densities),
    Clause("static", "sites and shapes are fixed", ("log_joint",), _static),
    Clause(
        "deterministic",
        "deterministic in eval mode",
        ("log_joint", "fixed"),
        _deterministic,
    ),
    Clause(
        "independent",
        "rows independent",
        ("log_joint", "fixed", "steady"),
        lambda exam: verify_rows(exam.get("log_joint"), exam.get("data"), num_draws=ROW_DRAWS),
    ),
    Clause(
        "outside",
        "nothing outside the plate depends on latents",
        ("log_joint", "fixed"),
        lambda exam: verify_outside(exam.get("log_joint"), exam.get("data")),
    ),
    Clause("finite", "log joint is finite", ("log_joint", "fixed"), _finite),
    Clause("gradient", "gradient is finite", ("log_joint", "fixed"), _gradient),
    Clause("precision", "float32 is enough", ("log_joint", "fixed", "steady"), _precision),
    Clause("guide-runs", "the guide runs on the data", ("data", "adopted"), _guide_runs, "traced"),
)
