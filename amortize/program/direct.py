r"""Pyro's Trace_ELBO without its traces, where each latent of the guide is drawn with a gradient.

.. math:: \mathrm{ELBO} = \sum_{\text{sites of the model}} \log p - \sum_{\text{sites of the guide}} \log q

with the scales, masks and plates that Pyro applies, value and gradient alike. Pyro keeps a graph of both runs and their
score parts for the sake of draws without a path; here each site is scored once, as soon as both have run. Letters: N
datapoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Bernoulli, Independent, Normal
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from amortize.errors import ContractError
from amortize.program.data import Data
from amortize.program.discover import run_recorded
from amortize.program.handlers import base_of, is_subsample
from amortize.program.probes import head_of
from amortize.program.program import Program

__all__ = ["direct_elbo", "has_paths"]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
Message = dict[str, Any]


def has_paths(program: Program, data: Data) -> bool:
    """Whether the guide draws each of its sites with a gradient, on a few datapoints."""
    assert program.guide is not None
    rows_hang_together = program.bound is not None or program.whole or program.guide.per_datapoint
    head = data if rows_hang_together else head_of(data)
    with program.evaluating():
        messages = run_recorded(program.guide, head)
    return all(msg["fn"].has_rsample for msg in messages.values())


def direct_elbo(program: Program, data: Data) -> Tensor | None:
    """Of a batch as a whole, a scalar in nats with its gradient; None where a draw turns out to have no path.

    Draws from the global generators of torch, in the order in which Pyro does.
    """
    assert program.guide is not None
    guide = _Sites({})
    with guide:
        program.guide.briefly(*data.args, **data.kwargs)
    entropies = [_entropy_term(msg) for msg in guide.messages.values() if not is_subsample(msg)]
    paths = [term for term in entropies if term is not None]
    if len(paths) < len(entropies):
        return None
    model = _Sites(guide.messages)
    run = program.model.briefly if program.trained_model is program.model else program.trained_model
    with model:
        run(*data.args, **data.kwargs)
    elbo = torch.zeros_like(paths[0]) if paths else data.index.new_zeros((), dtype=torch.get_default_dtype())
    for msg in model.messages.values():
        if not is_subsample(msg):
            elbo = elbo + _log_prob(msg)
    for term in paths:
        elbo = elbo - term
    return elbo


class _Sites(Messenger):
    """Keep the message of each sample site; put in the values of a guide's."""

    def __init__(self, given: Mapping[str, Message]) -> None:
        super().__init__()
        self.given = given
        self.messages: dict[str, Message] = {}

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_sample(msg)

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_post_sample(msg)

    def _pyro_sample(self, msg: Message) -> None:
        found = self.given.get(msg["name"])
        if found is None or msg["is_observed"]:
            return
        if found["is_observed"]:
            raise ContractError(f"site {msg['name']!r} is sampled by the model and observed by the guide")
        msg["done"], msg["value"], msg["infer"] = True, found["value"], found["infer"]

    def _pyro_post_sample(self, msg: Message) -> None:
        if msg["name"] in self.messages:
            raise ContractError(
                f"two pyro.sample (or pyro.factor) statements of one run are named {msg['name']!r}; give each site a "
                "name of its own"
            )
        self.messages[msg["name"]] = msg


def _log_prob(msg: Message) -> Tensor:
    """Of a site as a whole."""
    plain = isinstance(msg["scale"], float) and msg["scale"] == 1.0 and msg["mask"] is None
    total = _known_total(msg["fn"], msg["value"]) if plain else None
    if total is not None:
        return total
    return _total(msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"]), msg)


def _entropy_term(msg: Message) -> Tensor | None:
    """The same of a guide's site; None where its draw has no path."""
    if type(base_of(msg["fn"])) is Normal:
        return _log_prob(msg)
    parts: Any = msg["fn"].score_parts(msg["value"], *msg["args"], **msg["kwargs"])
    if isinstance(parts.score_function, Tensor) or parts.entropy_term is not parts.log_prob:
        return None
    return _total(parts.log_prob, msg)


def _known_total(fn: Any, value: Tensor) -> Tensor | None:
    """The sum of log densities in one pass, of the families that take most of the time; None of others."""
    while type(fn) is Independent:
        fn = fn.base_dist
    if type(fn) is Normal:
        each = torch.add(fn.scale.log(), ((value - fn.loc) / fn.scale).square(), alpha=0.5)
        return -each.sum() - each.numel() * HALF_LOG_2PI
    if type(fn) is Bernoulli:
        logits, value = torch.broadcast_tensors(fn.logits, value)  # type: ignore[no-untyped-call]
        return -binary_cross_entropy_with_logits(logits, value, reduction="sum")
    return None


def _total(each: Tensor, msg: Message) -> Tensor:
    total: Tensor = scale_and_mask(each, msg["scale"], msg["mask"]).sum()  # type: ignore[no-untyped-call]
    return total
