from __future__ import annotations

import pytest
import xarray as xr

from amortize.atomic import replacing
from amortize.errors import DataError
from amortize.report.files import read_tree, write_text, write_tree
from tests.report import examples


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = examples.digits_tree(12, failed=(3,))
    path = write_tree(tree, tmp_path / "tree.nc")
    xr.testing.assert_identical(read_tree(path), tree)
    assert [file.name for file in tmp_path.iterdir()] == ["tree.nc"]


def test_a_tree_can_be_written_over_the_one_it_was_read_from(tmp_path):
    path = write_tree(examples.vectors_tree(6), tmp_path / "tree.nc")
    tree = read_tree(path)
    write_tree(tree, path)
    xr.testing.assert_identical(read_tree(path), tree)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_text("old", tmp_path / "report.html")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(DataError, match="no tree at"):
        read_tree(tmp_path / "none.nc")
    with pytest.raises(DataError, match="doesn't exist"):
        write_text("x", tmp_path / "none" / "report.html")
    broken = write_text("not HDF5", tmp_path / "broken.nc")
    with pytest.raises(DataError, match="can't be read"):
        read_tree(broken)
