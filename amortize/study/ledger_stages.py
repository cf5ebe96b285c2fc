"""From the stages of a study to its ledger: the gaps, by split and label, the latents, the cost and the cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.data import data_hash
from amortize.inference.evidence import Evidence
from amortize.inference.fitted import Fitted
from amortize.inference.local import LocalPosterior
from amortize.study.causes import Clues
from amortize.study.cost import TrainingCost
from amortize.study.gaps import Ledger, ledger_from, training_rows, unaided_family
from amortize.study.guide_family import guide_family
from amortize.study.latents import COLUMNS, latents
from amortize.study.ledger import POINT, Extras
from amortize.study.methods import method_of
from amortize.study.pipeline import Part, Pipeline, data_hash_of
from amortize.study.probes import probe
from amortize.study.second_start import beginning
from amortize.study.stages import arrays_codec, dataclass_codec

__all__ = ["Measured", "measure", "study_ledger"]


class Measured(NamedTuple):
    """What a ledger is made of: log p(x), the guide's importance weights (None without one), posteriors by family."""

    evidence: Evidence
    importance: Evidence | None
    local: dict[str, LocalPosterior]


def measure(pipeline: Pipeline, part: Part) -> Measured:
    """Run the stages behind the gaps on some datapoints."""
    local = {name: pipeline.local(family, part) for name, family in pipeline.families.items()}
    importance = pipeline.importance(part)
    start = beginning(pipeline.program, part.data, local)
    return Measured(pipeline.evidence(importance, part, start=start), importance, local)


def study_ledger(pipeline: Pipeline, measured: Measured, fitted: Fitted | None) -> Ledger:
    """The ledger of the evaluated datapoints, with all that the study asks of it.

    Its rows are named by the datapoints' places in the source.
    """
    extras = Extras(
        latents=_latents(pipeline),
        labels=pipeline.prepared.labels,
        train=_on_training_data(pipeline),
        training=_training_cost(pipeline, fitted),
    )
    ledger = _ledger(pipeline, measured, extras)
    ledger = _with_unaided(pipeline, ledger)
    ledger = _with_clues(pipeline, ledger)
    rows = pipeline.prepared.split.rows
    return replace(ledger, table=ledger.table.set_axis(rows, axis=0).rename_axis("datapoint"))


def _ledger(pipeline: Pipeline, measured: Measured, extras: Extras) -> Ledger:
    study, program = pipeline.study, pipeline.program
    method = method_of(study.evidence)
    settings = {
        "method": {"name": type(method).__name__, **method.settings()},
        "num_draws": study.evidence.num_draws,
        "seed": study.seed,
        "device": study.device,
    }
    if pipeline.left_out and measured.local:
        settings["left_out"] = f"{', '.join(pipeline.left_out)}, in one dimension the same as mean-field"
    family = None
    if program.guide is not None and not pipeline.prepared.guided:
        family = POINT
    elif measured.importance is not None and measured.local:
        family = guide_family(program, pipeline.data)
    if family in pipeline.left_out:
        family = "mean-field"
    return ledger_from(
        *measured,
        guide_family=family,
        settings=settings,
        all_discrete=not program.structure(pipeline.data).has_families,
        extras=extras,
    )


def _on_training_data(pipeline: Pipeline) -> Ledger | None:
    """The ledger on some of the training datapoints; None where the study asks for none, or no guide has an ELBO."""
    num, data = pipeline.study.ledger.num_train, pipeline.prepared.train
    if num is None or not pipeline.prepared.guided:
        return None
    rows = training_rows(data, min(num, data.num_datapoints), seed=pipeline.seed("training rows"))
    return _ledger(pipeline, measure(pipeline, Part("train ", data.rows(rows))), Extras())


def _latents(pipeline: Pipeline) -> pd.DataFrame | None:
    if not pipeline.prepared.guided or not pipeline.program.dim(pipeline.data):
        return None
    seed = pipeline.seed("latents")

    def compute() -> dict[str, NDArray[Any]]:
        found = latents(pipeline.program, pipeline.data, seed=seed)
        columns = {} if found is None else {str(name): column.to_numpy() for name, column in found.items()}
        return {name: array.astype(str) if array.dtype == object else array for name, array in columns.items()}

    arrays = pipeline.stages.run("latents", pipeline.depends("latents", {}), arrays_codec(), compute)
    return pd.DataFrame(arrays, columns=COLUMNS).rename_axis("dimension") if arrays else None


def _training_cost(pipeline: Pipeline, fitted: Fitted | None) -> TrainingCost | None:
    """What the training took, and a pass of the guide; kept, since a clock gives another number each time."""
    if not pipeline.prepared.guided:
        return None

    def compute() -> TrainingCost:
        return TrainingCost.of(fitted, pipeline.program, pipeline.data, seed=pipeline.seed("cost"))

    return pipeline.stages.run("cost", pipeline.depends("cost", {}), dataclass_codec(TrainingCost), compute)


def _with_unaided(pipeline: Pipeline, ledger: Ledger) -> Ledger:
    """The ledger with a break-even: a fit that begins at the prior, so that no training stands behind it."""
    known = ledger.training is not None and np.isfinite(ledger.training.seconds)
    name = unaided_family(ledger) if pipeline.study.ledger.break_even and known else None
    if name is None:
        return ledger
    return ledger.with_unaided({name: pipeline.local(pipeline.families[name], init="prior")})


def _with_clues(pipeline: Pipeline, ledger: Ledger) -> Ledger:
    if not pipeline.prepared.guided or not pipeline.study.ledger.probes:
        return ledger
    table = {str(name): column.to_numpy(dtype=np.float64) for name, column in ledger.table.items()}
    train = pipeline.prepared.train
    inputs = {"table": data_hash(table), "cause": ledger.cause, "train": data_hash_of(train)}

    def compute() -> Clues:
        return probe(ledger, pipeline.program, pipeline.data, x_train=train, seed=pipeline.seed("probe"))

    clues = pipeline.stages.run("probe", pipeline.depends("probe", inputs), dataclass_codec(Clues), compute)
    return ledger.with_clues(clues)
