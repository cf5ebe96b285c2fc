"""Putting other observations into a program's data: which entry of which argument each observed site reads, and back.

The places are found by tagging (see ``provenance``), written to, and then verified: on the new data every observed site
must see what was put there. What a mask hides stays as it is. Observations that are computed from the data (a
logarithm, one-hot labels) have no place to be written to; ``am.Program(..., replace=function)`` says how to.

Letters: N datapoints.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from amortize.errors import ReplayError
from amortize.program.data import Data
from amortize.program.handlers import Record, unvalidated
from amortize.program.leaves import as_leaf
from amortize.program.provenance import UNTAGGED, Provenance
from amortize.program.sites import Structure
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = [
    "Messages",
    "Places",
    "locate",
    "observed_names",
    "placed",
    "put",
    "reads_shared",
    "run_held",
    "seen_entries",
]

Messages = dict[str, dict[str, Any]]
Places = dict[str, Tensor]
"""For each observed site, in the shape of its value, the tag of each entry: its position among the data's numbers."""
WAY_OUT = (
    "say how it is put back, am.Program(model, ..., replace=function), where function(observed, x) returns the data x "
    "with the observed sites' values (a dict of tensors) in place"
)


class Held(Messenger):
    """Put ``values`` at sites and draw the sites ``draws`` anew, observed or not; standing outermost."""

    def __init__(self, values: Mapping[str, Tensor], draws: Collection[str] = ()) -> None:
        super().__init__()
        self.values, self.draws = values, draws

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        elif name in self.draws:
            msg["value"], msg["done"] = _drawn(msg), True


def run_held(
    program: Program, data: Data, *, seed: int, values: Mapping[str, Tensor] | None = None, draws: Collection[str] = ()
) -> Messages:
    """The message of each sample site of a run of the model; what is not held is drawn from a stream of ``seed``."""
    record = Record()
    with pyro_rng(seed, "simulate"), unvalidated(), torch.no_grad(), record, Held(values or {}, draws):
        program.model(*data.args, **data.kwargs)
    return record.messages


def observed_names(program: Program, structure: Structure) -> tuple[str, ...]:
    """Observed sites that belong to the evidence, values given by ``condition`` aside."""
    return tuple(name for name in structure.observed if name not in program.condition)


def locate(program: Program, structure: Structure, data: Data) -> Places:
    """Where in the data each observed site reads its value; entries that a mask hides are ``UNTAGGED``.

    Nowhere, for a program whose ``replace=`` puts the values back.

    Raises
    ------
    ReplayError
        If an observed entry is not an entry of the data, or one entry of the data is observed twice.
    """
    if program.replace is not None:
        return {}
    copies = _copied(data)
    with Provenance() as provenance:
        first = 0
        for tensor in _tensors(copies.leaves):
            provenance.tag(tensor, first=first)
            first += tensor.numel()
        messages = run_held(program, copies, seed=0)
    places = {}
    for name in observed_names(program, structure):
        msg = messages[name]
        tags = provenance.tags(msg["value"])
        kept = seen_entries(msg)
        _require_tags(name, tags, kept)
        places[name] = torch.where(kept, tags, UNTAGGED)
    _refuse_twice(places)
    return places


def put(program: Program, structure: Structure, data: Data, observed: Mapping[str, Tensor], places: Places) -> Data:
    """The data with ``observed`` in place, by ``places`` or the program's own ``replace=``, verified.

    Raises
    ------
    ReplayError
        If an observed site then sees something else.
    """
    changed = placed(program, data, observed, places)
    try:
        messages = run_held(program, changed, seed=0)
    except Exception as error:
        raise ReplayError(
            f"the model does not run on its own simulated data ({type(error).__name__}: {error}). Its draws may lie "
            f"where it takes no data; or {WAY_OUT}"
        ) from error
    for name in observed_names(program, structure):
        _verify(name, messages[name], observed[name])
    return changed


def placed(program: Program, data: Data, observed: Mapping[str, Tensor], places: Places) -> Data:
    """A copy of the data with ``observed`` at their places, unverified."""
    if program.replace is not None:
        return _by_user(program, data, observed)
    copies = _copied(data)
    tensors = _tensors(copies.leaves)
    for name, tags in places.items():
        first = 0
        for tensor in tensors:
            here = (tags >= first) & (tags < first + tensor.numel())
            tensor.view(-1)[tags[here] - first] = _cast(name, observed[name][here], tensor.dtype)
            first += tensor.numel()
    return copies


def reads_shared(data: Data, places: Places) -> bool:
    """Whether an observed entry lies in an argument that all datapoints share."""
    first = 0
    for leaf, take in zip(data.leaves, data.takes, strict=True):
        size = sum(tensor.numel() for tensor in _tensors(leaf))
        if take is None and any(bool(((tags >= first) & (tags < first + size)).any()) for tags in places.values()):
            return True
        first += size
    return False


def seen_entries(msg: Mapping[str, Any]) -> Tensor:
    """Which entries of an observed value no mask hides, in the value's shape."""
    value, fn, event_ndim = msg["value"], msg["fn"], len(msg["fn"].event_shape)
    seen = torch.ones(value.shape, dtype=torch.bool, device=value.device)
    masks = [(msg["mask"], event_ndim)]
    while isinstance(fn, (Independent, MaskedDistribution)):
        if isinstance(fn, Independent):
            event_ndim -= fn.reinterpreted_batch_ndims
        else:
            masks.append((fn._mask, event_ndim))
        fn = fn.base_dist
    for mask, dims in masks:
        if mask is not None:
            part = torch.as_tensor(mask, dtype=torch.bool, device=value.device)
            seen = seen & part.reshape(part.shape + (1,) * dims)
    return seen.reshape(value.shape) if seen.numel() == value.numel() else seen


def _drawn(msg: Mapping[str, Any]) -> Tensor:
    """A draw of an observed site's distribution, in the shape and type of its observation."""
    name, fn, value = msg["name"], msg["fn"], msg["value"]
    if isinstance(fn, Unit):
        raise ReplayError(
            f"{name!r} is a pyro.factor: a term of the log density that is no distribution, so nothing can be drawn "
            "from the model as it is. Write the likelihood as an observation, pyro.sample(name, distribution, obs=x); "
            "evidence from real data (am.evidence) takes factors"
        )
    batch = torch.broadcast_shapes(value.shape[: value.dim() - len(fn.event_shape)], fn.batch_shape)  # type: ignore[no-untyped-call]
    kind = type(fn).__name__
    try:
        drawn: Tensor = (fn if fn.batch_shape == batch else fn.expand(batch)).sample()
    except NotImplementedError as error:
        raise ReplayError(
            f"observed site {name!r} can't be simulated: {kind} has no sampler. Give it a sample method, "
            "or use a distribution that has one"
        ) from error
    if drawn.numel() != value.numel():
        raise ReplayError(
            f"observed site {name!r} can't be simulated: a draw has shape {tuple(drawn.shape)}, its observation "
            f"{tuple(value.shape)}. Observe one number for each that is drawn"
        )
    drawn = drawn.reshape(value.shape)
    return _cast(name, drawn, value.dtype)


def _cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    cast = value.to(dtype)
    if not dtype.is_floating_point and not bool((cast.to(value.dtype) == value)[torch.isfinite(value)].all()):
        raise ReplayError(
            f"observed site {name!r} draws numbers such as {float(value[cast.to(value.dtype) != value][0]):.4g}, which "
            f"its argument of type {str(dtype).removeprefix('torch.')} can't hold. Give the data as floats"
        )
    return cast


def _verify(name: str, msg: Mapping[str, Any], wanted: Tensor) -> None:
    """Every entry that no mask hides is the one that was put there, to rounding."""
    kept, found = seen_entries(msg), msg["value"]
    if found.shape == wanted.shape:
        found, wanted = found[kept].double(), wanted[kept].double()
        if torch.allclose(found, wanted, rtol=1e-4, atol=1e-6, equal_nan=True):
            return
        worst = int((found - wanted).abs().nan_to_num(torch.inf).argmax())
        what = f"{float(found[worst]):.6g} where {float(wanted[worst]):.6g} was put"
    else:
        what = f"values of shape {tuple(found.shape)} where {tuple(wanted.shape)} was put"
    raise ReplayError(
        f"observed site {name!r} does not see its simulated values in the data: it sees {what}. If the model changes "
        f"what it observes (clamps or rounds it), or decides by other entries what it observes, {WAY_OUT}"
    )


def _require_tags(name: str, tags: Tensor, kept: Tensor) -> None:
    missing = kept & (tags == UNTAGGED)
    if not bool(missing.any()):
        return
    share = "its value is" if bool(missing.all()) else f"{int(missing.sum())} of its {tags.numel()} entries are"
    raise ReplayError(
        f"observed site {name!r}: {share} no entry of the data, but computed from them or typed in, so that "
        "simulated values can't be put back. Observe the argument itself (for obs=log(x) take a LogNormal, or a "
        f"TransformedDistribution); or {WAY_OUT}"
    )


def _refuse_twice(places: Places) -> None:
    """One number of the data can't be two numbers of a simulation."""
    every = torch.cat([tags[tags != UNTAGGED] for tags in places.values()])
    values, counts = torch.unique(every, return_counts=True)
    if bool((counts > 1).any()):
        twice = values[counts > 1]
        readers = [name for name, tags in places.items() if bool(torch.isin(tags, twice).any())]
        raise ReplayError(
            f"observed site{'s' * (len(readers) > 1)} {', '.join(map(repr, readers))} read an entry of the data "
            f"{int(counts.max())} times, and a simulation gives it as many values. Observe each once; or {WAY_OUT}"
        )


def _by_user(program: Program, data: Data, observed: Mapping[str, Tensor]) -> Data:
    assert program.replace is not None
    given = program.replace(dict(observed), _copied(data).as_given())
    named = given if isinstance(given, Mapping) else dict(enumerate(given if isinstance(given, tuple) else (given,)))
    if set(named) != set(data.keys):
        raise ReplayError(
            f"replace: expected data as the program takes them, arguments {list(data.keys)}, got {list(named)}"
        )
    device = data.index.device
    leaves = [as_leaf(named[key], repr(key), program.dtype, device) for key in data.keys]
    for key, old, new in zip(data.keys, data.leaves, leaves, strict=True):
        if isinstance(old, Tensor) and (not isinstance(new, Tensor) or old.shape != new.shape):
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ReplayError(f"replace: expected argument {key!r} of shape {tuple(old.shape)}, got {got}")
    return replace(data, leaves=tuple(leaves))


def _copied(data: Data) -> Data:
    """Tensors in memory of their own, wherever they are in the arguments; parameters stay."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return leaf._replace(data=leaf.data.clone(memory_format=torch.contiguous_format))
        fresh = isinstance(leaf, Tensor) and not isinstance(leaf, torch.nn.Parameter)
        return leaf.detach().clone(memory_format=torch.contiguous_format) if fresh else leaf

    return replace(data, leaves=tuple(pytree.tree_map(copy, leaf, is_leaf=_is_leaf) for leaf in data.leaves))


def _tensors(leaves: Any) -> list[Tensor]:
    parts = pytree.tree_leaves(leaves, is_leaf=_is_leaf)
    tensors = [part.data if isinstance(part, PackedSequence) else part for part in parts]
    return [value for value in tensors if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter)]


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (PackedSequence, Tensor))
