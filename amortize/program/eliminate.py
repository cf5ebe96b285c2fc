r"""Eliminating discrete variables from log factors, one by one, and drawing them back.

.. math:: f(\mathrm{rest}) = \log \sum_k \exp \sum_i f_i(k, \mathrm{rest})

Pyro's own contraction multiplies exponentials, each factor shifted by its own maximum: two sharp factors that disagree
(two observations of one class) then give zero. Here factors are added in log space first, so that nothing underflows.
What is summed at each step is kept: read backwards, it is the exact conditional of each variable given those eliminated
after it, as in forward filtering and backward sampling.

A *packed* tensor carries a letter for each of its dimensions, in ``_pyro_dims``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["Elimination", "Factors", "contract", "draw_back", "logsumexp"]

Factors = OrderedDict[frozenset[str], list[Tensor]]


class Elimination(NamedTuple):
    """A variable's letter, the sum of the log factors that hold it, and the letters of that sum's dimensions."""

    letter: str
    factor: Tensor
    letters: str


class Packed(NamedTuple):
    """A tensor and the letters of its dimensions."""

    tensor: Tensor
    letters: str


def contract(factors: Factors, variables: set[str], plate: tuple[str, int]) -> tuple[Tensor, list[Elimination]]:
    """Sum ``variables`` out of log factors by plates: (B,), and the steps taken.

    Parameters
    ----------
    factors
        Packed log factors, by the letters of the plates that they stand in.
    variables
        Letters of the variables.
    plate
        Letter and size B of the data plate, which is kept.
    """
    sizes = dict([plate])
    for factor in (factor for group in factors.values() for factor in group):
        sizes |= zip(_letters(factor), factor.shape, strict=True)
    ring = _LogSpaceRing(sizes)
    run: Any = contract_to_tensor
    total = run(factors, variables, target_ordinal=frozenset([plate[0]]), ring=ring)
    return total.expand(plate[1]), ring.steps


def draw_back(steps: Sequence[Elimination]) -> dict[str, Packed]:
    """Indices of the eliminated variables, drawn together from their exact distribution; draws globally.

    Each has the dimensions of the plates that its variable stands in.
    """
    drawn: dict[str, Packed] = {}
    for letter, factor, letters in reversed(steps):
        logits, kept = factor.detach(), letters
        for other in [name for name in letters if name in drawn]:
            at, index = kept.index(other), drawn[other]
            shape = [1 if name == other else size for name, size in zip(kept, logits.shape, strict=True)]
            picked = _aligned(index.tensor, index.letters, kept).expand(shape)
            logits, kept = logits.gather(at, picked).squeeze(at), kept.replace(other, "")
        noise = -torch.empty_like(logits).exponential_().log()
        drawn[letter] = Packed((logits + noise).argmax(kept.index(letter)), kept.replace(letter, ""))
    return drawn


def logsumexp(value: Tensor, axis: int) -> Tensor:
    """Log of a sum of exponentials, whose gradient is 0, not NaN, where all of them are 0."""
    shift = value.detach().amax(axis, keepdim=True)
    shift = shift.clamp(min=torch.finfo(shift.dtype).min)
    total = (value - shift).exp().sum(axis)
    some = total > 0
    log_total = torch.where(some, torch.where(some, total, 1.0).log(), -torch.inf)
    result: Tensor = log_total + shift.squeeze(axis)
    return result


class _LogSpaceRing(LogRing):
    """Pyro's ring for plated contraction, its sum of products made in log space; ``steps`` keeps what was summed."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__(dim_to_size=sizes)  # type: ignore[no-untyped-call]
        self.sizes = sizes
        self.steps: list[Elimination] = []

    def sumproduct(self, terms: Iterable[Tensor], dims: Iterable[str]) -> Tensor:
        """Sum the variables ``dims`` out of a product, at each step the one whose factor is smallest."""
        pool = [Packed(term, _letters(term)) for term in terms]
        users = {letter: [i for i, term in enumerate(pool) if letter in term.letters] for letter in sorted(dims)}
        costs = {letter: self._cost(pool, use) for letter, use in users.items()}
        alive = set(range(len(pool)))
        while costs:
            letter = min(costs, key=costs.__getitem__)
            del costs[letter]
            used = users[letter]
            pool.append(self._eliminate([pool[i] for i in used], letter))
            alive = (alive - set(used)) | {len(pool) - 1}
            for other in costs:
                if other in pool[-1].letters:
                    users[other] = [i for i in users[other] if i in alive] + [len(pool) - 1]
                    costs[other] = self._cost(pool, users[other])
        return _marked(_product([pool[i] for i in sorted(alive)]))

    def _eliminate(self, terms: Sequence[Packed], letter: str) -> Packed:
        joint = _product(terms)
        self.steps.append(Elimination(letter, *joint))
        return Packed(logsumexp(joint.tensor, joint.letters.index(letter)), joint.letters.replace(letter, ""))

    def _cost(self, pool: Sequence[Packed], use: Sequence[int]) -> int:
        return math.prod(self.sizes[letter] for letter in {letter for i in use for letter in pool[i].letters})


def _product(terms: Sequence[Packed]) -> Packed:
    letters = "".join(sorted({letter for term in terms for letter in term.letters}))
    total = _aligned(*terms[0], letters)
    for term in terms[1:]:
        total = total + _aligned(*term, letters)
    return Packed(total, letters)


def _aligned(tensor: Tensor, letters: str, wanted: str) -> Tensor:
    """Dimensions in the order of ``wanted``, of size 1 where there is none."""
    own = [letter for letter in wanted if letter in letters]
    sizes = dict(zip(letters, tensor.shape, strict=True))
    return tensor.permute([letters.index(letter) for letter in own]).reshape([sizes.get(name, 1) for name in wanted])


def _letters(term: Tensor) -> str:
    letters: str = getattr(term, "_pyro_dims")  # noqa: B009
    return letters


def _marked(term: Packed) -> Tensor:
    result = term.tensor.clone() if hasattr(term.tensor, "_pyro_dims") else term.tensor
    setattr(result, "_pyro_dims", term.letters)  # noqa: B010
    return result
