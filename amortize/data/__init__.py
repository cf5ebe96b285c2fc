"""Data sets and data files; numpy only, so that the report and its tools can use them without torch."""

from __future__ import annotations

from collections.abc import Callable

from amortize.data.digits import Dataset, load_digits
from amortize.data.files import check_array, load_array
from amortize.data.hashing import data_hash

__all__ = ["DATASETS", "Dataset", "check_array", "data_hash", "load_array", "load_digits"]

DATASETS: dict[str, Callable[[], Dataset]] = {"digits": load_digits}
"""The bundled data sets by name; adding one is adding a line."""
