"""The log joint of a program as two compiled functions: value and gradient, and gradient alone.

For algorithms of one's own; those of this package compile what they need themselves. Letters: C chains, N datapoints,
D continuous latents, M sampled discrete variables, B = C * N rows (chain-major).
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortize.program.compile import Compiled
from amortize.program.data import Data
from amortize.program.density import Latents, LogJoint
from amortize.random import pyro_rng

__all__ = ["CompiledLogJoint"]

SEED = 0  # of the positions at which it is traced and checked


class CompiledLogJoint:
    """Log p(x_n, u_cn) and its gradient in u, for C chains of these N datapoints.

    Parameters are read at each call: training may go on; where a parameter or buffer is replaced by another object, the
    functions are made anew. The gradient alone costs less than with the value.

    Parameters
    ----------
    log_joint
        Of the program.
    data
        N datapoints.
    num_chains
        C.
    backend, num_calls
        As for ``Compiled``.

    Examples
    --------
    >>> import amortize as am
    >>> program = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4).program()
    >>> joint = program.compiled(torch.zeros(3, 4), num_chains=5)
    >>> value, gradient = joint.value_and_grad(torch.zeros(5, 3, 2))
    >>> value.shape, gradient.shape
    (torch.Size([5, 3]), torch.Size([5, 3, 2]))
    >>> joint.describe()
    'FX graph, equal to eager'
    """

    def __init__(
        self, log_joint: LogJoint, data: Data, num_chains: int = 1, *, backend: str = "auto", num_calls: int = 0
    ) -> None:
        folded, sampled = data.fold(num_chains), bool(log_joint.structure.sampled)
        program = log_joint.program

        def value_and_grad(u: Tensor, *choices: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad(), program.evaluating():
                u = u.detach().requires_grad_()
                value = log_joint.terms(folded, u=u, choices=choices[0] if choices else None).joint
                (slope,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), slope.detach()

        def example(stream: str) -> tuple[Tensor, ...]:
            with program.evaluating(), pyro_rng(SEED, stream):
                drawn: Latents = log_joint.draw_prior(folded)
            return (drawn.u, drawn.choices) if sampled else (drawn.u,)

        def make() -> tuple[Compiled, Compiled]:
            inputs = example("trace"), example("check")
            both = Compiled(value_and_grad, *inputs, backend=backend, num_calls=num_calls, follow=True)
            return both, both.part((1,), num_calls=num_calls)

        self._program, self._make = program, make
        self._tensors = self._owned()
        self._functions = make()

    def value_and_grad(self, u: Tensor, choices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log joint (C, N) in nats and its gradient (C, N, D) at ``u`` (C, N, D) and ``choices`` (C, N, M)."""
        value, slope = self._current()[0](*_rows(u, choices))
        return value.reshape(u.shape[:-1]), slope.reshape(u.shape)

    def grad_only(self, u: Tensor, choices: Tensor | None = None) -> Tensor:
        """The gradient (C, N, D) alone."""
        (slope,) = self._current()[1](*_rows(u, choices))
        result: Tensor = slope.reshape(u.shape)
        return result

    def describe(self) -> str:
        """Which form runs, and why no faster one does."""
        return self._current()[0].describe()

    def _owned(self) -> list[Tensor]:
        return [*self._program.parameters(), *self._program.buffers()]

    def _current(self) -> tuple[Compiled, Compiled]:
        owned = self._owned()
        if len(owned) != len(self._tensors) or any(a is not b for a, b in zip(owned, self._tensors, strict=True)):
            self._tensors, self._functions = owned, self._make()
        return self._functions


def _rows(u: Tensor, choices: Tensor | None) -> tuple[Tensor, ...]:
    """As the graph was compiled for, which may rely on the layout."""
    return tuple(part.reshape(-1, part.shape[-1]).contiguous() for part in (u, choices) if part is not None)
