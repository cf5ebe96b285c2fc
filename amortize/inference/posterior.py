"""Draws from a guide, with their log densities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from amortize.errors import check_count
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.random import check_seed, pyro_rng, stream_seed

__all__ = ["posterior"]

MAX_ROWS = 2**15


def posterior(
    program: Program, x: Any, *, num_draws: int = 1000, seed: int = 0, device: str | None = None
) -> dict[str, np.ndarray]:
    """Draw from the guide for each of N datapoints.

    Returns
    -------
    dict
        Latent sites in their own space, (draw, N, ...), and ``lp`` and ``log_q``, (draw, N) nats: the log joint and the
        guide's log density, both over the unconstrained u, so that ``lp - log_q`` is the log importance weight.

    Raises
    ------
    ContractError
        Where the program breaks the contract or has no guide.

    Examples
    --------
    >>> import torch, amortize as am
    >>> program = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0).program()
    >>> draws = am.posterior(program, torch.zeros(3, 4), num_draws=10)
    >>> draws["z"].shape, draws["lp"].shape
    ((10, 3, 2), (10, 3))
    """
    num_draws = check_count("num_draws", num_draws)
    seed = stream_seed(check_seed(seed), "posterior")
    data = program.prepare(x, device=device)
    num = data.num_datapoints
    size = max(1, MAX_ROWS // num)
    parts: dict[str, list[np.ndarray]] = {}
    with program.evaluating():
        guide = program.guide_density(data)
        for first in range(0, num_draws, size):
            count = min(size, num_draws - first)
            with pyro_rng(seed, "block", first), torch.no_grad():
                u, log_p, log_q = guide.draw(data.fold(count))
            block = constrained(guide.log_joint, data, u.reshape(count, num, -1))
            block |= {
                "lp": log_p.reshape(count, num).cpu().numpy(),
                "log_q": log_q.reshape(count, num).cpu().numpy(),
            }
            for name, array in block.items():
                parts.setdefault(name, []).append(array)
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}
