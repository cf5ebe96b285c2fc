r"""Temperature schedules: inverse temperatures from 0 to 1.

The pilot schedule spends equal thermodynamic length on each step: with :math:`\sigma(\beta)` the standard deviation of
the log ratio at :math:`\beta`, the steps are quantiles of :math:`\int_0^\beta \sigma` (Gelman & Meng 1998, "Simulating
normalizing constants", section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["FIXED", "equal_length", "equal_length_each", "interpolate", "linear", "power", "sigmoid", "smooth"]

FLOOR = 0.1  # share of the mean speed that every temperature keeps, so that no step grows without bound
POWER = 3.0
STEEPNESS = 4.0


def linear(num_temperatures: int) -> Tensor:
    """Evenly spaced inverse temperatures, (T + 1,) float64."""
    return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)


def power(num_temperatures: int) -> Tensor:
    """(t / T)^3, crowded near the start (Friel and Pettitt 2008, section 3), (T + 1,) float64."""
    return linear(num_temperatures) ** POWER


def sigmoid(num_temperatures: int) -> Tensor:
    """Crowded at both ends: a logistic curve between -4 and 4, rescaled (Wu et al. 2017), (T + 1,) float64."""
    curve = torch.sigmoid(STEEPNESS * (2 * linear(num_temperatures) - 1))
    schedule: Tensor = (curve - curve[0]) / (curve[-1] - curve[0])
    return schedule


FIXED: dict[str, Callable[[int], Tensor]] = {"linear": linear, "power": power, "sigmoid": sigmoid}
"""Schedules that need no pilot run."""


def equal_length(betas: Tensor, spread: Tensor, num_temperatures: int) -> Tensor:
    """Inverse temperatures with equal thermodynamic length between neighbours.

    Parameters
    ----------
    betas
        (P + 1,) inverse temperatures of the pilot run.
    spread
        (P + 1,) standard deviation of the log ratio at each of them.
    num_temperatures
        T, number of steps asked for.

    Returns
    -------
    Tensor
        (T + 1,) float64 from 0 to 1.
    """
    speed = np.nan_to_num(spread.double().cpu().numpy(), nan=0.0, posinf=0.0)
    at = betas.double().cpu().numpy()
    if speed.max() <= 0:
        return linear(num_temperatures)
    speed = speed + FLOOR * speed.mean()
    length = np.concatenate([[0.0], np.cumsum(0.5 * (speed[1:] + speed[:-1]) * np.diff(at))])
    wanted = np.linspace(0, length[-1], num_temperatures + 1)
    schedule = np.interp(wanted, length, at)
    schedule[0], schedule[-1] = 0.0, 1.0
    return torch.from_numpy(schedule)


def equal_length_each(betas: Tensor, spread: Tensor, num_temperatures: int) -> Tensor:
    """As ``equal_length`` for every datapoint by itself: spread (P + 1, N) gives (T + 1, N)."""
    return torch.stack([equal_length(betas, column, num_temperatures) for column in spread.unbind(1)], 1)


def interpolate(betas: Tensor, table: Tensor, wanted: Tensor) -> Tensor:
    """A (P, N, ...) table given at ``betas`` (P,), linearly interpolated: (T, N, ...).

    ``wanted`` is (T,), or (T, N) where each datapoint has temperatures of its own; with (T,), any (P, ...) table does.
    """
    right = torch.searchsorted(betas, wanted.to(betas).contiguous()).clamp(1, len(betas) - 1)
    left = right - 1
    width = (betas[right] - betas[left]).clamp_min(1e-12)
    weight = ((wanted.to(betas) - betas[left]) / width).clamp(0, 1).to(table)
    weight = weight.reshape(*wanted.shape, *([1] * (table.dim() - wanted.dim())))
    if wanted.dim() == 1:
        return table[left] * (1 - weight) + table[right] * weight
    column = torch.arange(wanted.shape[1], device=table.device)
    return table[left, column] * (1 - weight) + table[right, column] * weight


def smooth(table: Tensor, width: int) -> Tensor:
    """Moving average over the first axis of a (T, ...) table, its ends held."""
    half = width // 2
    ends = table[:1].expand(half, *table.shape[1:]), table[-1:].expand(half, *table.shape[1:])
    return torch.cat([ends[0], table, ends[1]]).unfold(0, 2 * half + 1, 1).mean(-1)
