"""Draws that people look at: from the prior through the model, and reconstructions through the guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.distributions import Unit
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.program.data import Data
from amortize.program.density import Latents
from amortize.program.handlers import Record, data_dim, unvalidated
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import LogJoint
    from amortize.program.guide import GuideDensity
    from amortize.program.program import Program

__all__ = ["constrained", "reconstruct", "simulate", "to_front"]

MAX_ROWS = 2**15


def to_front(value: Tensor, msg: Mapping[str, Any], plate: str) -> np.ndarray:
    """A site's value with the data axis moved to the front, as numpy."""
    dim = data_dim(msg, plate)
    if dim is None:  # all the data are one datapoint
        value, axis = value.unsqueeze(0), 0
    else:
        axis = value.dim() - len(msg["fn"].event_shape) + dim
    result: np.ndarray = value.movedim(axis, 0).detach().cpu().numpy()
    return result


def simulate(program: Program, data: Data, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw every latent and every observation of the model, shaped like ``data``."""
    structure = program.structure(data)
    record = Record()
    with pyro_rng(seed, "simulate"), unvalidated(), torch.no_grad(), record:
        program.model.unobserved(*data.args, **data.kwargs)
    wanted = {name for name, msg in record.messages.items() if not isinstance(msg["fn"], Unit)}
    wanted &= {*structure.sites, *structure.observed}
    arrays = {
        name: to_front(msg["value"], msg, structure.plate) for name, msg in record.messages.items() if name in wanted
    }
    latents = {name: array for name, array in arrays.items() if name in structure.sites}
    observed = {name: array for name, array in arrays.items() if name in structure.observed}
    return latents, observed


def reconstruct(guide: GuideDensity, data: Data, *, num_draws: int, seed: int) -> dict[str, np.ndarray]:
    """Mean of each observed site's distribution, averaged over draws of the guide.

    Sites whose distribution has no mean in closed form are left out.
    """
    if num_draws < 1:
        raise ArgumentError(f"num_draws: expected at least 1, got {num_draws}")
    totals: dict[str, np.ndarray] = {}
    log_joint = guide.log_joint
    plate = log_joint.structure.plate
    with pyro_rng(seed, "reconstruct"):
        for _ in range(num_draws):
            values = guide.sample(data)[0]
            values |= log_joint.draw_enumerated(data, log_joint.unconstrain(data, values)[0])
            messages = log_joint.messages(data, values)
            for name in log_joint.structure.observed:
                mean = _mean(messages[name])
                if mean is not None:
                    totals[name] = totals.get(name, 0.0) + to_front(mean, messages[name], plate) / num_draws
    return totals


def constrained(
    log_joint: LogJoint, data: Data, u: Tensor, choices: Tensor | None = None, *, seed: int
) -> dict[str, np.ndarray]:
    """Latent sites in their own space at u (S, N, D) and choices (S, N, M): arrays (S, N, ...).

    Discrete sites that are summed out are drawn from their exact conditional given the rest.
    """
    num = data.num_datapoints
    size = max(1, MAX_ROWS // (num * log_joint.num_tiles))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in log_joint.structure.sites}
    for first in range(0, len(u), size):
        block = slice(first, first + size)
        count = len(u[block])
        picked = torch.zeros(count, num, 0, dtype=torch.long) if choices is None else choices[block]
        latents = Latents(u[block].to(log_joint.like).flatten(0, 1), picked.to(log_joint.like.device).flatten(0, 1))
        folded = data.fold(count)
        with torch.no_grad(), pyro_rng(seed, "enumerated", first):
            values = log_joint.terms(folded, u=latents.u, choices=latents.choices).values
            values |= log_joint.draw_enumerated(folded, latents)
        for name, site in log_joint.structure.sites.items():
            array = values[name].movedim(site.front, 0).cpu().numpy()
            parts[name].append(array.reshape(count, num, *site.shape))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def _mean(msg: Mapping[str, Any]) -> Tensor | None:
    try:
        mean: Tensor = msg["fn"].mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if bool(torch.isfinite(mean).all()) and mean.shape == msg["value"].shape else None
