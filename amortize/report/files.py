"""Trees and pages on disk: a file is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import xarray as xr

from amortize.atomic import replacing
from amortize.errors import DataError

__all__ = ["read_tree", "write_text", "write_tree"]

_ENGINE: Final = "h5netcdf"


def write_tree(tree: xr.DataTree, path: str | Path) -> Path:
    """Write a tree as netCDF, atomically: a crash leaves the old file or the new one.

    Parameters
    ----------
    tree : xarray.DataTree
        What :func:`amortize.to_datatree` returns.
    path : path
        The file, in a folder that exists.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        If the folder doesn't exist.
    """
    with replacing(path) as temporary:
        tree.to_netcdf(temporary, engine=_ENGINE)
    return Path(path)


def read_tree(path: str | Path) -> xr.DataTree:
    """Read a tree into memory and close its file.

    Raises
    ------
    DataError
        If there is no such file, or it isn't a netCDF tree.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"path: no tree at {path}; expected a file that write_tree or a study wrote")
    try:
        with xr.open_datatree(path, engine=_ENGINE) as tree:
            return tree.load()
    except (OSError, ValueError) as error:
        raise DataError(f"path: {path} can't be read as a netCDF tree: {error}") from error


def write_text(text: str, path: str | Path) -> Path:
    """Write UTF-8 text atomically.

    Raises
    ------
    DataError
        If the folder doesn't exist.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
