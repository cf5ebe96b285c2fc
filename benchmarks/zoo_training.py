"""What the zoo's benchmarks share: data of each kind, a model by its name and settings, and its training at a budget.

A model is named as in ``amortize models``, with settings of its ``from_data`` behind a colon where they are wanted:
``gaussian-vae:network=conv``. Sizes of the budget (``latent_dim``, ``hidden``) go to the models that take them.
Trained programs are kept in a cache, under names that hold all they depend on, and found there again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import amortize as am
from amortize.models import MODELS, ModelEntry

PROBED, STARTING = 12, 2  # steps that are timed, to see how many a budget allows, and those that are passed over
FIT = ("learning_rate", "schedule", "clip_norm", "patience")  # of a catalogue's line, that a training takes


@dataclass(frozen=True)
class Budget:
    """What each model gets: steps of Adam, or as many as fit into the processor's seconds; sizes (None: its own)."""

    steps: int = 15_000
    seconds: float = 300.0
    batch: int = 100
    learning_rate: float = 1e-3
    latent_dim: int | None = None
    hidden: tuple[int, ...] | None = None


class Table(NamedTuple):
    """Rows that may be compared: the kinds of data their models take, and the sets, large and small."""

    kinds: tuple[str, ...]
    large: tuple[str, str | None]
    small: tuple[str, str | None]
    with_labels: tuple[str, str | None]


TABLES = {
    "binary": Table(("binary",), ("binarized-mnist", None), ("digits", None), ("mnist", "static")),
    "grey": Table(("unit", "real"), ("mnist", "grey"), ("digits", "grey"), ("mnist", "grey")),
    "counts": Table(("counts",), ("starmap", None), ("starmap", None), ("starmap", None)),
    "labelled": Table(("labelled",), ("diabetes", None), ("diabetes", None), ("diabetes", None)),
    "objects": Table((), ("scattered-crosses", None), ("scattered-crosses", None), ("scattered-crosses", None)),
}
"""Every kind of data has one: a model of the catalogue is a row without being named here."""
ELSEWHERE = {"counting": "objects"}
"""Models that are rows of another table than their kind's: what they look for is not in its data."""


class Sample(NamedTuple):
    """Data to train on, data to look at in random order (seed 0) with labels or None, and how to fold a row."""

    train: Any
    test: Any
    labels: np.ndarray | None
    image_shape: tuple[int, ...] | None
    protocol: str


def names_of(table: str) -> list[str]:
    """The catalogue's models whose data are those of a table."""
    return [name for name in MODELS if table_of(name) == table]


def table_of(name: str) -> str:
    """The table in which a model is a row."""
    own = ELSEWHERE.get(name.partition(":")[0])
    return own or next(table for table, found in TABLES.items() if entry_of(name)[0].data in found.kinds)


def load(table: str, *, small: bool, labels: bool = False) -> Sample:
    """The data of a table; ``labels`` takes a set that has some, binarised in the same way where it is."""
    found = TABLES[table]
    name, binarise = found.small if small else found.with_labels if labels else found.large
    data = am.data.load(name, binarise=binarise)
    order = torch.randperm(len(data.x_test), generator=torch.Generator().manual_seed(0))
    train, test = torch.as_tensor(data.x_train).float(), torch.as_tensor(data.x_test).float()[order]
    y = None if data.y_test is None else data.y_test[order.numpy()]
    if table == "labelled":
        response = torch.as_tensor(data.y_train).float(), torch.as_tensor(data.y_test).float()[order]
        return Sample({"x": train, "y": response[0]}, {"x": test, "y": response[1]}, None, None, data.protocol)
    return Sample(train, test, y, data.image_shape, data.protocol)


def entry_of(name: str) -> tuple[ModelEntry, dict[str, Any]]:
    """The catalogue's line of ``NAME:setting=value,...``, and the settings."""
    plain, _, listed = name.partition(":")
    if plain not in MODELS:
        raise SystemExit(f"unknown model {plain!r}; models: {', '.join(MODELS)}")
    settings = dict(item.split("=", 1) for item in listed.split(",") if item)
    return MODELS[plain], {key: _read(value) for key, value in settings.items()}


def _read(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def make(name: str, x: Any, *, seed: int, budget: Budget) -> Any:
    """A model for training data, with the budget's sizes and the name's settings."""
    entry, settings = entry_of(name)
    takes = inspect.signature(entry.from_data).parameters
    sizes = {"latent_dim": budget.latent_dim, "hidden": budget.hidden, "seed": seed}
    wanted = {key: value for key, value in sizes.items() if key in takes and value is not None}
    return entry.from_data(x, **wanted | settings)


class Trained(NamedTuple):
    """A model, its fit, and the seconds of the processor that it took."""

    model: Any
    fitted: am.Fitted
    seconds: float


def trained(name: str, x: Any, *, seed: int, budget: Budget, cache: Path) -> Trained:
    """From the cache, or trained and put there."""
    model = make(name, x, seed=seed, budget=budget)
    program = model.program()
    path = cache / f"{name.replace(':', '-')}-{seed}-{_hash(name, seed, budget, x)}.pt"
    took = path.with_suffix(".seconds")
    if path.exists() and took.exists():
        return Trained(model, am.load(path, program), float(took.read_text(encoding="ascii")))
    training = am.Training(batch_size=min(budget.batch, _num(program, x)), progress=False, **_how(name, budget))
    num_steps = min(budget.steps, max(1, int(budget.seconds / _timed(name, x, seed, budget, training))))
    begin = time.process_time()  # not the clock's, which other work on the machine makes longer
    fitted = am.fit(program, x, objective=model.objective, num_steps=num_steps, seed=seed, training=training)
    seconds = time.process_time() - begin
    took.write_text(str(seconds), encoding="ascii")
    fitted.save(path)
    return Trained(model, fitted, seconds)


def _how(name: str, budget: Budget) -> dict[str, Any]:
    """The learning rate falls to nothing, unless the catalogue's line says otherwise."""
    fit = {key: value for key, value in entry_of(name)[0].fit.items() if key in FIT}
    return {"learning_rate": budget.learning_rate, "schedule": "cosine"} | fit


def _timed(name: str, x: Any, seed: int, budget: Budget, training: am.Training) -> float:
    """Seconds of the processor a step takes, on copies that are thrown away: what more steps cost more."""
    spent = []
    for num_steps in (STARTING, PROBED):
        model = make(name, x, seed=seed, budget=budget)
        program, begin = model.program(), time.process_time()
        am.fit(program, x, objective=model.objective, num_steps=num_steps, seed=seed, training=training)
        spent.append(time.process_time() - begin)
    return max(spent[1] - spent[0], 1e-6) / (PROBED - STARTING)


def _num(program: am.Program, x: Any) -> int:
    return program.prepare(x).num_datapoints


def _hash(name: str, seed: int, budget: Budget, x: Any) -> str:
    """Of all that a fit depends on, but the code."""
    parts = list(x.values()) if isinstance(x, dict) else [x]
    shapes, sums = [list(part.shape) for part in parts], [float(part.double().sum()) for part in parts]
    text = json.dumps([name, seed, asdict(budget), shapes, sums], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process has a row for itself, until the end or its death: others then take the next one."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def add_options(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Budget]:
    """Options that both benchmarks have; gives what reads the budget from them."""
    parser.add_argument("--models", nargs="+", default=None, metavar="NAME", help="NAME or NAME:setting=value,...")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--digits", action="store_true", help="8 x 8 digits in place of MNIST")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--seconds", type=float, default=Budget.seconds, help="of training, of the processor, at most")
    parser.add_argument("--batch", type=int, default=Budget.batch)
    parser.add_argument("--learning-rate", type=float, default=Budget.learning_rate)
    parser.add_argument("--latent-dim", type=int, default=None)
    parser.add_argument("--hidden", type=int, nargs="+", default=None)
    parser.add_argument("--threads", type=int, default=2)

    def budget(options: argparse.Namespace) -> Budget:
        hidden = None if options.hidden is None else tuple(options.hidden)
        return Budget(options.steps, options.seconds, options.batch, options.learning_rate, options.latent_dim, hidden)

    return budget


def asked_for(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Table and name of each row."""
    if options.models is not None:
        return [(table_of(name), name) for name in options.models]
    return [(table, name) for table in options.tables for name in names_of(table)]
