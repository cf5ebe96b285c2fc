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

__all__ = ["MODES", "check_mode", "resolve_discrete", "way_to_sum"]

MODES = (None, "enumerate", "sample")
FEW, MANY, MOST = 64, 4096, 2**16
"""Configurations of a datapoint: tiled at once, tiled where nothing else is possible, and tiled on demand."""
FEW_GROUPS = 4  # of sites, on which contraction is tried where there are too many configurations to try all


def check_mode(mode: str | None) -> None:
    """Refuse a ``discrete=`` that isn't one of `MODES`, whether the program has discrete latents or not.

    Raises
    ------
    ArgumentError
        If it isn't.
    """
    if not any(mode is known or (isinstance(mode, str) and mode == known) for known in MODES):
        raise ArgumentError(f"discrete: expected None, 'enumerate' or 'sample', got {mode!r}")


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
    check_mode(mode)
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
    moved = _supports_that_move(runner, structure, data)
    method, reason = ("", moved) if moved else way_to_sum(runner, data, structure.discrete, limit)
    if method:
        return replace(structure, summation=method, reason=reason)
    if not forced or (len(forced) < len(structure.discrete) and (moved or not _ways(runner, data, forced))):
        return replace(structure, sampled=structure.discrete, reason=reason)
    if len(forced) == len(structure.discrete):
        raise DiscreteLatentError(
            f"discrete latents {', '.join(map(repr, forced))} are to be summed out, but {reason}. Sample them: "
            "am.Program(model, guide, discrete='sample')"
        )
    rest = tuple(name for name in structure.discrete if name not in forced)
    return replace(structure, summation=_ways(runner, data, forced), sampled=rest, reason=reason)


def _supports_that_move(runner: Runner, structure: Structure, data: Data) -> str:
    """Whether supports of continuous sites change with discrete ones, in words.

    A value has then no u of its own without them, and so a guide's draw no density over u.
    """
    if not structure.dim:
        return ""
    head = data.head(2)
    u = runner.like.new_full((2, structure.dim), 0.5)
    sizes = [structure.sites[name].cardinality for name in structure.discrete]
    values: list[dict[str, Tensor]] = []
    for share in (0.0, 0.5, 1.0):
        choices = {
            name: torch.full((2, structure.sites[name].num_variables), int(share * (size - 1)), device=u.device)
            for name, size in zip(structure.discrete, sizes, strict=True)
        }
        with torch.no_grad():
            values.append(runner.rows(head, Placement(u=u, choices=choices)).values)
    names = [name for name in structure.continuous if any(not torch.equal(values[0][name], v[name]) for v in values)]
    return f"the support of {', '.join(map(repr, names))} changes with discrete latents" if names else ""


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
    """Contract a few datapoints, and compare with tiling: all sites together, or groups of them with the rest held."""
    head = data.head(_trial_size(runner, names))
    drawn = _drawn(runner, head)
    try:
        with torch.no_grad():
            values = {name: value for name, value in drawn.items() if name not in names}
            summed(runner, head, Placement(values=values), names, "contraction")
    except Exception as error:  # the user's code runs on shapes that it may not be made for
        text = str(error).partition("Trace Shapes")[0]  # Pyro's table of shapes follows
        return " ".join(f"{type(error).__name__}: {text}".split())[:200]
    for group in [tuple(names)] if count <= MANY else _groups(runner, names):
        values = {name: value for name, value in drawn.items() if name not in group}
        with torch.no_grad():
            contracted, tiled = (
                summed(runner, head, Placement(values=values), group, method) for method in ("contraction", "tiling")
            )
        if not all(_close(a, b) for a, b in ((contracted.prior, tiled.prior), (contracted.joint, tiled.joint))):
            return "it differs from tiling (the program mixes the dimensions of a batch)"
    return ""


def _trial_size(runner: Runner, names: Sequence[str]) -> int:
    """Two rows or a few more, but as many as no variable has values: a mix of the two would go unseen."""
    taken = {runner.sites[name].cardinality for name in names}
    return next(size for size in range(2, len(taken) + 3) if size not in taken)


def _groups(runner: Runner, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Neighbouring sites, few enough configurations a group to tile: some groups, from one end to the other."""
    groups: list[tuple[str, ...]] = [()]
    room = MANY
    for name in names:
        count = runner.sites[name].cardinality ** runner.sites[name].num_variables
        if count > MANY:
            continue
        if count > room:
            groups.append(())
            room = MANY
        groups[-1] = (*groups[-1], name)
        room //= count
    filled = [group for group in groups if group]
    step = max(1, math.ceil(len(filled) / FEW_GROUPS))
    return filled[::step]


def _drawn(runner: Runner, data: Data) -> dict[str, Tensor]:
    """Values of the latents, from one run of the program."""
    record = Record()
    with pyro_rng(0, "discrete"), unvalidated(), torch.no_grad(), record:
        runner.function(*data.args, **data.kwargs)
    return {name: record.messages[name]["value"] for name in runner.sites if name in record.messages}


def _close(first: Tensor, second: Tensor) -> bool:
    tolerance = 1e-3 if first.dtype == torch.float32 else 1e-8
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)
