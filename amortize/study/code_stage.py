"""The stage of a study that counts the codes in use: kept, like the others, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amortize.diagnostics.codebooks import CodebookUsage
from amortize.inference.code_usage import code_sites, usage_of
from amortize.study.pipeline import Part, Pipeline
from amortize.study.stages import arrays_codec

__all__ = ["study_codes"]

MOST = 10_000
"""Datapoints that are looked at."""


def study_codes(pipeline: Pipeline) -> dict[str, CodebookUsage]:
    """Usage by the sites of the guide that are codes; empty where there are none.

    They are counted on the training data, of which there are more than are evaluated: few datapoints leave many codes
    unused.
    """
    program, train = pipeline.program, pipeline.prepared.train
    data = train if train.num_datapoints <= MOST else train.rows(torch.arange(MOST, device=train.index.device))
    names = code_sites(program, data)
    if not names:
        return {}
    seed = pipeline.seed("codes")

    def compute() -> dict[str, NDArray[Any]]:
        found = usage_of(program, data, names, seed=seed)
        return {f"{name}/{part}": value for name, usage in found.items() for part, value in _arrays(usage).items()}

    inputs = pipeline.depends("codes", {}, Part("train ", data))
    arrays = pipeline.stages.run("codes", inputs, arrays_codec(), compute)
    return {
        name: CodebookUsage(
            arrays[f"{name}/counts"], float(arrays[f"{name}/perplexity_se"]), arrays[f"{name}/information"]
        )
        for name in names
    }


def _arrays(usage: CodebookUsage) -> dict[str, NDArray[Any]]:
    return {
        "counts": usage.counts,
        "perplexity_se": np.asarray(usage.perplexity_se),
        "information": usage.information,
    }
