"""A Markov chain's parameters, and sums over its paths: forward, backward, marginals.

Letters: N datapoints, T steps, K states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, shown

__all__ = ["Chain", "backward", "expected", "forward_total"]


class Chain(nn.Module):
    """Initial and transition probabilities, as free log odds.

    Parameters
    ----------
    initial
        (K,), positive.
    transition
        (K, K), positive, a row a state one comes from; both are divided by their sums.

    Raises
    ------
    ArgumentError
        Shapes that don't fit, or probabilities that are not positive.
    """

    def __init__(self, initial: Tensor, transition: Tensor) -> None:
        super().__init__()
        for name, value, ndim in (("initial", initial, 1), ("transition", transition, 2)):
            if not isinstance(value, Tensor) or value.shape != (len(initial),) * ndim or not bool((value > 0).all()):
                raise ArgumentError(f"Chain {name}: expected {ndim} dimensions of size K, all > 0, got {shown(value)}")
        self.initial_logits = nn.Parameter(initial.detach().log())
        self.transition_logits = nn.Parameter(transition.detach().log())

    @classmethod
    def counted(cls, labels: Tensor, num_states: int, dtype: torch.dtype) -> Chain:
        """From sequences of states (N, T), half a count added to each."""
        initial = torch.bincount(labels[:, 0], minlength=num_states)
        pairs = labels[:, :-1] * num_states + labels[:, 1:]
        moves = torch.bincount(pairs.reshape(-1), minlength=num_states**2).reshape(num_states, num_states)
        return cls(initial.to(dtype) + 0.5, moves.to(dtype) + 0.5)

    @property
    def num_states(self) -> int:
        """K."""
        return len(self.initial_logits)

    @property
    def log_initial(self) -> Tensor:
        """(K,), normalised."""
        return self.initial_logits.log_softmax(-1)

    @property
    def log_transition(self) -> Tensor:
        """(K, K), rows normalised."""
        return self.transition_logits.log_softmax(-1)

    @property
    def initial(self) -> Tensor:
        """Probabilities of the first state, (K,)."""
        return self.log_initial.exp()

    @property
    def transition(self) -> Tensor:
        """Probabilities of the next state, (K, K)."""
        return self.log_transition.exp()

    def following(self, state: Tensor | None) -> Tensor:
        """Log probabilities of the state after ``state`` (...), or of the first one, (..., K)."""
        return self.log_initial if state is None else self.log_transition[state]


def forward_total(initial: Tensor, transition: Tensor, emitted: Tensor) -> Tensor:
    """Log of the sum over all paths, (N,), of log factors (K,), (K, K) and (N, T, K)."""
    alpha = initial + emitted[:, 0]
    for t in range(1, emitted.shape[1]):
        alpha = (alpha[:, :, None] + transition).logsumexp(1) + emitted[:, t]
    return alpha.logsumexp(1)


def backward(transition: Tensor, emitted: Tensor) -> Tensor:
    """Log p(x after t | s_t), (N, T, K)."""
    found = [torch.zeros_like(emitted[:, 0])]
    for t in range(emitted.shape[1] - 1, 0, -1):
        found.append((transition + (emitted[:, t] + found[-1])[:, None]).logsumexp(2))
    return torch.stack(found[::-1], 1)


def expected(first: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of a chain's states, (N, T, K), and of its moves, (N, T - 1, K, K).

    ``first`` (N, K) and ``rest`` (N, T - 1, K, K) are its normalised log probabilities.
    """
    single, pairs = [first.exp()], []
    for t in range(rest.shape[1]):
        pairs.append(single[-1][:, :, None] * rest[:, t].exp())
        single.append(pairs[-1].sum(1))
    no_moves = rest.new_zeros(len(rest), 0, *rest.shape[2:])
    return torch.stack(single, 1), torch.stack(pairs, 1) if pairs else no_moves
