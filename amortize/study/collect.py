"""The stages of one study, run one after another, and what they give in one tree."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console

from amortize.inference.fitted import Fitted
from amortize.inference.sandwich import Sandwich
from amortize.report import report
from amortize.report.files import write_tree
from amortize.report.tree import to_datatree
from amortize.study.code_hash import package_hash
from amortize.study.code_stage import study_codes
from amortize.study.gaps import Ledger
from amortize.study.ledger_stages import measure, study_ledger
from amortize.study.pipeline import Pipeline
from amortize.study.prepare import Prepared
from amortize.study.spec import Study
from amortize.study.stages import Stages, versions
from amortize.study.store import RunStore, writing

__all__ = ["StudyResult", "collect", "pipeline_of", "write_outputs"]

NUMERIC = ("amortize", "torch", "pyro-ppl", "numpy")  # a new version of these may change numbers


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study gives.

    Attributes
    ----------
    tree
        Everything, on ArviZ's schema.
    ledger
        The gaps; for a program without a guide the evidence, and what the best fitted posteriors lose.
    fitted
        The training; None where nothing was trained.
    sandwich
        Both sides of log p(x) on simulated data; None where ``evidence.sandwich`` didn't ask for it.
    seconds
        By stage, those of finished stages that were kept included.
    out
        The folder with report.html, report.json, tree.nc and spec.toml; None where nothing was written.
    """

    tree: xr.DataTree
    ledger: Ledger
    fitted: Fitted | None
    sandwich: Sandwich | None
    seconds: dict[str, float]
    out: Path | None


def pipeline_of(
    study: Study, prepared: Prepared, store: RunStore | None, console: Console | None, progress: bool | None
) -> Pipeline:
    """The stages of a study, with what each of them depends on beside its own settings."""
    now = versions()
    common = {
        "versions": {name: now[name] for name in NUMERIC},
        "code": package_hash(),
        "device": study.device,
        "num_threads": study.num_threads,
        "program": prepared.program_hash,
    }
    return Pipeline(study, prepared, Stages(store, console, common), progress)


def collect(pipeline: Pipeline, out: Path | None) -> StudyResult:
    """Run all stages, and put the tree together."""
    fitted = pipeline.fit()
    measured = measure(pipeline, pipeline.evaluated)
    sandwich = pipeline.sandwich()
    ledger = study_ledger(pipeline, measured, fitted)
    groups = _grouped(pipeline.draws(measured.local))
    tree = to_datatree(
        groups.pop("posterior"),
        evidence=measured.evidence,
        sandwich=sandwich,
        ledger=ledger,
        history=None if fitted is None else fitted.history,
        codes=study_codes(pipeline),
        groups=groups,
        attrs=_attrs(pipeline, fitted),
    )
    return StudyResult(tree, ledger, fitted, sandwich, dict(pipeline.stages.seconds), out)


def write_outputs(result: StudyResult, folder: Path) -> None:
    """Write a study's tree, page and numbers, each whole or not at all."""
    with writing(folder / "tree.nc"):
        write_tree(result.tree, folder / "tree.nc")
    with writing(folder / "report.html"):
        report(result.tree, folder / "report.html")


def _grouped(draws: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in draws.items():
        group, _, site = key.partition("/")
        groups.setdefault(group, {})[site] = array
    return groups


def _attrs(pipeline: Pipeline, fitted: Fitted | None) -> dict[str, Any]:
    """Facts that trace every number of the tree."""
    prepared, study = pipeline.prepared, pipeline.study
    split = prepared.split
    sizes = {
        "train": prepared.train.num_datapoints,
        "validation": 0 if prepared.validation is None else prepared.validation.num_datapoints,
        "evaluated": prepared.evaluated.num_datapoints,
    }
    trained = (
        {}
        if fitted is None
        else {"trained": {**fitted.settings, "stopped_early": fitted.stopped_early, "bound": fitted.bound}}
    )
    attrs: dict[str, Any] = {
        "title": study.report.title or study.name,
        "name": study.name,
        "seed": study.seed,
        "settings": {**study.model_dump(mode="json", exclude={"grid"}), "datapoints": sizes, **trained},
        "versions": versions(),
        "protocol": split.protocol,
        "data_hash": split.hash,
        "spec_hash": study.fingerprint(),
        "program_hash": prepared.program_hash,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seconds": {name: round(seconds, 3) for name, seconds in pipeline.stages.seconds.items()},
        "num_threads": torch.get_num_threads(),
    }
    if fitted is not None and fitted.bound != "ELBO":
        attrs["trained_bound"] = fitted.bound
    if pipeline.num_untrained:
        attrs["num_untrained"] = pipeline.num_untrained
    if split.labels is not None:
        attrs["labels"] = split.labels.tolist()
    image_shape = study.report.image_shape or split.image_shape
    if image_shape is not None:
        attrs["image_shape"] = list(image_shape)
    return attrs
