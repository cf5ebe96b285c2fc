r"""Gibbs moves over discrete latents, beside Hamiltonian moves over the continuous ones.

Each variable in turn is drawn from its exact conditional under the tempered density at the present u: all its values
are evaluated at once, as a batch (Geman and Geman 1984). A sweep over the variables leaves the density invariant.

Letters: B rows, D continuous latents, M discrete variables, K values of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.starts import Start
from amortize.program.compile import Compiled
from amortize.program.data import Data
from amortize.program.density import Latents

__all__ = ["Conditionals", "gibbs"]

Values = Callable[..., tuple[Tensor, Tensor]]


class Conditionals:
    """Log densities of K alternatives for each of B rows, the program run once on K x B rows.

    Parameters
    ----------
    start
        Whose base density and log ratio are evaluated.
    data
        B rows.
    cardinalities
        K of each of the M variables.
    examples
        Two draws of B rows, to compile on.
    """

    def __init__(
        self, start: Start, data: Data, cardinalities: Sequence[int], examples: tuple[Latents, Latents]
    ) -> None:
        self.cardinalities = tuple(cardinalities)
        self._by_size = {count: _values(start, data, count, examples) for count in set(cardinalities)}

    def __call__(self, latents: Latents, variable: int) -> tuple[Tensor, Tensor]:
        """Base log density and log ratio with ``variable`` at each of its values, (K, B) each."""
        count = self.cardinalities[variable]
        u, choices = _repeated(latents, count)
        choices[:, variable] = torch.arange(count, device=u.device).repeat_interleave(len(latents.u))
        base, ratio = self._by_size[count](u, choices)
        return base.reshape(count, -1), ratio.reshape(count, -1)


class Move(NamedTuple):
    """Choices (B, M) after a sweep, and how many of them changed, (B,)."""

    choices: Tensor
    num_changed: Tensor


@torch.no_grad()
def gibbs(
    latents: Latents,
    conditionals: Conditionals,
    beta: Tensor,
    generator: torch.Generator,
    *,
    backwards: bool = False,
) -> Move:
    """One sweep over the discrete variables at inverse temperature ``beta`` (B,), u held fixed.

    A row none of whose alternatives has a finite density stays as it is. ``backwards`` visits the variables in the
    other order, which is the time reversal of the sweep.
    """
    choices = latents.choices.clone()
    order = range(choices.shape[-1])
    for variable in reversed(order) if backwards else order:
        base, ratio = conditionals(Latents(latents.u, choices), variable)
        logits = base + beta * ratio
        logits = torch.where(torch.isnan(logits), -torch.inf, logits)
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float64)
        drawn = (logits.double() - torch.log(-torch.log(uniform))).argmax(0)
        possible = torch.isfinite(logits).any(0)
        choices[:, variable] = torch.where(possible, drawn, choices[:, variable])
    return Move(choices, (choices != latents.choices).sum(-1))


def _values(start: Start, data: Data, count: int, examples: tuple[Latents, Latents]) -> Values:
    folded = data.fold(count)

    def values(u: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
        return start.terms(folded, u, choices)

    first, second = (_repeated(example, count) for example in examples)
    with torch.no_grad():
        return Compiled(values, first, second)


def _repeated(latents: Latents, count: int) -> tuple[Tensor, Tensor]:
    return latents.u.repeat(count, 1), latents.choices.repeat(count, 1)
