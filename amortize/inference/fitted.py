"""A trained program: its parameters, the history of its training, and how to keep them."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cloudpickle
import pandas as pd
import torch
from torch import Tensor

from amortize.atomic import replacing
from amortize.errors import ArgumentError, DataError
from amortize.program.program import Program

__all__ = ["Fitted", "load"]

FORMAT = 1


@dataclass(frozen=True)
class Fitted:
    """What ``am.fit`` gives back.

    Attributes
    ----------
    program
        The trained program (the very object that was passed in).
    history
        A row a step: step, elbo (nats a datapoint, minibatch), validation_elbo, validation_elbo_se, learning_rate,
        gradient_norm, seconds. The columns called elbo hold the bound that was trained, which ``bound`` names. Where
        the guide draws codes, how many are in use on the validation data: a site's perplexity, num_dead, information.
    objective, seed, settings, seconds
        How it was trained.
    stopped_early, interrupted
        Whether patience ran out, and whether Ctrl-C ended it.
    bound
        In words, the bound on log p(x) that was trained and is in the history: "ELBO", or a tighter one.
    extra
        Parameters of the objective itself, trained along with the program's: temperatures, step sizes, a score network.
    """

    program: Program
    history: pd.DataFrame
    objective: str
    seed: int
    settings: dict[str, Any]
    seconds: float
    stopped_early: bool = False
    interrupted: bool = False
    bound: str = "ELBO"
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        steps = self.history["elbo"].tolist()
        last = f"last {self.bound} {steps[-1]:.3f} nats a datapoint, " if steps else ""
        ended = ", interrupted" if self.interrupted else ", stopped early" if self.stopped_early else ""
        return f"fit by {self.objective}: {len(steps)} steps, {last}{self.seconds:.1f} s{ended}"

    def save(self, path: str | Path) -> Path:
        """Write parameters, history and (where it can be pickled) the program to one file, whole or not at all."""
        path = Path(path)
        notes = {
            "objective": self.objective,
            "seed": self.seed,
            "settings": self.settings,
            "seconds": self.seconds,
            "stopped_early": self.stopped_early,
            "interrupted": self.interrupted,
            "bound": self.bound,
            "versions": {name: _version(name) for name in ("amortize", "torch", "pyro-ppl")},
        }
        code, reason = _pickled(self.program)
        content = {
            "format": FORMAT,
            "state": self.program.state(),
            "history": {name: self.history[name].tolist() for name in self.history},
            "notes": json.dumps(notes),
            "extra": self.extra,
            "program": code,
            "program_missing": reason,
        }
        with replacing(path) as temporary:
            torch.save(content, temporary)
        return path


def load(path: str | Path, program: Program | None = None) -> Fitted:
    """Read what ``Fitted.save`` wrote.

    Parameters
    ----------
    path
        The file.
    program
        A program made in the same way, which gets the parameters; only numbers are read from the file then. Without
        it the program itself is unpickled, which runs code from the file: do that with files you trust.

    Raises
    ------
    DataError
        If the file is missing or was not written by ``save``.
    ArgumentError
        If the file holds no program, or its parameters do not fit ``program``.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: expected a file written by Fitted.save, but there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise DataError(
                f"{path}: expected format {FORMAT}, got {content['format']!r}; load it with the version that wrote it"
            )
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{path}: expected a file written by Fitted.save ({type(error).__name__})") from error
    if program is None:
        program = _unpickled(path, content)
    program.restore(content["state"])
    notes = json.loads(content["notes"])
    notes.pop("versions")
    history = pd.DataFrame(content["history"])
    return Fitted(program=program, history=history, extra=content.get("extra", {}), **notes)


def _pickled(program: Program) -> tuple[bytes | None, str]:
    try:
        return cloudpickle.dumps(program), ""
    except Exception as error:  # a user's objects may refuse in any way; the parameters are saved all the same
        return None, f"{type(error).__name__}: {error}"


def _unpickled(path: Path, content: dict[str, Any]) -> Program:
    if content["program"] is None:
        raise ArgumentError(
            f"{path} holds the parameters but not the program, which could not be pickled "
            f"({content['program_missing']}). "
            "Make the program and pass it: am.load(path, program)"
        )
    try:
        program = pickle.loads(content["program"])
    except Exception as error:  # missing modules, changed classes: the way out is the same
        raise ArgumentError(
            f"{path}: the program could not be made again ({type(error).__name__}: {error}). "
            "Make it and pass it: am.load(path, program)"
        ) from error
    assert isinstance(program, Program)
    return program


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
