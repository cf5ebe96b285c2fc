"""What the registry knows of a data set, and how it becomes a `Dataset`: read, make, binarise, split.

Letters: N datapoints in all, in the order of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amortize.data.binarise import binarised
from amortize.data.dataset import Arrays, Dataset
from amortize.data.places import Form
from amortize.data.splits import Index, hold_out, is_labels, random_order

__all__ = ["PUBLISHED", "SEEDED", "WHOLE", "Entry", "Parts"]

Split = Mapping[str, Index | slice]

PUBLISHED, SEEDED, WHOLE = "published", "seeded", "whole"
_HELD_OUT = 0.2
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Parts:
    """All rows of a set in the order of its source, and its published split (train, valid, test), if it has one."""

    x: NDArray[Any]
    y: NDArray[Any] | None = None
    covariates: Arrays = field(default_factory=dict)
    shared: Arrays = field(default_factory=dict)
    split: Split | None = None


@dataclass(frozen=True)
class Entry:
    """A line of the registry.

    Attributes
    ----------
    title, description, source, licence, citation, caveat
        Texts; the title opens the protocol, the caveat ends it.
    values
        What the numbers are, for the protocol; not for images, whose binarisation says it.
    sizes, shape
        Datapoints to train on, to validate on and to test on, and the shape of one: for listings, which load nothing.
    forms
        Where the arrays come from.
    make
        From these arrays to `Parts`.
    modes
        Binarisations that make sense, the default first; () where there are no grey values.
    top
        The largest grey value of images.
    image_shape
        How to fold a row into a picture.
    split
        ``PUBLISHED``, ``SEEDED`` (20 % held out) or ``WHOLE`` (no test part); ``splitter`` has its own way of seeding.
    """

    title: str
    description: str
    source: str
    licence: str
    sizes: tuple[int, int, int]
    shape: tuple[int, ...]
    forms: tuple[Form, ...]
    make: Callable[[Arrays], Parts]
    values: str = ""
    citation: str = ""
    caveat: str = ""
    modes: tuple[str, ...] = ()
    top: int = 255
    image_shape: tuple[int, ...] | None = None
    split: str = SEEDED
    split_words: str = "the published split"
    splitter: Callable[[NDArray[Any], int], dict[str, Index]] | None = None

    def dataset(self, name: str, arrays: Arrays, *, mode: str | None, seed: int, validation: float) -> Dataset:
        """The data set, of the arrays that one of its forms was read into."""
        parts = self.make(arrays)
        fixed, train = self._values(parts.x, mode, seed)
        split = self._split(name, parts, seed, validation)
        x = {part: (train if part == "train" else fixed)[split[part]] for part in _PARTS if part in split}
        y = {part: None if parts.y is None else parts.y[split[part]] for part in x}
        covariates = {
            part: {key: array[split[part]] for key, array in parts.covariates.items()} if part in x else {}
            for part in _PARTS
        }
        sizes = {part: len(rows) for part, rows in x.items()}
        return Dataset(
            name=name,
            description=self.description,
            source=self.source,
            x_train=x["train"],
            x_test=x["test"],
            y_train=y["train"],
            y_test=y["test"],
            image_shape=self.image_shape,
            x_valid=x.get("valid"),
            y_valid=y.get("valid"),
            covariates_train=covariates["train"],
            covariates_valid=covariates["valid"],
            covariates_test=covariates["test"],
            shared=parts.shared,
            protocol=self._protocol(
                sizes, self._how(seed, validation, is_labels(parts.y)), self._grey_words(mode, seed)
            ),
            licence=self.licence,
            citation=self.citation,
            caveat=self.caveat,
            shuffled=self.split == SEEDED,
            dynamic=mode == "dynamic",
        )

    def _values(self, x: NDArray[Any], mode: str | None, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Features that stay as they are, and those to train on; they differ under dynamic binarisation alone."""
        if not self.modes or mode is None:
            return x, x
        fixed = binarised(x, "static" if mode == "dynamic" else mode, top=self.top, seed=seed)
        return fixed, binarised(x, mode, top=self.top) if mode == "dynamic" else fixed

    def _split(self, name: str, parts: Parts, seed: int, validation: float) -> dict[str, Index | slice]:
        num = len(parts.x)
        if parts.split is not None:
            split = dict(parts.split)
        elif self.split == WHOLE:
            split = {"train": slice(0, num), "test": slice(num, num)}
        elif self.splitter is not None and parts.y is not None:
            split = dict(self.splitter(parts.y, seed))
        else:
            order = random_order(num, seed, parts.y if is_labels(parts.y) else None)
            train, test = hold_out(order, _HELD_OUT, what=name)
            split = {"train": train, "test": test}
        if validation and "valid" not in split:
            split |= _validated(name, parts, split["train"], seed, validation)
        return split

    def _protocol(self, sizes: Mapping[str, int], how: str, grey: str) -> str:
        """One sentence, and the caveat."""
        verbs = {"train": "train", "valid": "validate", "test": "test"}
        numbers = ", ".join(f"{num:,} to {verbs[part]} on" for part, num in sizes.items())
        if self.split == WHOLE:
            numbers = f"{sizes['train']:,} as a whole"
        split = f" ({how})" if how else ""
        caveat = f". {self.caveat}" if self.caveat else ""
        return f"{self.title}: {numbers}{split}; {self.values or grey}{caveat}"

    def _how(self, seed: int, validation: float, stratified: bool) -> str:
        """How the parts were made."""
        seeded = f"at random by seed {seed}" + (", stratified" if stratified else "")
        how = {PUBLISHED: self.split_words, SEEDED: f"split {seeded}", WHOLE: ""}[self.split]
        if validation and self.sizes[1] == 0:
            return f"{how}; a share of {validation:g} kept back {seeded}".removeprefix("; ")
        return how

    def _grey_words(self, mode: str | None, seed: int) -> str:
        share = f"probability grey / {self.top}"
        return {
            None: "",
            "grey": f"grey values / {self.top}",
            "threshold": f"binarised: 1 where the grey value is > {(self.top - 1) // 2}",
            "static": f"binarised once: 1 with {share}, drawn by seed {seed}",
            "dynamic": f"binarised: 1 with {share}, drawn anew in each epoch to train on, and once by seed {seed} to"
            " validate and test on",
        }[mode]


def _validated(name: str, parts: Parts, train: Index | slice, seed: int, share: float) -> dict[str, Index | slice]:
    """The training part without, and alone, a share that is kept back at random, with each class in its share."""
    rows = np.arange(len(parts.x))[train]
    labels = None if parts.y is None else parts.y[rows]
    order = random_order(len(rows), seed, labels if is_labels(labels) else None)
    kept, valid = hold_out(order, share, what=f"{name}: validation")
    return {"train": rows[kept], "valid": rows[valid]}
