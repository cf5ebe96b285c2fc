"""Whether the ledger names the cause of a guide's loss, where the cause was planted.

    python benchmarks/causes.py [--seeds 5] [--cause NAME]

Six programs, each with one thing wrong or none; train and test data are drawn from the model, z 2, in float32. A row a
program: the causes named over the seeds, the gaps on test data (mean and standard deviation over seeds, nats a
datapoint) and what told the cause. Prints a markdown table, and ends with status 1 where a cause was missed.

Planted: the linear-Gaussian models differ in their loadings alone, columns at right angles (the posterior has
independent dimensions, so that mean field is exact) or nearly parallel; the bimodal one sees z1 squared.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortize as am
from amortize.errors import AmortizeWarning

DIM, NOISE, RIDGE = 2, 0.5, 0.12
NUM_TEST = 48


class Planted(NamedTuple):
    """A trained program, the data it was trained on, and others."""

    fitted: am.Fitted
    train: Tensor
    test: Tensor


class Linear(nn.Module):
    """x ~ N(W z, NOISE^2), z ~ N(0, I), with W (X, 2)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> None:
        """The model."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, NOISE).to_event(1), obs=x)


class Square(nn.Module):
    """x ~ N((z1^2, z2), RIDGE^2): two modes of z1, at both roots."""

    def forward(self, x: Tensor) -> None:
        """The model."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(DIM), torch.tensor([1.5, 1.0])).to_event(1))
            seen = torch.stack([z[..., 0] ** 2, z[..., 1]], -1)
            pyro.sample("x", dist.Normal(seen, RIDGE).to_event(1), obs=x)


class Encoder(nn.Module):
    """A mean-field guide: means and log scales by a network with one hidden layer, or none."""

    def __init__(self, data_dim: int, hidden: int | None) -> None:
        super().__init__()
        out = 2 * DIM
        layers = (nn.Linear(data_dim, out),)
        if hidden is not None:
            layers = (nn.Linear(data_dim, hidden), nn.Tanh(), nn.Linear(hidden, out))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> None:
        """The guide."""
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(-6, 3).exp()).to_event(1))


def loadings(data_dim: int, angle: float, gen: torch.Generator) -> Tensor:
    """Two columns of length 1.5 at an angle, turned at random, (X, 2)."""
    frame = torch.linalg.qr(torch.randn(data_dim, 2, generator=gen)).Q
    turn = torch.tensor([[1.0, np.cos(angle)], [0.0, np.sin(angle)]])
    return (1.5 * frame.double() @ turn.double()).float()


def trained(model: nn.Module, encoder: nn.Module, train: Tensor, test: Tensor, **settings: float) -> Planted:
    """Train the encoder on ``train``."""
    steps = int(settings.pop("num_steps"))
    training = am.Training(progress=False, clip_norm=100.0, **{"learning_rate": 5e-3, "schedule": "cosine", **settings})
    program = am.Program(model, encoder)
    return Planted(am.fit(program, train, num_steps=steps, training=training), train, test)


def linear(seed: int, *, hidden: int | None, num_steps: int, **settings: float) -> Planted:
    """A linear-Gaussian model whose posterior is mean-field, unless ``angle`` says otherwise, and an encoder."""
    gen = torch.Generator().manual_seed(seed)
    data_dim, num_train = int(settings.pop("data_dim", 6)), int(settings.pop("num_train", 1000))
    model = Linear(loadings(data_dim, settings.pop("angle", np.pi / 2), gen))
    x = drawn(model, data_dim, num_train + NUM_TEST, seed)
    torch.manual_seed(seed)
    encoder = Encoder(data_dim, hidden)
    return trained(model, encoder, x[:num_train], x[num_train:], num_steps=num_steps, **settings)


def bimodal(seed: int) -> Planted:
    """A posterior with two modes, and an encoder that is good enough."""
    model = Square()
    x = drawn(model, DIM, 1000 + NUM_TEST, seed)
    torch.manual_seed(seed)
    return trained(model, Encoder(DIM, 64), x[:1000], x[1000:], num_steps=4000)


def drawn(model: nn.Module, data_dim: int, num: int, seed: int) -> Tensor:
    """Data from the model."""
    return torch.as_tensor(am.Program(model).simulate(torch.zeros(num, data_dim), seed=seed)[1]["x"])


PLANTED: dict[str, Callable[[int], Planted]] = {
    "small-encoder": lambda seed: linear(seed, hidden=1, num_steps=2000),
    "correlated-posterior": lambda seed: linear(seed, hidden=None, num_steps=2000, angle=0.3),
    "multimodal-posterior": bimodal,
    "under-trained-guide": lambda seed: linear(seed, hidden=64, num_steps=40, learning_rate=1e-3),
    "overfitted-encoder": lambda seed: linear(seed, hidden=256, num_steps=3000, data_dim=30, num_train=40),
    "nothing": lambda seed: linear(seed, hidden=None, num_steps=2000),
}
"""By the cause that should be named."""


def ledger_of(planted: Planted, seed: int) -> am.Ledger:
    """The ledger, with all that the cause may rest on."""
    return am.gaps(planted.fitted.program, planted.test, x_train=planted.train, fitted=planted.fitted, seed=seed)


def row(cause: str, ledgers: list[am.Ledger]) -> str:
    """A row of the table."""
    named = [ledger.cause for ledger in ledgers]
    words = ", ".join(f"{name} {named.count(name)}" for name in dict.fromkeys(named))
    gaps = ("inference_gap", "approximation_gap", "amortization_gap")
    columns = [_spread([ledger.summary.loc[gap, "mean"] for ledger in ledgers]) for gap in gaps]
    clues = ("generalisation", "continued", "multimodal")
    columns += [_spread([getattr(ledger.clues, name) for ledger in ledgers]) for name in clues]
    return f"| {cause} | {words} | {' | '.join(columns)} |"


def _spread(values: list[float]) -> str:
    finite = np.asarray(values)[np.isfinite(values)]
    if not len(finite):
        return "-"
    return f"{finite.mean():.3f} ({finite.std(ddof=1):.3f})" if len(finite) > 1 else f"{finite.mean():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cause", choices=PLANTED)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AmortizeWarning)
    print("| planted | named | inference gap | approximation | amortization | test - train | training on | modes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    missed = 0
    for cause in [asked.cause] if asked.cause else PLANTED:
        ledgers = [ledger_of(PLANTED[cause](seed), seed) for seed in range(asked.seeds)]
        missed += sum(ledger.cause != cause for ledger in ledgers)
        print(row(cause, ledgers), flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
