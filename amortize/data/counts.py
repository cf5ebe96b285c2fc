"""Data sets of counts: words in documents, molecules in cells. Sparse in their files, dense float32 in memory."""

from __future__ import annotations

from functools import partial

import numpy as np

from amortize.data.dataset import Arrays
from amortize.data.entry import PUBLISHED, Entry, Parts
from amortize.data.formats import dense
from amortize.data.images import npz
from amortize.data.places import File, Form
from amortize.data.postings import NUM_WORDS, read_postings

__all__ = ["COUNTS"]

_CELLS = npz("single_cell.npz", "8b5709c1c753c73e3113ace66e1f2b3deb5929d4061e372dca0695095eae003c")
_POSTINGS = Form(
    (
        File(
            "newsgroups20-bydate/20news-bydate.tar.gz",
            "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610",
            ("https://ndownloader.figshare.com/files/5975967",),
        ),
    ),
    read_postings,
)
_VALUES = "raw counts"


def _newsgroups(arrays: Arrays) -> Parts:
    parts, ends = [], [0]
    for part in ("train", "valid", "test"):
        values, indices, indptr = (arrays[f"{part}_{key}"] for key in ("counts", "indices", "indptr"))
        parts.append(dense(values.astype(np.float32), indices, indptr, (len(indptr) - 1, len(arrays["vocab"]))))
        ends.append(ends[-1] + len(parts[-1]))
    split = {part: slice(ends[k], ends[k + 1]) for k, part in enumerate(("train", "valid", "test"))}
    return Parts(np.concatenate(parts), shared={"vocab": arrays["vocab"]}, split=split)


def _by_date(arrays: Arrays) -> Parts:
    num_train, num = int(arrays["num_train"]), len(arrays["x"])
    shared = {"vocab": arrays["vocab"], "label_names": arrays["groups"]}
    split = {"train": slice(0, num_train), "test": slice(num_train, num)}
    return Parts(arrays["x"], arrays["y"], shared=shared, split=split)


def _pbmc(arrays: Arrays, name: str) -> Parts:
    shape = (int(arrays[f"{name}_shape"][0]), int(arrays[f"{name}_shape"][1]))
    values, indices, indptr = (arrays[f"{name}_{key}"] for key in ("data", "indices", "indptr"))
    return Parts(
        dense(values.astype(np.float32), indices, indptr, shape),
        covariates={"protein": arrays[f"{name}_protein"].astype(np.float32)},
        shared={"genes": arrays[f"{name}_genes"], "protein_names": arrays[f"{name}_protein_names"]},
    )


def _osmfish(arrays: Arrays) -> Parts:
    return Parts(
        arrays["osmfish_counts"].astype(np.float32),
        arrays["osmfish_label"].astype(np.int64),
        covariates={"xy": arrays["osmfish_xy"]},
        shared={"genes": arrays["osmfish_genes"], "label_names": arrays["osmfish_label_names"]},
    )


def _starmap(arrays: Arrays) -> Parts:
    names, codes = np.unique(arrays["starmap_cluster"], return_inverse=True)
    return Parts(
        arrays["starmap_counts"].astype(np.float32),
        codes.astype(np.int64),
        covariates={"batch": arrays["starmap_batch"].astype(np.int64)},
        shared={"genes": arrays["starmap_genes"], "label_names": names},
    )


COUNTS: dict[str, Entry] = {
    "newsgroups20": Entry(
        title="20 newsgroups, bag of words, 3,072 words",
        description="word counts of 18,845 postings, vocabulary of 3,072; no labels",
        source="the preprocessing of the embedded topic model, as in OCTIS (MIND-Lab)",
        licence="OCTIS: MIT; the postings have no stated licence, only word counts are kept",
        citation="Lang 1995; Dieng, Ruiz and Blei, Topic modeling in embedding spaces, 2020",
        values=_VALUES,
        sizes=(11214, 100, 7531),
        shape=(3072,),
        forms=(npz("newsgroups20_bow.npz", "faaef7d604a3fb59a6ff636621ac2a831145deb28d51854057c829c852573255"),),
        make=_newsgroups,
        split=PUBLISHED,
        caveat="Other preprocessings of 20 newsgroups have other vocabularies: comparable with this one alone",
    ),
    "newsgroups20-bydate": Entry(
        title="20 newsgroups by date, 2,000 words",
        description="word counts of 18,846 postings in 20 groups, vocabulary of 2,000 made from the training part",
        source="20news-bydate.tar.gz (Jason Rennie), as scikit-learn downloads it",
        licence="none stated; only word counts are kept",
        citation="Lang, NewsWeeder, 1995",
        values=_VALUES,
        sizes=(11314, 0, 7532),
        shape=(NUM_WORDS,),
        forms=(_POSTINGS,),
        make=_by_date,
        split=PUBLISHED,
        split_words="the published split, by date",
        caveat="The vocabulary is this package's own: not comparable with other preprocessings",
    ),
    "pbmc10k": Entry(
        title="200 cells of 10x PBMC 10k",
        description="UMI counts of 16,727 genes and 14 surface proteins in 200 blood cells",
        source="the test data of scvi-tools; 10x Genomics",
        licence="CC BY 4.0 (10x), BSD-3 (scvi-tools)",
        citation="10x Genomics; Gayoso et al., 2021",
        values=_VALUES,
        sizes=(160, 0, 40),
        shape=(16727,),
        forms=(_CELLS,),
        make=partial(_pbmc, name="pbmc10k"),
        caveat="A subset of 200 cells: not comparable with numbers on the whole set",
    ),
    "pbmc5k": Entry(
        title="200 cells of 10x PBMC 5k",
        description="UMI counts of 16,581 genes and 29 surface proteins in 200 blood cells",
        source="the test data of scvi-tools; 10x Genomics",
        licence="CC BY 4.0 (10x), BSD-3 (scvi-tools)",
        citation="10x Genomics; Gayoso et al., 2021",
        values=_VALUES,
        sizes=(160, 0, 40),
        shape=(16581,),
        forms=(_CELLS,),
        make=partial(_pbmc, name="pbmc5k"),
        caveat="A subset of 200 cells: not comparable with numbers on the whole set",
    ),
    "osmfish": Entry(
        title="osmFISH, somatosensory cortex",
        description="counts of 33 genes in 4,530 cells, with 6 cell types and positions",
        source="scVI-data (Yosef lab), smfish.h5ad",
        licence="none stated; cite",
        citation="Codeluppi et al., 2018",
        values=_VALUES,
        sizes=(3624, 0, 906),
        shape=(33,),
        forms=(_CELLS,),
        make=_osmfish,
    ),
    "starmap": Entry(
        title="STARmap, prefrontal cortex",
        description="counts of 158 genes in 3,704 cells, with 16 clusters and 3 batches",
        source="scVI-data (Yosef lab), mpfc-starmap.loom",
        licence="none stated; cite",
        citation="Wang et al., 2018",
        values=_VALUES,
        sizes=(2963, 0, 741),
        shape=(158,),
        forms=(_CELLS,),
        make=_starmap,
    ),
}
"""Counts by name."""
