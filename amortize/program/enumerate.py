r"""Summing discrete latents out, exactly and for each datapoint.

.. math:: \log p(x_n, u_n) = \log \sum_{k} p(x_n, u_n, k)

*Tiling* runs the program on every configuration k of a datapoint's discrete variables, folded into the batch as chains
are: it asks nothing of the program. *Contraction* gives each variable a tensor dimension of its own and eliminates them
one by one (tensor variable elimination; Obermeyer et al. 2019, "Tensor variable elimination for plated factor
graphs"): the cost of a hidden Markov model is linear in its length, but the program must broadcast.

Letters: B rows, D continuous latents, M discrete variables of a datapoint, P configurations of them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.ops import packed
from torch import Tensor

from amortize.errors import DiscreteLatentError, NotIndependentError
from amortize.program.data import Data
from amortize.program.eliminate import Elimination, Factors, contract, draw_back
from amortize.program.handlers import (
    LogTerms,
    Score,
    Substitute,
    data_dim,
    is_deterministic,
    is_subsample,
    log_factor,
    unvalidated,
)
from amortize.program.sites import Site

__all__ = ["JointTerms", "Placement", "Runner", "configurations", "draw_enumerated", "split_choices", "summed"]

MAX_ROWS = 2**15


class Placement(NamedTuple):
    """Where latents are put: ``u`` (B, D) or constrained ``values``, and ``choices`` (B, M) of discrete sites."""

    u: Tensor | None = None
    values: Mapping[str, Tensor] | None = None
    choices: Mapping[str, Tensor] | None = None

    def tile(self, count: int, sites: Mapping[str, Site], block: Mapping[str, Tensor], num_rows: int) -> Placement:
        """Everything ``count`` times, with configurations ``block`` (count, M) beside it, configuration-major."""
        u = None if self.u is None else self.u.repeat(count, 1)
        values = {name: torch.cat([v] * count, sites[name].front) for name, v in (self.values or {}).items()}
        choices = {name: index.repeat(count, 1) for name, index in (self.choices or {}).items()}
        choices |= {name: index.repeat_interleave(num_rows, 0) for name, index in block.items()}
        return Placement(u, values, choices)


class JointTerms(NamedTuple):
    """Log densities of B rows, in nats, and the values by site.

    ``prior`` is over u (Jacobian included); ``outside`` is what stands outside the plate, a scalar; ``hidden`` (B,) by
    site is what stands in for latents that a mask hides, without Jacobian.
    """

    prior: Tensor
    likelihood: Tensor
    jacobian: Tensor
    outside: Tensor
    values: dict[str, Tensor]
    hidden: dict[str, Tensor]

    @property
    def joint(self) -> Tensor:
        """Log p(x, u), (B,)."""
        return self.prior + self.likelihood


@dataclass(frozen=True)
class Runner:
    """Runs a model or guide with latents put in, and adds up what it says of each row.

    ``batch_ndim`` is the largest number of batch dimensions of its sites: contraction works to the left of them.
    ``hides`` names the latents that a mask hides, for which something ``stands_in`` or nothing.
    """

    function: Callable[..., Any]
    sites: Mapping[str, Site]
    plate: str
    like: Tensor
    batch_ndim: int
    hides: tuple[str, ...] = ()
    stands_in: bool = True

    def rows(self, data: Data, place: Placement) -> JointTerms:
        """One run, nothing summed out."""
        terms = LogTerms(data.num_datapoints, self.like)
        score = Score(self.sites, self.plate, terms, hides=self.hides, stands_in=self.stands_in)
        put = Substitute(self.sites, terms, u=place.u, values=place.values, choices=place.choices)
        with unvalidated(), score, put:
            self.function(*data.args, **data.kwargs)
        prior = terms.latent + terms.jacobian
        return JointTerms(prior, terms.observed, terms.jacobian, terms.outside, score.values, terms.hidden)


def configurations(sites: Mapping[str, Site], names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Every configuration of the variables of some discrete sites: by site, (P, M) indices."""
    sizes = tuple(sites[name].cardinality for name in names for _ in range(sites[name].num_variables))
    return split_choices(sites, names, _all_choices(sizes).to(device))


@functools.lru_cache(maxsize=16)
def _all_choices(sizes: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(mode=False):
        table = torch.tensor(list(itertools.product(*map(range, sizes))), dtype=torch.long)
    return table.reshape(math.prod(sizes), len(sizes))


def split_choices(sites: Mapping[str, Site], names: Sequence[str], choices: Tensor) -> dict[str, Tensor]:
    """Indices (..., M) of the variables of some discrete sites, by site."""
    sizes = [sites[name].num_variables for name in names]
    return dict(zip(names, torch.split(choices, sizes, -1), strict=True))


def summed(runner: Runner, data: Data, place: Placement, names: Sequence[str], method: str) -> JointTerms:
    """Run with the discrete sites ``names`` summed out by ``method``: "none", "tiling" or "contraction"."""
    if not names:
        return runner.rows(data, place)
    return _tiled(runner, data, place, names)[0] if method == "tiling" else _contracted(runner, data, place, names)


def draw_enumerated(
    runner: Runner, data: Data, place: Placement, names: Sequence[str], method: str
) -> dict[str, Tensor]:
    """Values of the summed-out sites from their exact conditional given everything else; draws globally."""
    if not names:
        return {}
    if method == "contraction":
        return _draw_contracted(runner, data, place, names)
    joint = _tiled(runner, data, place, names)[1]
    noise = -torch.empty_like(joint).exponential_().log()
    index = (joint + noise).argmax(0)
    table = configurations(runner.sites, names, joint.device)
    choices = {**(place.choices or {}), **{name: table[name][index] for name in names}}
    values = runner.rows(data, place._replace(choices=choices)).values
    return {name: values[name] for name in names}


def _tiled(runner: Runner, data: Data, place: Placement, names: Sequence[str]) -> tuple[JointTerms, Tensor]:
    """The terms, and the log joint of each configuration, (P, B)."""
    num = data.num_datapoints
    table = configurations(runner.sites, names, runner.like.device)
    total = len(next(iter(table.values())))
    size = max(1, MAX_ROWS // num)
    blocks = []
    for first in range(0, total, size):
        block = {name: index[first : first + size] for name, index in table.items()}
        count = min(size, total - first)
        blocks.append(runner.rows(data.fold(count), place.tile(count, runner.sites, block, num)))
    prior = torch.cat([terms.prior.reshape(-1, num) for terms in blocks])
    joint = torch.cat([terms.joint.reshape(-1, num) for terms in blocks])
    first_terms = blocks[0]
    kept = {name: v for name, v in first_terms.values.items() if name not in names}
    values = {name: v.narrow(runner.sites[name].front, 0, num) for name, v in kept.items()}
    jacobian = first_terms.jacobian[:num]
    hidden = {name: value[:num] for name, value in first_terms.hidden.items()}
    total_prior = prior.logsumexp(0)
    likelihood = joint.logsumexp(0) - total_prior
    return JointTerms(total_prior, likelihood, jacobian, first_terms.outside, values, hidden), joint


def _contracted(runner: Runner, data: Data, place: Placement, names: Sequence[str]) -> JointTerms:
    num = data.num_datapoints
    if num == 1:  # Pyro takes a plate of size 1 for no plate
        twice = _contracted(runner, data.fold(2), place.tile(2, runner.sites, {}, 1), names)
        values = {name: v.narrow(runner.sites[name].front, 0, 1) for name, v in twice.values.items()}
        return JointTerms(twice.prior[:1], twice.likelihood[:1], twice.jacobian[:1], twice.outside, values, {})
    trace, terms = _enumerated(runner, data, place, names)
    latent, everything, outside = _factors(runner, trace, names)
    prior, joint = (_eliminated(runner, trace, tree, num)[0] for tree in (latent, everything))
    values = {name: trace.nodes[name]["value"] for name in runner.sites if name in trace.nodes and name not in names}
    return JointTerms(prior + terms.jacobian, joint - prior, terms.jacobian, outside, values, {})


def _draw_contracted(runner: Runner, data: Data, place: Placement, names: Sequence[str]) -> dict[str, Tensor]:
    num = data.num_datapoints
    if num == 1:
        both = _draw_contracted(runner, data.fold(2), place.tile(2, runner.sites, {}, 1), names)
        return {name: v.narrow(runner.sites[name].front, 0, 1) for name, v in both.items()}
    trace, _ = _enumerated(runner, data, place, names)
    drawn = draw_back(_eliminated(runner, trace, _factors(runner, trace, names)[1], num)[1])
    choices = dict(place.choices or {})
    for name in names:
        site, letter = runner.sites[name], trace.nodes[name]["infer"]["_enumerate_symbol"]
        shape = (*site.variables[: site.front], num, *site.variables[site.front :])
        index = torch.zeros(shape, dtype=torch.long, device=runner.like.device)
        if letter in drawn:  # a variable of one value has no dimension
            tensor: Any = drawn[letter].tensor
            tensor._pyro_dims = drawn[letter].letters
            index = index + packed.unpack(tensor, trace.symbol_to_dim)  # type: ignore[no-untyped-call]
        choices[name] = index.movedim(site.front, 0).reshape(num, -1)
    values = runner.rows(data, place._replace(choices=choices)).values
    return {name: values[name] for name in names}


def _enumerated(runner: Runner, data: Data, place: Placement, names: Sequence[str]) -> tuple[Any, LogTerms]:
    """A trace in which each variable of the sites ``names`` has a dimension of its own, and the Jacobian."""
    terms = LogTerms(data.num_datapoints, runner.like)
    put = Substitute(runner.sites, terms, u=place.u, values=place.values, choices=place.choices)
    enumerating = poutine.enum(_marked(runner, names), first_available_dim=-1 - runner.batch_ndim)
    with unvalidated(), put:  # outermost: Pyro's enumeration must see a site before a value is put there
        trace: Any = poutine.trace(enumerating).get_trace(*data.args, **data.kwargs)
    trace.symbolize_dims()
    return trace, terms


def _eliminated(runner: Runner, trace: Any, factors: Factors, num: int) -> tuple[Tensor, list[Elimination]]:
    return contract(factors, _sum_dims(trace, factors), (trace.plate_to_symbol[runner.plate], num))


def _factors(runner: Runner, trace: Any, names: Sequence[str]) -> tuple[Factors, Factors, Tensor]:
    """Packed log factors by plates: of the latents, and of everything; and what stands outside, a scalar."""
    latents: Factors = OrderedDict()
    everything: Factors = OrderedDict()
    outside = runner.like.new_zeros(())
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or is_subsample(node) or is_deterministic(node):
            continue
        if name in names and node["infer"].get("_enumerate_dim") is None:
            raise DiscreteLatentError(f"site {name!r} cannot be given a dimension of its own (to_event)")
        log_prob, latent = log_factor(node, runner.sites, runner.plate)
        if data_dim(node, runner.plate) is None and not latent:
            outside = outside + _constant(name, log_prob)
            continue
        frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.size != 1]
        ordinal = frozenset(trace.plate_to_symbol[frame.name] for frame in frames)
        for factors in (latents, everything) if latent else (everything,):  # contraction marks what it gets
            factor = packed.pack(log_prob.clone(), node["infer"]["_dim_to_symbol"])  # type: ignore[no-untyped-call]
            factors.setdefault(ordinal, []).append(factor)
    return latents, everything, outside


def _constant(name: str, log_prob: Tensor) -> Tensor:
    if log_prob.numel() > 1 and log_prob.dim() > 0 and log_prob.shape[0] > 1:
        raise NotIndependentError(f"{name!r} stands outside the data plate but depends on discrete latents inside it")
    return log_prob.sum()


def _sum_dims(trace: Any, factors: Factors) -> set[str]:
    plates = set(trace.plate_to_symbol.values())
    dims: list[Any] = [getattr(factor, "_pyro_dims") for group in factors.values() for factor in group]  # noqa: B009
    return {symbol for symbols in dims for symbol in symbols if symbol not in plates}


def _marked(runner: Runner, names: Sequence[str]) -> Callable[..., Any]:
    """The program, marked for enumeration at ``names`` and nowhere else."""

    def annotate(site: Any) -> Any:
        wanted = "parallel" if site["name"] in names else None
        return {"enumerate": wanted, "expand": False, "num_samples": None}

    result: Callable[..., Any] = functools.partial(poutine.infer_config(runner.function, annotate))
    return result
