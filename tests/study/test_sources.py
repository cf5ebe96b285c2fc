"""Data that a function in a Python file makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amortize.data import Dataset
from amortize.errors import ArgumentError, DataError
from amortize.study.sources import read_source
from amortize.study.spec import DataSpec
from amortize.study.split import load_split

FILE = """
import numpy as np
import amortize as am

table = np.arange(20.0).reshape(10, 2)

def named():
    return {"x": table, "batch": np.arange(10) % 3}

def whole():
    return am.data.load("digits")

def wrong():
    return "text"

def missing():
    return np.full((3, 2), np.nan)

def needs(size):
    return table
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_an_array_a_function_and_a_dataset_are_data(file: Path) -> None:
    np.testing.assert_array_equal(read_source(f"{file}:table"), np.arange(20.0).reshape(10, 2))
    assert list(read_source(f"{file}:named")) == ["x", "batch"]
    assert isinstance(read_source(f"{file}:whole"), Dataset)


def test_a_study_splits_what_a_function_gives(file: Path) -> None:
    split = load_split(DataSpec(source=f"{file}:named"))
    assert split.train["x"].shape == (8, 2) and split.evaluated["batch"].dtype == np.int64
    published = load_split(DataSpec(source=f"{file}:whole", num_evaluated=5))
    assert published.image_shape == (8, 8) and published.labels is not None


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("wrong", DataError, "expected a numeric array"),
        ("missing", DataError, "6 NaN"),
        ("needs", ArgumentError, "a function of size"),
        ("nothing", ArgumentError, "has no 'nothing'"),
    ],
)
def test_what_cannot_be_data_is_named(file: Path, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_source(f"{file}:{name}")
