"""A hidden Markov model with nothing to infer but its states: the rows of a digit, from top to bottom.

    s_1 ~ Categorical(initial),    s_t | s_(t-1) ~ Categorical(transition[s_(t-1)]),
    x_t | s_t ~ Bernoulli(pixels[s_t]),

with 12 states. All 12 ** 8 paths of a digit are summed out exactly, step by step; Pyro's `pyro.markov` says that only
neighbours touch. The guide is empty, so the ELBO is log p(x) itself, and every gap of a study is 0. An HMM is the
simplest check of the machinery for discrete latents: `exact_log_evidence` is the forward algorithm, written out.

The data are scikit-learn's digits, sequences of 8 rows of 8 binary pixels.

    amortize check examples/hidden_markov.py:program --data examples/hidden_markov.py:data
    amortize study examples/hidden_markov.toml
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

import amortize as am


class HiddenMarkov(PyroModule):
    """K states of rows with 8 pixels; called with sequences, it is the model."""

    def __init__(self, num_states: int, data_dim: int) -> None:
        super().__init__()
        ones = torch.ones(num_states)
        self.initial = PyroParam(ones / num_states, constraint=constraints.simplex)
        self.transition = PyroParam(dist.Dirichlet(ones).sample((num_states,)), constraint=constraints.simplex)
        self.pixels = PyroParam(0.2 + 0.6 * torch.rand(num_states, data_dim), constraint=constraints.unit_interval)

    def forward(self, x: Tensor) -> None:
        """Draw sequences x (N, T, 8)."""
        with pyro.plate("digits", x.shape[0]):
            state = None
            for t in pyro.markov(range(x.shape[1])):
                probs = self.initial if state is None else self.transition[state]
                state = pyro.sample(f"s_{t + 1}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t + 1}", dist.Bernoulli(self.pixels[state]).to_event(1), obs=x[:, t])

    @torch.no_grad()
    def exact_log_evidence(self, x: Tensor) -> Tensor:
        """Log p(x) (N,) in nats, by the forward algorithm."""
        rows = dist.Bernoulli(self.pixels).to_event(1).log_prob(x.unsqueeze(2))  # (N, T, K)
        alpha = self.initial.log() + rows[:, 0]
        for t in range(1, x.shape[1]):
            alpha = (alpha.unsqueeze(2) + self.transition.log()).logsumexp(1) + rows[:, t]
        return alpha.logsumexp(1)


def guide(x: Tensor) -> None:
    """Nothing is left to infer."""


def data() -> np.ndarray:
    """Digits (1797, 8, 8) of 0 and 1."""
    digits = am.data.load("digits")
    return np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 8, 8)


def program(num_states: int = 12) -> am.Program:
    """The model and its empty guide, with fresh parameters."""
    return am.Program(HiddenMarkov(num_states, 8), guide)
