"""20 newsgroups from the published archive of postings: counts of the words that tell postings apart.

A member is ``20news-bydate-train/sci.space/60150``. Words are runs of three letters or more, in lower case, of what
follows the header. The vocabulary is the 2,000 words in most training postings, without those in over a fifth of them
(which stands in for a list of stop words); ties go by the alphabet.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amortize.data.dataset import Arrays
from amortize.data.formats import parsing

__all__ = ["read_postings"]

NUM_WORDS = 2000
_MOST_COMMON = 0.2  # share of training postings from which a word tells too little
_WORD = re.compile(r"[a-z]{3,}")
_NAME = re.compile(r"(?:\./)?20news-bydate-(?P<part>train|test)/(?P<group>[^/]+)/(?P<number>\d+)")

_Posting = tuple[str, str, int, Counter[str]]


def read_postings(path: Path) -> Arrays:
    """Word counts of the postings, training part first, each part ordered by group and number.

    Returns
    -------
    dict
        ``x`` (N, V) float32, ``y`` (N,) the group, ``num_train``, and the texts ``vocab`` (V,) and ``groups``.
    """
    postings: list[_Posting] = parsing(_read_archive, path)
    train = [words for part, _, _, words in postings if part == "train"]
    vocab = _vocabulary(train)
    groups = sorted({group for _, group, _, _ in postings})
    return {
        "x": _counts([words for *_, words in postings], vocab),
        "y": np.array([groups.index(group) for _, group, _, _ in postings], dtype=np.int64),
        "num_train": np.array(len(train)),
        "vocab": np.array([word.encode() for word in vocab]),
        "groups": np.array([group.encode() for group in groups]),
    }


def _read_archive(path: Path) -> list[_Posting]:
    found = []
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:  # read in place: nothing is ever unpacked
            match = _NAME.fullmatch(member.name)
            file = archive.extractfile(member) if match and member.isfile() else None
            if match and file is not None:
                _, _, body = file.read().decode("latin-1").partition("\n\n")
                found.append(
                    (match["part"], match["group"], int(match["number"]), Counter(_WORD.findall(body.lower())))
                )
    if not any(part == "train" for part, *_ in found):
        raise ValueError("the archive holds no posting like 20news-bydate-train/sci.space/60150")
    return sorted(found, key=lambda posting: (posting[0] != "train", posting[1], posting[2]))


def _vocabulary(train: list[Counter[str]]) -> list[str]:
    in_postings = Counter(word for words in train for word in words)
    telling = [word for word, num in in_postings.items() if num <= max(1.0, _MOST_COMMON * len(train))]
    return sorted(sorted(telling, key=lambda word: (-in_postings[word], word))[:NUM_WORDS])


def _counts(postings: list[Counter[str]], vocab: list[str]) -> NDArray[np.float32]:
    column = {word: place for place, word in enumerate(vocab)}
    counts = np.zeros((len(postings), len(vocab)), dtype=np.float32)
    for row, words in enumerate(postings):
        for word in words.keys() & column.keys():
            counts[row, column[word]] = words[word]
    return counts
