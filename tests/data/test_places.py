"""Where files come from: folder, cache, network, in this order; only the published bytes are read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from amortize.data import DATASETS, load, place_of
from amortize.data.formats import unpacked
from amortize.data.places import File, Form
from amortize.errors import DataError
from tests.data import published
from tests.data.published import sha256
from tests.data.test_formats import strokes

RNG = np.random.RandomState(0)


def images(num: int, *shape: int) -> np.ndarray:
    return RNG.randint(0, 256, (num, *shape)).astype(np.uint8)


def labels(num: int) -> np.ndarray:
    return (np.arange(num) % 3).astype(np.uint8)


def mnist() -> tuple[bytes, list[bytes]]:
    arrays = {"x_train": images(30, 28, 28), "y_train": labels(30), "x_test": images(12, 28, 28), "y_test": labels(12)}
    return published.npz(**arrays), [published.idx_gz(array) for array in arrays.values()]


def binarised() -> tuple[bytes, list[bytes]]:
    parts = {name: np.packbits(images(num, 784) % 2, axis=1) for name, num in (("train", 9), ("valid", 5), ("test", 4))}
    return published.npz(**parts), [published.amat(unpacked(rows)) for rows in parts.values()]


def german() -> tuple[bytes, list[bytes]]:
    x, y = RNG.randint(0, 99, (20, 24)).astype(np.int16), labels(20) % 2
    return published.npz(german_x=x, german_y=y), [published.german(x, y)]


def omniglot() -> tuple[bytes, list[bytes]]:
    from PIL import Image

    ink = [strokes(num) for num in range(4)]
    names = [f"images_background/N_Ko/character{k:02d}/{k + 1:04d}_01.png" for k in range(4)]
    zips = [published.zipped({names[k]: published.drawing(ink[k]) for k in part}) for part in ((1, 0), (2, 3))]
    grey = [Image.fromarray(drawn.astype(np.uint8) * 255).resize((28, 28), Image.Resampling.BOX) for drawn in ink]
    arrays = {
        "x": np.stack([np.asarray(image) for image in grey]),
        "character": np.arange(1, 5, dtype=np.int16),
        "drawer": np.ones(4, dtype=np.uint8),
        "alphabet": np.zeros(4, dtype=np.uint8),
        "alphabet_names": np.array([b"N Ko"]),
    }
    return published.npz(**arrays), zips


MADE = {"mnist": mnist, "fashion-mnist": mnist, "binarized-mnist": binarised, "german": german, "omniglot": omniglot}
"""Sets that can be downloaded: a made-up one of each, as an ``.npz`` and as its published files."""


class Made:
    """A made-up set in the place of the real one, with its checksums, and addresses on this machine."""

    def __init__(self, name, monkeypatch, server, addresses=("",)) -> None:
        self.name, self.server = name, server
        self.npz, self.contents = MADE[name]()
        own, other = DATASETS[name].forms
        self.own = Form((File(own.files[0].path, sha256(self.npz)),), own.read)
        pairs = list(zip(other.files, self.contents, strict=True))
        self.files = [
            File(file.path, sha256(content), tuple(f"{server.base}{at}{file.path}" for at in addresses))
            for file, content in pairs
        ]
        self.other = Form(tuple(self.files), other.read)
        entry = dataclasses.replace(DATASETS[name], forms=(self.own, self.other))
        monkeypatch.setitem(DATASETS, name, entry)
        server.files = {file.path: content for file, content in zip(self.files, self.contents, strict=True)}

    def fill(self, folder, *, as_npz=False):
        """Put the files into a folder."""
        files = {self.own.files[0].path: self.npz} if as_npz else self.server.files
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder


def same(one, other) -> None:
    ours, theirs = one.arrays(), other.arrays()
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        assert np.array_equal(array, theirs[name]), name
    assert one.protocol == other.protocol


def everything(folder) -> list:
    return sorted(path.relative_to(folder) for path in folder.rglob("*")) if folder.exists() else []


@pytest.mark.parametrize("name", MADE)
def test_folder_cache_and_network_give_the_same_arrays(name, monkeypatch, tmp_path, server, cache):
    made = Made(name, monkeypatch, server)
    assert place_of(name).kind == "download"
    downloaded = load(name)
    assert server.asked == [file.path for file in made.files]
    assert {str(path) for path in everything(cache) if (cache / path).is_file()} == set(server.files)
    assert place_of(name).kind == "cache"
    same(load(name), downloaded)
    same(load(name, download=False), downloaded)
    assert len(server.asked) == len(made.files), "asked again for what is in the cache"
    own = made.fill(tmp_path / "own", as_npz=True)
    assert place_of(name, folder=own).kind == "folder"
    same(load(name, folder=own), downloaded)
    monkeypatch.setenv("AMORTIZE_DATA_DIR", str(made.fill(tmp_path / "published")))
    monkeypatch.setenv("AMORTIZE_CACHE_DIR", str(tmp_path / "empty"))
    assert place_of(name).kind == "folder"
    same(load(name), downloaded)
    assert len(server.asked) == len(made.files)
    assert not (tmp_path / "empty").exists()


def test_files_that_are_here_are_not_asked_for(monkeypatch, tmp_path, server, cache):
    made = Made("mnist", monkeypatch, server)
    made.fill(tmp_path / "half")
    (tmp_path / "half" / made.files[2].path).unlink()
    load("mnist", folder=tmp_path / "half")
    assert server.asked == [made.files[2].path]


def test_the_next_address_is_tried(monkeypatch, server, cache):
    made = Made("german", monkeypatch, server, addresses=("gone/", ""))
    load("german")
    assert server.asked == [f"gone/{made.files[0].path}", made.files[0].path]


def refused(name: str, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(name, **options)
    text = str(caught.value)
    assert len(text) < 1500, "more than one screen"
    return text


@pytest.mark.parametrize("wrong", ["missing", "changed", "cut", "closed"])
def test_a_download_that_fails_leaves_nothing_and_names_everything(wrong, monkeypatch, server, cache):
    made = Made("german", monkeypatch, server)
    path = made.files[0].path
    if wrong == "missing":
        server.files = {}
    elif wrong == "changed":
        server.files[path] += b"1"
    elif wrong == "cut":
        server.cut = True
    else:
        file = dataclasses.replace(made.files[0], addresses=("http://127.0.0.1:9/german",))
        entry = dataclasses.replace(DATASETS["german"], forms=(Form((file,), made.other.read),))
        monkeypatch.setitem(DATASETS, "german", entry)
    text = refused("german")
    assert [name for name in everything(cache) if name.suffix] == []
    assert everything(cache) == []
    address = "http://127.0.0.1:9/german" if wrong == "closed" else server.base + path
    for named in (path, str(cache), address, made.files[0].sha256, "AMORTIZE_DATA_DIR"):
        assert named in text
    assert {"missing": "404", "changed": "another checksum", "cut": "", "closed": "refused"}[wrong] in text
    server.cut, server.files = False, {path: made.contents[0]}
    if wrong != "closed":
        load("german")


def test_a_download_that_is_interrupted_leaves_nothing(monkeypatch, server, cache):
    import pooch

    made = Made("german", monkeypatch, server)

    def interrupted(self, url, output_file, *rest):
        with open(output_file, "wb") as file:  # noqa: PTH123 - what pooch hands over
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("german")
    assert [path for path in everything(cache) if (cache / path).is_file()] == []
    assert server.asked == []
    monkeypatch.undo()
    assert made.files


def test_a_file_in_the_cache_that_was_changed_is_downloaded_again(monkeypatch, server, cache):
    made = Made("german", monkeypatch, server)
    good = load("german")
    target = cache / made.files[0].path
    target.write_bytes(b"broken")
    same(load("german"), good)
    assert target.read_bytes() == made.contents[0]
    target.write_bytes(b"broken")
    assert f"{target} is not the published file" in refused("german", download=False)


@pytest.mark.parametrize("as_npz", [False, True])
def test_a_file_in_the_folder_that_was_changed_is_refused(as_npz, monkeypatch, tmp_path, server, cache):
    made = Made("mnist", monkeypatch, server)
    folder = made.fill(tmp_path / "folder", as_npz=as_npz)
    changed = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    before = changed.read_bytes()
    changed.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    text = refused("mnist", folder=folder)
    assert f"{changed} is not the published file" in text
    assert sha256(changed.read_bytes()) in text
    assert sha256(before) in text
    assert server.asked == []


def test_a_set_without_an_address_says_what_is_needed_and_where(tmp_path, cache):
    text = refused("pbmc10k")
    for named in ("single_cell.npz", "8b5709c1c753", str(cache), "AMORTIZE_DATA_DIR isn't set", "no address is known"):
        assert named in text
    assert place_of("pbmc10k").kind == "not available"
    assert str(tmp_path) in refused("pbmc10k", folder=tmp_path)


def test_downloads_can_be_switched_off(monkeypatch, server, cache):
    Made("mnist", monkeypatch, server)
    assert "downloads are switched off" in refused("mnist", download=False)
    assert server.asked == []


def test_a_cache_that_cannot_be_written_to_is_named(monkeypatch, tmp_path, server, cache):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMORTIZE_CACHE_DIR", str(tmp_path / "file"))
    Made("german", monkeypatch, server)
    assert str(tmp_path / "file") in refused("german")


def test_each_file_has_a_checksum_and_names_are_unique():
    hashes: dict[str, str] = {}
    for entry in DATASETS.values():
        for file in (file for form in entry.forms for file in form.files):
            assert len(file.sha256) == 64
            assert hashes.setdefault(file.path, file.sha256) == file.sha256
            assert all(address.startswith("http") for address in file.addresses)
