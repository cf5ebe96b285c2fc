r"""Whether a datapoint's posterior has several modes: ascents from draws of prior and guide, and the way between them.

Ends u and v of two ascents are different modes if every way from one to the other dips: the log joint on the straight
line, and its maxima over the planes across the line at a quarter, a half and three quarters of it,

.. math:: \min_t \max_{w \perp v - u} \log p(x, u + t (v - u) + w) < \min(\log p(x, u), \log p(x, v)) - \text{DIP},

so that a ridge that is bent, or a ring, is one. A mode counts if it is within `LEVEL` nats of the highest. Letters: M
ends, n datapoints, D latents.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from amortize.inference.families.family import Problem
from amortize.inference.starts import GuideStart, PriorStart
from amortize.program.data import Data
from amortize.program.density import LogJoint
from amortize.program.points import has_density
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
ACROSS = (0.25, 0.5, 0.75)
"""Where on the line the planes across it stand."""


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
        scale = starts.flatten(0, 1).std(0).nan_to_num(1.0).clamp(min=1e-6)
        return float(_has_several(problem, _ascended(problem, starts, scale), scale).double().mean())


def _starts(program: Program, log_joint: LogJoint, data: Data, seed: int) -> Tensor:
    """Draws to begin at, (M, n, D): of the prior, and of the guide where it has a density."""
    sources: list[PriorStart | GuideStart] = [PriorStart(log_joint)]
    if has_density(program, data):
        sources.append(GuideStart(program.guide_density(data)))
    count = NUM_STARTS // len(sources)
    folded = data.fold(count)
    draws = [source.draw(folded, stream_seed(seed, "modes"), source.name).u for source in sources]
    return torch.cat([u.reshape(count, data.num_datapoints, -1) for u in draws])


def _ascended(problem: Problem, starts: Tensor, scale: Tensor, across: Tensor | None = None) -> Tensor:
    """Where ascents end, (M, n, D); moves keep to the plane across the directions ``across`` (M, n, D), if given."""
    begin = (starts / scale).flatten(0, 1)
    white = begin.clone()
    unit = None if across is None else torch.nn.functional.normalize((across / scale).flatten(0, 1), dim=-1)
    optimiser = torch.optim.Adam([white], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, NUM_STEPS, eta_min=0.01 * RATE)
    for _ in range(NUM_STEPS):
        slope = problem.compiled(white * scale)[1]
        white.grad = -(slope * scale).nan_to_num(0.0, 0.0, 0.0)
        optimiser.step()
        schedule.step()
        if unit is not None:  # Adam's own scaling leaves the plane
            white.sub_(unit * ((white - begin) * unit).sum(-1, keepdim=True))
    return (white * scale).reshape(starts.shape)


def _has_several(problem: Problem, ends: Tensor, scale: Tensor) -> Tensor:
    """Whether a mode that counts lies beyond a dip from the highest, (n,) bool."""
    height = _heights(problem, ends)
    rows = torch.arange(ends.shape[1], device=ends.device)
    best = ends[height.argmax(0), rows]
    floor = torch.minimum(height, height.amax(0)) - DIP
    apart = torch.stack([_on_the_line(problem, best, end) for end in ends]) < floor
    apart &= height > height.amax(0) - LEVEL
    flagged = apart.any(0).nonzero().flatten()
    if not len(flagged):
        return apart.any(0)
    some, beyond = replace(problem.rows(flagged), num_draws=len(ends)), ends[:, flagged] - best[flagged]
    peaks = [_ascended(some, best[flagged] + share * beyond, scale, across=beyond) for share in ACROSS]
    crossed = torch.stack([_heights(some, peak) for peak in peaks]).amin(0)
    apart[:, flagged] &= crossed < floor[:, flagged]
    return apart.any(0)


def _on_the_line(problem: Problem, best: Tensor, end: Tensor) -> Tensor:
    """The lowest log joint on the straight line, (n,)."""
    share = torch.linspace(0, 1, ON_A_LINE, dtype=end.dtype, device=end.device)[1:-1]
    return _heights(problem, best + share[:, None, None] * (end - best)).amin(0)


@torch.no_grad()
def _heights(problem: Problem, u: Tensor) -> Tensor:
    """Log joint at u (M, n, D): (M, n) nats, -inf where it is not a number."""
    joint = problem.log_joint.terms(problem.data.fold(len(u)), u=u.flatten(0, 1)).joint
    return joint.reshape(u.shape[:2]).nan_to_num(-torch.inf, torch.inf, -torch.inf)
