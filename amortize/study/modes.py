r"""Whether a datapoint's posterior has several modes: ascents from draws of prior and guide, and the way between them.

Two ends u and v of ascents are different modes if the log joint dips between them,

.. math:: \min_{0 < t < 1} \log p(x, u + t (v - u)) < \min(\log p(x, u), \log p(x, v)) - \text{DIP},

on the straight line; a mode counts if it is within `LEVEL` nats of the highest. A curved ridge, such as a ring, dips
too: it is called multimodal, and what helps there is the same. Letters: M starts, n datapoints, D latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortize.inference.families.family import Problem
from amortize.inference.starts import GuideStart, PriorStart
from amortize.program.data import Data
from amortize.program.density import LogJoint
from amortize.program.program import Program
from amortize.random import stream_seed

__all__ = ["share_multimodal"]

MOST_DATAPOINTS = 64
NUM_STARTS = 16
NUM_STEPS = 300
RATE = 0.1
"""First step of an ascent, as a share of the prior's scale."""
DIP = 1.0
"""Nats that the log joint must dip between two modes."""
LEVEL = 3.0
"""Nats below the highest mode at which another still counts."""
ON_A_LINE = 33


def share_multimodal(program: Program, data: Data, *, seed: int) -> float:
    """Share of the datapoints (of at most `MOST_DATAPOINTS`, evenly spaced) whose posterior has more than one mode.

    NaN where there are no continuous latents, or discrete ones that are drawn.
    """
    structure = program.structure(data)
    if not structure.dim or structure.sampled:
        return math.nan
    num = min(data.num_datapoints, MOST_DATAPOINTS)
    picked = data.rows(torch.linspace(0, data.num_datapoints - 1, num).long().to(data.index.device))
    with program.evaluating():
        log_joint = program.log_joint(picked)
        starts = _starts(program, log_joint, picked, seed)
        problem = Problem(log_joint, PriorStart(log_joint), picked, len(starts), NUM_STEPS, seed)
        ends, height = _ascended(problem, starts)
        return float(_has_several(log_joint, picked, ends, height).double().mean())


def _starts(program: Program, log_joint: LogJoint, data: Data, seed: int) -> Tensor:
    """Draws to begin at, (M, n, D): of the prior, and of the guide where there is one."""
    sources: list[PriorStart | GuideStart] = [PriorStart(log_joint)]
    if program.guide is not None:
        sources.append(GuideStart(program.guide_density(data)))
    count = NUM_STARTS // len(sources)
    folded = data.fold(count)
    draws = [source.draw(folded, stream_seed(seed, "modes"), source.name).u for source in sources]
    return torch.cat([u.reshape(count, data.num_datapoints, -1) for u in draws])


def _ascended(problem: Problem, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Where ascents end, (M, n, D), and the log joint there (M, n); -inf where an ascent was lost."""
    scale = starts.flatten(0, 1).std(0).nan_to_num(1.0).clamp(min=1e-6)
    white = (starts / scale).flatten(0, 1)
    optimiser = torch.optim.Adam([white], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, NUM_STEPS, eta_min=0.01 * RATE)
    for _ in range(NUM_STEPS):
        slope = problem.compiled(white * scale)[1]
        white.grad = -(slope * scale).nan_to_num(0.0, 0.0, 0.0)
        optimiser.step()
        schedule.step()
    ends = (white * scale).reshape(starts.shape)
    return ends, _heights(problem.log_joint, problem.data, ends)


def _has_several(log_joint: LogJoint, data: Data, ends: Tensor, height: Tensor) -> Tensor:
    """Whether a mode that counts lies beyond a dip from the highest, (n,) bool."""
    top = height.argmax(0)
    rows = torch.arange(ends.shape[1], device=ends.device)
    best, best_height = ends[top, rows], height[top, rows]
    share = torch.linspace(0, 1, ON_A_LINE, dtype=ends.dtype, device=ends.device)[1:-1]
    several = torch.zeros_like(best_height, dtype=torch.bool)
    for end, level in zip(ends, height, strict=True):  # one end at a time: a line is many points
        line = best + share[:, None, None] * (end - best)
        lowest = _heights(log_joint, data, line).amin(0)
        several |= (lowest < torch.minimum(level, best_height) - DIP) & (level > best_height - LEVEL)
    return several


@torch.no_grad()
def _heights(log_joint: LogJoint, data: Data, u: Tensor) -> Tensor:
    """Log joint at u (M, n, D): (M, n) nats, -inf where it is not a number."""
    joint = log_joint.terms(data.fold(len(u)), u=u.flatten(0, 1)).joint
    return joint.reshape(u.shape[:2]).nan_to_num(-torch.inf, torch.inf, -torch.inf)
