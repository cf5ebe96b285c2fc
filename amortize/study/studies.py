"""The studies that can be named on the command line: built-in ones, TOML files, programs in files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from amortize.data import DATASETS
from amortize.errors import ArgumentError, SpecError
from amortize.study.spec import Study
from amortize.study.targets import absolute_target, is_program_file, split_target
from amortize.study.toml import near_matches

__all__ = ["STUDIES", "digits", "study_of_target"]


def digits(seed: int = 0) -> Study:
    """The built-in study: a Bernoulli VAE on scikit-learn's 8x8 digits."""
    return Study(
        name="digits",
        seed=seed,
        num_threads=1,  # networks this small gain nothing from two, and lose much where the cores are busy
        program={"target": "bernoulli-vae", "settings": {"latent_dim": 8, "hidden": [128]}},
        data={"source": "digits", "num_evaluated": 300},
        fit={"num_steps": 6000, "learning_rate": 2e-3, "schedule": "cosine", "clip_norm": 10.0},
        report={"title": "A Bernoulli VAE on 8x8 digits"},
    )


STUDIES: dict[str, Callable[[], Study]] = {"digits": digits}
"""The built-in studies by name; adding one is adding a line."""


def study_of_target(target: str, *, data: Path | None = None, model: str | None = None) -> Study:
    """The study that a command line names.

    It is a built-in one, a TOML file, ``path.py:name`` with ``data``, or a data set with a model of the zoo.

    Raises
    ------
    SpecError
        No built-in study has the name, the TOML file is wrong, or the model doesn't take the data set.
    ArgumentError
        ``path.py`` without ``:name``, or without data; or data beside a model.
    """
    if model is not None:
        if data is not None:
            raise ArgumentError(f"data: with a model the data come first: amortize study {data} --model {model}")
        from amortize.study.model_study import study_of_model  # needs torch, as a study in TOML doesn't

        return study_of_model(target, model)
    source = {} if data is None else {"data.source": str(data.resolve())}
    if is_program_file(target):
        path, _ = split_target(target)
        if data is None:
            raise ArgumentError(f"data: {target} needs data: add --data FILE (.npy, .npz, .csv, .parquet or .h5ad)")
        return Study(
            name=re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-") or "study",
            program={"target": absolute_target(target, Path())},
            data={"source": source["data.source"]},
        )
    if target.endswith(".toml"):
        return Study.from_toml(target).with_values(source)
    if target not in STUDIES:
        if target in DATASETS:
            raise SpecError(
                f"study: {target} is a data set; say which model: amortize study {target} --model NAME"
                " (`amortize models` lists them)"
            )
        raise SpecError(
            f"study: unknown study {target!r}{near_matches(target, list(STUDIES))}."
            f" Built-in: {', '.join(STUDIES)}."
            " Otherwise name a study.toml, a program as path.py:name, or a data set with --model NAME"
        )
    return STUDIES[target]().with_values(source)
