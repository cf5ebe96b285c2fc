"""`data_hash`: equal for equal data, different for everything else."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from amortize.data import data_hash
from amortize.errors import DataError

X = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "same",
    [
        X.copy(),
        np.asfortranarray(X),
        X.astype(">f8"),
        np.hstack([X, X])[:, :4],
        (X,),
        [X],
        {"0": X},
    ],
    ids=["copy", "fortran", "big-endian", "view", "tuple", "list", "dict"],
)
def test_layout_and_container_do_not_enter(same):
    assert data_hash(same) == data_hash(X)


def test_everything_else_enters():
    variants = {
        "value": X + np.eye(3, 4) * 1e-12,
        "dtype": X.astype(np.float32),
        "shape": X.reshape(4, 3),
        "rows": X[::-1],
        "fewer": X[:2],
        "two": (X, X),
        "name": {"y": X},
        "scalar": np.float64(0.0),
        "one": np.zeros(1),
        "base": X,
    }
    hashes = {name: data_hash(value) for name, value in variants.items()}
    for a, b in itertools.combinations(hashes, 2):
        assert hashes[a] != hashes[b], f"{a} and {b} hash alike"


def test_the_order_of_a_dict_does_not_enter_but_that_of_a_tuple_does():
    y = X[:, 0]
    assert data_hash({"x": X, "y": y}) == data_hash({"y": y, "x": X})
    assert data_hash((X, y)) != data_hash((y, X))


def test_the_recipe_is_names_dtypes_shapes_and_bytes():
    content = b'["0", "<i2", [3]]\n' + b"\x00\x00\x01\x00\x02\x00"
    assert data_hash(np.arange(3, dtype=np.int16)) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("bad", [np.array([object()]), {}, ()])
def test_objects_and_empty_containers_are_refused(bad):
    with pytest.raises(DataError, match="data_hash"):
        data_hash(bad)
