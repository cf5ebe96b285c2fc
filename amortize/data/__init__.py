"""Data sets and data files; no torch, so that the report and its tools can use them without it."""

from __future__ import annotations

from amortize.data.binarise import redraw
from amortize.data.dataset import Dataset
from amortize.data.files import check_array, load_array
from amortize.data.hashing import data_hash
from amortize.data.registry import DATASETS, load, load_digits, place_of
from amortize.data.splits import random_order

__all__ = [
    "DATASETS",
    "Dataset",
    "check_array",
    "data_hash",
    "load",
    "load_array",
    "load_digits",
    "place_of",
    "random_order",
    "redraw",
]
