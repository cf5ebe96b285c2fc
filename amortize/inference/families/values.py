"""What a density is worth: log p(x, u) - log q(u) at fresh draws, whose mean is its ELBO.

Letters: S draws, N datapoints, D latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortize.inference.families.density import Density
from amortize.inference.families.family import Problem
from amortize.random import generator

__all__ = ["values"]


@torch.no_grad()
def values(density: Density, problem: Problem, stream: str, *, num_draws: int = 512) -> Tensor:
    """Log p(x, u) - log q(u) at ``num_draws`` draws of a stream of their own, rounded up to full sets: (S, N) nats."""
    gen = generator(problem.seed, "values", stream, device=problem.data.index.device)
    num, size = problem.data.num_datapoints, problem.num_draws
    parts = []
    for _ in range(-(-num_draws // size)):
        u, log_q = density.draw_scored(size, gen)
        (log_p,) = problem.compiled_value(u.flatten(0, 1))
        parts.append(log_p.reshape(size, num) - log_q)
    return torch.cat(parts)
