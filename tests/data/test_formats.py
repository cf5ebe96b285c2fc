"""The parsers of published formats, on made-up files and, where they are at hand, on the published bytes."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from amortize.data.formats import dense, parsing, read_amat, read_german, read_idx, read_npz, unpacked
from amortize.data.omniglot import read_omniglot
from amortize.errors import DataError
from tests.data import published
from tests.data.published import DATA_FOLDER, needs_folder, sha256

RNG = np.random.RandomState(0)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 28, 28)])
def test_idx(tmp_path, shape):
    array = RNG.randint(0, 256, shape).astype(np.uint8)
    got = read_idx(write(tmp_path / "x.gz", published.idx_gz(array)))
    assert got.dtype == np.uint8
    assert np.array_equal(got, array)


def test_amat_and_its_bits(tmp_path):
    rows = RNG.randint(0, 2, (7, 784)).astype(np.uint8)
    assert np.array_equal(read_amat(write(tmp_path / "x.amat", published.amat(rows))), rows)
    assert np.array_equal(unpacked(np.packbits(rows, axis=1)), rows)


def test_german_credit(tmp_path):
    x = RNG.randint(0, 200, (9, 24)).astype(np.int16)
    y = np.arange(9, dtype=np.uint8) % 2
    got = read_german(write(tmp_path / "german.data-numeric", published.german(x, y)))
    assert np.array_equal(got["german_x"], x)
    assert np.array_equal(got["german_y"], y)


# Which of 105 pixels are in which of 28 boxes of 3.75: those whose middle is in it, 3 or 4 of them.
_PLACE = (np.arange(105) + 0.5) / 3.75 - np.arange(28)[:, None]
BOXES = ((_PLACE > 0) & (_PLACE <= 1)) / ((_PLACE > 0) & (_PLACE <= 1)).sum(1, keepdims=True)


def strokes(num: int) -> np.ndarray:
    ink = np.zeros((105, 105), dtype=bool)
    ink[10 * num : 10 * num + 9, 20:90] = True
    return ink


def test_omniglot_is_ordered_by_character_and_bright_where_there_is_ink(tmp_path):
    evaluation = {
        "images_evaluation/Angelic/character02/0966_01.png": published.drawing(strokes(3)),
        "images_evaluation/Angelic/character01/0965_02.png": published.drawing(strokes(2)),
        "images_evaluation/Angelic/character01/": b"",
    }
    background = {"images_background/N_Ko/character01/0709_11.png": published.drawing(strokes(5))}
    got = read_omniglot(
        write(tmp_path / "a.zip", published.zipped(background)),
        write(tmp_path / "b.zip", published.zipped(evaluation)),
    )
    assert got["character"].tolist() == [709, 965, 966]
    assert got["drawer"].tolist() == [11, 2, 1]
    assert got["alphabet"].tolist() == [0, 1, 1]
    assert got["alphabet_names"].tolist() == [b"N Ko", b"Angelic"]
    for image, num in zip(got["x"], (5, 2, 3), strict=True):
        # grey values are rounded after each of the two directions
        exact = 255 * BOXES @ strokes(num) @ BOXES.T
        assert np.abs(image - exact).max() <= 1


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (read_idx, b"not gzip"),
        (read_idx, gzip.compress(b"\0\0\x0d\x01" + b"\0" * 8, mtime=0)),
        (read_idx, published.idx_gz(np.zeros((3, 4), dtype=np.uint8))[:-12]),
        (read_idx, gzip.compress(published.idx(np.zeros(9, dtype=np.uint8))[:-1], mtime=0)),
        (read_amat, b"0 1 0\n"),
        (read_amat, b"0 1 2 " * 784),
        (read_german, b"1 2 3\n"),
        (read_german, b"a b c\n"),
        (read_npz, b"PK\x03\x04"),
    ],
)
def test_damaged_files_are_named(tmp_path, read, content):
    with pytest.raises(DataError, match=r"x\.bin.*cannot be read"):
        parsing(read, write(tmp_path / "x.bin", content))


def test_damaged_drawings_are_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.zip.*holds no drawing"):
        read_omniglot(write(tmp_path / "x.zip", published.zipped({"readme.txt": b""})))
    with pytest.raises(DataError, match=r"x\.zip.*cannot be read"):
        read_omniglot(write(tmp_path / "x.zip", b"PK"))


def test_objects_in_an_archive_are_never_unpickled(tmp_path):
    content = published.npz(x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickle"):
        parsing(read_npz, write(tmp_path / "x.npz", content))


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_dense_is_what_scipy_makes_of_it(by_column, density):
    made = scipy.sparse.random_array((13, 7), density=density, rng=np.random.default_rng(1), format="csr")
    matrix = made.tocsc() if by_column else made
    got = dense(matrix.data, matrix.indices, matrix.indptr, (13, 7), by_column=by_column)
    assert got.dtype == matrix.data.dtype
    assert np.array_equal(got, matrix.toarray())


def test_entries_given_twice_are_added():
    got = dense(np.array([1, 2]), np.array([0, 0]), np.array([0, 2]), (1, 2))
    assert got.tolist() == [[3, 0]]


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [([0, 5], [0, 2, 2]), ([0, -1], [0, 2, 2]), ([0, 1], [0, 3, 2]), ([0, 1], [0, 2]), ([0], [0, 1, 2])],
)
def test_a_sparse_matrix_that_makes_no_sense_is_refused(indices, indptr):
    with pytest.raises(DataError, match="sparse matrix"):
        dense(np.array([1.0, 2.0]), np.array(indices), np.array(indptr), (2, 2))


@needs_folder
def test_mnist_as_published_bytes(tmp_path):
    arrays = read_npz(Path(DATA_FOLDER) / "mnist.npz")
    begins = {"x_train": "ba891046e650", "x_test": "0fa7898d5092", "y_train": "65a50cbbf4e9", "y_test": "ff7bcfd416de"}
    for name, begin in begins.items():
        content = published.idx(arrays[name])
        assert sha256(content).startswith(begin)
        got = read_idx(write(tmp_path / f"{name}.gz", gzip.compress(content, compresslevel=1)))
        assert np.array_equal(got, arrays[name])


@needs_folder
def test_static_binarised_mnist_as_published_bytes(tmp_path):
    from amortize.data import DATASETS

    arrays = read_npz(Path(DATA_FOLDER) / "binarized_mnist_static.npz")
    (_, form) = DATASETS["binarized-mnist"].forms
    paths = []
    for part, file in zip(("train", "valid", "test"), form.files, strict=True):
        paths.append(write(tmp_path / f"{part}.amat", published.amat(unpacked(arrays[part]))))
        assert sha256(paths[-1].read_bytes()) == file.sha256
    got = form.read(*paths)
    assert all(np.array_equal(got[part], arrays[part]) for part in arrays)


@needs_folder
def test_german_credit_as_published_bytes(tmp_path):
    from amortize.data import DATASETS

    arrays = read_npz(Path(DATA_FOLDER) / "binary_classification.npz")
    (_, form) = DATASETS["german"].forms
    content = published.german(arrays["german_x"], arrays["german_y"])
    assert sha256(content) == form.files[0].sha256
    got = form.read(write(tmp_path / "german.data-numeric", content))
    assert all(np.array_equal(got[name], arrays[name]) for name in got)


@needs_folder
def test_omniglot_s_split_and_order_are_those_of_the_download():
    arrays = read_npz(Path(DATA_FOLDER) / "omniglot_28.npz")
    from amortize.data.images import _omniglot

    parts = _omniglot(arrays)
    assert np.array_equal(parts.split["train"], arrays["train_idx"])
    assert np.array_equal(parts.split["test"], arrays["test_idx"])
    order = np.lexsort((arrays["drawer"], arrays["character"]))
    assert np.array_equal(order, np.arange(len(order)))
    first = [arrays["character"][arrays["alphabet"] == k].min() for k in range(50)]
    assert np.all(np.diff(first) > 0)
