"""What a study's data source names: a file, or data of the user's own Python, made by a function or not; no torch."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from amortize.data import Dataset, check_array, load_array
from amortize.errors import ArgumentError, DataError
from amortize.study.targets import is_program_file, load_object, split_target, user_code

__all__ = ["read_source"]


def read_source(source: str | Path, *, allow_nan: bool = False) -> Any:
    """The arrays of a file, or what ``path.py:name`` gives: a numpy array, a dict of them by name, or a ``Dataset``.

    Raises
    ------
    DataError
        The file cannot be used, or what came back is none of these.
    ArgumentError
        The Python file is missing or fails, or has no such function.
    """
    if not is_program_file(str(source)):
        return load_array(source, allow_nan=allow_nan)
    found = load_object(str(source))
    if inspect.isfunction(found):
        with user_code(split_target(str(source))[0], f"make the data ({found.__name__}())"):
            _require_no_arguments(found, source)
            found = found()
    if isinstance(found, Dataset):
        return found
    arrays = _as_arrays(found, source)
    for name, array in arrays.items():
        check_array(array, label=str(source) if len(arrays) == 1 else f"{source}[{name!r}]", allow_nan=allow_nan)
    return arrays if isinstance(found, dict) else arrays["data"]


def _require_no_arguments(function: Any, source: str | Path) -> None:
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if needed:
        raise ArgumentError(f"data: {source} is a function of {', '.join(needed)}; expected one without arguments")


def _as_arrays(found: Any, source: str | Path) -> dict[str, Any]:
    """Tensors and frames become arrays too."""
    named = found if isinstance(found, dict) and found else {"data": found}
    arrays = {str(name): np.asarray(value) for name, value in named.items()}
    if any(array.dtype.kind not in "biuf" for array in arrays.values()):
        kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in named.items())
        raise DataError(f"{source}: expected a numeric array, a dict of them by name, or a Dataset, got {kinds}")
    return arrays
