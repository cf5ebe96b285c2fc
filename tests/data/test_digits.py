"""The digits: split, values and fingerprint are fixed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from amortize.data import DATASETS, data_hash, load, load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_split_is_pinned(digits):
    arrays = {name: getattr(digits, name) for name in ("x_train", "x_test", "y_train", "y_test")}
    assert data_hash(arrays) == "032c50e9bad866e86c9d87236b5458e7d3b6fa88bbb26ab19ceb47f01160adbf"


def test_the_parts_are_all_images_once(digits):
    from sklearn.datasets import load_digits as load_bundled

    def rows(x, y):
        return sorted(zip(map(bytes, x.astype(np.uint8)), y.tolist(), strict=True))

    bundled = load_bundled()
    together = rows(np.vstack([digits.x_train, digits.x_test]), np.hstack([digits.y_train, digits.y_test]))
    assert together == rows(bundled.data > 7, bundled.target)


def test_values_are_binary_float32_and_classes_are_even(digits):
    assert digits.x_train.dtype == digits.x_test.dtype == np.float32
    assert set(np.unique(digits.x_train)) == {0.0, 1.0}
    share = np.bincount(digits.y_test) / np.bincount(np.hstack([digits.y_train, digits.y_test]))
    assert np.all(np.abs(share - 0.2) < 0.01)


def test_a_second_call_gives_the_same_and_touches_no_global_stream(digits):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    again = load_digits()
    assert np.array_equal(again.x_test, digits.x_test)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_the_data_set_is_frozen_and_registered(digits):
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.name = "other"
    assert "digits" in DATASETS
    assert load("digits").name == digits.name == "digits"
