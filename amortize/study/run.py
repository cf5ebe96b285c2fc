"""A study from spec to page: fit, local posteriors, evidence, gaps, tree, report; a grid of them cell by cell.

Everything is checked before anything is written, and what is written is whole. A run that was stopped goes on where it
was, with the same result.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from amortize.errors import ArgumentError
from amortize.study.collect import StudyResult, collect, pipeline_of, write_outputs
from amortize.study.display import display, threads
from amortize.study.grid import GridResult, run_grid
from amortize.study.pipeline import Pipeline
from amortize.study.prepare import prepare
from amortize.study.spec import Study
from amortize.study.store import RunStore, StoreError, atomic_path, check_owner

__all__ = ["GridResult", "StudyResult", "run"]


def run(
    study: Study, *, out: str | Path | None = None, resume: bool = False, progress: bool | None = None
) -> StudyResult | GridResult:
    """Run a study, or each cell of its grid.

    Parameters
    ----------
    study
        What to do.
    out
        Folder of the run, made if it isn't there; None writes nothing. An earlier run of the same study in it is
        replaced, unless ``resume``.
    resume
        Keep the finished stages of the run in ``out`` that depend on the same settings, seed, data, code and versions;
        compute the others.
    progress
        Whether to show a line a stage and bars; None shows them on a terminal.

    Returns
    -------
    StudyResult or GridResult
        The latter of a study with axes (``Study.grid``). Its cells share stages that depend on the same settings.

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
    >>> grid = am.run(study.with_values({"grid": [{"key": "seed", "values": [0, 1]}]}))
    >>> list(grid.table.index), grid.table["num_failed"].tolist()
    (['seed-0', 'seed-1'], [0, 0])
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
    if study.grid:
        return run_grid(study, folder, resume=resume, progress=progress)
    prepared = prepare(study)
    with display(progress) as console, threads(study.num_threads):
        if folder is None:
            return collect(pipeline_of(study, prepared, None, console, progress), None)
        with RunStore(folder, fresh=not resume) as store:
            with atomic_path(folder / "spec.toml") as temporary:
                temporary.write_text(study.to_toml(), encoding="utf-8")
            return _kept(pipeline_of(study, prepared, store, console, progress), folder)


def _kept(pipeline: Pipeline, folder: Path) -> StudyResult:
    """Run and write the outputs; whatever stops it says what is kept."""
    way_out = f"Go on with: amortize resume {shlex.quote(str(folder))}"
    try:
        result = collect(pipeline, folder)
        write_outputs(result, folder)
    except KeyboardInterrupt:
        finished = ", ".join(pipeline.stages.finished) or "none yet"
        raise KeyboardInterrupt(f"Finished stages are kept ({finished}). {way_out}") from None
    except StoreError as error:
        raise StoreError(f"{error} Finished stages are kept. {way_out}") from error
    return result
