"""Approximate draws of the posterior on real data, for runs in reverse: a user's, or the last states of a long AIS run.

Letters: K draws, C chains, N datapoints, D continuous latents, M sampled discrete variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.inference.ais import AIS, run_ais
from amortize.inference.pilot import run_pilot
from amortize.inference.starts import Start
from amortize.program.data import Data
from amortize.program.density import Latents, LogJoint
from amortize.random import generator, pyro_rng, stream_seed

__all__ = ["annealed_draws", "as_latents"]


def as_latents(log_joint: LogJoint, data: Data, draws: Mapping[str, Any], *, seed: int) -> Latents:
    """Latents of a user's draws, K * N rows (draw-major): arrays (K, N, ...) by latent site, in the site's own space.

    Raises
    ------
    ArgumentError
        If a site is missing or has another shape, or draws lie outside their support.
    """
    structure, num = log_joint.structure, data.num_datapoints
    needed = [name for name in structure.sites if name not in structure.enumerated]
    missing = [name for name in needed if name not in draws]
    if missing:
        raise ArgumentError(
            f"posterior_draws: expected draws of every latent site, {', '.join(missing)} missing (got {sorted(draws)})"
        )
    values, counts = {}, set()
    for name in needed:
        site, value = structure.sites[name], _as_tensor(name, draws[name])
        if value.shape[1:] != (num, *site.shape) or not len(value):
            raise ArgumentError(
                f"posterior_draws: expected {name!r} of shape (draws, {', '.join(map(str, (num, *site.shape)))}), got "
                f"{tuple(value.shape)}"
            )
        counts.add(len(value))
        value = value.to(log_joint.like.device if site.discrete else log_joint.like)
        values[name] = value.flatten(0, 1).movedim(0, site.front)
    if len(counts) > 1:
        raise ArgumentError(f"posterior_draws: expected as many draws of each site, got {sorted(counts)}")
    with torch.no_grad(), pyro_rng(seed, "stand-in"):
        latents = log_joint.unconstrain(data.fold(counts.pop()), values, redraw=structure.hidden)[0]
    if not bool(torch.isfinite(latents.u).all()):
        raise ArgumentError("posterior_draws: some lie outside the support of their site, or on its border")
    return latents


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        got = type(value).__name__
        raise ArgumentError(f"posterior_draws: expected an array of numbers for {name!r}, got {got}") from error


def annealed_draws(start: Start, data: Data, settings: AIS, *, seed: int) -> Latents:
    """Last states of an AIS run, C of each datapoint drawn with replacement by their weights: C * N rows."""
    seed = stream_seed(seed, "posterior draws")
    plan = run_pilot(start, data, settings.budget, seed=seed)
    run = run_ais(start, data, settings, plan=plan, seed=seed)
    weights = (run.log_weights.double() - run.log_weights.double().amax(0)).exp().nan_to_num()
    gen = generator(seed, "resample", device=weights.device)
    picked = torch.multinomial(weights.T, len(weights), replacement=True, generator=gen).T  # (C, N)

    def drawn(value: Tensor) -> Tensor:
        rows = value.reshape(*weights.shape, value.shape[-1])
        index = picked.unsqueeze(-1).expand(rows.shape)
        return rows.gather(0, index).flatten(0, 1)

    return Latents(drawn(run.state.u), drawn(run.choices))
