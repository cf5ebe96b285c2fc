r"""Log terms whose gradients are differentiable once more, as graphs: what training through gradients asks for.

.. math:: \frac{\partial}{\partial u} \left( a\, b(u) + c\, r(u) + v^T \nabla b(u) + w^T \nabla r(u) \right)

is one graph of (u, a, c, v, w), and the value with its gradient another (``compile``), so that neither Pyro nor
autograd's bookkeeping of second derivatives runs inside the loop. Parameters of the program are captured and get no
gradient: for training a bridge against a program that stays as it is. ``bridge.differentiable`` is the eager form,
which passes gradients on to parameters too.

Letters: B rows, D latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amortize.inference.path import LogTerms, Point
from amortize.program.compile import Compiled

__all__ = ["SecondOrderTerms"]


class SecondOrderTerms:
    """Log terms and their gradients at u (B, D), differentiable in u.

    Parameters
    ----------
    terms
        Maps u (B, D) to the base log density and the log ratio, each (B,) in nats, rows independent of one another.
    examples
        Two positions (B, D), to trace at and to check at.
    backend, num_calls
        As for ``Compiled``.

    Examples
    --------
    >>> terms = SecondOrderTerms(lambda u: (u.sum(-1), u.pow(3).sum(-1)), (torch.ones(2, 1), torch.zeros(2, 1)))
    >>> u = torch.full((2, 1), 2.0, requires_grad=True)
    >>> torch.autograd.grad(terms(u).ratio_gradient.sum(), u)[0].flatten().tolist()
    [12.0, 12.0]
    """

    def __init__(
        self, terms: LogTerms, examples: tuple[Tensor, Tensor], *, backend: str = "auto", num_calls: int = 0
    ) -> None:
        def everything(u: Tensor) -> tuple[Tensor, ...]:
            return tuple(value.detach() for value in _derivatives(terms, u.detach().requires_grad_()))

        def product(u: Tensor, *weights: Tensor) -> Tensor:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                values = _derivatives(terms, u)
                total = sum(((w * v).sum() for w, v in zip(weights, values, strict=True)), u.sum() * 0)
                slope: Tensor = torch.autograd.grad(total, u)[0]
            return slope.detach()

        first, second = (example.detach().contiguous() for example in examples)
        inputs = [(example, *_weights(example)) for example in (first, second)]
        self._everything = Compiled(everything, (first,), (second,), backend=backend, num_calls=num_calls)

        def make_product() -> Compiled:
            return Compiled(product, *inputs, backend=backend, num_calls=num_calls)

        self._make_product = make_product
        self._made_product: Compiled | None = None

    def __call__(self, u: Tensor) -> Point:
        """Everything known at u (B, D)."""
        apply: Any = _Evaluation.apply
        return Point(u, *apply(u, self))

    def describe(self) -> str:
        """Which form runs, and why no faster one does."""
        return self._everything.describe()

    def values(self, u: Tensor) -> tuple[Tensor, ...]:
        """Base, ratio and their gradients, as numbers."""
        values: tuple[Tensor, ...] = self._everything(u)
        return values

    def product(self, u: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """Gradient in u of the sum of the four, each times its weight; compiled when first asked for."""
        if self._made_product is None:
            self._made_product = self._make_product()
        slope: Tensor = self._made_product(u, *weights)
        return slope


def _derivatives(terms: LogTerms, u: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        base, ratio = terms(u)
        slopes = [
            torch.autograd.grad(
                value.sum() + 0 * u.sum(), u, create_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            for value in (base, ratio)
        ]
    return base, ratio, *slopes


def _weights(u: Tensor) -> tuple[Tensor, ...]:
    """Some weights of the four; no two the same tensor, which tracing would take for one input, nor of one value."""
    row = torch.linspace(-1.0, 1.0, len(u), dtype=u.dtype, device=u.device)
    return row, row.square(), u.cos(), u.sin()


class _Evaluation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, terms: SecondOrderTerms) -> tuple[Tensor, ...]:
        ctx.terms = terms
        ctx.save_for_backward(u)
        return terms.values(u.contiguous())

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return ctx.terms.product(u.contiguous(), tuple(weight.contiguous() for weight in weights)), None
