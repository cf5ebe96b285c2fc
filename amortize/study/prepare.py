"""From a spec to a program and data that fit together, before anything is computed or written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amortize.data import Dataset, load
from amortize.errors import AmortizeError, ArgumentError, DataError, SpecError
from amortize.models import MODELS
from amortize.program.check import CheckReport, verify_finite
from amortize.program.data import Data
from amortize.program.device import checked_device
from amortize.program.discover import run_recorded
from amortize.program.points import has_density
from amortize.program.program import Program
from amortize.program.simulate import to_front
from amortize.random import pyro_rng, stream_seed
from amortize.study.code_hash import program_files_hash
from amortize.study.labels import labels_of
from amortize.study.methods import require_settings
from amortize.study.sources import read_source
from amortize.study.spec import Study
from amortize.study.split import Split, as_floats, load_split
from amortize.study.store import hash_json
from amortize.study.targets import is_path, is_program_file, load_object, split_target, user_code, where
from amortize.study.toml import near_matches

__all__ = ["Prepared", "check_target", "load_program", "observed", "prepare", "require_contract"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A program and its data, checked against each other; ``program_hash`` stands for how it was made.

    ``labels`` (N,) are those of the evaluated datapoints by which gaps are told apart, or None. ``guided`` says
    whether there is a guide with an ELBO, which a point has not.
    """

    program: Program
    train: Data
    validation: Data | None
    evaluated: Data
    split: Split
    labels: NDArray[Any] | None
    program_hash: str
    guided: bool


def prepare(study: Study) -> Prepared:
    """Load the program and the data of a study and try the contract of the one on the other.

    Raises
    ------
    AmortizeError
        Whatever is wrong with the spec, the program, its file, the data or the device.
    """
    device = checked_device(study.device)
    require_settings(study)
    program = None
    if is_program_file(study.program.target):
        program = load_program(study.program.target, settings=study.program.settings, seed=study.seed)
    allow_nan = program is not None and program.allow_nan
    split = load_split(study.data, validation=study.fit.validation, allow_nan=allow_nan)
    if program is None:
        program = _built_in(study, split.train)
    if program.whole:  # what was held out is one datapoint
        split = replace(split, rows=np.zeros(1, dtype=np.int64), labels=None)
    path = split_target(study.program.target)[0] if is_program_file(study.program.target) else None
    train, evaluated = (_data(program, part, device, path) for part in (split.train, split.evaluated))
    validation = None if split.validation is None else _data(program, split.validation, device, path)
    require_contract(program, evaluated, path)
    guided = has_density(program, evaluated)
    _check_start(study, program, guided)
    labels = labels_of(study.ledger.labels, split, evaluated)
    return Prepared(program, train, validation, evaluated, split, labels, _program_hash(study, path), guided)


def load_program(target: str, *, settings: dict[str, Any] | None = None, seed: int = 0) -> Program:
    """The program that ``path.py:name`` names: an ``am.Program``, or what the function of that name returns.

    Raises
    ------
    ArgumentError
        The file is missing or fails, has no such name, or what it names is not a program.
    SpecError
        ``settings`` has a name that the function does not take.
    """
    path = split_target(target)[0]
    with pyro_rng(seed, "study", "program"):  # the weights of the user's networks are drawn here
        found = load_object(target)
        if isinstance(found, Program):
            if settings:
                raise SpecError(f"program.settings: {target} is a Program already; settings need a function")
            return found
        if not inspect.isfunction(found):
            raise _no_program(target, found)
        _check_settings(found, settings or {}, target)
        with user_code(path, f"make the program ({found.__name__}())"):
            made = found(**(settings or {}))
    if not isinstance(made, Program):
        raise _no_program(target, made, "returned ")
    return made


def _no_program(target: str, found: object, verb: str = "is ") -> ArgumentError:
    kind = "None" if found is None else f"a {type(found).__name__}"
    return ArgumentError(
        f"program: {target} {verb}{kind}; expected an am.Program or a function without arguments that returns"
        " one. In the file, write: program = am.Program(model, guide)"
    )


def _check_settings(function: Callable[..., Any], settings: dict[str, Any], target: str) -> None:
    parameters = inspect.signature(function).parameters
    named = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_POSITIONAL]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in settings:
        if name not in named and not takes_any:
            raise SpecError(
                f"program.settings: {target} takes no {name!r}{near_matches(name, named)}."
                f" It takes: {', '.join(named) or 'nothing'}"
            )
    needed = [n for n in named if parameters[n].default is inspect.Parameter.empty and n not in settings]
    needed = [n for n in needed if parameters[n].kind is not inspect.Parameter.VAR_KEYWORD]
    if needed:
        raise ArgumentError(
            f"program: {target} is a function of {', '.join(needed)}; expected an am.Program or a"
            " function without arguments that returns one. If it is the model, write in the file:"
            " program = am.Program(model, guide)"
        )


def _built_in(study: Study, train: Any) -> Program:
    """A model of the zoo as a program, which knows its objective."""
    name, settings = study.program.target, study.program.settings
    if name not in MODELS:
        raise SpecError(
            f"program.target: unknown model {name!r}{near_matches(name, list(MODELS))}."
            f" Models: {', '.join(MODELS)}; or name a program of your own as path.py:name"
        )
    builder = MODELS[name].from_data
    named = [key for key in inspect.signature(builder).parameters if key not in ("x", "seed", "dtype")]
    for key in settings:
        if key not in named:
            raise SpecError(
                f"program.settings: {name} takes no {key!r}{near_matches(key, named)}. It takes: {', '.join(named)}"
            )
    if "seed" in inspect.signature(builder).parameters:
        settings = {**settings, "seed": stream_seed(study.seed, "study", "program")}
    if isinstance(train, dict) and MODELS[name].data != "labelled":
        raise DataError(f"data: {name} takes one array, got {', '.join(train)}")
    try:
        program: Program = builder(train, **settings).program()
        return program
    except TypeError as error:
        parameters = inspect.signature(builder).parameters
        given = [f"{key} = {settings[key]!r} ({parameters[key].annotation})" for key in named if key in settings]
        raise SpecError(
            f"program.settings: {name} cannot be made with {', '.join(given) or 'no settings'}"
            f" ({type(error).__name__}: {error})"
        ) from error


def _data(program: Program, arrays: Any, device: torch.device, path: Path | None) -> Data:
    with _running(arrays, path), program.evaluating():
        return program.prepare(arrays, device=device)


def require_contract(program: Program, data: Data, path: Path | None = None) -> None:
    """Try the contract on data: each breach is the error that ``Program.check`` reports.

    Raises
    ------
    ContractError
        A clause of the contract does not hold.
    DataError
        The program does not run on the data, most often because of its shape.
    """
    with _running(data, path), program.evaluating():
        verify_finite(program, data)
        if program.guide is not None:
            program.guide_density(data, points=True)


def check_target(target: str, data: str | Path) -> tuple[str, CheckReport]:
    """What ``path.py:name`` looks like on data (empty if that cannot be told), and the verdict.

    ``data`` is a file, ``path.py:name``, or the name of a data set, of which the test part is taken where there is one.
    """
    path = split_target(target)[0]
    program = load_program(target)
    loaded = read_source(data, allow_nan=True) if is_path(str(data)) else load(str(data))  # the doctor looks for NaN
    if isinstance(loaded, Dataset):
        arrays = loaded.x_test if len(loaded.x_test) else loaded.x_train
    else:
        arrays = as_floats(loaded)  # as a study would
    with _running(arrays, path):
        report = program.check(arrays)
        return (program.describe(arrays) if report.ok else ""), report


@contextmanager
def _running(data: Any, path: Path | None) -> Iterator[None]:
    """Around a user's program on data: what it raises becomes one screen."""
    try:
        yield
    except AmortizeError:
        raise
    except Exception as error:
        raise DataError(
            f"the program does not run on this data ({_shapes(data)}): {where(error, path)}\n"
            "Compare the shapes that the model and guide expect; `amortize check` tries clause by clause."
        ) from error


def _shapes(data: Any) -> str:
    arrays = dict(zip(data.keys, data.leaves, strict=True)) if isinstance(data, Data) else data
    named = arrays if isinstance(arrays, dict) else {0: arrays}
    return ", ".join(f"{'array' if name == 0 else name} {tuple(np.shape(leaf))}" for name, leaf in named.items())


def observed(program: Program, data: Data) -> dict[str, NDArray[Any]]:
    """What each observed site inside the data plate was given, as arrays (N, ...)."""
    structure = program.structure(data)
    with program.evaluating():
        messages = run_recorded(program.model, data)
    return {name: to_front(messages[name]["value"], messages[name], structure.plate) for name in structure.observed}


def _check_start(study: Study, program: Program, guided: bool) -> None:
    if guided:
        return
    none, no = ("the program has none", "the program has no guide")
    if program.guide is not None:
        none = no = "the program's is a point, which has no density"
    if study.evidence.method == "importance":
        raise SpecError(f"evidence.method: 'importance' draws from a guide, but {none}. Use 'ais' or 'auto'")
    if study.evidence.start == "guide":
        raise SpecError(f"evidence.start: 'guide', but {no}. Use 'prior', or leave it out")


def _program_hash(study: Study, path: Path | None) -> str:
    name = study.program.target if path is None else split_target(study.program.target)[1]
    source = None if path is None else program_files_hash(path)
    return hash_json({"name": name, "file": source, "settings": study.program.settings, "seed": study.seed})
