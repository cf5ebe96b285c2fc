"""Discovery: run a model on a few datapoints and read off its data plate and latent sites.

The model runs on four and on three of its datapoints (repeated where there are fewer). The plate whose size follows is
the data plate; a program whose sites or shapes differ otherwise is dynamic, and one whose plate does not follow has a
size typed into it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Delta, ProjectedNormal, VonMises
from torch import Tensor
from torch.distributions import biject_to

from amortize.errors import (
    ContractError,
    DynamicStructureError,
    GlobalLatentError,
    NoDataPlateError,
    PlateSizeError,
)
from amortize.program.blame import with_line
from amortize.program.data import Data
from amortize.program.explain import explained
from amortize.program.handlers import Record, atoms, base_of, data_dim, unvalidated, user_scale
from amortize.program.masks import mask_of
from amortize.program.scales import as_number, common_scale
from amortize.program.sites import Site, Structure
from amortize.program.supports import PositiveDefiniteFromVector  # noqa: F401 (registers bijections)
from amortize.random import pyro_rng

__all__ = ["discover", "has_user_scale", "run_recorded"]

HEAD = 4
Messages = dict[str, dict[str, Any]]


def run_recorded(function: Callable[..., Any], data: Data, number: int = 0, stream: str = "discover") -> Messages:
    """The message of each sample site of run ``number`` of a program, whose random numbers are those of ``stream``."""
    record = Record()
    with pyro_rng(number, stream), unvalidated(), torch.no_grad(), record:
        function(*data.args, **data.kwargs)
    return record.messages


def discover(model: Callable[..., Any], data: Data, *, plate: str | None = None) -> Structure:
    """Read the structure of ``model`` on ``data``.

    Raises
    ------
    NoDataPlateError, PlateSizeError, GlobalLatentError, DynamicStructureError
        Where the model breaks the contract; the message names the site and the way out.
    """
    size = HEAD
    messages, smaller = (_run_head(model, data, number) for number in (size, size - 1))
    name = plate or _find_plate(messages, smaller, size)
    _check_plate(name, messages, smaller, size)
    structure = _structure(name, messages)
    if _signature(_structure(name, smaller)) != _signature(structure):
        raise DynamicStructureError(
            f"the model's latent sites or their shapes change with the data: {_signature(structure)} on {size} "
            f"datapoints, {_signature(_structure(name, smaller))} on {size - 1}. Make sites and shapes fixed (masks)"
        )
    return structure


def _run_head(model: Callable[..., Any], data: Data, size: int) -> Messages:
    try:
        return run_recorded(model, data.head(size))
    except ContractError:
        raise
    except Exception as error:
        if size != data.num_datapoints and _runs(model, data):
            raise PlateSizeError(
                f"the model runs on {data.num_datapoints} datapoints but not on {size} ({with_line(error)}). A number "
                "of datapoints seems to be typed in: size the plate from the data, pyro.plate('data', x.shape[0])"
                + data.hint()
            ) from error
        with explained("the model", data):
            raise


def _runs(model: Callable[..., Any], data: Data) -> bool:
    try:
        run_recorded(model, data)
    except Exception:
        return False
    return True


def _plates(messages: Messages) -> dict[str, int]:
    """Sizes of the vectorised plates; one made without a size has that of the values inside it."""
    sizes: dict[str, int] = {}
    for msg in messages.values():
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized:
                sizes[frame.name] = max(sizes.get(frame.name, 0), _plate_size(msg, frame))
    return sizes


def _plate_size(msg: Mapping[str, Any], frame: Any) -> int:
    if frame.size is not None and frame.size >= 0:
        return int(frame.size)
    shape = msg["fn"].batch_shape
    return int(shape[frame.dim]) if len(shape) >= -frame.dim else 1


def _find_plate(messages: Messages, smaller: Messages, size: int) -> str:
    plates, after = _plates(messages), _plates(smaller)
    candidates = [name for name, now in plates.items() if now == size and after.get(name) == size - 1]
    if len(candidates) == 1:
        return candidates[0]
    if not plates:
        sequential = any(msg["cond_indep_stack"] for msg in messages.values())
        raise NoDataPlateError(
            "the model has no vectorised pyro.plate"
            + (" (only sequential ones, `for i in pyro.plate(...)`)" if sequential else "")
            + ". Put latents and observations inside `with pyro.plate('data', x.shape[0]):`; where all latents are "
            "global, take the whole data set as one datapoint, am.Program(model, guide, whole=True)"
        )
    if not candidates:
        sizes = ", ".join(f"{name!r} of size {now}" for name, now in plates.items())
        raise PlateSizeError(
            f"no plate follows the number of datapoints: on {size} datapoints the plates are {sizes}. "
            "Is a number typed in? Size the data plate from the data, pyro.plate('data', x.shape[0])"
        )
    raise NoDataPlateError(
        f"cannot tell which plate indexes the datapoints: {', '.join(map(repr, candidates))} all have size {size}. "
        "Name it: am.Program(model, guide, plate='...')"
    )


def _check_plate(name: str, messages: Messages, smaller: Messages, size: int) -> None:
    plates = _plates(messages)
    if name not in plates:
        raise NoDataPlateError(
            f"plate: expected one of {sorted(plates)}, got {name!r}. Name the one that indexes the datapoints, "
            "am.Program(model, guide, plate='...'), or leave plate= out"
        )
    if not (plates[name] == size and _plates(smaller).get(name) == size - 1):
        raise PlateSizeError(
            f"plate {name!r} has size {plates[name]} on {size} datapoints; expected {size}. "
            "Size it from the data, pyro.plate('data', x.shape[0])"
        )


def _structure(plate: str, messages: Messages) -> Structure:
    sites: dict[str, Site] = {}
    observed: list[str] = []
    outside: list[str] = []
    scaled: list[str] = []
    start = 0
    for name, msg in messages.items():
        inside = data_dim(msg, plate) is not None
        if msg["is_observed"]:
            (observed if inside else outside).append(name)
        elif not inside:
            raise GlobalLatentError(
                f"latent site {name!r} is outside the data plate {plate!r}, so every datapoint shares it. Condition on "
                f"a value, am.Program(model, guide, condition={{{name!r}: value}}), take the whole data set as one "
                "datapoint, am.Program(model, guide, whole=True), make it a pyro.param, or move it inside the plate"
            )
        else:
            sites[name] = _site(name, msg, plate, start)
            start = sites[name].stop
        if has_user_scale(msg, plate):
            scaled.append(name)
    if not sites:
        raise ContractError(
            f"the model has no latent site inside the data plate {plate!r}; there is nothing to infer. Give it one, a "
            "pyro.sample without obs= inside the plate"
        )
    if not observed:
        raise ContractError(
            f"the model observes nothing inside the data plate {plate!r}, so there is no evidence to measure. Give a "
            "site obs=, for example pyro.sample('x', dist, obs=x)"
        )
    dtypes = [messages[name]["value"].dtype for name, site in sites.items() if not site.discrete]
    dtype = functools.reduce(torch.promote_types, dtypes, dtypes[0]) if dtypes else torch.get_default_dtype()
    full = _full_size(plate, messages)
    batch_ndim = max(len(msg["fn"].batch_shape) for msg in messages.values())
    return Structure(
        plate,
        sites,
        tuple(observed),
        tuple(outside),
        tuple(scaled),
        dtype,
        full,
        batch_ndim,
        common_scale=common_scale(messages, plate) if scaled else 1.0,
        hidden=tuple(n for n, site in sites.items() if not site.discrete and mask_of(messages[n]) is not None),
    )


def _site(name: str, msg: Mapping[str, Any], plate: str, start: int) -> Site:
    fn, value = msg["fn"], msg["value"]
    dim = data_dim(msg, plate)
    assert dim is not None
    require_density(name, fn)
    front = value.dim() - fn.event_dim + dim
    if front < 0:  # a plate without a size expands nothing
        raise GlobalLatentError(
            f"latent site {name!r} stands in plate {plate!r}, which has no size, and is one value for all datapoints. "
            f"Give it one for each, dist.expand([x.shape[0]]), or the plate a size, pyro.plate({plate!r}, x.shape[0])"
        )
    batch_ndim = value.dim() - fn.event_dim
    discrete = bool(fn.support.is_discrete)
    shape = _drop(value, front)
    free = () if discrete else _drop(biject_to(fn.support).inv(value), front)
    listed = _atoms(fn) if discrete else None
    atom_ndim = len(base_of(fn).event_shape) if listed is None else listed.dim() - 1
    return Site(
        name=name,
        support=support_name(fn.support),
        discrete=discrete,
        shape=shape,
        unconstrained_shape=free,
        start=start,
        stop=start + (0 if discrete else math.prod(free)),
        front=front,
        data_dim=dim,
        batch_ndim=batch_ndim,
        variables=shape[: len(shape) - atom_ndim] if discrete else (),
        cardinality=0 if listed is None else len(listed),
        annotation=(msg["infer"] or {}).get("enumerate"),
    )


def _atoms(fn: Any) -> Tensor | None:
    try:
        return atoms(fn)
    except (NotImplementedError, ValueError):
        return None


def require_density(name: str, fn: Any) -> None:
    """Refuse latents that have no density over an unconstrained u."""
    inner = base_of(fn)
    if isinstance(inner, Delta):
        raise ContractError(
            f"latent site {name!r} is a point (Delta) in the model. Make it a value or pyro.deterministic"
        )
    if isinstance(inner, (VonMises, ProjectedNormal)):
        raise ContractError(
            f"latent site {name!r} is circular ({type(inner).__name__}): its density over an unconstrained u is "
            "improper. Use an angle in a bounded interval, for example a Uniform or a transformed Beta"
        )
    if fn.support.is_discrete:
        return
    try:
        biject_to(fn.support)
    except NotImplementedError as error:
        raise ContractError(
            f"latent site {name!r} has support {fn.support}, which has no bijection to unconstrained space. "
            "Reparameterise it, for example by a Cholesky factor"
        ) from error


def _full_size(plate: str, messages: Messages) -> int | None:
    for msg in messages.values():
        for frame in msg["cond_indep_stack"]:
            if frame.name == plate and frame.full_size not in (None, frame.size):
                return int(frame.full_size)
    return None


def _drop(value: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(size for i, size in enumerate(value.shape) if i != axis)


def support_name(support: Any) -> str:
    inner = getattr(support, "base_constraint", support)
    return str(inner).removesuffix("()").removeprefix("_")


def has_user_scale(msg: Mapping[str, Any], plate: str) -> bool:
    """Whether a site stands under a ``poutine.scale`` of the user's, the data plate's subsampling aside."""
    return as_number(user_scale(msg, plate)) != 1.0


def _signature(structure: Structure) -> dict[str, tuple[int, ...]]:
    return {name: site.shape for name, site in structure.sites.items()}
