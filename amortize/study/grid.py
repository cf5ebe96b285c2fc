"""A grid of studies: each cell is a study of its own, and those that share a stage compute it once.

Stages are kept by their content, in one folder for all cells: after a setting has changed, or an axis was added, only
what depends on it is computed. A cell that fails is marked, with its error, and the others go on.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from amortize.errors import AmortizeError, ArgumentError
from amortize.report.grid import write_grid_report
from amortize.study.collect import StudyResult, collect, pipeline_of, write_outputs
from amortize.study.display import display, threads
from amortize.study.grid_document import grid_document
from amortize.study.grid_spec import Cell, cells_of
from amortize.study.grid_table import CellResult, means_of, paired_of, table_of
from amortize.study.methods import require_settings
from amortize.study.prepare import prepare
from amortize.study.spec import Study
from amortize.study.store import CELLS, OUTPUTS, RunStore, StoreError, atomic_path, writing

__all__ = ["GridResult", "run_grid"]


@dataclass(frozen=True, eq=False)
class GridResult:
    """What a grid of studies gives.

    Attributes
    ----------
    study
        What was done.
    axes
        Names of the values along each axis.
    cells
        One for each combination, the last axis changing fastest: ``label``, ``coords``, ``result`` (None where it
        failed) and ``error``.
    table
        A row a cell: the axes, then mean and ``_se`` over datapoints of every quantity of the ledger (nats), the number
        of datapoints and how many of them failed, seconds of its stages (shared ones count in each), cause, advice and
        error.
    means
        The same quantities averaged over the seeds of a grid that has an axis of seeds, with ``_se`` over seeds.
    paired
        A row a comparison: along ``axis`` from ``a`` to ``b``, the other axes held, the difference b - a of each
        quantity's mean (nats), its ``se`` over ``num_seeds`` seeds, each with itself, ``t`` = difference / se, and
        ``datapoint_se``, over datapoints, each with itself. NaN where there is but one seed, or other datapoints.
    out
        The folder with report.html, report.json, table.csv, paired.csv, spec.toml and ``cells``, which has a folder of
        outputs for each; None where nothing was written.
    """

    study: Study
    axes: dict[str, tuple[str, ...]]
    cells: tuple[CellResult, ...]
    table: pd.DataFrame
    means: pd.DataFrame
    paired: pd.DataFrame
    out: Path | None

    def __str__(self) -> str:
        shown = self.table.drop(columns=[name for name in ("advice", "error") if name in self.table])
        return str(shown.round(3).to_string())

    def cell(self, coords: Mapping[str, object]) -> StudyResult:
        """The result at one value of each axis, as ``grid.cell({"seed": 0})``.

        Raises
        ------
        ArgumentError
            There is no such cell, or it failed.
        """
        wanted = {name: str(value) for name, value in coords.items()}
        for cell in self.cells:
            if cell.coords == wanted:
                if cell.result is None:
                    raise ArgumentError(f"coords: the cell {cell.label} failed: {cell.error}")
                return cell.result
        axes = ", ".join(f"{name} ({', '.join(values)})" for name, values in self.axes.items())
        raise ArgumentError(f"coords: expected a value of each axis - {axes} -, got {wanted}")


def run_grid(study: Study, folder: Path | None, *, resume: bool, progress: bool | None) -> GridResult:
    """Run each cell of a study with axes; see :func:`amortize.run`."""
    cells = cells_of(study)
    _check(cells)
    with display(progress) as console:
        if folder is None:
            with tempfile.TemporaryDirectory() as temporary:
                place = Path(temporary) / "grid"
                with RunStore(place, fresh=True, shared=True) as store:
                    return _gathered(study, _run_cells(cells, store, None, console, progress), None)
        with RunStore(folder, fresh=not resume, shared=True) as store:
            _write_spec(study, folder)
            return _kept(study, cells, store, folder, console, progress)


def _kept(
    study: Study,
    cells: Sequence[Cell],
    store: RunStore,
    folder: Path,
    console: Console | None,
    progress: bool | None,
) -> GridResult:
    """Run and write the outputs; whatever stops it says what is kept."""
    way_out = f"Go on with: amortize resume {shlex.quote(str(folder))}"
    try:
        _forget_other_cells(cells, folder)
        result = _gathered(study, _run_cells(cells, store, folder, console, progress), folder)
        _write_outputs(result, folder)
    except KeyboardInterrupt:
        num = sum((folder / CELLS / cell.label / "report.html").is_file() for cell in cells)
        raise KeyboardInterrupt(f"Finished stages are kept ({num} of {len(cells)} cells are done). {way_out}") from None
    except StoreError as error:
        raise StoreError(f"{error} Finished stages are kept. {way_out}") from error
    return result


def _run_cells(
    cells: Sequence[Cell], store: RunStore, folder: Path | None, console: Console | None, progress: bool | None
) -> list[CellResult]:
    results = []
    for number, cell in enumerate(cells, start=1):
        if console is not None:
            words = ", ".join(f"{axis} {value}" for axis, value in cell.coords.items())
            console.print(f"cell {number} of {len(cells)}: {words}", style="bold", markup=False)
        place = None if folder is None else folder / CELLS / cell.label
        try:
            result = _run_cell(cell, store, place, console, progress)
            results.append(CellResult(cell.label, cell.coords, result, None))
        except StoreError:
            raise
        except AmortizeError as error:
            if console is not None:
                console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
            results.append(CellResult(cell.label, cell.coords, None, f"{type(error).__name__}: {error}"))
    return results


def _run_cell(
    cell: Cell, store: RunStore, place: Path | None, console: Console | None, progress: bool | None
) -> StudyResult:
    with threads(cell.study.num_threads):
        result = collect(pipeline_of(cell.study, prepare(cell.study), store, console, progress), place)
        if place is not None:
            _write_spec(cell.study, place)
            write_outputs(result, place)
        return result


def _write_spec(study: Study, folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "spec.toml") as temporary:
        temporary.write_text(study.to_toml(), encoding="utf-8")


def _check(cells: Sequence[Cell]) -> None:
    """Try each program on its data, once for those cells between which neither differs.

    Raises
    ------
    AmortizeError
        Whatever is wrong, with the cell that it is wrong in.
    """
    tried = set()
    for cell in cells:
        study = cell.study
        facts: list[Any] = [study.program.model_dump(), study.data.model_dump(), study.device, study.fit.validation]
        key = json.dumps([*facts, study.evidence.method, study.evidence.start], sort_keys=True, default=str)
        try:
            require_settings(study)
            if key not in tried:
                prepare(study)
        except AmortizeError as error:
            words = ", ".join(f"{axis} {value}" for axis, value in cell.coords.items())
            raise type(error)(f"in the cell at {words}: {error}") from error
        tried.add(key)


def _gathered(study: Study, cells: Sequence[CellResult], out: Path | None) -> GridResult:
    axes = {axis.title: axis.names for axis in study.grid}
    seeds = tuple(axis.title for axis in study.grid if axis.repeats)
    table = table_of(cells)
    paired = paired_of(cells, axes, seeds)
    return GridResult(study, axes, tuple(cells), table, means_of(table, axes, seeds), paired, out)


def _write_outputs(result: GridResult, folder: Path) -> None:
    for name, frame in (("table.csv", result.table), ("paired.csv", result.paired)):
        with atomic_path(folder / name) as temporary:
            frame.to_csv(temporary, index=name == "table.csv")
    document = grid_document(result.study, result.cells, result.means, result.paired)
    with writing(folder / "report.html"):
        write_grid_report(document, folder / "report.html")


def _forget_other_cells(cells: Sequence[Cell], folder: Path) -> None:
    """Remove the outputs of cells that an earlier form of the grid had."""
    labels = {cell.label for cell in cells}
    for place in (folder / CELLS).glob("*"):
        if place.is_dir() and place.name not in labels:
            for name in OUTPUTS:
                (place / name).unlink(missing_ok=True)
            if not any(place.iterdir()):
                place.rmdir()
