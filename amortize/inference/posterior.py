"""Draws from a guide, with their log densities.

Discrete latents that the model sums out are drawn from their exact conditional given the continuous ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from amortize.errors import check_count
from amortize.inference.enumeration import is_exact
from amortize.inference.starts import GuideStart, PriorStart, Start
from amortize.program.data import Data
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.random import check_seed, stream_seed

__all__ = ["posterior"]

MAX_ROWS = 2**15


def posterior(
    program: Program,
    x: Any,
    *,
    num_draws: int = 1000,
    discrete: str | None = None,
    seed: int = 0,
    device: str | None = None,
) -> dict[str, np.ndarray]:
    """Draw from the guide for each of N datapoints.

    Parameters
    ----------
    program, x
        The program, with a guide, and N datapoints.
    num_draws
        Draws a datapoint.
    discrete
        "enumerate" or "sample" treats discrete latents in another way than the program says.
    seed, device
        Of all draws, and where to run ("cpu", "cuda").

    Returns
    -------
    dict
        Latent sites in their own space, (draw, N, ...), and ``lp`` and ``log_q``, (draw, N) nats: the log joint and the
        guide's log density, both over the unconstrained u (and sampled discrete sites), so that ``lp - log_q`` is the
        log importance weight. Where every latent is discrete and summed out, draws are exact and need no guide.

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
    require_program(program)
    num_draws = check_count("num_draws", num_draws)
    seed = stream_seed(check_seed(seed), "posterior")
    data = program.prepare(x, device=device)
    num = data.num_datapoints
    parts: dict[str, list[np.ndarray]] = {}
    with program.evaluating(), program.treating(discrete):
        start = _start(program, data)
        log_joint = start.log_joint
        size = max(1, MAX_ROWS // (num * log_joint.num_tiles))
        for first in range(0, num_draws, size):
            count = min(size, num_draws - first)
            folded = data.fold(count)
            latents = start.draw(folded, seed, f"block-{first}")
            with torch.no_grad():
                log_q, ratio = start.terms(folded, *latents)
            u, choices = (value.reshape(count, num, value.shape[-1]) for value in latents)
            block = constrained(log_joint, data, u, choices, seed=stream_seed(seed, "sites", first))
            block |= {
                "lp": (log_q + ratio).reshape(count, num).cpu().numpy(),
                "log_q": log_q.reshape(count, num).cpu().numpy(),
            }
            for name, array in block.items():
                parts.setdefault(name, []).append(array)
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def _start(program: Program, data: Data) -> Start:
    """The guide; or nothing to draw from a density at all, where every latent is summed out."""
    log_joint = program.log_joint(data)
    if is_exact(log_joint):
        return PriorStart(log_joint)
    return GuideStart(program.guide_density(data))
