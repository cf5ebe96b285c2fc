"""20 newsgroups from an archive of postings: words, vocabulary, order, split."""

from __future__ import annotations

import dataclasses
import io
import tarfile

import numpy as np
import pytest

from amortize.data import DATASETS, load, postings
from amortize.data.places import File, Form
from amortize.data.postings import read_postings
from amortize.errors import DataError
from tests.data.published import sha256

TEXTS = {
    "20news-bydate-test/sci.space/9": "Moon moon rocket",
    "20news-bydate-train/sci.space/12": "The MOON, the moon! A rocket to it.",
    "20news-bydate-train/sci.space/3": "the rocket's fuel",
    "20news-bydate-train/alt.atheism/5": "the god question",
    "20news-bydate-train/alt.atheism/7": "the question, the question",
    "20news-bydate-train/alt.atheism/8": "the answer",
    "20news-bydate-train/readme": "moon",
}


def archive(texts: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, text in texts.items():
            content = f"From: moon@moon.example\nSubject: caf\xe9\n\n{text}\n\nmore\n".encode("latin-1")
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(postings, "_MOST_COMMON", 0.5)  # of five postings: a word in three of them tells too little
    (tmp_path / "20news-bydate.tar.gz").write_bytes(archive(TEXTS))
    return tmp_path / "20news-bydate.tar.gz"


def test_words_are_counted_in_the_body_alone_and_common_ones_left_out(path):
    found = read_postings(path)
    assert [word.decode() for word in found["vocab"]] == ["answer", "fuel", "god", "moon", "question", "rocket"]
    assert [group.decode() for group in found["groups"]] == ["alt.atheism", "sci.space"]
    assert found["y"].tolist() == [0, 0, 0, 1, 1, 1]
    assert int(found["num_train"]) == 5
    rows = [[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 2, 0], [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1], [0, 0, 0, 2, 0, 1]]
    assert found["x"].tolist() == [*rows, [0, 0, 0, 2, 0, 1]]
    assert found["x"].dtype == np.float32


def test_the_vocabulary_is_the_words_in_most_postings(path, monkeypatch):
    monkeypatch.setattr(postings, "NUM_WORDS", 3)
    assert read_postings(path)["vocab"].tolist() == [b"answer", b"question", b"rocket"]


def test_it_is_downloaded_like_the_others(path, monkeypatch, server, cache):
    content = path.read_bytes()
    server.files = {"files/5975967": content}
    file = File("newsgroups20-bydate/20news-bydate.tar.gz", sha256(content), (f"{server.base}files/5975967",))
    entry = dataclasses.replace(DATASETS["newsgroups20-bydate"], forms=(Form((file,), read_postings),))
    monkeypatch.setitem(DATASETS, "newsgroups20-bydate", entry)
    found = load("newsgroups20-bydate")
    assert found.sizes == (5, 0, 1)
    assert found.y_test.tolist() == [1]
    assert (cache / file.path).is_file()
    assert "not comparable" in found.protocol


@pytest.mark.parametrize(
    "content", [b"junk", archive({"other/file": "x"}), archive(TEXTS)[:100]], ids=["junk", "other", "cut"]
)
def test_other_archives_are_refused(tmp_path, content):
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar\.gz"):
        read_postings(tmp_path / "x.tar.gz")
