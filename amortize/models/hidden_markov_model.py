r"""A hidden Markov model: a datapoint is a sequence, its latents a chain of states, summed out exactly.

.. math:: s_1 \sim \mathrm{Categorical}(\pi), \qquad s_t \mid s_{t-1} \sim \mathrm{Categorical}(A_{s_{t-1}}), \qquad
          x_t \mid s_t \sim p(x_t \mid s_t)

What a step shows is Bernoulli or Normal. The guide leaves the states out, and the evidence is that of the forward
algorithm, linear in T; or it is a *smoother*, a chain that reads the whole sequence,

.. math:: q(s_t \mid s_{t-1}, x) \propto \exp(B_{s_{t-1} s_t} + h_t(x)_{s_t}),

which holds the exact posterior: B = log A, and h the backward messages, for which a network stands in.

Letters: N datapoints, T steps, F features of a step (X = T F), K states. Source: Rabiner (1989), "A tutorial on hidden
Markov models and selected applications in speech recognition", https://doi.org/10.1109/5.18626.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from amortize.errors import ArgumentError, DataError, check_count, shown
from amortize.models.gaussian_mixture_parts import clusters_of
from amortize.models.hidden_markov_model_chain import Chain, backward, expected, forward_total
from amortize.models.hidden_markov_model_emissions import BernoulliEmission, NormalEmission, means_of
from amortize.models.networks import MLP, register
from amortize.models.vae import matrix_of
from amortize.models.zoo import ZooModel
from amortize.random import generator

__all__ = ["Emission", "HiddenMarkovModel"]

Emission = Literal["bernoulli", "normal"]
EMISSIONS = ("bernoulli", "normal")
MOST_STEPS = 20_000  # that the start looks at


class HiddenMarkovModel(ZooModel):
    """Sites ``s_1`` ... ``s_T`` (N,), the states; observed sites ``x_1`` ... ``x_T`` (N, F).

    Parameters
    ----------
    chain
        Initial and transition probabilities of the states.
    emission
        Of states (..., ): a distribution with event shape (F,).
    num_steps
        T.
    smoother
        The guide's part that reads sequences (N, X): h (N, T K); None leaves the states out of the guide.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(8).repeat(2, 1)
    >>> chain = am.models.HiddenMarkovModel.from_data(x, num_states=2, num_steps=4)
    >>> chain.log_evidence(x).shape, chain.smoothed(x).shape
    (torch.Size([16]), torch.Size([16, 4, 2]))
    """

    def __init__(
        self, chain: Chain, emission: BernoulliEmission | NormalEmission, num_steps: int, *, smoother: MLP | None = None
    ) -> None:
        super().__init__()
        self.chain, self.emission = chain, emission
        self.num_steps = check_count("HiddenMarkovModel num_steps", num_steps)
        self.smoother, self.guide_chain = smoother, None
        if smoother is not None:
            self.guide_chain = Chain(torch.full_like(chain.initial, 1 / chain.num_states), chain.transition.detach())

    @classmethod
    def from_data(
        cls,
        x: Any,
        num_states: int = 10,
        *,
        num_steps: int | None = None,
        emission: Emission = "bernoulli",
        smoother: Sequence[int] | None = None,
        seed: int = 0,
    ) -> HiddenMarkovModel:
        """A model begun at the clusters of the steps, which k-means finds, and how they follow each other.

        Parameters
        ----------
        x
            Sequences (N, X), each T steps of F features one after the other.
        num_states
            K.
        num_steps
            T, which divides X; None takes the rows of a square image, where X is one, and steps of one feature else.
        emission
            "bernoulli" for zeros and ones, "normal" for any numbers.
        smoother
            Hidden layers of a guide that reads the sequence, as (64,); None leaves the states out of the guide.
        seed
            Of the clusters and of the smoother's weights.

        Raises
        ------
        DataError
            ``x`` is not of the emission's kind.
        ArgumentError
            Settings that don't fit.
        """
        if emission not in EMISSIONS:
            raise ArgumentError(f"emission: expected one of {EMISSIONS}, got {shown(emission)}.")
        data = matrix_of(x, binary=emission == "bernoulli")
        data = data if data.is_floating_point() else data.float()
        check_count("num_states", num_states)
        steps = _steps_of(data.shape[1], num_steps)
        parts = data.reshape(len(data), steps, -1)
        labels = _labels(parts, num_states, seed)
        kind = BernoulliEmission if emission == "bernoulli" else NormalEmission
        network = None
        if smoother is not None:
            sizes = (data.shape[1], *smoother, steps * num_states)
            network = MLP(sizes, generator=generator(seed, "smoother")).to(data.dtype)
        chain = Chain.counted(labels, num_states, data.dtype)
        return cls(chain, kind.counted(parts, labels, num_states), steps, smoother=network)

    @property
    def objective(self) -> str:
        """The ELBO with every state summed out, of the model and of the guide."""
        return "enum-elbo"

    def model(self, x: Tensor) -> None:
        """The generative model: sites ``s_t`` (N,), observed sites ``x_t`` (N, F)."""
        register("chain", self.chain)
        register("emission", self.emission)
        parts, state = self._parts(x), None
        with pyro.plate("data", x.shape[0]):
            for t in pyro.markov(range(self.num_steps)):
                state = pyro.sample(f"s_{t + 1}", dist.Categorical(logits=self.chain.following(state)))
                pyro.sample(f"x_{t + 1}", self.emission(state), obs=parts[:, t])

    def guide(self, x: Tensor) -> None:
        """Nothing, or a chain of states (N,) given the whole sequence."""
        if self.smoother is None or self.guide_chain is None:
            return
        register("smoother", self.smoother)
        register("guide_chain", self.guide_chain)
        messages, state = self._messages(x), None
        with pyro.plate("data", x.shape[0]):
            for t in pyro.markov(range(self.num_steps)):
                logits = self.guide_chain.following(state) + messages[:, t]
                state = pyro.sample(f"s_{t + 1}", dist.Categorical(logits=logits))

    @torch.no_grad()
    def log_evidence(self, x: Any) -> Tensor:
        """Log p(x_n), (N,) nats, float64, by the forward algorithm.

        Raises
        ------
        DataError
            ``x`` is no matrix (N, X) of the emission's kind.
        """
        return forward_total(self.chain.log_initial.double(), self.chain.log_transition.double(), self._emitted(x))

    @torch.no_grad()
    def smoothed(self, x: Any) -> Tensor:
        """Posterior probabilities of the states given the whole sequence, (N, T, K), float64."""
        steps = self.posterior_steps(x)
        return expected(*steps)[0]

    @torch.no_grad()
    def posterior_steps(self, x: Any) -> tuple[Tensor, Tensor]:
        """The exact posterior as a chain: log p(s_1 | x), (N, K), and log p(s_t | s_(t-1), x), (N, T - 1, K, K)."""
        transition, emitted = self.chain.log_transition.double(), self._emitted(x)
        behind = backward(transition, emitted)
        first = self.chain.log_initial.double() + emitted[:, 0] + behind[:, 0]
        rest = transition + (emitted + behind)[:, 1:, None]
        return first.log_softmax(-1), rest.log_softmax(-1)

    @torch.no_grad()
    def guide_elbo(self, x: Any) -> Tensor:
        """The ELBO of the smoother, (N,) nats, float64, exact by its marginals.

        Raises
        ------
        ArgumentError
            The guide is empty.
        """
        if self.smoother is None or self.guide_chain is None:
            raise ArgumentError("guide_elbo: the guide leaves the states out; make the model with smoother=(64,)")
        emitted = self._emitted(x)
        messages = self._messages(matrix_of(x).to(self.chain.initial)).double()
        first = (self.guide_chain.log_initial.double() + messages[:, 0]).log_softmax(-1)
        rest = (self.guide_chain.log_transition.double() + messages[:, 1:, None]).log_softmax(-1)
        single, pair = expected(first, rest)
        energy = (single * emitted).sum((1, 2)) + (single[:, 0] * (self.chain.log_initial.double() - first)).sum(1)
        elbo: Tensor = energy + (pair * (self.chain.log_transition.double() - rest)).sum((1, 2, 3))
        return elbo

    def _parts(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.num_steps, -1)

    def _messages(self, x: Tensor) -> Tensor:
        assert self.smoother is not None
        messages: Tensor = self.smoother(x)
        return messages.reshape(x.shape[0], self.num_steps, self.chain.num_states)

    def _emitted(self, x: Any) -> Tensor:
        """Log p(x_t | s_t = k), (N, T, K), float64."""
        data = matrix_of(x, binary=isinstance(self.emission, BernoulliEmission)).to(self.chain.initial.device).double()
        num_features = self.emission.num_features
        if data.shape[1] != self.num_steps * num_features:
            raise DataError(f"x: expected shape (N, {self.num_steps * num_features}), got {tuple(data.shape)}.")
        every = torch.arange(self.chain.num_states, device=data.device)
        emitted: Tensor = self.emission(every, double=True).log_prob(self._parts(data)[:, :, None])
        return emitted


def _labels(parts: Tensor, num_states: int, seed: int) -> Tensor:
    """Clusters of the steps, (N, T), found on as many sequences as make few enough of them."""
    few = parts[: max(1, MOST_STEPS // parts.shape[1])].reshape(-1, parts.shape[-1]).double()
    found = clusters_of(few, num_states, seed)
    centres = means_of(few[:, None], found[:, None], num_states)
    return torch.cdist(parts.double(), centres).argmin(-1)


def _steps_of(data_dim: int, num_steps: int | None) -> int:
    side = math.isqrt(data_dim)
    if num_steps is None:
        return side if side * side == data_dim else data_dim
    check_count("num_steps", num_steps)
    if data_dim % num_steps:
        raise ArgumentError(f"num_steps: expected a divisor of the {data_dim} features, got {num_steps}.")
    return num_steps
