"""The gradient ladder of a program that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from amortize.atomic import replacing
from amortize.errors import ArgumentError
from amortize.inference.gradient_ladder import GradientLadder, gradient_ladder
from amortize.inference.training import Training
from amortize.study.prepare import prepare
from amortize.study.studies import study_of_target

__all__ = ["check_out", "ladder_of_target", "save_ladder"]

SUFFIXES = (".csv", ".md", ".json")


def ladder_of_target(
    target: str,
    *,
    data: Path | None = None,
    model: str | None = None,
    estimators: Sequence[str] = (),
    size: tuple[int, int] = (500, 200),
    seed: int | None = None,
) -> GradientLadder:
    """Compare gradient estimators on the training part of a target's data.

    Parameters
    ----------
    target, data, model
        As ``amortize study`` takes them.
    estimators
        Labels or names; none are all.
    size
        Draws of each gradient, and steps of training.
    seed
        In place of the study's own.

    Raises
    ------
    AmortizeError
        Whatever is wrong with the program, its file, the data or the estimators.
    """
    given = {} if seed is None else {"seed": seed}
    study = study_of_target(target, data=data, model=model).with_values({"fit.validation": 0.0, **given})
    prepared = prepare(study)
    spec = study.fit
    training = Training(learning_rate=spec.learning_rate, batch_size=spec.batch_size, clip_norm=spec.clip_norm)
    return gradient_ladder(
        prepared.program,
        prepared.train,
        estimators=list(estimators) or None,
        num_draws=size[0],
        num_steps=size[1],
        seed=study.seed,
        training=training,
    )


def check_out(path: Path) -> None:
    """Refuse a file of another ending before anything is measured.

    Raises
    ------
    ArgumentError
        Naming those that there are.
    """
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"out: expected a file that ends in {', '.join(SUFFIXES)}, got {path}")


def save_ladder(ladder: GradientLadder, path: Path) -> Path:
    """Write the table to a .csv, .md or .json file, whole or not at all."""
    check_out(path)
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            ladder.table.to_csv(temporary, index_label="estimator")
        elif path.suffix == ".md":
            temporary.write_text(ladder.to_markdown() + "\n", encoding="utf-8")
        else:
            temporary.write_text(_as_json(ladder.table), encoding="utf-8")
    return path


def _as_json(table: pd.DataFrame) -> str:
    text: str = table.to_json(orient="index", indent=2)
    return text + "\n"
