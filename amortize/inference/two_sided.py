r"""Runs of a method from both of its ends: forward from the start, and in reverse from draws of the posterior.

Forward weights have :math:`E[w] = p(x)`, so that :math:`E[\log \tfrac1C \sum_c w_c] \le \log p(x)`. In reverse, from
exact draws, :math:`E[1/w] = 1/p(x)`, and :math:`E[-\log \tfrac1C \sum_c 1/w_c] \ge \log p(x)` (Grosse, Ghahramani and
Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", https://arxiv.org/abs/1511.02543).
Both runs are made by one plan, frozen after a pilot run.

For importance sampling of S draws, one is the posterior's and S - 1 are the start's: their mean weight, too, has
:math:`E[1 / \bar w] = 1/p(x)`, and comes to log p(x) as S grows (the extended target of Andrieu, Doucet and Holenstein
2010, "Particle Markov chain Monte Carlo methods", section 4).

Letters: C chains (or draws), N datapoints, K draws of the posterior for each.
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortize.diagnostics.weights import log_evidence_se, log_mean_exp
from amortize.errors import ArgumentError, shown
from amortize.inference.ais import AIS
from amortize.inference.annealing import Plan, anneal, make_movers
from amortize.inference.auto import Auto
from amortize.inference.enumeration import exact_log_evidence
from amortize.inference.importance import ImportanceSampling, log_ratios
from amortize.inference.langevin import Langevin, plan_langevin
from amortize.inference.method import Method
from amortize.inference.pilot import run_pilot
from amortize.inference.smc import SMC
from amortize.inference.starts import Start
from amortize.program.data import Data
from amortize.program.density import Latents
from amortize.random import generator

__all__ = ["BothSides", "both_sides", "exact_sides", "has_reverse", "join_sides", "require_reverse"]


class BothSides(NamedTuple):
    """Forward log weights (C, N), and those of reversed runs (C, N) as the same paths have them forward; numpy, nats.

    For importance sampling ``reverse`` (K, N) holds log mean weights with one draw of the posterior among them.
    ``upper_se`` (N,) is the standard error of the upper side over chains (or draws) that share a draw of the posterior,
    ``acceptance`` (2, N) the mean acceptance of each run, NaN where there are no proposals.
    """

    forward: np.ndarray
    reverse: np.ndarray
    upper_se: np.ndarray
    acceptance: np.ndarray

    @property
    def lower(self) -> np.ndarray:
        """(N,) log mean exp of the forward weights, a lower bound in expectation."""
        return log_mean_exp(self.forward)

    @property
    def lower_se(self) -> np.ndarray:
        """(N,) its standard error over chains."""
        return log_evidence_se(self.forward)

    @property
    def upper(self) -> np.ndarray:
        """(N,) minus the log mean exp of minus the reverse weights; from exact draws an upper bound in expectation."""
        return -log_mean_exp(-self.reverse)


@singledispatch
def both_sides(method: Method, start: Start, data: Data, draws: Latents, *, seed: int) -> BothSides:  # noqa: ARG001
    """Run ``method`` from both ends.

    Parameters
    ----------
    method
        Its settings.
    start, data
        Where it starts, and N datapoints.
    draws
        K draws of each datapoint's posterior, K * N rows (draw-major).
    seed
        Of all streams.

    Raises
    ------
    ArgumentError
        For a method that has no run in reverse.
    """
    raise ArgumentError(_no_reverse(method))


def exact_sides(start: Start, data: Data) -> BothSides:
    """With discrete latents alone, all summed out, both sides are log p(x) itself."""
    both = np.stack([exact_log_evidence(start.log_joint, data)] * 2)
    return BothSides(both, both, np.zeros(both.shape[1]), np.full(both.shape, np.nan))


def join_sides(parts: list[BothSides], num: int) -> BothSides:
    """Chunks of datapoints in order, NaN for those of ``num`` that are missing."""
    missing = num - sum(len(part.upper_se) for part in parts)
    tables = [np.concatenate(tables, -1) for tables in zip(*parts, strict=True)]
    width = [[(0, 0)] * (table.ndim - 1) + [(0, missing)] for table in tables]
    return BothSides(*(np.pad(table, pad, constant_values=np.nan) for table, pad in zip(tables, width, strict=True)))


def has_reverse(method: object) -> bool:
    """Whether a method can be run from both ends."""
    return both_sides.dispatch(type(method)) is not both_sides.dispatch(object)


def require_reverse(method: object) -> None:
    """See that a method can be run from both ends.

    Raises
    ------
    ArgumentError
        Otherwise.
    """
    if not has_reverse(method):
        raise ArgumentError(_no_reverse(method))


def _no_reverse(method: object) -> str:
    why = ". It has no run in reverse; am.AIS has one with any kernel" if isinstance(method, Method) else ""
    if isinstance(method, (SMC, Auto)):
        why = ". A run that resamples or searches has no reversal of known weight; am.AIS with the same kernel has"
    return f"method: expected am.AIS(...), am.Langevin(...) or am.ImportanceSampling(...), got {shown(method)}{why}"


@both_sides.register
def _(method: AIS, start: Start, data: Data, draws: Latents, *, seed: int) -> BothSides:
    return _annealed(method, start, data, draws, run_pilot(start, data, method.budget, seed=seed), seed)


@both_sides.register
def _(method: Langevin, start: Start, data: Data, draws: Latents, *, seed: int) -> BothSides:
    return _annealed(method.annealing, start, data, draws, plan_langevin(start, data, method, seed=seed)[0], seed)


@both_sides.register
def _(method: ImportanceSampling, start: Start, data: Data, draws: Latents, *, seed: int) -> BothSides:
    forward = log_ratios(start, data, method.num_draws, seed=seed, stream="draws")
    num = data.num_datapoints
    with torch.no_grad():
        exact = start.terms(data.fold(len(draws.u) // num), *draws)[1].reshape(-1, num).double().cpu().numpy()
    others = np.broadcast_to(forward[None, 1:], (len(exact), *forward[1:].shape))
    mixed = np.concatenate([exact[:, None], others], 1)  # (K, S, N): the first of S draws is the posterior's
    reverse = np.stack([log_mean_exp(log_weights) for log_weights in mixed])
    errors = np.stack([log_evidence_se(log_weights) for log_weights in mixed])
    return BothSides(forward, reverse, np.sqrt(np.square(errors).mean(0)), np.full((2, num), np.nan))


def _annealed(settings: AIS, start: Start, data: Data, draws: Latents, plan: Plan, seed: int) -> BothSides:
    """Forward exactly as ``am.evidence`` runs it, and in reverse by the same plan, with noise of its own."""
    chains, num = settings.num_chains, data.num_datapoints
    folded = data.fold(chains)
    calls = (2 * settings.num_calls[0], 2 * settings.num_calls[1])
    movers = make_movers(start, folded, settings.kernel, seed=seed, backend=settings.backend, num_calls=calls)
    latents = start.draw(folded, seed, "chains")
    device = latents.u.device
    forward = anneal(movers, latents, plan, generator(seed, "chains", "noise", device=device))
    ends = Latents(*(_one_a_chain(value, chains, num) for value in draws))
    reverse = anneal(movers, ends, plan, generator(seed, "reverse", "noise", device=device), reverse=True)
    acceptance = torch.stack([forward.acceptance.double().mean(0), reverse.acceptance.double().mean(0)])
    there, back = (run.log_weights.double().cpu().numpy() for run in (forward, reverse))
    return BothSides(there, back, log_evidence_se(-back), acceptance.cpu().numpy())


def _one_a_chain(value: Tensor, chains: int, num: int) -> Tensor:
    """Rows (K * N, ...) as chains * N rows: evenly spaced draws where there are more than chains, else in turn."""
    count = len(value) // num
    turns = torch.arange(chains, device=value.device)
    picked = turns * count // chains if count > chains else turns % count
    return value.reshape(count, num, *value.shape[1:])[picked].flatten(0, 1)
