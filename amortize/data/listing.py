"""The data sets in words: a table of all that loads none, and one set in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from amortize.data.dataset import Dataset
from amortize.data.places import Place
from amortize.data.registry import DATASETS, place_of
from amortize.errors import DataError

__all__ = ["described", "listed", "save"]


def listed() -> list[tuple[str, ...]]:
    """A row for each set: name, sizes, shape of a datapoint, where it would be read from, licence, description."""
    return [
        (
            name,
            " / ".join(f"{size:,}" if size else "-" for size in entry.sizes),
            " x ".join(map(str, entry.shape)) or "1",
            _place_words(place_of(name)),
            entry.licence,
            entry.description,
        )
        for name, entry in DATASETS.items()
    ]


def described(found: Dataset) -> list[tuple[str, ...]]:
    """Rows of a name and a text that say all there is to say of a loaded set."""
    place = place_of(found.name)
    facts = {
        "name": found.name,
        "what it is": found.description,
        "protocol": found.protocol,
        "read from": f"{place.kind} {place.where}",
        "source": found.source,
        "licence": found.licence,
        "cite": found.citation,
        "caveat": found.caveat,
    }
    arrays = {name: f"{array.dtype} {array.shape}" for name, array in found.arrays().items()}
    return [(name, text) for name, text in {**facts, **arrays}.items() if text]


def save(found: Dataset, out: Path) -> Path:
    """Write the arrays of a set, and its protocol, to an ``.npz``; whole or not at all.

    Raises
    ------
    DataError
        The name doesn't end in .npz, or the folder isn't there or cannot be written to.
    """
    if out.suffix != ".npz":
        raise DataError(f"out: expected the name of an .npz file, got {str(out)!r}")
    temporary = out.with_name(f".{out.name}.part")
    try:
        with temporary.open("wb") as file:
            named: dict[str, Any] = {**found.arrays(), "protocol": np.array(found.protocol)}
            np.savez_compressed(file, **named)
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"out: {out} cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _place_words(place: Place) -> str:
    details = {"download": urlsplit(place.where).hostname, "package": place.where}
    return f"{place.kind} ({details[place.kind]})" if place.kind in details else place.kind
