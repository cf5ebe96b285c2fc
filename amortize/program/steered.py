"""A guide of Bernoulli and one-hot sites on a batch folded, each of its draws chosen by the caller.

A draw may be hard or soft; what the guide goes on with, and what its density is taken at, is what was chosen. Letters:
N datapoints, B rows of the batch folded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Bernoulli, OneHotCategorical

from amortize.errors import DiscreteLatentError, GuideMismatchError
from amortize.program.data import Data
from amortize.program.guide import TracedGuide
from amortize.program.guide_contract import guide_messages
from amortize.program.guide_runs import GuideRun
from amortize.program.handlers import LogTerms, Score, base_of, unvalidated
from amortize.program.probes import head_of
from amortize.program.traced_runs import CapturedRun, TracedRun
from amortize.program.trained import TrainedProgram

__all__ = ["Choose", "Steered", "require_kinds", "site_sizes", "stages_of", "steered"]

Choose = Callable[[str, Tensor], Tensor]
"""From a site's name and its logits (B, ...), rows first, to a value of that shape."""


class Steered(NamedTuple):
    """What was chosen, by site as a program takes it, and its log q (B,) in nats; ``auxiliary`` as in a draw."""

    values: dict[str, Tensor]
    log_q: Tensor
    auxiliary: Tensor


def steered(trained: TrainedProgram, run: GuideRun, folded: Data, choose: Choose) -> Steered:
    """A ``run`` of a guide on a batch, on the batch folded any number of times; call it inside ``trained.filled()``.

    A guide that reads no draws is not run again.
    """
    guide = trained.guide
    assert isinstance(guide, TracedGuide)
    if isinstance(run, CapturedRun):
        fronts = {name: guide.sites[name].front for name in run.messages}
        values = {}
        for name, msg in run.messages.items():
            logits = _logits(msg["fn"]).movedim(fronts[name], 0)
            rows = logits.repeat(folded.num_datapoints // len(logits), *[1] * (logits.dim() - 1))
            values[name] = choose(name, rows).movedim(0, fronts[name])
        return Steered(values, run.log_q(folded, values), run.auxiliary)
    terms = LogTerms(folded.num_datapoints, guide.log_joint.like)
    score = Score(guide.sites, guide.plate, terms, hides=guide.hides, stands_in=False)
    chosen = _Chosen({name: site.front for name, site in guide.sites.items()}, choose)
    with unvalidated(), chosen, score:
        guide.runner.function(*folded.args, **folded.kwargs)
    assert isinstance(run, TracedRun)
    share = run.data.num_datapoints / folded.num_datapoints
    return Steered(score.values, terms.latent, share * terms.observed.sum())


def require_kinds(trained: TrainedProgram, data: Data, objective: str, kinds: Collection[type]) -> dict[str, type]:
    """The kind of each site that an amortized guide draws, in order, all of them one of these.

    Raises
    ------
    DiscreteLatentError
        If one is of another kind, or there is none.
    GuideMismatchError
        Of AutoGuides and programs taken as a whole.
    """
    ways = "Train by objective='leave-one-out' or 'nvil', which take any site"
    if not isinstance(trained.guide, TracedGuide):
        raise GuideMismatchError(f"objective: {objective} takes the logits of an amortized guide's sites. {ways}")
    with trained.program.evaluating():
        messages = guide_messages(trained.program, head_of(data))
    words = " or ".join(kind.__name__ for kind in kinds)
    found = {}
    for name in (name for name in messages if name in trained.guide.sites):
        fn = base_of(messages[name]["fn"])
        kind = next((kind for kind in kinds if isinstance(fn, kind)), None)
        if kind is None:
            raise DiscreteLatentError(
                f"guide site {name!r} is {type(fn).__name__}, and {objective} takes sites of {words} alone. {ways}"
            )
        found[name] = kind
    if not found:
        raise DiscreteLatentError(
            f"the guide samples nothing, so {objective} has no gradient to estimate. Train by objective='enum-elbo'"
        )
    return found


def site_sizes(trained: TrainedProgram, names: Collection[str]) -> int:
    """How many numbers a datapoint's values at these sites are."""
    return sum(math.prod(trained.structure.sites[name].shape) for name in names)


def stages_of(run: GuideRun, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Sites that may be drawn at once: all of them, where none reads another's draw, or one after the other."""
    return (names,) if isinstance(run, CapturedRun) else tuple((name,) for name in names)


class _Chosen(Messenger):
    """Put what is chosen at a guide's sites."""

    def __init__(self, fronts: dict[str, int], choose: Choose) -> None:
        super().__init__()
        self.fronts, self.choose = fronts, choose

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name in self.fronts and not msg["is_observed"] and not msg["done"]:
            front = self.fronts[name]
            msg["value"] = self.choose(name, _logits(msg["fn"]).movedim(front, 0)).movedim(0, front)
            msg["done"] = True


def _logits(fn: Any) -> Tensor:
    base = base_of(fn)
    assert isinstance(base, (Bernoulli, OneHotCategorical))
    logits: Tensor = base.logits
    return logits
