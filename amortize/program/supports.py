r"""Bijections for supports that torch's ``biject_to`` leaves out: positive-definite matrices, and mixtures.

A matrix is :math:`M = L L^T`, L lower-triangular with an exponentiated diagonal. With respect to the lower
triangles of M and u (Muirhead 1982, theorem 2.1.9),

.. math:: \log |dM / du| = n \log 2 + \sum_{i=1}^n (n - i + 2) \log L_{ii}
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

__all__ = ["PositiveDefiniteFromVector"]


class PositiveDefiniteFromVector(Transform):
    """From a vector (..., n (n + 1) / 2) to a positive-definite matrix (..., n, n)."""

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteFromVector)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        size = _size(x.shape[-1])
        rows, columns = torch.tril_indices(size, size, device=x.device)
        flat = torch.where(rows == columns, x.exp(), x)
        # scattered out of place, so that function transforms and compilers can follow
        places = torch.nn.functional.one_hot(rows * size + columns, size * size).to(x)
        lower = (flat @ places).reshape((*x.shape[:-1], size, size))
        matrix: Tensor = lower @ lower.mT
        return matrix

    def _inverse(self, y: Tensor) -> Tensor:
        lower = torch.linalg.cholesky(y)
        rows, columns = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        flat = lower[..., rows, columns]
        return torch.where(rows == columns, flat.clamp_min(torch.finfo(y.dtype).tiny).log(), flat)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the lower triangle of ``y`` with respect to ``x``."""
        size = y.shape[-1]
        rows, columns = torch.tril_indices(size, size, device=x.device)
        diagonal = x[..., rows == columns]
        powers = torch.arange(size + 1, 1, -1, device=x.device)
        return size * math.log(2) + (powers * diagonal).sum(-1)

    def forward_shape(self, shape: Any) -> Any:
        """Shape of the matrix."""
        size = _size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> Any:
        """Shape of the vector."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


def _size(length: int) -> int:
    return (math.isqrt(8 * length + 1) - 1) // 2


@biject_to.register(constraints.positive_definite)  # type: ignore[no-untyped-call, untyped-decorator]
def _of_positive_definite(support: Any) -> Transform:  # noqa: ARG001 (the registry's signature)
    return PositiveDefiniteFromVector()


@biject_to.register(constraints.MixtureSameFamilyConstraint)  # type: ignore[no-untyped-call, untyped-decorator]
def _of_mixture(support: Any) -> Transform:
    """A mixture of one family has the support of its parts."""
    transform: Transform = biject_to(support.base_constraint)
    return transform
