"""Pyro's No-U-Turn sampler on one datapoint at a time: slow, and someone else's code, hence a second opinion.

Chains begin where a pool of chains by Hamiltonian Monte Carlo found places farthest apart (see ``long_hmc``): begun at
draws of the prior, four chains may well all be in one of two modes, agree, and be wrong. Each then adapts its own step
size and mass matrix in its warm-up (Hoffman and Gelman 2014, "The No-U-Turn sampler").
The log joint and its gradient come from a compiled graph.

Letters: C chains, S draws, N datapoints, D latents.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference.chunks import slices
from amortize.inference.long_hmc import Budget, LongRun, explored, target_of
from amortize.inference.method import MAX_ROWS
from amortize.inference.path import GeometricPath
from amortize.inference.starts import Start
from amortize.program.data import Data
from amortize.random import generator, pyro_rng

__all__ = ["one_nuts"]

DENSE_DIM = 64
"""Most latents for which the mass matrix is a full one."""
USUAL_LENGTH = 8  # gradients a transition, for the choice of how to compile


def one_nuts(start: Start, data: Data, budget: Budget, *, seed: int) -> LongRun:
    """Draws from the posterior of each of the N datapoints of ``data``, chain by chain.

    ``acceptance`` is the share of transitions that moved, and no chain jumps.
    """
    pool = explored(start, data, budget, generator(seed, "nuts-pool", device=data.index.device), seed=seed)
    num, chains = data.num_datapoints, []
    calls = (budget.num_warmup + budget.num_draws) * budget.num_chains * USUAL_LENGTH
    with tqdm(total=num * budget.num_chains, desc="NUTS", unit="chain", leave=False, disable=None) as bar:
        for n in range(num):
            index = slice(n, n + 1)
            density = _Density(target_of(start.rows(index), data.rows(index), seed, num_calls=calls))
            for c in range(budget.num_chains):
                with pyro_rng(seed, "nuts", n, c):
                    chains.append(_chain(density, pool.begin[c, n], budget))
                bar.update()
    u = torch.stack([chain.u for chain in chains]).reshape(num, budget.num_chains, *chains[0].u.shape)
    u = u.permute(1, 2, 0, 3)
    table = torch.tensor([chain[1:] for chain in chains], dtype=u.dtype, device=u.device)
    diverged, moved, size, gradients = table.reshape(num, budget.num_chains, -1).unbind(-1)
    return LongRun(
        u,
        _values(start, data, u),
        diverged.sum(1),
        moved.mean(1),
        torch.zeros_like(size[:, 0]),
        size.mean(1),
        gradients.sum(1) + pool.num_gradients,
    )


class _Chain(NamedTuple):
    """Draws ``u`` (S, D) of one chain, and numbers of it."""

    u: Tensor
    num_diverged: float
    share_moved: float
    step_size: float
    num_gradients: float


@torch.no_grad()
def _values(start: Start, data: Data, u: Tensor) -> Tensor:
    """Log p(x, u) (C, S, N) of u (C, S, N, D)."""
    rows = u.flatten(0, 1)
    parts = [
        start.log_joint.terms(data.fold(len(rows[block])), u=rows[block].flatten(0, 1)).joint
        for block in slices(len(rows), max(1, MAX_ROWS // (data.num_datapoints * start.log_joint.num_tiles)))
    ]
    return torch.cat(parts).reshape(u.shape[:-1])


class _Density:
    """Minus log p(x, u) as a differentiable function of a dict, from value and gradient; counts its calls."""

    def __init__(self, target: GeometricPath) -> None:
        self.target, self.num_calls = target, 0

    def __call__(self, latents: dict[str, Tensor]) -> Tensor:
        """The potential, a scalar."""
        self.num_calls += 1
        value: Tensor = _Potential.apply(latents["u"], self.target)  # type: ignore[no-untyped-call]
        return value


class _Potential(torch.autograd.Function):
    """The gradient comes with the value, so that there is nothing to go back through."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, target: GeometricPath) -> Tensor:
        point = target.evaluate(u.detach().unsqueeze(0))
        ctx.save_for_backward(point.base_gradient[0])
        return -point.base[0]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return -outer * slope, None


def _chain(density: _Density, begin: Tensor, budget: Budget) -> _Chain:
    """One chain of one datapoint; NaN where the density is not finite where it begins."""
    density.num_calls = 0
    if not bool(torch.isfinite(density({"u": begin}))):
        nowhere = begin.new_full((budget.num_draws, *begin.shape), math.nan)
        return _Chain(nowhere, 0.0, math.nan, math.nan, float(density.num_calls))
    told: dict[str, Any] = {}

    def look(kernel: Any, samples: Any, stage: str, step: int) -> None:  # noqa: ARG001 (Pyro's signature)
        if stage == "Sample":  # the sampler clears its kernel at the end
            told.update(kernel.diagnostics(), step_size=kernel.step_size)

    make_kernel: Any = NUTS  # Pyro's samplers are not typed
    make_sampler: Any = MCMC
    kernel = make_kernel(
        potential_fn=density, target_accept_prob=budget.target_acceptance, full_mass=len(begin) <= DENSE_DIM
    )
    sampler = make_sampler(
        kernel,
        num_samples=budget.num_draws,
        warmup_steps=budget.num_warmup,
        initial_params={"u": begin},
        hook_fn=look,
        disable_progbar=True,
    )
    with _quiet():
        sampler.run()
    draws = sampler.get_samples()["u"].reshape(budget.num_draws, -1)
    return _Chain(
        draws,
        float(len(told["divergences"])),
        float(told["acceptance rate"]),
        float(told["step_size"]),
        float(density.num_calls),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pyro's own log lines."""
    logger = logging.getLogger("pyro")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
