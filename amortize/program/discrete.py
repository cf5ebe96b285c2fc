"""How a program's discrete latents are treated: which are summed out and by what, and which are sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amortize.errors import ArgumentError, DiscreteLatentError, UnboundedDiscreteError
from amortize.program.data import Data
from amortize.program.enumerate import Placement, Runner, summed
from amortize.program.handlers import Record, unvalidated
from amortize.program.sites import Structure
from amortize.random import pyro_rng

__all__ = ["MODES", "resolve_discrete", "way_to_sum"]

MODES = (None, "enumerate", "sample")
FEW, MANY, MOST = 64, 4096, 2**16
"""Configurations of a datapoint: tiled at once, tiled where nothing else is possible, and tiled on demand."""


def resolve_discrete(runner: Runner, structure: Structure, data: Data, mode: str | None) -> Structure:
    """Decide for each discrete latent site whether it is summed out or sampled.

    With no ``mode``, sites that the user marked ``infer={"enumerate": ...}`` are summed out; the others too, where
    that is cheap or the only latents are discrete, and are sampled otherwise.

    Raises
    ------
    UnboundedDiscreteError
        If the values of a site cannot be listed.
    DiscreteLatentError
        If sites are to be summed out that can't be.
    """
    if mode not in MODES:
        raise ArgumentError(f"discrete: expected None, 'enumerate' or 'sample', got {mode!r}")
    if not structure.discrete:
        return structure
    for name in structure.discrete:
        if not structure.sites[name].cardinality:
            raise UnboundedDiscreteError(
                f"latent site {name!r} is discrete and its values cannot be listed ({structure.sites[name].support}). "
                "Truncate it to a Categorical, or marginalise it by hand"
            )
    if mode == "sample":
        return replace(structure, sampled=structure.discrete, reason="discrete='sample'")
    marked = [name for name in structure.discrete if structure.sites[name].annotation is not None]
    forced = structure.discrete if mode == "enumerate" else marked
    limit = MOST if mode == "enumerate" else MANY if len(marked) == len(structure.discrete) else _limit(structure)
    method, reason = way_to_sum(runner, data, structure.discrete, limit)
    if method:
        return replace(structure, summation=method, reason=reason)
    if not forced or (len(forced) < len(structure.discrete) and not _ways(runner, data, forced)):
        return replace(structure, sampled=structure.discrete, reason=reason)
    if len(forced) == len(structure.discrete):
        raise DiscreteLatentError(
            f"discrete latents {', '.join(map(repr, forced))} are to be summed out, but {reason}. Sample them: "
            "am.Program(model, guide, discrete='sample')"
        )
    rest = tuple(name for name in structure.discrete if name not in forced)
    return replace(structure, summation=_ways(runner, data, forced), sampled=rest, reason=reason)


def _limit(structure: Structure) -> int:
    return MANY if structure.dim == 0 else FEW


def _ways(runner: Runner, data: Data, names: Sequence[str]) -> str:
    return way_to_sum(runner, data, names, MANY)[0]


def way_to_sum(runner: Runner, data: Data, names: Sequence[str], limit: int) -> tuple[str, str]:
    """By what to sum discrete sites out, "tiling" or "contraction", and why; or nothing, and why not."""
    if not names:
        return "none", ""
    sites = [runner.sites[name] for name in names]
    count = math.prod(site.cardinality**site.num_variables for site in sites)
    if count <= FEW:
        return "tiling", f"{count} configurations"
    failure = _why_not_contracted(runner, data, names, count)
    if not failure:
        return "contraction", f"{_in_words(count)} configurations"
    if count <= limit:
        return "tiling", f"{count} configurations; no contraction: {failure}"
    return "", f"there are {_in_words(count)} configurations, too many to tile, and contraction fails: {failure}"


def _in_words(count: int) -> str:
    return str(count) if count < 10**6 else f"about 1e{int(math.log10(count))}"


def _why_not_contracted(runner: Runner, data: Data, names: Sequence[str], count: int) -> str:
    """Contract two datapoints; where there are few enough configurations, compare with tiling."""
    head = data.rows(slice(0, min(2, data.num_datapoints)))
    values = _drawn(runner, head, names)
    try:
        with torch.no_grad():
            contracted = summed(runner, head, Placement(values=values), names, "contraction")
    except Exception as error:  # the user's code runs on shapes that it may not be made for
        text = str(error).partition("Trace Shapes")[0]  # Pyro's table of shapes follows
        return " ".join(f"{type(error).__name__}: {text}".split())[:200]
    if count > MANY:
        return ""
    with torch.no_grad():
        tiled = summed(runner, head, Placement(values=values), names, "tiling")
    if all(_close(a, b) for a, b in ((contracted.prior, tiled.prior), (contracted.joint, tiled.joint))):
        return ""
    return "it differs from tiling (the program mixes the dimensions of a batch)"


def _drawn(runner: Runner, data: Data, names: Sequence[str]) -> dict[str, Tensor]:
    """Values of the other latents, from one run of the program."""
    record = Record()
    with pyro_rng(0, "discrete"), unvalidated(), torch.no_grad(), record:
        runner.function(*data.args, **data.kwargs)
    kept = [name for name in runner.sites if name in record.messages and name not in names]
    return {name: record.messages[name]["value"] for name in kept}


def _close(first: Tensor, second: Tensor) -> bool:
    tolerance = 1e-3 if first.dtype == torch.float32 else 1e-8
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)
