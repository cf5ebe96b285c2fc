"""Whose fault it is: the site, module or line of a user's program that an error or a difference comes from.

Letters: B rows (datapoints, or draws x datapoints).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from amortize.program.handlers import data_dim as dim_of
from amortize.program.handlers import is_deterministic, is_subsample, log_factor, per_row, unvalidated
from amortize.program.sites import Structure

if TYPE_CHECKING:
    from amortize.program.data import Data

__all__ = [
    "Modes",
    "SiteTerms",
    "broadcast_sites",
    "line_of",
    "modes_of",
    "named",
    "site_terms",
    "terms_that_differ",
    "with_line",
]

_LIBRARIES = (*(str(Path(package.__file__ or "").parent) for package in (torch, pyro)), str(Path(__file__).parents[1]))

SiteTerms = dict[str, Tensor]
"""Log density of each site by name: (B,) nats, or a scalar outside the plate."""


def named(names: Any) -> str:
    """Names for a message: quoted, separated by commas."""
    return ", ".join(map(repr, names))


def line_of(error: BaseException) -> str:
    """The line of the user's own code that an error comes from, "" where none is on the way."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_LIBRARIES) and not frame.filename.startswith("<")
    ]
    own = [frame for frame in frames if frame.line]
    return f"line {own[-1].lineno} of {Path(own[-1].filename).name}: `{own[-1].line}`" if own else ""


def with_line(error: BaseException) -> str:
    """An error's name and message on one line, with the line of the user's code."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    where = line_of(error)
    return f"{text}, at {where}" if where else text


class Modes(NamedTuple):
    """Modules whose output depends on their mode, as "net.1 (BatchNorm1d)"."""

    training: list[str]
    fresh: list[str]


def modes_of(program: nn.Module) -> Modes:
    """Dropout and BatchNorm in train mode (or without running statistics), and BatchNorm that was never trained."""
    training, fresh = [], []
    for name, module in program.named_modules():
        label = f"{_readable(name)} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training or not module.track_running_stats:
                training.append(label)
            if module.num_batches_tracked is not None and int(module.num_batches_tracked) == 0:
                fresh.append(label)
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            training.append(label)
    return Modes(training, fresh)


def _readable(name: str) -> str:
    """A module's name without the place where adoption keeps it."""
    return re.sub(r"^(model|guide)\.networks\.", "", name)


class _Terms(Messenger):
    """Put values at the latents they are given for, and keep each site's log density by row."""

    def __init__(self, structure: Structure, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.structure, self.values = structure, values
        self.terms: SiteTerms = {}
        self.shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values and not msg["is_observed"] and not msg["done"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg) or is_deterministic(msg):
            return
        log_prob = log_factor(msg, self.structure.sites, self.structure.plate)[0]
        dim = dim_of(msg, self.structure.plate)
        self.terms[msg["name"]] = log_prob.sum() if dim is None else per_row(log_prob, dim)
        if isinstance(msg["value"], Tensor):
            self.shapes[msg["name"]] = (tuple(msg["value"].shape), tuple(msg["fn"].batch_shape + msg["fn"].event_shape))


def site_terms(
    function: Callable[..., Any], structure: Structure, data: Data, values: Mapping[str, Tensor]
) -> SiteTerms:
    """Log density of each site at constrained ``values`` of all latents, discrete ones too."""
    return _run_terms(function, structure, data, values).terms


def broadcast_sites(
    function: Callable[..., Any], structure: Structure, data: Data, values: Mapping[str, Tensor]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Observed sites whose value has another shape than their distribution: both shapes."""
    shapes = _run_terms(function, structure, data, values).shapes
    return {name: pair for name, pair in shapes.items() if name in structure.observed and pair[0] != pair[1]}


def _run_terms(function: Callable[..., Any], structure: Structure, data: Data, values: Mapping[str, Tensor]) -> _Terms:
    handler = _Terms(structure, values)
    with unvalidated(), torch.no_grad(), handler:
        function(*data.args, **data.kwargs)
    return handler


def terms_that_differ(first: SiteTerms, second: SiteTerms) -> list[str]:
    """Sites whose log densities differ beyond rounding, the largest difference first."""
    apart = {}
    for name in first:
        if name not in second or first[name].shape != second[name].shape:
            apart[name] = float("inf")
            continue
        tolerance = 1e-4 if first[name].dtype == torch.float32 else 1e-8
        if not torch.allclose(first[name], second[name], rtol=tolerance, atol=tolerance, equal_nan=True):
            apart[name] = float((first[name] - second[name]).abs().nan_to_num(nan=float("inf")).max())
    return sorted(apart, key=lambda name: -apart[name])
