"""Hamiltonian Monte Carlo leaves its target as it is, and rejects what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.hmc import HMC, hmc
from amortize.inference.kernels import Parameters, stratified_normal
from amortize.inference.path import GeometricPath
from tests.statistics import z_value

ROWS = 20_000


def gaussian_path(scale: torch.Tensor) -> GeometricPath:
    """Base N(0, I), target N(0, scale^2) at beta = 1 (up to a constant)."""
    return GeometricPath(lambda u: (-0.5 * u.square().sum(-1), -0.5 * (u.square() * (scale**-2 - 1)).sum(-1)))


@pytest.mark.parametrize("step_size", [0.3, 1.2])
def test_exact_draws_stay_exact(step_size):
    """Moments after a transition from exact draws, at a step size with hardly any and with many rejections."""
    gen = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    path = gaussian_path(scale)
    u = scale * torch.randn(ROWS, 2, generator=gen, dtype=torch.float64)
    ones = torch.ones(ROWS, 1, dtype=torch.float64)
    parameters = Parameters(ones, step_size * ones, torch.ones_like(u), HMC(num_leapfrog=5))
    state, info = hmc(path.evaluate(u), path, parameters, gen)
    if step_size > 1:
        assert info.acceptance.mean() < 0.9
    white = (state.u / scale).numpy()
    for moment, expected in ((1, 0.0), (2, 1.0), (4, 3.0)):
        values = white**moment
        error = values.std(0, ddof=1) / np.sqrt(ROWS)
        assert (np.abs(values.mean(0) - expected) < z_value(12) * error).all()


def test_strata_leave_each_chain_normal_and_their_mean_nearly_fixed():
    gen = torch.Generator().manual_seed(3)
    draws = torch.stack([stratified_normal(torch.empty(8 * 5, 2), 8, gen) for _ in range(2000)]).reshape(2000, 8, 5, 2)
    for moment, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        values = draws[:, 0].numpy().reshape(-1) ** moment
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected) < z_value(4) * error
    assert draws.mean(1).std() < 0.4 * 8**-0.5
    independent_steps = draws[:-1, 0] * draws[1:, 0]
    assert abs(independent_steps.mean()) < z_value() * independent_steps.std() / independent_steps.numel() ** 0.5


def test_the_state_carries_what_belongs_to_its_position():
    gen = torch.Generator().manual_seed(1)
    path = gaussian_path(torch.tensor([0.5, 2.0]))
    u = torch.randn(50, 2, generator=gen)
    ones = torch.ones(50, 1)
    state, _ = hmc(path.evaluate(u), path, Parameters(0.5 * ones, ones, torch.ones(50, 2), HMC(3)), gen)
    for kept, anew in zip(state, path.evaluate(state.u), strict=True):
        torch.testing.assert_close(kept, anew)


def test_non_finite_proposals_are_rejected_and_counted():
    def terms(u):
        wall = torch.where(u[:, 0] > 0.5, u.new_tensor(float("nan")), 0.0)
        return -0.5 * u.square().sum(-1), wall * u[:, 0]

    gen = torch.Generator().manual_seed(2)
    path = GeometricPath(terms)
    u = torch.full((200, 2), -0.2)
    ones = torch.ones(200, 1)
    state, info = hmc(path.evaluate(u), path, Parameters(ones, 0.5 * ones, torch.ones(200, 2), HMC(3)), gen)
    assert bool(torch.isfinite(state.u).all()) and bool((state.u[:, 0] <= 0.5).all())
    assert 0 < int((~info.finite).sum()) < 200 and bool((info.acceptance[~info.finite] == 0).all())


@pytest.mark.parametrize("settings", [{"num_leapfrog": 0}, {"num_leapfrog": 1.5}, {"jitter": 1.0}])
def test_settings_are_checked(settings):
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        am.HMC(**settings)
