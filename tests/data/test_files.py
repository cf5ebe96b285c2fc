"""`load_array`: what is good comes through unchanged; each bad file is a named error on one screen."""

from __future__ import annotations

import numpy as np
import pytest

from amortize.data import load_array
from amortize.errors import DataError

X = np.array([[0.0, 1.5], [2.0, -3.0], [4.0, 5.25]])


def save(path, content):
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    return path


def refusal(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_array(path, **options)
    text = str(caught.value)
    assert len(text) < 600, "more than one screen"
    assert path.name in text
    return text


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, np.bool_])
def test_npy_comes_back_as_it_was(tmp_path, dtype):
    array = np.array([[0, 1], [1, 1], [0, 0]], dtype=dtype)
    got = load_array(save(tmp_path / "x.npy", array))
    assert got.dtype == dtype
    assert np.array_equal(got, array)


def test_npz_with_one_array_is_that_array_and_with_more_a_dict(tmp_path):
    assert np.array_equal(load_array(save(tmp_path / "one.npz", {"x": X})), X)
    both = load_array(save(tmp_path / "two.npz", {"x": X, "y": X[:, 0]}))
    assert sorted(both) == ["x", "y"]
    assert np.array_equal(both["y"], X[:, 0])


@pytest.mark.parametrize("head", ["", "width,height\n", '"width", "height"\n'])
def test_csv_with_and_without_names(tmp_path, head):
    rows = "".join(f"{a}, {b}\n" for a, b in X)
    got = load_array(save(tmp_path / "x.CSV", head + rows))
    assert got.dtype == np.float64
    assert np.array_equal(got, X)


def test_a_csv_column_of_whole_numbers_is_numbers_too(tmp_path):
    assert np.array_equal(load_array(save(tmp_path / "x.csv", "1,2.5\n3,4\n")), [[1, 2.5], [3, 4]])


def test_a_missing_file_is_named_with_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refusal(tmp_path / "nowhere.npy")
    assert "No such file" in text
    assert f"current folder is {tmp_path}" in text


def test_values_that_are_not_finite_are_counted_with_their_first_rows(tmp_path):
    x = np.zeros((20, 3))
    x[[2, 5, 7, 8, 11, 19], 1] = np.nan
    x[5, 2] = -np.inf
    text = refusal(save(tmp_path / "x.npy", x))
    assert "6 NaN and 1 infinite values, in 6 of 20 rows" in text
    assert "2, 5, 7, 8, 11, ..." in text


def test_nan_may_be_let_through_but_not_infinity(tmp_path):
    x = X.copy()
    x[1, 0] = np.nan
    assert np.array_equal(load_array(save(tmp_path / "x.npy", x), allow_nan=True), x, equal_nan=True)
    x[2, 0] = np.inf
    text = refusal(save(tmp_path / "y.npy", x), allow_nan=True)
    assert "1 infinite values, in 1 of 3 rows" in text
    assert "0: 2)" in text


def test_an_empty_cell_in_a_csv_is_nan(tmp_path):
    assert "1 NaN and 0 infinite values, in 1 of 2 rows" in refusal(save(tmp_path / "x.csv", "1,2\n3,\n"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.mat", b"data", "cannot read '.mat'; use one of .npy, .npz, .csv, .parquet, .h5ad"),
        ("x", b"data", "cannot read 'a file without a suffix'"),
        ("objects.npy", np.array([{"a": 1}], dtype=object), "never unpickles"),
        ("objects.npz", {"x": np.array([{"a": 1}], dtype=object)}, "never unpickles"),
        ("text.npy", np.array(["a", "b"]), "expected numbers, got dtype <U1"),
        ("complex.npy", X + 1j, "expected numbers, got dtype complex128"),
        ("empty.npy", np.zeros((0, 4)), r"empty (shape (0, 4))"),
        ("scalar.npy", np.array(3.0), "single number (0 dimensions)"),
        ("nothing.npy", b"", "not a readable .npy file"),
        ("cut.npz", b"PK\x03\x04 and then nothing", "not a readable .npz file"),
        ("nothing.npz", {}, "holds no array"),
        ("empty.csv", "", "the file is empty"),
        ("names.csv", "a,b\n", "empty"),
        ("text.csv", "a,b\n1,2\n3,red\n", "got 'red' in row 1 (from 0) of column b"),
        ("comment.csv", "1,2\n# note,\n3,4\n", "got '# note' in row 1 (from 0) of column 0"),
        ("ragged.csv", "1,2\n3,4,5\n", "not a readable .csv file"),
        ("longer.csv", "a,b\n3,4,5\n", "not a readable .csv file"),
        ("bytes.csv", b"\xff\xfe\x00\x01", "not a readable .csv file"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, says):
    assert says in refusal(save(tmp_path / name, content))


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    assert "never unpickles" in refusal(save(tmp_path / "x.npy", np.array([Bomb()], dtype=object)))


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    assert "got a folder" in refusal(tmp_path / "folder.npy")


def test_the_number_of_dimensions_can_be_asked_for(tmp_path):
    path = save(tmp_path / "x.npy", X)
    assert load_array(path, ndim=2).shape == (3, 2)
    assert "expected 3 dimensions, got 2 (shape (3, 2))" in refusal(path, ndim=3)


def test_in_an_archive_the_array_is_named(tmp_path):
    text = refusal(save(tmp_path / "x.npz", {"good": X, "bad": np.array([np.nan])}))
    assert "['bad']" in text
