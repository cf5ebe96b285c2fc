"""Bijections of our own: there and back, and the Jacobian by automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal, biject_to, constraints

from amortize.program.supports import PositiveDefiniteFromVector


@pytest.mark.parametrize("size", [1, 2, 3])
def test_positive_definite_matrices(size):
    transform = biject_to(constraints.positive_definite)
    u = torch.randn(4, size * (size + 1) // 2, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    matrix = transform(u)
    assert bool(constraints.positive_definite.check(matrix).all())
    assert matrix.shape == transform.forward_shape(u.shape) and u.shape == transform.inverse_shape(matrix.shape)
    torch.testing.assert_close(transform.inv(matrix), u)
    rows, columns = torch.tril_indices(size, size)
    for row in range(4):
        full = torch.autograd.functional.jacobian(lambda x: transform(x)[rows, columns], u[row])
        exact = torch.linalg.slogdet(full)[1]
        torch.testing.assert_close(transform.log_abs_det_jacobian(u[row], matrix[row]), exact)
    assert transform == PositiveDefiniteFromVector()


def test_a_mixture_has_the_support_of_its_parts():
    mixture = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.zeros(2), 1.0))
    assert biject_to(mixture.support)(torch.tensor(0.3)) == torch.tensor(0.3)
