"""Guides that are points: a Delta in place of a distribution, as a deterministic autoencoder has it.

Such a guide can be trained and its codes looked at, but it has no density over u: no ELBO, no importance weights, and
no draws to start an annealing from. A guide that is sure of a discrete latent has a density, and no draws but one.
Letters: N datapoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import Bernoulli, Categorical, Delta, OneHotCategorical

from amortize.errors import NotIndependentError
from amortize.program.data import Data
from amortize.program.discover import run_recorded
from amortize.program.explain import explained
from amortize.program.guide import TracedGuide
from amortize.program.handlers import base_of
from amortize.program.probes import head_of
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["has_density", "is_point", "point_sites", "sure_sites", "verify_point_rows"]


def is_point(msg: Mapping[str, Any]) -> bool:
    """Whether a site is a Delta, under ``to_event`` and masks."""
    return isinstance(base_of(msg["fn"]), Delta)


def point_sites(program: Program, data: Data) -> tuple[str, ...]:
    """Names of the latents at which an amortized guide is a point; one run of it on a few datapoints."""
    if program.guide is None or program.guide.per_datapoint or program.bound is not None or program.whole:
        return ()
    with program.evaluating(), explained("the guide", data):
        messages = run_recorded(program.guide, head_of(data))
    latents = program.structure(data).sites
    return tuple(name for name, msg in messages.items() if name in latents and is_point(msg))


def sure_sites(program: Program, data: Data) -> tuple[str, ...]:
    """Names of the discrete latents, of those that are sampled, of which the guide gives one value all probability.

    Draws of such a guide never find another value: importance weights and annealing from it give log p(x, z) at that
    one, which is below log p(x) by as much as the posterior leaves to the others, and no spread that would tell.
    """
    sampled = program.structure(data).sampled
    if program.guide is None or program.bound is not None or program.whole or not sampled:
        return ()
    with program.evaluating(), explained("the guide", data):
        messages = run_recorded(program.guide, head_of(data))
    return tuple(name for name in sampled if name in messages and _is_sure(messages[name]))


def _is_sure(msg: Mapping[str, Any]) -> bool:
    fn = base_of(msg["fn"])
    if isinstance(fn, Bernoulli):
        return bool(((fn.probs == 0) | (fn.probs == 1)).all())
    return isinstance(fn, (Categorical, OneHotCategorical)) and bool((fn.probs.amax(-1) == 1).all())


def has_density(program: Program, data: Data) -> bool:
    """Whether there is a guide, and it is a distribution at every latent."""
    return program.guide is not None and not point_sites(program, data)


def verify_point_rows(guide: TracedGuide, head: Data) -> str:
    """The codes of a datapoint are the same permuted, and alone.

    Raises
    ------
    NotIndependentError
        If a datapoint's code depends on the rest of the batch, or on chance.
    """
    order = torch.arange(head.num_datapoints, device=head.index.device).flip(0)
    tolerance = 1e-3 if guide.log_joint.like.dtype == torch.float32 else 1e-7
    with pyro_rng(0, "verify-guide"), torch.no_grad():
        together, _ = guide.sample(head)
        tries = [(order, guide.sample(head.rows(order))[0])]
        rows = (order.new_tensor([row]) for row in range(head.num_datapoints))
        tries += [(row, guide.sample(head.rows(row))[0]) for row in rows]
    for index, found in tries:
        expected = guide.rows_of(together, index)
        for name, value in found.items():
            if not torch.allclose(value, expected[name], rtol=tolerance, atol=tolerance, equal_nan=True):
                raise NotIndependentError(
                    f"guide site {name!r} puts a datapoint elsewhere when the batch is permuted or it is alone. The "
                    "guide's rows must be independent, and a point without chance in eval mode: draw noise only where "
                    "module.training is True, and take no statistics of the batch"
                )
    return f"codes permuted, alone: the same on {head.num_datapoints} datapoints"
