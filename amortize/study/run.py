"""A study from spec to page: fit, local posteriors, evidence, gaps, tree, report.

Everything is checked before anything is written, and what is written is whole. A run that was stopped goes on where it
was, with the same result.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console

from amortize.errors import ArgumentError
from amortize.inference.fitted import Fitted
from amortize.inference.local import LocalPosterior
from amortize.inference.sandwich import Sandwich
from amortize.report import report
from amortize.report.files import write_tree
from amortize.report.tree import to_datatree
from amortize.study.gaps import Ledger
from amortize.study.pipeline import Pipeline
from amortize.study.prepare import Prepared, prepare
from amortize.study.spec import Study
from amortize.study.stages import Stages, versions
from amortize.study.store import RunStore, StoreError, atomic_path, check_owner, writing

__all__ = ["StudyResult", "run"]

NUMERIC = ("amortize", "torch", "pyro-ppl", "numpy")  # a new version of these may change numbers


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study gives.

    Attributes
    ----------
    tree
        Everything, on ArviZ's schema.
    ledger
        The gaps; for a program without a guide the evidence, and what the best fitted posteriors lose.
    fitted
        The training; None where nothing was trained.
    sandwich
        Both sides of log p(x) on simulated data; None where ``evidence.sandwich`` didn't ask for it.
    out
        The folder with report.html, report.json, tree.nc and spec.toml; None where nothing was written.
    """

    tree: xr.DataTree
    ledger: Ledger
    fitted: Fitted | None
    sandwich: Sandwich | None
    out: Path | None


def run(
    study: Study, *, out: str | Path | None = None, resume: bool = False, progress: bool | None = None
) -> StudyResult:
    """Run a study.

    Parameters
    ----------
    study
        What to do.
    out
        Folder of the run, made if it isn't there; None writes nothing. An earlier run of the same study in it is
        replaced, unless ``resume``.
    resume
        Keep the finished stages of the run in ``out`` that depend on the same settings, seed, data, program file and
        versions; compute the others.
    progress
        Whether to show a line a stage and bars; None shows them on a terminal.

    Raises
    ------
    AmortizeError
        Whatever is wrong with the spec, the program, the data or the folder, before anything is written.
    KeyboardInterrupt
        On Ctrl-C; finished stages are kept, and the message says how to go on.

    Examples
    --------
    >>> import amortize as am
    >>> study = am.Study(
    ...     name="tiny",
    ...     program={"target": "bernoulli-vae", "settings": {"latent_dim": 2}},
    ...     data={"source": "digits", "num_train": 64, "num_evaluated": 4},
    ...     fit={"num_steps": 20},
    ...     local={"num_steps": 20},
    ...     evidence={"num_chains": 2, "num_temperatures": 5, "num_leapfrog": 2, "num_draws": 20},
    ...     report={"num_draws": 10},
    ... )
    >>> am.run(study).ledger.table.shape
    (4, 16)
    """
    if not isinstance(study, Study):
        raise ArgumentError(
            f"study: expected an am.Study, got {study!r}. Make one of a file, am.Study.from_toml('study.toml')"
        )
    if resume and out is None:
        raise ArgumentError("resume: expected out=, the folder of the run to go on with")
    study = study.anchored(Path())  # so that the run can be resumed from another folder
    folder = None if out is None else Path(out)
    if folder is not None:
        check_owner(folder, study.name)
    prepared = prepare(study)
    with _display(progress) as console, _threads(study.num_threads):
        if folder is None:
            return _collect(Pipeline(study, prepared, _stages(study, prepared, None, console), progress), None)
        with RunStore(folder, fresh=not resume) as store:
            with atomic_path(folder / "spec.toml") as temporary:
                temporary.write_text(study.to_toml(), encoding="utf-8")
            return _kept(Pipeline(study, prepared, _stages(study, prepared, store, console), progress), folder)


def _stages(study: Study, prepared: Prepared, store: RunStore | None, console: Console | None) -> Stages:
    now = versions()
    common = {
        "versions": {name: now[name] for name in NUMERIC},
        "device": study.device,
        "num_threads": study.num_threads,
        "program": prepared.program_hash,
    }
    return Stages(store, console, common)


def _kept(pipeline: Pipeline, folder: Path) -> StudyResult:
    """Run and write the outputs; whatever stops it says what is kept."""
    way_out = f"Go on with: amortize resume {shlex.quote(str(folder))}"
    try:
        result = _collect(pipeline, folder)
        with writing(folder / "tree.nc"):
            write_tree(result.tree, folder / "tree.nc")
        with writing(folder / "report.html"):
            report(result.tree, folder / "report.html")
    except KeyboardInterrupt:
        finished = ", ".join(pipeline.stages.finished) or "none yet"
        raise KeyboardInterrupt(f"Finished stages are kept ({finished}). {way_out}") from None
    except StoreError as error:
        raise StoreError(f"{error} Finished stages are kept. {way_out}") from error
    return result


def _collect(pipeline: Pipeline, out: Path | None) -> StudyResult:
    """Run all stages, and put the tree together."""
    fitted = pipeline.fit()
    local: dict[str, LocalPosterior] = {family: pipeline.local(family) for family in pipeline.families}
    importance = pipeline.importance()
    measured = pipeline.evidence(importance)
    sandwich = pipeline.sandwich()
    ledger = pipeline.ledger(measured, importance, local)
    groups = _grouped(pipeline.draws(local))
    tree = to_datatree(
        groups.pop("posterior"),
        evidence=measured,
        sandwich=sandwich,
        ledger=ledger,
        history=None if fitted is None else fitted.history,
        groups=groups,
        attrs=_attrs(pipeline, fitted),
    )
    return StudyResult(tree, ledger, fitted, sandwich, out)


def _grouped(draws: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in draws.items():
        group, _, site = key.partition("/")
        groups.setdefault(group, {})[site] = array
    return groups


def _attrs(pipeline: Pipeline, fitted: Fitted | None) -> dict[str, Any]:
    """Facts that trace every number of the tree."""
    prepared, study = pipeline.prepared, pipeline.study
    split = prepared.split
    sizes = {
        "train": prepared.train.num_datapoints,
        "validation": 0 if prepared.validation is None else prepared.validation.num_datapoints,
        "evaluated": prepared.evaluated.num_datapoints,
    }
    trained = (
        {}
        if fitted is None
        else {"trained": {**fitted.settings, "stopped_early": fitted.stopped_early, "bound": fitted.bound}}
    )
    attrs: dict[str, Any] = {
        "title": study.report.title or study.name,
        "name": study.name,
        "seed": study.seed,
        "settings": {**study.model_dump(mode="json"), "datapoints": sizes, **trained},
        "versions": versions(),
        "protocol": split.protocol,
        "data_hash": split.hash,
        "spec_hash": study.fingerprint(),
        "program_hash": prepared.program_hash,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seconds": {name: round(seconds, 3) for name, seconds in pipeline.stages.seconds.items()},
        "num_threads": torch.get_num_threads(),
    }
    if fitted is not None and fitted.bound != "ELBO":
        attrs["trained_bound"] = fitted.bound
    if pipeline.num_untrained:
        attrs["num_untrained"] = pipeline.num_untrained
    if split.labels is not None:
        attrs["labels"] = split.labels.tolist()
    image_shape = study.report.image_shape or split.image_shape
    if image_shape is not None:
        attrs["image_shape"] = list(image_shape)
    return attrs


@contextlib.contextmanager
def _display(progress: bool | None) -> Iterator[Console | None]:
    """A console for stage lines, or none; with ``progress=False`` no bar is drawn either."""
    if progress or (progress is None and sys.stderr.isatty()):
        yield Console(stderr=True, highlight=False)
    elif progress is None:
        yield None
    else:
        with contextlib.redirect_stderr(_NoTerminal(sys.stderr)):
            yield None


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _NoTerminal(io.TextIOBase):
    """Text passes, but bars, which are drawn on terminals alone, stay away."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass it on."""
        return int(self._stream.write(text))

    def flush(self) -> None:
        """Pass it on."""
        self._stream.flush()

    def isatty(self) -> bool:
        """It isn't."""
        return False
