"""Schedules: equal thermodynamic length where the length is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amortize.inference.schedule import equal_length, interpolate, linear, smooth


def test_constant_speed_gives_the_linear_schedule():
    betas = linear(50)
    torch.testing.assert_close(equal_length(betas, torch.ones(51), 10), linear(10), atol=1e-12, rtol=0)


def test_steps_have_equal_length_under_a_known_speed():
    """Speed 1 / (1 + k beta) has length log(1 + k beta) / k."""
    betas, k = linear(2000), 50.0
    schedule = equal_length(betas, 1 / (1 + k * betas), 20).numpy()
    length = np.diff(np.log1p(k * schedule) / k)
    floor = 0.1 * np.log1p(k) / k  # what the floor under the speed adds to the whole length
    assert np.abs(length - length.mean()).max() < floor
    assert schedule[0] == 0 and schedule[-1] == 1 and schedule[1] < 0.02


def test_a_pilot_without_spread_falls_back_to_linear():
    torch.testing.assert_close(equal_length(linear(5), torch.zeros(6), 4), linear(4))


def test_interpolation_is_exact_for_a_line():
    betas = linear(7)[1:]
    table = torch.stack([betas, 2 * betas], -1)
    wanted = torch.tensor([0.3, 0.77, 1.0], dtype=torch.float64)
    torch.testing.assert_close(interpolate(betas, table, wanted), torch.stack([wanted, 2 * wanted], -1))


@pytest.mark.parametrize("shape", [(20,), (20, 3), (20, 3, 2)])
def test_smoothing_keeps_shape_and_constants(shape):
    table = torch.full(shape, 1.7)
    torch.testing.assert_close(smooth(table, 9), table)
