"""The commands ``amortize study``, ``resume``, ``report``, ``compare``, ``check``, ``ladder``, ``models``, ``data``.

An `AmortizeError` is one screen on stderr, exit status 2, and nothing half-written. Ctrl-C ends with status
130. ``AMORTIZE_TRACEBACK=1`` adds the traceback. Torch and Pyro are imported inside the commands, so that
``--help`` is quick.
"""

from __future__ import annotations

import functools
import json
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from amortize import __version__
from amortize.errors import AmortizeError, AmortizeWarning, ArgumentError

if TYPE_CHECKING:
    from amortize.study.collect import StudyResult
    from amortize.study.grid import GridResult
    from amortize.study.spec import Study

__all__ = ["app"]

P = ParamSpec("P")
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_UNEXPECTED = 1
TRACEBACK_VARIABLE = "AMORTIZE_TRACEBACK"
WIDE = 130  # columns of a terminal on which sentences stand beside the other columns of a table

app = typer.Typer(
    name="amortize",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How good is an amortized guide, datapoint by datapoint, and whose fault is the loss?",
)

DATA_HELP = "A .npy, .npz, .csv, .parquet or .h5ad file."
DataOption = Annotated[Path | None, typer.Option("--data", help=DATA_HELP, metavar="FILE")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/digits.")]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors that amortize raises on purpose, and Ctrl-C, into one screen and an exit status."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _plain_warnings():
                command(*args, **kwargs)
        except AmortizeError as error:
            _show(type(error).__name__, str(error), "bold red")
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt as error:
            _show("Stopped", str(error), "bold yellow")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # nobody foresaw it: still one screen, and what is finished is kept
            where = f"{TRACEBACK_VARIABLE}=1 shows where. Finished stages of a run are kept."
            _show(f"Unexpected {type(error).__name__}", f"{error}\n{where}", "bold red")
            raise typer.Exit(EXIT_UNEXPECTED) from error

    return wrapper


def _show(title: str, message: str, style: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        console.print(Text(traceback.format_exc()))
    console.print(Text.assemble((title, style), "\n" if message else "", message))


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of amortize as a line of text, without the source line that raised them."""
    with warnings.catch_warnings():
        default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
            if issubclass(category, AmortizeWarning):
                _show("Warning", str(message), "bold yellow")
            else:
                default(message, category, *rest)  # type: ignore[arg-type]

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"amortize {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Amortized inference for Pyro programs, with evidence you can trust."""


@app.command()
@guarded
def study(  # noqa: PLR0913 - the options of a command line
    target: Annotated[
        str, typer.Argument(help="A built-in study (digits), a study.toml, path.py:name, or a data set with --model.")
    ],
    *,
    model: Annotated[
        str | None, typer.Option(help="A model of the zoo to study on the data set TARGET (`amortize models`).")
    ] = None,
    data: DataOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting by its dotted key, such as fit.num_steps=500.", metavar="KEY=VALUE"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder [default: runs/NAME].")] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the study's own.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.")] = None,
    print_spec: Annotated[bool, typer.Option("--print-spec", help="Print the study as TOML; run nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Keep nothing of an earlier run in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a guide, measure log p(x) beside it, and write a page that says whose fault the loss is.

    A study with [[grid]] tables is run at each combination of their values. Stages of an earlier run in the folder
    that depend on the same settings, data and code are kept.
    """
    from amortize.study.studies import study_of_target
    from amortize.study.toml import read_settings

    chosen = study_of_target(target, data=data, model=model)
    given = {"seed": seed, "device": device}
    given = {key: value for key, value in given.items() if value is not None}
    chosen = chosen.with_values({**read_settings(settings or ()), **given})
    if print_spec:
        typer.echo(chosen.to_toml(), nl=False)
        return
    _run(chosen, out or Path("runs") / chosen.name, resume=not fresh, quiet=quiet)


@app.command()
@guarded
def resume(
    run: RunArgument,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Finish a run that was stopped: finished stages are kept, the others computed."""
    from amortize.study.spec import Study
    from amortize.study.store import is_run

    if not is_run(run) or not (run / "spec.toml").is_file():
        raise _no_run(run, "stages" if (run / "spec.toml").is_file() else "spec.toml")
    _run(Study.from_toml(run / "spec.toml"), run, resume=True, quiet=quiet)


def _run(chosen: Study, out: Path, *, resume: bool, quiet: bool) -> None:
    from amortize.study.grid import GridResult
    from amortize.study.run import run as run_study

    result = run_study(chosen, out=out, resume=resume, progress=not quiet)
    cells = result.cells if isinstance(result, GridResult) else ()
    if not quiet:
        if isinstance(result, GridResult):
            _show_grid(result)
        else:
            _show_study(result)
    typer.echo(str(out / "report.html"))
    if failed := [f"{cell.label}: {cell.error}" for cell in cells if cell.error is not None]:
        _show(f"{len(failed)} of {len(cells)} cells failed", "\n".join(failed), "bold red")
        raise typer.Exit(EXIT_ERROR)


def _show_study(result: StudyResult) -> None:
    summary = result.ledger.summary
    rows = [(str(name), f"{row['mean']:.4g}", f"{row['se']:.2g}") for name, row in summary.iterrows()]
    _print_table(("a datapoint (nats)", "mean", "se"), rows)
    typer.echo(f"Cause: {result.ledger.cause}. {result.ledger.advice}")
    for checked in (result.sandwich, result.ledger.evidence.simulated):
        if checked is not None:
            typer.echo(str(checked))
    if protocol := result.tree.attrs.get("protocol"):
        typer.echo(f"Data: {protocol}")


def _show_grid(result: GridResult) -> None:
    """The gap and what it is made of, a row a cell; the rest is in table.csv."""
    shown = ("inference_gap", "approximation_gap", "amortization_gap")
    names = [name for name in shown if name in result.table]
    rows = [
        (
            *(str(row[axis]) for axis in result.axes),
            *(f"{row[name]:.3g} +- {row[f'{name}_se']:.2g}" for name in names),
        )
        for _, row in result.table.iterrows()
    ]
    _print_table((*result.axes, *(name.replace("_", " ") for name in names)), rows)


@app.command()
@guarded
def report(run: RunArgument) -> None:
    """Write a run's page anew from its tree.nc, or a grid's from its report.json."""
    from amortize.report import report as write_report
    from amortize.report.files import read_tree
    from amortize.report.grid import read_grid_document, write_grid_report

    if (run / "cells").is_dir() and (run / "report.json").is_file():
        typer.echo(str(write_grid_report(read_grid_document(run / "report.json"), run / "report.html")))
        return
    if not (run / "tree.nc").is_file():
        raise _no_run(run, "tree.nc")
    typer.echo(str(write_report(read_tree(run / "tree.nc"), run / "report.html")))


@app.command()
@guarded
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The folder of a run, or of a grid's cell.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, of the same datapoints.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Write a row a datapoint to this .csv.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Compare two runs datapoint by datapoint: the second less the first, with paired standard errors."""
    from amortize.report.attrs import strict_json
    from amortize.study.compare import compare as compare_runs
    from amortize.study.store import atomic_path

    found = compare_runs(run_a, run_b)
    if out is not None:
        with atomic_path(out) as temporary:
            found.table.to_csv(temporary)
    if as_json:
        summary = {str(name): dict(row) for name, row in found.summary.iterrows()}
        typer.echo(strict_json({"a": found.names[0], "b": found.names[1], "summary": summary}))
        return
    rows = [
        (
            str(name),
            *(f"{row[column]:.4g}" for column in ("a", "b", "difference")),
            f"{row['se']:.2g}",
            f"{row['z']:.1f}",
        )
        for name, row in found.summary.iterrows()
    ]
    _print_table(("a datapoint (nats)", "a", "b", "b - a", "se", "z"), rows)
    for sentence in found.sentences:
        typer.echo(sentence)


@app.command()
@guarded
def check(
    target: Annotated[str, typer.Argument(help="path.py:name", metavar="PATH.py:NAME")],
    *,
    data: Annotated[str, typer.Option("--data", help=f"{DATA_HELP[:-1]}, or the name of a data set.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Try the contract of a program on data, clause by clause: what holds, what does not, and what to do."""
    from amortize.study.doctor import summary_of, table_of
    from amortize.study.prepare import check_target

    description, verdict = check_target(target, data)
    if as_json:
        found = {"target": target, "data": data, "description": description, **verdict.to_dict()}
        typer.echo(json.dumps(found, indent=2))
    else:
        if description:
            typer.echo(f"{description}\n")
        Console(highlight=False).print(table_of(verdict))
        typer.echo(f"\n{summary_of(verdict)}")
    if not verdict.ok:
        raise typer.Exit(EXIT_ERROR)


@app.command()
@guarded
def ladder(  # noqa: PLR0913 - the options of a command line
    target: Annotated[str, typer.Argument(help="path.py:name, or a data set with --model.")],
    *,
    data: DataOption = None,
    model: Annotated[str | None, typer.Option(help="A model of the zoo with discrete latents.")] = None,
    estimators: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="One of the ladder's, or an objective; may be repeated [default: all]."),
    ] = None,
    num_draws: Annotated[int, typer.Option("--draws", help="Gradients of each estimator.")] = 500,
    num_steps: Annotated[int, typer.Option("--steps", help="Steps of training from the same start; 0: none.")] = 200,
    seed: Annotated[int | None, typer.Option(help="In place of 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table to a .csv, .md or .json.", metavar="FILE")] = None,
) -> None:
    """Compare gradient estimators of a guide with discrete latents: bias, variance, what they train to, seconds."""
    from amortize.study.ladder import check_out, ladder_of_target, save_ladder

    if out is not None:
        check_out(out)
    found = ladder_of_target(
        target, data=data, model=model, estimators=estimators or (), size=(num_draws, num_steps), seed=seed
    )
    Console(soft_wrap=True, highlight=False).print(found.describe(), markup=False)
    if out is not None:
        typer.echo(str(save_ladder(found, out)))


@app.command()
def models() -> None:
    """List the models of amortize.models; `amortize study DATASET --model NAME` studies one on a data set."""
    from amortize.models import MODELS
    from amortize.study.model_study import KIND_WORDS

    rows = [
        (name, KIND_WORDS[entry.data], "yes" if entry.has_exact_evidence else "no", entry.description)
        for name, entry in MODELS.items()
    ]
    _print_table(("model", "takes", "exact log p(x)", "what it is"), rows)


@app.command()
@guarded
def data(
    name: Annotated[str | None, typer.Argument(help="A data set, to be loaded and described.")] = None,
    *,
    binarise: Annotated[str | None, typer.Option(help="grey, threshold, static or dynamic.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of static binarisation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Save the arrays to this .npz.", metavar="FILE")] = None,
) -> None:
    """List the data sets of amortize.data and where each would be read from; or describe and save one."""
    from amortize.data.listing import described, listed, save

    if name is None:
        if binarise is not None or out is not None:
            raise ArgumentError("data: name a data set, as in `amortize data mnist`; `amortize data` lists them")
        _print_wide_table(("data set", "train / valid / test", "shape", "read from", "licence", "what it is"), listed())
        return
    from amortize.data import load

    found = load(name, binarise=binarise, seed=seed)
    _print_table(("", ""), described(found))
    if out is not None:
        typer.echo(str(save(found, out)))


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(Column(columns[0], no_wrap=True), *columns[1:], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_wide_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], num_words: int = 2) -> None:
    """A table; on a narrow terminal its last columns, which are sentences, stand below each row."""
    console = Console()
    if console.width >= WIDE:
        _print_table(columns, rows)
        return
    short = [columns[:-num_words], *(row[:-num_words] for row in rows)]
    widths = [max(len(row[place]) for row in short) for place in range(len(short[0]))]
    for row, words in zip(short, [(), *(row[-num_words:] for row in rows)], strict=True):
        console.print(Text("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
        if words:
            console.print(Padding(Text("; ".join(reversed(words)), style="dim"), (0, 0, 0, 4)))


def _no_run(folder: Path, missing: str = "spec.toml") -> ArgumentError:
    if not folder.exists():
        runs = sorted(path.parent.name for path in folder.parent.glob("*/spec.toml"))
        return ArgumentError(f"run: no such folder: {folder}. Runs beside it: {', '.join(runs) or 'none'}")
    if folder.absolute().parent.name == "cells":
        grid = folder.parent.parent
        return ArgumentError(f"run: {folder} is a cell of the grid {grid}. Finish that: amortize resume {grid}")
    if missing == "tree.nc" and (folder / "spec.toml").is_file():
        return ArgumentError(f"run: {folder} isn't finished (no tree.nc). Finish it: amortize resume {folder}")
    return ArgumentError(
        f"run: {folder} holds no run of amortize (no {missing}). `amortize study TARGET --out {folder}` makes one"
    )
