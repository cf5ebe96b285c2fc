"""Programs with discrete latents, each with its log joint written by hand in torch: the sum over the discrete ones.

``by_hand(u, *data)`` gives log p(x_n, u_n), (N,); ``methods`` names the ways in which the sum can be made. Adding a
program is adding a line to ``MIXTURES``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

NUM = 4
REAL = torch.float64
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=REAL)
CENTRES = torch.tensor([-1.5, 0.2, 2.0], dtype=REAL)
MOVES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.2, 0.5]], dtype=REAL)
BOTH = ("tiling", "contraction")


@dataclass(frozen=True)
class Mixture:
    """A model, its data, its log joint by hand, D, and how it can be summed."""

    model: Callable[..., None]
    data: tuple[Tensor, ...]
    by_hand: Callable[..., Tensor]
    dim: int = 0
    methods: tuple[str, ...] = BOTH


def normal(x: Tensor, loc: Tensor | float, scale: float) -> Tensor:
    return dist.Normal(loc, scale).log_prob(x)


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(NUM, *shape, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def _one_site(make: Callable[[], dist.Distribution], value: Callable[[Tensor], Tensor], log_p: Tensor) -> Mixture:
    """A discrete site whose k-th value moves an observation to ``CENTRES[k]``."""
    centres = CENTRES[: len(log_p)]

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", make())
            pyro.sample("x", dist.Normal(value(k), 0.7), obs=x)

    return Mixture(model, (_x(),), lambda _, x: (log_p + normal(x[:, None], centres, 0.7)).logsumexp(-1))


def categorical() -> Mixture:
    return _one_site(lambda: dist.Categorical(WEIGHTS), lambda k: CENTRES[k], WEIGHTS.log())


def one_hot() -> Mixture:
    return _one_site(lambda: dist.OneHotCategorical(WEIGHTS), lambda k: k @ CENTRES, WEIGHTS.log())


def bernoulli() -> Mixture:
    log_p = torch.tensor([0.6, 0.4], dtype=REAL).log()
    return _one_site(lambda: dist.Bernoulli(torch.tensor(0.4, dtype=REAL)), lambda k: CENTRES[k.long()], log_p)


def binomial() -> Mixture:
    log_p = torch.tensor([0.49, 0.42, 0.09], dtype=REAL).log()
    return _one_site(lambda: dist.Binomial(2, torch.tensor(0.3, dtype=REAL)), lambda k: CENTRES[k.long()], log_p)


def bits() -> Mixture:
    loadings = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=REAL)
    codes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=REAL)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            b = pyro.sample("b", dist.Bernoulli(torch.full((5,), 0.4, dtype=REAL)).to_event(1))
            pyro.sample("x", dist.Normal(b @ loadings, 0.5).to_event(1), obs=x)

    def by_hand(_, x):
        log_p = (codes * math.log(0.4) + (1 - codes) * math.log(0.6)).sum(-1)
        return (log_p + normal(x[:, None], codes @ loadings, 0.5).sum(-1)).logsumexp(-1)

    return Mixture(model, (_x(3),), by_hand, methods=("tiling",))


def two_sites() -> Mixture:
    """A second site that follows the first; both move the observation."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            j = pyro.sample("j", dist.Categorical(WEIGHTS))
            k = pyro.sample("k", dist.Categorical(MOVES[j]))
            pyro.sample("x", dist.Normal(CENTRES[j] + 0.5 * CENTRES[k], 0.7), obs=x)

    def by_hand(_, x):
        log_p = WEIGHTS.log()[:, None] + MOVES.log()
        loc = CENTRES[:, None] + 0.5 * CENTRES
        return (log_p + normal(x[:, None, None], loc, 0.7)).flatten(1).logsumexp(-1)

    return Mixture(model, (_x(),), by_hand)


def latent_below_class() -> Mixture:
    """A positive latent whose prior depends on the class, which moves the observation too."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(WEIGHTS))
            z = pyro.sample("z", dist.LogNormal(CENTRES[k], 0.5))
            pyro.sample("x", dist.Normal(z - CENTRES[k], 0.7), obs=x)

    def by_hand(u, x):
        log_p = WEIGHTS.log() + normal(u, CENTRES, 0.5)  # u = log z: its density, Jacobian included
        return (log_p + normal(x[:, None], u.exp() - CENTRES, 0.7)).logsumexp(-1)

    return Mixture(model, (_x(),), by_hand, 1)


def class_below_latent() -> Mixture:
    """A class whose logits are a latent."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=REAL), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(logits=z))
            pyro.sample("x", dist.Normal(CENTRES[k], 0.7), obs=x)

    def by_hand(u, x):
        log_p = u.log_softmax(-1) + normal(x[:, None], CENTRES, 0.7)
        return normal(u, 0.0, 1.0).sum(-1) + log_p.logsumexp(-1)

    return Mixture(model, (_x(),), by_hand, 3)


def pixels() -> Mixture:
    """Twelve pixels of three classes around a latent: 531441 configurations, but pixels are independent given it."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=REAL), 1.0))
            with pyro.plate("pixels", 12, dim=-2):
                k = pyro.sample("k", dist.Categorical(WEIGHTS))
                pyro.sample("x", dist.Normal(z + CENTRES[k], 0.7), obs=x.T)

    def by_hand(u, x):
        log_p = WEIGHTS.log() + normal(x[..., None], u[..., None] + CENTRES, 0.7)
        return normal(u[:, 0], 0.0, 1.0) + log_p.logsumexp(-1).sum(-1)

    return Mixture(model, (_x(12),), by_hand, 1, ("contraction",))


def forward(x: Tensor, scale: float = 0.5) -> Tensor:
    """Log evidence (N,) of a hidden Markov chain that starts from state 0, by the forward recursion; x (N, T)."""
    log_p = torch.full((len(x), 3), -torch.inf, dtype=REAL)
    log_p[:, 0] = 0.0
    for column in x.T:
        log_p = (log_p[:, :, None] + MOVES.log()).logsumexp(1) + normal(column[:, None], CENTRES, scale)
    return log_p.logsumexp(-1)


def hidden_markov() -> Mixture:
    def model(x):
        k = torch.zeros((), dtype=torch.long)
        with pyro.plate("data", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                k = pyro.sample(f"k_{t}", dist.Categorical(MOVES[k]))
                pyro.sample(f"x_{t}", dist.Normal(CENTRES[k], 0.5), obs=x[:, t])

    return Mixture(model, (_x(20),), lambda _, x: forward(x), methods=("contraction",))


def ragged() -> Mixture:
    """Sequences of unequal length: a mask hides states and observations beyond the end."""

    def model(x, lengths):
        k = torch.zeros((), dtype=torch.long)
        with pyro.plate("data", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    k = pyro.sample(f"k_{t}", dist.Categorical(MOVES[k]))
                    pyro.sample(f"x_{t}", dist.Normal(CENTRES[k], 0.5), obs=x[:, t])

    def by_hand(_, x, lengths):
        return torch.cat([forward(x[n : n + 1, : lengths[n]]) for n in range(NUM)])

    return Mixture(model, (_x(6), torch.tensor([6, 1, 3, 5])), by_hand)


def factorial() -> Mixture:
    """Two chains of two states that move one observation together."""
    moves = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=REAL)
    size = torch.tensor([0.0, 1.5], dtype=REAL)

    def model(x):
        a = b = torch.zeros((), dtype=torch.long)
        with pyro.plate("data", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                a = pyro.sample(f"a_{t}", dist.Categorical(moves[a]))
                b = pyro.sample(f"b_{t}", dist.Categorical(moves[b]))
                pyro.sample(f"x_{t}", dist.Normal(size[a] - 0.5 * size[b], 0.5), obs=x[:, t])

    def by_hand(_, x):
        log_p = torch.full((NUM, 2, 2), -torch.inf, dtype=REAL)
        log_p[:, 0, 0] = 0.0
        step = (moves[:, None, :, None] * moves[None, :, None, :]).log()  # a, b, next a, next b
        loc = size[:, None] - 0.5 * size
        for column in x.T:
            log_p = (log_p[:, :, :, None, None] + step).flatten(1, 2).logsumexp(1)
            log_p = log_p + normal(column[:, None, None], loc, 0.5)
        return log_p.flatten(1).logsumexp(-1)

    return Mixture(model, (_x(5),), by_hand)


MIXTURES: dict[str, Callable[[], Mixture]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        categorical, one_hot, bernoulli, binomial, bits, two_sites, latent_below_class, class_below_latent, pixels,
        hidden_markov, ragged, factorial,
    )
}  # fmt: skip
