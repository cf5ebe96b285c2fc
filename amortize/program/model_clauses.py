"""What the doctor tries of data, parameters and a single run of the model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions import Unit
from torch import Tensor

from amortize.errors import AmortizeError, DataError, ParameterNameError
from amortize.program.blame import named, with_line
from amortize.program.clauses import Clause, Exam, Finding
from amortize.program.data import Data
from amortize.program.discover import run_recorded, support_name
from amortize.program.explain import explained
from amortize.program.handlers import unvalidated
from amortize.program.probes import head_of, rows_in_words
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.adopt import Adopted
    from amortize.program.program import Program

__all__ = ["MODEL_CLAUSES", "run_part"]

SHOWN = 2  # modules by name


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
    exam.messages, exam.head, words = run_part(exam.program.model, exam.get("data"))
    return words


def run_part(part: Adopted, data: Data) -> tuple[Mapping[str, Mapping[str, Any]], Data, str]:
    """Run on a few datapoints, or on all of them where only that works: then the plate's clause says why."""
    head = head_of(data)
    try:
        with explained(part.name, head):
            return run_recorded(part, head), head, f"on {head.num_datapoints} datapoints"
    except Exception:
        if head.num_datapoints == data.num_datapoints:
            raise
        try:
            messages = run_recorded(part, data)
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
    messages = run_recorded(exam.program.model, exam.most, stream="check")
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
)
