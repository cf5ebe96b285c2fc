"""A data set as a program meets it: features, labels, covariates, a split, and the protocol that made them.

Letters: N datapoints of a part (train, valid, test), X the shape of a datapoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Dataset"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its split; rows are datapoints.

    Attributes
    ----------
    name, description, source
        For listings and reports.
    x_train, x_test
        Features, shapes (N_train, ...) and (N_test, ...): float32 for images and counts, the source's own precision
        for measurements. Images are flat. A set that is used as a whole has no test rows.
    y_train, y_test
        Labels (int64) or responses (float64), shapes (N_train,) and (N_test,); None where there are none.
    image_shape
        How to fold a row into a picture, or None.
    x_valid, y_valid
        A validation part; None where none was published and none asked for.
    covariates_train, covariates_valid, covariates_test
        What else is known of each datapoint, by name; first sizes are those of the part.
    shared
        Arrays without an entry a datapoint: names of features, reference posteriors.
    protocol
        Sizes, binarisation, split and seed in one sentence. Numbers are comparable only under the same protocol.
    licence, citation, caveat
        Who allows what, what to cite, and what numbers from this set must not be compared with ("" for nothing).
    shuffled
        Whether the rows of each part stand in random order, so that any first n of them are a random sample.
    dynamic
        True where ``x_train`` holds probabilities of a pixel being 1, to be drawn anew in each epoch.
    """

    name: str
    description: str
    source: str
    x_train: NDArray[Any]
    x_test: NDArray[Any]
    y_train: NDArray[Any] | None = None
    y_test: NDArray[Any] | None = None
    image_shape: tuple[int, ...] | None = None
    x_valid: NDArray[Any] | None = None
    y_valid: NDArray[Any] | None = None
    covariates_train: Arrays = field(default_factory=dict)
    covariates_valid: Arrays = field(default_factory=dict)
    covariates_test: Arrays = field(default_factory=dict)
    shared: Arrays = field(default_factory=dict)
    protocol: str = ""
    licence: str = ""
    citation: str = ""
    caveat: str = ""
    shuffled: bool = True
    dynamic: bool = False

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Datapoints to train on, to validate on and to test on."""
        return len(self.x_train), 0 if self.x_valid is None else len(self.x_valid), len(self.x_test)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array under one name each, as an ``.npz`` would hold them; text is in bytes."""
        own = ("x_train", "y_train", "x_valid", "y_valid", "x_test", "y_test")
        named = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        for part in ("train", "valid", "test"):
            covariates: Arrays = getattr(self, f"covariates_{part}")
            named |= {f"{name}_{part}": array for name, array in covariates.items()}
        named |= dict(self.shared)
        return {name: np.ascontiguousarray(array) for name, array in named.items()}
