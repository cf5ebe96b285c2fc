"""The study of a model of the zoo on a data set: what kind of data the model takes, and whether the set has it.

The kinds are those of `amortize.models.zoo.DataKind`. Images give ones and zeros where they can be binarised, and grey
values; counts are numbers too, and so are grey values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amortize.data import DATASETS, load, place_of
from amortize.data.counts import COUNTS
from amortize.data.images import IMAGES
from amortize.data.registry import entry_of
from amortize.errors import SpecError
from amortize.models import MODELS
from amortize.models.zoo import DataKind, ModelEntry
from amortize.study.spec import Study
from amortize.study.targets import is_path
from amortize.study.toml import near_matches

__all__ = ["KIND_WORDS", "data_settings", "fitting_models", "kinds_of", "study_of_model"]

KIND_WORDS: dict[DataKind, str] = {
    "binary": "ones and zeros",
    "unit": "grey values from 0 to 1",
    "real": "numbers",
    "counts": "counts",
    "labelled": "numbers with a response",
}
"""The kinds of data in words."""
BINARISATIONS = ("threshold", "static")


def study_of_model(source: str, model: str) -> Study:
    """The study of a model on a data set, with the model's own objective and settings of training.

    Parameters
    ----------
    source
        A data set of amortize.data, or a file of data, whose kind the model then judges by itself.
    model
        A name of `MODELS`.

    Raises
    ------
    SpecError
        There is no such model, or the data set is of a kind that it doesn't take.
    DataError
        There is no such data set.

    Examples
    --------
    >>> study = study_of_model("mnist", "bernoulli-vae")
    >>> study.name, study.data.binarise, study.fit.objective
    ('mnist-bernoulli-vae', 'static', 'auto')
    """
    if model not in MODELS:
        raise SpecError(
            f"model: unknown model {model!r}{near_matches(model, list(MODELS))}. `amortize models` lists them"
        )
    entry = MODELS[model]
    settings: Mapping[str, Any] = {} if is_path(source) else data_settings(source, model, entry)
    stem = Path(source.rpartition(":")[0] or source).stem if is_path(source) else source
    return Study(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", f"{stem}-{model}").strip("._-"),
        program={"target": model},
        data={"source": str(Path(source).resolve()) if is_path(source) else source, **settings},
        fit=dict(entry.fit),
        evidence=dict(entry.evidence),
        report={"title": f"{model} on {stem}"},
    )


NONE_HERE = "none that can be read here; set AMORTIZE_DATA_DIR to a folder that holds them, or give a file of your own"
"""What to say where no known data set is at hand."""


def data_settings(source: str, model: str, entry: ModelEntry) -> Mapping[str, Any]:
    """Settings of ``[data]`` that give a model the kind of data that it takes.

    Raises
    ------
    SpecError
        The data set isn't of that kind; models that take it are named.
    DataError
        There is no such data set.
    """
    kinds = kinds_of(source)
    if entry.data in kinds:
        return kinds[entry.data]
    models, sets = fitting_models(source), [name for name in DATASETS if _here(name) and entry.data in kinds_of(name)]
    which = f"Models that take {source}: {', '.join(models)}" if models else f"No model takes {source}"
    raise SpecError(
        f"model: {model} takes {KIND_WORDS[entry.data]}, and {source} is {_words(kinds)}. {which}."
        f" Data sets for {model}: {', '.join(sets) or NONE_HERE}"
    )


def fitting_models(source: str) -> list[str]:
    """Names of the models that take a data set."""
    kinds = kinds_of(source)
    return [name for name, entry in MODELS.items() if entry.data in kinds]


def kinds_of(source: str) -> dict[DataKind, dict[str, Any]]:
    """The kinds of data that a data set can be given as, each with the settings of ``[data]`` that make it so.

    Raises
    ------
    DataError
        There is no such data set.

    Examples
    --------
    >>> kinds_of("digits")
    {'binary': {}, 'unit': {'binarise': 'grey'}, 'real': {'binarise': 'grey'}}
    """
    modes = entry_of(source).modes
    if source in IMAGES:
        return _of_images(modes)
    if source in COUNTS:
        return {"counts": {}, "real": {}}
    return _of_table(source)


def _of_images(modes: tuple[str, ...]) -> dict[DataKind, dict[str, Any]]:
    """The set's own way of binarising where it has one, else a static one; grey values where there are any."""
    kinds: dict[DataKind, dict[str, Any]] = {}
    if modes[0] in BINARISATIONS:
        kinds["binary"] = {}
    elif "static" in modes:
        kinds["binary"] = {"binarise": "static"}
    grey = {"binarise": "grey"} if "grey" in modes and modes[0] != "grey" else {}
    return {**kinds, "unit": grey, "real": grey}


def _of_table(source: str) -> dict[DataKind, dict[str, Any]]:
    """By looking at the numbers of a small set; a study holds some of them out, and takes none that are missing."""
    if DATASETS[source].sizes[2] == 0 or len(DATASETS[source].shape) != 1:
        return {}
    found = load(source)
    if not np.isfinite(found.x_train).all():
        return {}
    kinds: dict[DataKind, dict[str, Any]] = {"real": {}}
    if np.isin(found.x_train, (0, 1)).all():
        kinds["binary"] = {}
    if found.y_train is not None and found.y_train.dtype.kind == "f":
        kinds["labelled"] = {"arrays": {"x": "x", "y": "y"}}
    return kinds


def _here(source: str) -> bool:
    """Whether a data set can be looked at without a download."""
    return place_of(source).kind not in ("download", "not available")


def _words(kinds: Mapping[DataKind, object]) -> str:
    if not kinds:
        return "not a table of numbers with a part to hold out"
    return " or ".join(KIND_WORDS[kind] for kind in kinds)
