"""The data set of the first study: 1797 handwritten digits of 8 x 8 pixels, binarised.

scikit-learn carries the images (grey values 0 to 16), so nothing is downloaded. By default a pixel is 1 where its grey
value is above 7. The split is stratified: images are shuffled once with a frozen random stream, and in that
order every fifth image of each class goes to the test set. Both parts stay shuffled: any prefix is a random
sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amortize.data.dataset import Arrays
from amortize.data.entry import Entry, Parts
from amortize.data.places import Form
from amortize.data.splits import Index

__all__ = ["DIGITS"]

_TEST_EVERY = 5


def _read() -> Arrays:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    bundled = load_digits()
    return {"x": np.asarray(bundled.data).astype(np.uint8), "y": np.asarray(bundled.target).astype(np.int64)}


def _every_fifth_of_each_class(labels: NDArray[Any], seed: int) -> dict[str, Index]:
    # RandomState's stream is frozen by NEP 19; that of numpy.random.Generator may change between versions.
    order: Index = np.random.RandomState(seed).permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels[order] == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return {"train": order[~is_test], "test": order[is_test]}


DIGITS = Entry(
    title="scikit-learn's 8 x 8 digits",
    description="1797 handwritten digits, 8 x 8 pixels, binarised at > 7",
    source="scikit-learn's copy of UCI Optical Recognition of Handwritten Digits, test part (CC BY 4.0)",
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI 1998",
    sizes=(1442, 0, 355),
    shape=(64,),
    forms=(Form((), _read, package="scikit-learn"),),
    make=lambda arrays: Parts(arrays["x"], arrays["y"]),
    modes=("threshold", "grey", "static", "dynamic"),
    top=16,
    image_shape=(8, 8),
    splitter=_every_fifth_of_each_class,
)
"""The digits' line of the registry."""
