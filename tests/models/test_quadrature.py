"""Integrals over a standard normal latent: closed forms, narrow and far peaks, and what no grid resolves."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from amortize.errors import DataError
from amortize.models import quadrature
from amortize.models.quadrature import log_integral


@pytest.mark.parametrize("scale", [3.0, 1.0, 0.1, 1e-3])
@pytest.mark.parametrize("x", [0.0, 1.5, -9.0, 40.0])
def test_gaussians_near_and_far_wide_and_narrow(scale, x):
    value = torch.tensor([[x]], dtype=torch.float64)
    found = log_integral(lambda z: Normal(z, scale).log_prob(value))
    origin = torch.zeros((), dtype=torch.float64)
    exact = Normal(origin, math.hypot(1.0, scale)).log_prob(value[:, 0])
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


def test_gradients_pass():
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    (found,) = torch.autograd.grad(log_integral(lambda z: Normal(z, scale).log_prob(value)).sum(), scale)
    exact = Normal(torch.zeros((), dtype=torch.float64), (1 + scale**2).sqrt()).log_prob(value).sum()
    (expected,) = torch.autograd.grad(exact, scale)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_what_no_grid_resolves_is_refused(monkeypatch):
    monkeypatch.setattr(quadrature, "MOST_POINTS", 2**11)
    value = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(DataError, match="resolve"):
        log_integral(lambda z: Normal(z, 1e-5).log_prob(value + torch.tensor([[-3.0], [3.0]])))


def test_what_never_falls_off_is_refused(monkeypatch):
    monkeypatch.setattr(quadrature, "FARTHEST", 100.0)
    with pytest.raises(DataError, match="fall off"):
        log_integral(lambda z: (0.6 * z.square()).expand(1, -1))
