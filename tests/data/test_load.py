"""Every set of the registry: what the listing says of it is what loading gives; the published facts hold."""

from __future__ import annotations

import re

import numpy as np
import pytest

from amortize.data import DATASETS, data_hash, load
from amortize.errors import ArgumentError, DataError
from tests.data.published import needs_folder

BUNDLED = ["digits", "wine", "breast-cancer", "diabetes", "iris"]
DOWNLOADED = ["fashion-mnist-full", "newsgroups20-bydate"]
FOLDER = [name for name in DATASETS if name not in BUNDLED + DOWNLOADED]


def check(name: str) -> None:
    entry, found = DATASETS[name], load(name)
    assert found.name == name
    assert found.sizes == entry.sizes
    for part, num in zip(("train", "valid", "test"), found.sizes, strict=True):
        x, y = getattr(found, f"x_{part}"), getattr(found, f"y_{part}")
        if x is not None:
            assert x.shape == (num, *entry.shape)
            assert x.dtype == (np.float32 if entry.modes or "count" in found.protocol else np.float64)
        if y is not None:
            assert y.shape == (num,)
            assert y.dtype == (np.float64 if name == "diabetes" else np.int64)
        for array in getattr(found, f"covariates_{part}").values():
            assert len(array) == num
    has_missing = name in ("brownian", "penguins")
    assert np.isnan(found.x_train).any() == has_missing
    if found.image_shape is not None:
        assert int(np.prod(found.image_shape)) == found.x_train.shape[1]
    for text in (found.description, found.source, found.licence, found.protocol):
        assert text
    assert found.protocol.startswith(entry.title)
    assert found.caveat in found.protocol
    assert all(not array.dtype.hasobject for array in found.arrays().values())


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_what_the_listing_says(name, cache):
    check(name)
    assert not cache.exists()


@needs_folder
@pytest.mark.parametrize("name", FOLDER)
def test_sets_of_the_folder_are_what_the_listing_says(name):
    check(name)


@needs_folder
def test_mnist_is_mnist():
    mnist = load("mnist")
    assert np.bincount(mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.x_train.mean(dtype=np.float64) == pytest.approx(0.130660, abs=5e-7)
    assert mnist.x_train.std(dtype=np.float64) == pytest.approx(0.308108, abs=5e-7)
    assert mnist.y_train[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert not mnist.shuffled
    assert load("mnist", binarise="threshold").protocol.startswith(
        "MNIST: 60,000 to train on, 10,000 to test on (the published split); binarised: 1 where the grey value is > 127"
    )


@needs_folder
def test_static_mnist_is_that_of_published_numbers():
    found = load("binarized-mnist")
    assert found.y_train is None
    for part, mean in (("train", 0.130562), ("valid", 0.131127), ("test", 0.132512)):
        x = getattr(found, f"x_{part}")
        assert set(np.unique(x)) == {0.0, 1.0}
        assert x.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-7)
    assert "the published static binarisation" in found.protocol


@needs_folder
def test_fashion_mnist_and_omniglot_and_cifar_are_what_their_caveats_say():
    fashion = load("fashion-mnist")
    assert np.bincount(fashion.y_train).tolist() == [942, 1027, 1016, 1019, 974, 989, 1021, 1022, 990, 1000]
    assert np.bincount(fashion.y_test).tolist() == [1000] * 10
    assert "not comparable with published numbers" in fashion.protocol
    omniglot = load("omniglot")
    assert "not comparable" in omniglot.protocol
    assert omniglot.x_train.mean(dtype=np.float64) == pytest.approx(0.0806, abs=5e-4)
    rows = np.stack([omniglot.covariates_train["character"], omniglot.covariates_train["drawer"]])
    held_out = np.stack([omniglot.covariates_test["character"], omniglot.covariates_test["drawer"]])
    assert len(np.unique(np.hstack([rows, held_out]), axis=1).T) == 24345 + 8070
    cifar = load("cifar10-subset")
    assert np.bincount(cifar.y_train).tolist() == [200] * 10
    assert "JPEG" in cifar.protocol


@needs_folder
def test_counts_are_the_published_ones():
    news = load("newsgroups20")
    assert [int(x.sum(dtype=np.float64)) for x in (news.x_train, news.x_valid, news.x_test)] == [919850, 8334, 594276]
    assert news.shared["vocab"].shape == (3072,)
    from scipy.sparse import csr_matrix

    from amortize.data.formats import read_npz
    from amortize.data.places import data_folder

    arrays = read_npz(data_folder() / "single_cell.npz")
    sparse = csr_matrix(
        (arrays["pbmc10k_data"].astype(np.int64), arrays["pbmc10k_indices"].astype(np.int32), arrays["pbmc10k_indptr"]),
        shape=tuple(arrays["pbmc10k_shape"]),
    )
    cells = load("pbmc10k")
    together = np.vstack([cells.x_train, cells.x_test])
    assert np.array_equal(np.sort(together, axis=0), np.sort(sparse.toarray(), axis=0))
    assert np.unique(load("starmap").y_train).tolist() == list(range(16))
    assert load("osmfish").shared["label_names"].tolist()[5] == b"Pyramidals"


@needs_folder
def test_bundled_copies_are_those_of_the_folder():
    from amortize.data.formats import read_npz
    from amortize.data.places import data_folder

    arrays = read_npz(data_folder() / "sklearn_small.npz")
    for name in BUNDLED[1:]:
        found = load(name)
        own = np.column_stack([np.vstack([found.x_train, found.x_test]), np.hstack([found.y_train, found.y_test])])
        key = name.replace("-", "_")
        theirs = np.column_stack([arrays[f"{key}_x"], arrays[f"{key}_y"]])
        assert np.array_equal(own[np.lexsort(own.T)], theirs[np.lexsort(theirs.T)])


@needs_folder
def test_the_small_sets_say_what_is_known_of_them():
    sizes = {"sonar": 97, "ionosphere": 225, "german": 300, "pima": 268}
    for name, ones in sizes.items():
        found = load(name)
        assert int(found.y_train.sum() + found.y_test.sum()) == ones
    schools = load("eight-schools")
    assert schools.x_train.tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert schools.covariates_train["sigma"].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
    assert schools.shared["ref_draws"].shape == (10000, 10)
    assert "8 as a whole" in schools.protocol
    assert np.unique(load("radon").covariates_train["county"]).tolist() == list(range(85))
    brownian = load("brownian")
    assert np.isnan(brownian.x_train[0]).sum() == 10
    penguins = load("penguins")
    assert [name.decode() for name in penguins.shared["label_names"]] == ["Adelie", "Chinstrap", "Gentoo"]
    assert sorted(np.unique(penguins.covariates_train["sex"])) == [-1, 0, 1]
    points = load("pines").shared["points"]
    grid = np.histogram2d(*points.T, bins=40, range=[[0, 1], [0, 1]])[0]
    assert np.array_equal(load("pines").x_train[0].reshape(40, 40), grid)


@needs_folder
def test_the_exact_evidence_of_brownian_motion_is_that_of_the_description():
    found = load("brownian")
    step, noise = found.shared["scales"]
    y, seen = found.x_train[0], np.isfinite(found.x_train[0])
    covariance = step**2 * np.minimum.outer(np.arange(1, 31), np.arange(1, 31)) + noise**2 * np.eye(30)
    part = covariance[np.ix_(seen, seen)]
    exact = -0.5 * (y[seen] @ np.linalg.solve(part, y[seen]) + np.linalg.slogdet(2 * np.pi * part)[1])
    stated = float(re.search(r"log p\(x\) = ([\d.]+)", found.description)[1])
    assert exact == pytest.approx(stated, abs=1e-9)


def test_a_seed_makes_a_split_and_the_same_seed_the_same():
    one, again, other = load("wine"), load("wine", seed=0), load("wine", seed=1)
    assert data_hash(one.arrays()) == data_hash(again.arrays())
    assert data_hash(one.arrays()) == "c7340f871cb1f1d7194ac3ce0bbc4ba5870979db4300d8d811e5065ac9374eb9"
    assert data_hash(one.x_test) != data_hash(other.x_test)
    share = np.bincount(one.y_test) / np.bincount(np.hstack([one.y_train, one.y_test]))
    assert np.all(np.abs(share - 0.2) < 0.03)
    assert "split at random by seed 1, stratified" in other.protocol


def test_a_validation_part_is_kept_back_from_the_training_part():
    whole, found = load("digits"), load("digits", validation=0.25)
    assert found.sizes == (1082, 360, 355)
    assert data_hash(found.x_test) == data_hash(whole.x_test)
    rows = np.vstack([found.x_train, found.x_valid])
    assert np.array_equal(rows[np.lexsort(rows.T)], whole.x_train[np.lexsort(whole.x_train.T)])
    assert np.abs(np.bincount(found.y_valid) / np.bincount(whole.y_train) - 0.25).max() < 0.02


@needs_folder
def test_a_published_validation_part_is_taken_as_it_is():
    assert load("binarized-mnist", validation=0.1).sizes == (50000, 10000, 10000)


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("minst", "mnist"),
        ("MNIST", "mnist"),
        ("binarised_mnist", "binarized-mnist"),
        ("eight_schools", "eight-schools"),
    ],
)
def test_near_misses_are_offered(asked, near):
    with pytest.raises(DataError, match=rf"unknown data set '{asked}' \(did you mean {near}"):
        load(asked)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "wine", "binarise": "static"}, "no grey values"),
        ({"name": "digits", "binarise": "dynamik"}, "'threshold' or 'grey' or 'static' or 'dynamic'"),
        ({"name": "digits", "seed": -1}, "seed: expected an integer"),
        ({"name": "digits", "seed": 0.5}, "seed: expected an integer"),
        ({"name": "digits", "validation": 1.0}, "validation: expected a share"),
        ({"name": "digits", "validation": 0.9999}, "too few to keep"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(ArgumentError, match=says):
        load(**options)
