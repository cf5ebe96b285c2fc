"""The data set of the first study: 1797 handwritten digits of 8 x 8 pixels, binarised, with a fixed split.

scikit-learn carries the images (grey values 0 to 16), so nothing is downloaded. A pixel is 1 where its grey
value is above 7. The split is stratified: images are shuffled once with a frozen random stream, and in that
order every fifth image of each class goes to the test set. Both parts stay shuffled: any prefix is a random
sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Dataset", "load_digits"]

_THRESHOLD = 7
_TEST_EVERY = 5


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with a fixed split; rows are datapoints.

    Attributes
    ----------
    name, description, source
        For listings and reports.
    x_train, x_test
        Features, shapes (N_train, X) and (N_test, X), float32.
    y_train, y_test
        Labels, shapes (N_train,) and (N_test,), int64.
    image_shape
        How to fold a row into a picture, or None.
    """

    name: str
    description: str
    source: str
    x_train: NDArray[np.float32]
    x_test: NDArray[np.float32]
    y_train: NDArray[np.int64]
    y_test: NDArray[np.int64]
    image_shape: tuple[int, int] | None = None


def load_digits() -> Dataset:
    """Scikit-learn's 8 x 8 digits, binarised at > 7.

    There are 1442 rows to train on and 355 to test on, with 64 pixels each. The split is the same on every
    machine and in every version; a test pins its SHA-256.

    Examples
    --------
    >>> from amortize.data import load_digits
    >>> digits = load_digits()
    >>> digits.x_train.shape, digits.x_test.shape, digits.image_shape
    ((1442, 64), (355, 64), (8, 8))
    """
    from sklearn.datasets import load_digits as load_bundled  # slow to import, and only needed here

    bundled = load_bundled()
    # RandomState's stream is frozen by NEP 19; that of numpy.random.Generator may change between versions.
    order = np.random.RandomState(0).permutation(len(bundled.target))
    pixels = (np.asarray(bundled.data)[order] > _THRESHOLD).astype(np.float32)
    labels = np.asarray(bundled.target)[order].astype(np.int64)
    is_test = _every_nth_of_each_class(labels, _TEST_EVERY)
    return Dataset(
        name="digits",
        description="1797 handwritten digits, 8 x 8 pixels, binarised at > 7",
        source="scikit-learn's copy of UCI Optical Recognition of Handwritten Digits, test part (CC BY 4.0)",
        x_train=pixels[~is_test],
        x_test=pixels[is_test],
        y_train=labels[~is_test],
        y_test=labels[is_test],
        image_shape=(8, 8),
    )


def _every_nth_of_each_class(labels: NDArray[Any], n: int) -> NDArray[np.bool_]:
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[n - 1 :: n]] = True
    return chosen
