r"""Temperatures, step sizes and momentum persistence of a bridge as parameters that can be trained.

.. math:: \beta_t = \sum_{s \le t} \mathrm{softmax}(a)_s, \qquad h_{td} = e^{b_t + s_d}, \qquad
          \eta = \mathrm{sigmoid}(c)

All are unconstrained, so that no step of an optimiser leaves their range. Letters: K steps, D latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, check_number
from amortize.inference.bridge import KINDS, UNDERDAMPED, Steps

__all__ = ["LearnedSteps"]


class LearnedSteps(nn.Module):
    """What a bridge of one kind is made of, beside its score.

    Parameters
    ----------
    kind
        One of ``KINDS``; only those with a momentum have a persistence.
    num_steps
        K.
    step_size
        Of every step at first, in whitened coordinates.
    persistence
        Of the momentum at first, in (0, 1).
    betas
        (K + 1,) rising from 0 to 1, where the temperatures begin; None is evenly spaced.
    dim
        D, to let dimensions differ in their steps by factors of their own; None gives all the same.

    Raises
    ------
    ArgumentError
        For an unknown kind or a value out of range.

    Examples
    --------
    >>> LearnedSteps("ula", 4).forward().betas.tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    def __init__(
        self,
        kind: str,
        num_steps: int,
        *,
        step_size: float = 0.3,
        persistence: float = 0.8,
        betas: Tensor | None = None,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ArgumentError(f"kind: expected one of {KINDS}, got {kind!r}")
        num_steps = check_count("num_steps", num_steps)
        check_number("step_size", step_size)
        check_number("persistence", persistence, "(0, 1)")
        self.log_increments = nn.Parameter(_increments(betas, num_steps).log())
        self.log_step_sizes = nn.Parameter(torch.full((num_steps,), math.log(step_size)))
        self.log_widths = None if dim is None else nn.Parameter(torch.zeros(dim))
        self.logit_persistence: nn.Parameter | None = None
        if kind in UNDERDAMPED:
            self.logit_persistence = nn.Parameter(torch.tensor(math.log(persistence / (1 - persistence))))

    def forward(self, scale: Tensor | None = None) -> Steps:
        """The steps as they stand, with a whitening ``scale`` (N, D) or (N, D, D) put in."""
        inner = self.log_increments.softmax(0).cumsum(0)[:-1]
        betas = torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])
        persistence = None if self.logit_persistence is None else self.logit_persistence.sigmoid()
        log_sizes: Tensor = self.log_step_sizes
        if self.log_widths is not None:
            log_sizes = log_sizes.unsqueeze(-1) + self.log_widths
        return Steps(betas, log_sizes.exp(), persistence, scale)


def _increments(betas: Tensor | None, num_steps: int) -> Tensor:
    if betas is None:
        return torch.full((num_steps,), 1 / num_steps)
    steps = betas.diff()
    if betas.shape != (num_steps + 1,) or betas[0] != 0 or betas[-1] != 1 or not bool((steps > 0).all()):
        raise ArgumentError(f"betas: expected {num_steps + 1} numbers that rise from 0 to 1, got {betas.tolist()}")
    return steps
