"""The folder of a run: files that are whole or not there, and a manifest of the finished stages.

``RUN/stages/manifest.jsonl`` has a line a finished stage: its file, the file's SHA-256, and a *key*, the hash of all
that the stage depends on. A stage is reused only if its key matches and its file is still the one that was written.
A run keeps the last result of each stage; a grid, whose cells share stages, keeps every one by its key.
Every file is written under a temporary name in the same folder, flushed to disk and renamed, so that neither an
error, nor Ctrl-C, nor SIGKILL, nor a full disk leaves half a file under a final name.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from amortize.atomic import replacing
from amortize.errors import AmortizeError, ArgumentError

__all__ = ["RunStore", "Stage", "StoreError", "atomic_path", "check_owner", "hash_file", "hash_json", "writing"]

MANIFEST_FORMAT = 1
OUTPUTS = ("report.html", "report.json", "tree.nc", "spec.toml", "table.csv", "paired.csv")
CELLS = "cells"
"""The folder of a grid that holds one of outputs for each cell."""


class StoreError(AmortizeError, OSError):
    """A file of a run cannot be written, or another process is writing the same run."""


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises
    ------
    StoreError
        The operating system refused to write, for example because the disk is full.
    """
    with writing(path), replacing(path) as temporary:
        yield temporary


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes ``path``: what the operating system refuses is a `StoreError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"cannot write {path}: {reason}. Nothing half-written was left under this name.") from error


@dataclass(frozen=True)
class Stage:
    """A finished stage: a line of the manifest."""

    stage: str
    key: str
    file: str
    sha256: str
    seconds: float


class RunStore:
    """The files of one run; use as a context manager, which keeps other processes out.

    Parameters
    ----------
    folder
        The run's folder, made if it isn't there.
    fresh
        True forgets what an earlier run left in the folder; False keeps it for reuse.
    shared
        Whether several results of one stage are kept, each under its key, as those of a grid's cells.

    Raises
    ------
    ArgumentError
        The folder holds files that no run of amortize has written.
    StoreError
        The folder cannot be made, or another process works on it.
    """

    def __init__(self, folder: Path, *, fresh: bool, shared: bool = False) -> None:
        check_out(folder)
        self.folder = folder
        self.stages_folder = folder / "stages"
        self._fresh, self._shared = fresh, shared
        self._stages: dict[str, Stage] = {}
        self._lock: TextIO | None = None

    def __enter__(self) -> RunStore:
        try:
            self.stages_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.stages_folder}: {error.strerror}") from error
        self._lock = _locked(self.stages_folder / ".lock")
        for leftover in [*self.folder.iterdir(), *self.stages_folder.iterdir()]:
            if _is_temporary(leftover):
                leftover.unlink()
        if self._fresh:
            self._forget()
        self._stages = {self._slot(stage.stage, stage.key): stage for stage in read_stages(self.folder)}
        self._write_manifest()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def finished(self) -> list[str]:
        """Names of the stages in the manifest."""
        return [stage.stage for stage in self._stages.values()]

    def file_name(self, name: str, key: str, suffix: str) -> str:
        """What the file of a stage is called."""
        return f"{name.replace(' ', '-')}{f'-{key[:16]}' if self._shared else ''}{suffix}"

    def find(self, name: str, key: str) -> Stage | None:
        """The finished stage of this name and key whose file is unharmed, or None."""
        stage = self._stages.get(self._slot(name, key))
        if stage is None or stage.key != key:
            return None
        path = self.path(stage)
        return stage if path.is_file() and hash_file(path) == stage.sha256 else None

    def path(self, stage: Stage) -> Path:
        """Where the stage's file is."""
        return self.stages_folder / stage.file

    def save(self, stage: Stage, write: Callable[[Path], None]) -> Stage:
        """Write a stage's file, then its line in the manifest; ``stage.sha256`` is filled in here."""
        with atomic_path(self.path(stage)) as temporary:
            write(temporary)
            sha256 = hash_file(temporary)
        stage = Stage(**{**asdict(stage), "sha256": sha256})
        self._stages[self._slot(stage.stage, stage.key)] = stage
        self._write_manifest()
        return stage

    def _slot(self, name: str, key: str) -> str:
        return f"{name}/{key}" if self._shared else name

    def _write_manifest(self) -> None:
        header = {"amortize_run": MANIFEST_FORMAT}
        lines = [json.dumps(row) for row in [header, *(asdict(stage) for stage in self._stages.values())]]
        with atomic_path(self.stages_folder / "manifest.jsonl") as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _forget(self) -> None:
        # the manifest last: without it the folder would not be known as a run
        for folder in (self.folder, *(path for path in (self.folder / CELLS).glob("*") if path.is_dir())):
            for name in OUTPUTS:
                (folder / name).unlink(missing_ok=True)
        for stage in read_stages(self.folder):
            self.path(stage).unlink(missing_ok=True)
        (self.stages_folder / "manifest.jsonl").unlink(missing_ok=True)


def check_out(folder: Path) -> None:
    """Refuse a folder that holds anything but a run of amortize.

    Raises
    ------
    ArgumentError
        It is a file, or a folder with other content.
    """
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"out: expected a folder, got the file {folder}. Choose another with --out.")
    if not folder.exists() or is_run(folder):
        return
    foreign = sorted(path.name for path in folder.iterdir() if not _is_ours(path))
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ArgumentError(
            f"out: the folder {folder} isn't empty and is no run of amortize (it holds {shown})."
            " Choose another with --out."
        )


def check_owner(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be the run of the study ``name``.

    Raises
    ------
    ArgumentError
        It holds other files, or the run of another study.
    """
    check_out(folder)
    path = folder / "spec.toml"
    if not path.is_file():
        return
    try:
        owner = tomllib.loads(path.read_text(encoding="utf-8")).get("name")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return  # a damaged spec of a run is replaced
    if owner != name:
        raise ArgumentError(
            f"out: the folder {folder} holds the run of another study, {owner!r}; this one is {name!r}."
            " Choose another with --out"
        )


def is_run(folder: Path) -> bool:
    """Whether the folder is a run of amortize."""
    return (folder / "stages" / "manifest.jsonl").is_file()


def _is_ours(path: Path) -> bool:
    # what a run leaves that was killed before its first line of the manifest
    if path.name == "stages" and path.is_dir():
        return all(inner.name == ".lock" or _is_temporary(inner) for inner in path.iterdir())
    return _is_temporary(path)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part")  # the names that `replacing` gives


def read_manifest(folder: Path) -> dict[str, Stage]:
    """Finished stages by name, in the order they were finished; of several of one name, as of a grid, the last."""
    return {stage.stage: stage for stage in read_stages(folder)}


def read_stages(folder: Path) -> list[Stage]:
    """All finished stages, in the order they were finished; lines that cannot be read are left out."""
    path = folder / "stages" / "manifest.jsonl"
    if not path.is_file():
        return []
    stages = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError, TypeError):  # the header, or a damaged line: its stage is computed again
            stages.append(Stage(**json.loads(line)))
    return stages


def _locked(path: Path) -> TextIO:
    file = path.open("w")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # let go by the system when the process ends, however it ends
        except OSError:
            file.close()
            raise StoreError(
                f"another process works on {path.parent.parent}. Wait for it, or choose another --out."
            ) from None
    return file
