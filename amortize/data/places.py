"""Where the files of a data set are: in the user's folder, in the cache, or to be downloaded; each with its checksum.

A file that is not what its checksum says is never read. A download is whole and verified, or it leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortize.data.dataset import Arrays
from amortize.errors import DataError

__all__ = ["CACHE_VARIABLE", "FOLDER_VARIABLE", "File", "Form", "Place", "cache_folder", "data_folder", "fetch", "find"]

FOLDER_VARIABLE = "AMORTIZE_DATA_DIR"
CACHE_VARIABLE = "AMORTIZE_CACHE_DIR"
_SECONDS = 30  # without an answer, until an address is given up


@dataclass(frozen=True)
class File:
    """A published file: its path below a folder, its SHA-256, and the addresses it can be downloaded from."""

    path: str
    sha256: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """One of the forms in which a set is stored: files, and the parser that makes arrays of them (in this order).

    A form without files comes with an installed package, ``package``.
    """

    files: tuple[File, ...]
    read: Callable[..., Arrays]
    package: str = ""


@dataclass(frozen=True)
class Place:
    """Where a set would be read from: ``kind`` is "package", "folder", "cache", "download" or "not available"."""

    kind: str
    form: Form | None = None
    where: str = ""


def data_folder() -> Path | None:
    """The user's own folder of data sets, ``AMORTIZE_DATA_DIR``; None where it isn't set."""
    value = os.environ.get(FOLDER_VARIABLE, "")
    return Path(value).expanduser() if value else None


def cache_folder() -> Path:
    """Where downloads are kept: ``AMORTIZE_CACHE_DIR``, or the system's folder for caches."""
    value = os.environ.get(CACHE_VARIABLE, "")
    if value:
        return Path(value).expanduser()
    import pooch  # slow to import, and only needed here

    return Path(pooch.os_cache("amortize"))


def find(forms: Sequence[Form], folder: Path | None, cache: Path) -> Place:
    """Where a set would be read from; looks whether files are there, not into them."""
    for form in forms:
        if not form.files:
            return Place("package", form, form.package)
    for kind, root in (("folder", folder), ("cache", cache)):
        for form in forms:
            if root is not None and all((root / file.path).is_file() for file in form.files):
                return Place(kind, form, str(root / form.files[0].path))
    for form in forms:
        if all(file.addresses or _stored(file, folder, cache) for file in form.files):
            return Place("download", form, next(a for file in form.files for a in file.addresses))
    return Place("not available")


def fetch(name: str, place: Place, folder: Path | None, cache: Path) -> list[Path]:
    """The verified files of a set, downloaded into the cache where they are neither there nor in the folder.

    Raises
    ------
    DataError
        A file in the folder has another checksum, or a download failed; the message names file, folder and address.
    """
    assert place.form is not None  # only what was found is fetched
    return [_fetched(name, file, folder, cache) for file in place.form.files]


def _stored(file: File, folder: Path | None, cache: Path) -> bool:
    return any(root is not None and (root / file.path).is_file() for root in (folder, cache))


def _fetched(name: str, file: File, folder: Path | None, cache: Path) -> Path:
    if folder is not None and (folder / file.path).is_file():
        return _verified(name, folder / file.path, file)
    if (cache / file.path).is_file() and not file.addresses:
        return _verified(name, cache / file.path, file)
    return _downloaded(name, file, cache)


def _verified(name: str, path: Path, file: File) -> Path:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{name}: {path} is not the published file. Expected SHA-256 {file.sha256}, got {found}."
            " Replace the file, or take it away so that the next place is tried"
        )
    return path


def _downloaded(name: str, file: File, cache: Path) -> Path:
    """The file in the cache if it is there and whole, else from the first address that gives it."""
    target = cache / file.path
    failures = []
    for address in file.addresses:
        try:
            return _retrieved(address, file, target)
        except (OSError, ValueError) as error:  # what requests and pooch raise; a wrong checksum is a ValueError
            failures.append(f"  {address}: {_short(error, file)}")
            with contextlib.suppress(OSError):  # the folder that was made for it, if nothing else is in it
                target.parent.rmdir()
    raise DataError(
        f"{name}: {file.path} could not be downloaded to {target.parent}; nothing was kept there.\n"
        + "\n".join(failures)
        + f"\nGet the file (SHA-256 {file.sha256}) and put it at {file.path} in a folder that {FOLDER_VARIABLE} names"
        + _named(data_folder())
    )


def _named(folder: Path | None) -> str:
    """What the variable names now, where it names anything."""
    if folder is None:
        return ""
    return f" (now {folder}, which {'does not hold it' if folder.is_dir() else 'is no folder'})"


def _retrieved(address: str, file: File, target: Path) -> Path:
    import pooch  # slow to import, and only needed here

    pooch.get_logger().setLevel("WARNING")
    downloader: Any = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_SECONDS)
    path = pooch.retrieve(
        address, f"sha256:{file.sha256}", fname=target.name, path=target.parent, downloader=downloader
    )
    return Path(path)


def _short(error: Exception, file: File) -> str:
    if isinstance(error, ValueError) and file.sha256 in str(error):
        return "what came has another checksum"
    text = " ".join(str(error).rpartition("Caused by ")[2].split()) or type(error).__name__  # the root of a long chain
    return text if len(text) <= 160 else f"{text[:160]}..."
