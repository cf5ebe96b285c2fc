"""``.parquet`` and ``.h5ad`` files: values and dtypes as in the file, and each bad file a named error."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from amortize.data import load_array, tables
from amortize.errors import DataError

COUNTS = np.random.RandomState(0).poisson(0.4, (20, 7)).astype(np.int32)


def refusal(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_array(path, **options)
    assert path.name in str(caught.value)
    return str(caught.value)


def parquet(path, **columns):
    pytest.importorskip("pyarrow")
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_parquet_of_integers_stays_integers(tmp_path):
    got = load_array(parquet(tmp_path / "x.parquet", a=[1, 2], b=[3, 4]))
    assert got.dtype == np.int64
    assert got.tolist() == [[1, 3], [2, 4]]


def test_parquet_of_mixed_numbers_is_floats(tmp_path):
    columns = {"a": np.array([1, 2], dtype=np.uint8), "b": np.array([0.5, 1.5], dtype=np.float32), "c": [True, False]}
    got = load_array(parquet(tmp_path / "x.parquet", **columns))
    assert got.dtype == np.float64
    assert got.tolist() == [[1, 0.5, 1], [2, 1.5, 0]]


def test_what_is_missing_in_parquet_is_nan(tmp_path):
    path = parquet(tmp_path / "x.parquet", a=pd.array([1, None], dtype="Int64"), b=[1, 2])
    assert "1 NaN" in refusal(path)
    assert np.array_equal(load_array(path, allow_nan=True), [[1, 1], [np.nan, 2]], equal_nan=True)


@pytest.mark.parametrize("column", [["x", "y"], pd.to_datetime(["2020-01-01", "2020-01-02"]), [[1, 2], [3]]])
def test_other_columns_of_parquet_are_refused(tmp_path, column):
    assert "in column a" in refusal(parquet(tmp_path / "x.parquet", a=column))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'amortize[parquet]'" in refusal(tmp_path / "x.parquet")


def h5ad(path, matrix, **attributes):
    """As anndata writes it: X a data set, or a group of three with its encoding."""
    with h5py.File(path, "w") as file:
        if isinstance(matrix, np.ndarray):
            file["X"] = matrix
            return path
        group = file.create_group("X")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group.attrs.update({"encoding-type": f"{matrix.format}_matrix", "shape": matrix.shape, **attributes})
    return path


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_h5ad(tmp_path, kind, dtype):
    counts = COUNTS.astype(dtype)
    matrix = counts if kind == "dense" else scipy.sparse.csr_array(counts).asformat(kind)
    got = load_array(h5ad(tmp_path / "x.h5ad", matrix))
    assert got.dtype == dtype
    assert np.array_equal(got, counts)


def test_h5ad_of_older_files(tmp_path):
    path = h5ad(tmp_path / "x.h5ad", scipy.sparse.csr_array(COUNTS))
    with h5py.File(path, "a") as file:
        attributes = file["X"].attrs
        attributes["h5sparse_format"], attributes["h5sparse_shape"] = "csr", attributes["shape"]
        del attributes["encoding-type"], attributes["shape"]
    assert np.array_equal(load_array(path), COUNTS)


def test_bad_h5ad_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "junk.h5ad").write_bytes(b"junk")
    assert "not a readable .h5ad file" in refusal(tmp_path / "junk.h5ad")
    with h5py.File(tmp_path / "none.h5ad", "w") as file:
        file.create_group("obs")
    assert "no matrix X (it holds: obs)" in refusal(tmp_path / "none.h5ad")
    sparse = scipy.sparse.csr_array(COUNTS)
    coo = h5ad(tmp_path / "coo.h5ad", sparse, **{"encoding-type": "coo"})
    assert "expected a dense matrix, csr_matrix or csc_matrix" in refusal(coo)
    assert "sparse matrix" in str_of(h5ad(tmp_path / "cut.h5ad", sparse, shape=(19, 7)))
    with h5py.File(tmp_path / "text.h5ad", "w") as file:
        file["X"] = np.array([[b"a"]], dtype=object)
    assert "expected numbers" in refusal(tmp_path / "text.h5ad")
    monkeypatch.setattr(tables, "_MOST_BYTES", 100)
    assert "GiB as a dense array" in refusal(h5ad(tmp_path / "large.h5ad", sparse))


def str_of(path) -> str:
    with pytest.raises(DataError) as caught:
        load_array(path)
    return str(caught.value)
