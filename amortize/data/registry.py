"""The data sets by name, and the one way to load them."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from amortize.data.counts import COUNTS
from amortize.data.dataset import Dataset
from amortize.data.entry import Entry
from amortize.data.images import IMAGES
from amortize.data.places import FOLDER_VARIABLE, Form, Place, cache_folder, data_folder, fetch, find
from amortize.data.small import SMALL
from amortize.errors import ArgumentError, DataError

__all__ = ["DATASETS", "entry_of", "load", "load_digits", "place_of"]

DATASETS: dict[str, Entry] = {**IMAGES, **COUNTS, **SMALL}
"""The data sets by name; adding one is adding a line."""


def load(
    name: str,
    *,
    binarise: str | None = None,
    seed: int = 0,
    validation: float = 0.0,
    folder: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set by name.

    Its files are looked for in ``folder``, then in the cache, then downloaded into the cache; each is read only if it
    has its published checksum, and none is ever unpickled. What comes back is the same wherever it came from.

    Parameters
    ----------
    name
        One of `DATASETS`.
    binarise
        For images: "grey" (values from 0 to 1), "threshold", "static" (drawn once, by ``seed``) or "dynamic" (drawn
        anew in each epoch: ``x_train`` are probabilities, the other parts are drawn once). None takes the set's own.
    seed
        Of static binarisation, of the split where none was published, and of the validation part.
    validation
        Share of the training part to keep back as a validation part; a published one is taken as it is.
    folder
        In place of the environment variable AMORTIZE_DATA_DIR.
    download
        False takes only what is already here.

    Raises
    ------
    DataError
        No such data set, no file, a file that is not the published one, or a download that failed.
    ArgumentError
        A binarisation that makes no sense for this set, or a wrong seed or share.

    Examples
    --------
    >>> from amortize.data import load
    >>> digits = load("digits")
    >>> digits.x_train.shape, digits.x_test.shape, digits.image_shape
    ((1442, 64), (355, 64), (8, 8))
    >>> print(load("digits", binarise="grey", validation=0.1).protocol)
    scikit-learn's 8 x 8 digits: 1,298 to train on, 144 to validate on, 355 to test on (split at random by seed 0,
    stratified; a share of 0.1 kept back at random by seed 0, stratified); grey values / 16
    """
    entry = entry_of(name)
    mode = _checked_mode(name, entry, binarise)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ArgumentError(f"seed: expected an integer from 0 to 2**32 - 1, got {seed!r}")
    if not 0 <= validation < 1:
        raise ArgumentError(f"validation: expected a share from 0 to below 1, got {validation!r}")
    root, cache = data_folder() if folder is None else Path(folder), cache_folder()
    forms = entry.forms if download else tuple(_local(form) for form in entry.forms)
    place = find(forms, root, cache)
    if place.form is None:
        raise _missing(name, entry, root, cache)
    arrays = place.form.read(*fetch(name, place, root, cache))
    return entry.dataset(name, arrays, mode=mode, seed=seed, validation=validation)


def load_digits() -> Dataset:
    """Scikit-learn's 8 x 8 digits, binarised at > 7.

    There are 1442 rows to train on and 355 to test on, with 64 pixels each. The split is the same on every
    machine and in every version; a test pins its SHA-256.
    """
    return load("digits")


def entry_of(name: str) -> Entry:
    """The registry's line for a name.

    Raises
    ------
    DataError
        There is none; near names are offered.
    """
    if name in DATASETS:
        return DATASETS[name]
    asked = str(name).lower().replace("_", "-").replace("binarised", "binarized")
    near = difflib.get_close_matches(asked, DATASETS, n=3, cutoff=0.6)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise DataError(
        f"data: unknown data set {name!r}{hint}. Data sets: {', '.join(DATASETS)};"
        " or name a .npy, .npz, .csv, .parquet or .h5ad file"
    )


def place_of(name: str, *, folder: str | Path | None = None) -> Place:
    """Where a data set would be read from; quick, for nothing is opened."""
    root = data_folder() if folder is None else Path(folder)
    return find(entry_of(name).forms, root, cache_folder())


def _checked_mode(name: str, entry: Entry, binarise: str | None) -> str | None:
    if binarise is None:
        return entry.modes[0] if entry.modes else None
    if binarise not in entry.modes:
        takes = (
            f"it takes {' or '.join(map(repr, entry.modes))}" if entry.modes else "it has no grey values; leave it out"
        )
        raise ArgumentError(f"binarise: {binarise!r} makes no sense for {name}; {takes}")
    return binarise


def _local(form: Form) -> Form:
    return dataclasses.replace(form, files=tuple(dataclasses.replace(file, addresses=()) for file in form.files))


def _missing(name: str, entry: Entry, root: Path | None, cache: Path) -> DataError:
    """What is needed where; the first form is the one that no address is known of."""
    where = f"{root} ({FOLDER_VARIABLE})" if root else f"a folder ({FOLDER_VARIABLE} isn't set)"
    wanted = "\n".join(f"  {file.path} (SHA-256 {file.sha256})" for file in entry.forms[0].files)
    address = any(file.addresses for form in entry.forms for file in form.files)
    why = "downloads are switched off" if address else "no address is known that it could be downloaded from"
    return DataError(
        f"{name}: not found in {where}, nor in the cache {cache}, and {why}. Needed:\n{wanted}\n"
        f"Put it into a folder and set {FOLDER_VARIABLE} to that folder"
    )
