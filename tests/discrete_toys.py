r"""Small programs whose guides sample discrete latents, with every sum over their configurations written out.

What an estimator says can be held against the gradient itself: densities are written a second time, without Pyro, and
summed over all configurations. Letters: N datapoints, P configurations, K draws.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortize as am
from amortize.random import generator, pyro_rng
from tests.statistics import z_value

__all__ = ["TOYS", "Categories", "OneHots", "OneLayer", "Toy", "TwoLayers", "TwoSites", "gradients", "largest_z"]

DATA_DIM = 4
Values = Mapping[str, Tensor]


class Toy(nn.Module, ABC):
    """Four binary pixels, and latents that can be listed."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = generator(0, type(self).__name__)
        self.build()

    def weight(self, *shape: int) -> nn.Parameter:
        """Far enough from zero that estimators have something to be wrong about."""
        return nn.Parameter(0.8 * torch.randn(shape, generator=self._stream, dtype=torch.float64))

    @property
    def x(self) -> Tensor:
        """Three datapoints, (3, 4)."""
        return torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=torch.float64)

    @abstractmethod
    def build(self) -> None:
        """Make the weights."""

    @abstractmethod
    def model(self, x: Tensor) -> None:
        """For Pyro."""

    @abstractmethod
    def guide(self, x: Tensor) -> None:
        """For Pyro."""

    @abstractmethod
    def listed(self) -> dict[str, list[Tensor]]:
        """The values of each site, without the data axis."""

    @abstractmethod
    def log_joint(self, x: Tensor, z: Values) -> Tensor:
        """Log p(x, z), (P, N), of values (P, 1, ...)."""

    @abstractmethod
    def log_q(self, x: Tensor, z: Values) -> Tensor:
        """Log q(z | x), (P, N)."""

    def program(self) -> am.Program:
        """Adopted."""
        return am.Program(self.model, self.guide)

    def configurations(self) -> dict[str, Tensor]:
        """By site, (P, 1, ...)."""
        listed = self.listed()
        rows = list(itertools.product(*listed.values()))
        return {name: torch.stack([row[i] for row in rows]).unsqueeze(1) for i, name in enumerate(listed)}

    def exact_bound(self, num_draws: int = 1) -> Tensor:
        """The bound of K draws, mean over datapoints: a sum over the P^K choices of them."""
        z = self.configurations()
        log_q = self.log_q(self.x, z)
        log_weights = self.log_joint(self.x, z) - log_q
        total = self.x.new_zeros(len(self.x))
        for chosen in itertools.product(range(len(log_q)), repeat=num_draws):
            rows = list(chosen)
            bound = log_weights[rows].logsumexp(0) - math.log(num_draws)
            total = total + log_q[rows].sum(0).exp() * bound
        return total.mean()

    def exact_gradient(self, num_draws: int = 1) -> Tensor:
        """Of the bound, all parameters in a row."""
        return flat(torch.autograd.grad(self.exact_bound(num_draws), list(self.parameters()), materialize_grads=True))


class OneLayer(Toy):
    """Three bits, a site of all of them."""

    def build(self) -> None:
        self.prior, self.decoder, self.encoder = self.weight(3), self.weight(3, DATA_DIM), self.weight(DATA_DIM, 3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior.expand(x.shape[0], 3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.decoder).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(logits=x @ self.encoder).to_event(1))

    def listed(self) -> dict[str, list[Tensor]]:
        return {"z": bits(3)}

    def log_joint(self, x: Tensor, z: Values) -> Tensor:
        return bernoulli(self.prior, z["z"]) + bernoulli(z["z"] @ self.decoder, x)

    def log_q(self, x: Tensor, z: Values) -> Tensor:
        return bernoulli(x @ self.encoder, z["z"])


class TwoSites(Toy):
    """Two bits at a site and one at another, neither of which reads the other in the guide."""

    def build(self) -> None:
        self.prior, self.decoder, self.encoder = self.weight(3), self.weight(3, DATA_DIM), self.weight(DATA_DIM, 3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Bernoulli(logits=self.prior[:2].expand(x.shape[0], 2)).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(logits=self.prior[2] * a.sum(-1)))
            pyro.sample("x", dist.Bernoulli(logits=torch.cat([a, b[:, None]], -1) @ self.decoder).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        logits = x @ self.encoder
        with pyro.plate("data", x.shape[0]):
            pyro.sample("b", dist.Bernoulli(probs=torch.sigmoid(logits[:, 2])))
            pyro.sample("a", dist.Bernoulli(logits=logits[:, :2]).to_event(1))

    def listed(self) -> dict[str, list[Tensor]]:
        return {"a": bits(2), "b": [bit[0] for bit in bits(1)]}

    def log_joint(self, x: Tensor, z: Values) -> Tensor:
        b = z["b"][..., None]
        both = torch.cat([z["a"], b], -1)
        prior = bernoulli(self.prior[:2], z["a"]) + bernoulli(self.prior[2] * z["a"].sum(-1, keepdim=True), b)
        return prior + bernoulli(both @ self.decoder, x)

    def log_q(self, x: Tensor, z: Values) -> Tensor:
        return bernoulli(x @ self.encoder, torch.cat([z["a"], z["b"][..., None]], -1))


class TwoLayers(Toy):
    """Two layers of two bits; the guide's second one reads what its first one drew."""

    def build(self) -> None:
        self.prior, self.middle, self.decoder = self.weight(2), self.weight(2, 2), self.weight(2, DATA_DIM)
        self.first, self.second = self.weight(DATA_DIM, 2), self.weight(2, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            top = pyro.sample("top", dist.Bernoulli(logits=self.prior.expand(x.shape[0], 2)).to_event(1))
            z = pyro.sample("z", dist.Bernoulli(logits=(2 * top - 1) @ self.middle).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.decoder).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(logits=x @ self.first).to_event(1))
            pyro.sample("top", dist.Bernoulli(logits=(2 * z - 1) @ self.second).to_event(1))

    def listed(self) -> dict[str, list[Tensor]]:
        return {"z": bits(2), "top": bits(2)}

    def log_joint(self, x: Tensor, z: Values) -> Tensor:
        top = bernoulli(self.prior, z["top"])
        return top + bernoulli((2 * z["top"] - 1) @ self.middle, z["z"]) + bernoulli(z["z"] @ self.decoder, x)

    def log_q(self, x: Tensor, z: Values) -> Tensor:
        return bernoulli(x @ self.first, z["z"]) + bernoulli((2 * z["z"] - 1) @ self.second, z["top"])


class Categories(Toy):
    """One of five, an index."""

    def build(self) -> None:
        self.prior, self.decoder, self.encoder = self.weight(5), self.weight(5, DATA_DIM), self.weight(DATA_DIM, 5)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(logits=self.prior.expand(x.shape[0], 5)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder[k]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.Categorical(logits=x @ self.encoder))

    def listed(self) -> dict[str, list[Tensor]]:
        return {"k": list(torch.arange(5))}

    def log_joint(self, x: Tensor, z: Values) -> Tensor:
        return self.prior.log_softmax(-1)[z["k"]] + bernoulli(self.decoder[z["k"]], x)

    def log_q(self, x: Tensor, z: Values) -> Tensor:
        return (x @ self.encoder).log_softmax(-1)[:, z["k"][:, 0]].T


class OneHots(Toy):
    """Two of one in three, as vectors."""

    def build(self) -> None:
        self.prior, self.decoder, self.encoder = self.weight(2, 3), self.weight(6, DATA_DIM), self.weight(DATA_DIM, 6)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.OneHotCategorical(logits=self.prior.expand(x.shape[0], 2, 3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=k.flatten(-2) @ self.decoder).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.OneHotCategorical(logits=(x @ self.encoder).reshape(-1, 2, 3)).to_event(1))

    def listed(self) -> dict[str, list[Tensor]]:
        corners = torch.eye(3, dtype=torch.float64)
        return {"k": [torch.stack(pair) for pair in itertools.product(corners, corners)]}

    def log_joint(self, x: Tensor, z: Values) -> Tensor:
        prior = (self.prior.log_softmax(-1) * z["k"]).sum((-1, -2))
        return prior + bernoulli(z["k"].flatten(-2) @ self.decoder, x)

    def log_q(self, x: Tensor, z: Values) -> Tensor:
        return ((x @ self.encoder).reshape(-1, 2, 3).log_softmax(-1) * z["k"]).sum((-1, -2))


TOYS = {kind.__name__: kind for kind in (OneLayer, TwoSites, TwoLayers, Categories, OneHots)}


def bits(count: int) -> list[Tensor]:
    """Every row of so many zeros and ones."""
    return [torch.tensor(row, dtype=torch.float64) for row in itertools.product((0, 1), repeat=count)]


def bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    """Log probability of a row of bits, summed over the last axis."""
    return (value * logits - nn.functional.softplus(logits)).sum(-1)


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    """In a row."""
    return torch.cat([gradient.flatten() for gradient in gradients])


def gradients(
    toy: Toy, objective: am.inference.objective.Objective, *, num_blocks: int = 30, copies: int = 200, seed: int = 0
) -> Tensor:
    """Of the bound, by an objective: a row a block, each the mean over so many copies of the data."""
    program, x = toy.program(), toy.x.repeat(copies, 1)
    data = program.prepare(x)
    loss = objective.on(program, data, seed=seed)
    parameters, rows = list(toy.parameters()), []
    with pyro_rng(seed, "gradients"):
        for _ in range(num_blocks):
            slopes = torch.autograd.grad(-loss(data).loss, parameters, allow_unused=True, materialize_grads=True)
            rows.append(flat(slopes))
    return torch.stack(rows)


def largest_z(rows: Tensor, exact: Tensor, pick: Callable[[Tensor], Tensor] = lambda row: row) -> tuple[float, float]:
    """How many standard errors the mean is off at the worst coordinate, and how many chance allows."""
    rows, exact = torch.stack([pick(row) for row in rows]), pick(exact)
    error = rows.std(0) / len(rows) ** 0.5
    off = (rows.mean(0) - exact).abs()
    moved = (error > 0) | (off > 1e-12)
    # thirty blocks: Student's tails, wider than the normal's by about a quarter at this rate
    return float((off[moved] / error[moved]).max()), 1.25 * z_value(int(moved.sum()))
