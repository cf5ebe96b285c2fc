"""Gradient estimators of a guide with discrete latents, compared: the tables of docs/gradients.md.

    python benchmarks/gradient_ladder.py                                # 8 bits under 8 x 8 digits, at the start
    python benchmarks/gradient_ladder.py --bits 12 --steps 0            # as many as the exact gradient allows
    python benchmarks/gradient_ladder.py --first 1000                   # the same after 1000 steps of leave-one-out
    python benchmarks/gradient_ladder.py --categories 2 --bits 10       # two latents of one in ten
    python benchmarks/gradient_ladder.py --layers 2 --bits 4            # two layers of four bits
    python benchmarks/gradient_ladder.py --bits 200 --draws 100         # too many for the exact gradient

Data are scikit-learn's digits, pixels above half their range; decoder and encoder are linear, the prior is learned (of
the upper layer, where there are two). Every estimator is measured on the same digits, up to 100, at one set of weights,
and then trains from there on all digits by Adam at ``--rate``, ``--batch`` a step. ``--seconds`` keeps the column of
times, which says something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortize as am


class Latents(nn.Module):
    """Bits, or groups of one in so many, in one layer or two."""

    def __init__(self, data_dim: int, options: argparse.Namespace) -> None:
        super().__init__()
        self.groups, self.bits, self.layers = options.categories, options.bits, options.layers
        size = self.bits * max(self.groups, 1)
        gen = torch.Generator().manual_seed(0)
        self.prior = nn.Parameter(torch.zeros(size))
        self.decoder, self.encoder = nn.Linear(size, data_dim), nn.Linear(data_dim, size)
        self.up, self.down = nn.Linear(size, size), nn.Linear(size, size)
        with torch.no_grad():
            for layer in (self.decoder, self.encoder, self.up, self.down):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=gen) / layer.in_features**0.5)
                layer.bias.zero_()

    def site(self, logits: Tensor) -> dist.TorchDistribution:
        """A layer's distribution."""
        if self.groups:
            return dist.OneHotCategorical(logits=logits.unflatten(-1, (self.groups, self.bits))).to_event(1)
        return dist.Bernoulli(logits=logits).to_event(1)

    def flat(self, z: Tensor) -> Tensor:
        """As a decoder takes it."""
        return z.flatten(-2) if self.groups else z

    def model(self, x: Tensor) -> None:
        """For Pyro."""
        with pyro.plate("data", x.shape[0]):
            logits = self.prior.expand(x.shape[0], -1)
            if self.layers == 2:
                logits = self.down(self.flat(pyro.sample("top", self.site(logits))))
            z = self.flat(pyro.sample("z", self.site(logits)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """For Pyro."""
        with pyro.plate("data", x.shape[0]):
            z = self.flat(pyro.sample("z", self.site(self.encoder(x - 0.5))))
            if self.layers == 2:
                pyro.sample("top", self.site(self.up(z)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=8, help="bits, or categories of a group")
    parser.add_argument("--categories", type=int, default=0, help="groups of one in --bits, 0 for bits")
    parser.add_argument("--layers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="steps of leave-one-out before anything is measured")
    parser.add_argument("--batch", type=int, default=128, help="datapoints a step of training")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--estimator", action="append", help="one of the ladder's; all where none is named")
    parser.add_argument("--seconds", action="store_true")
    parser.add_argument("--out", type=Path, help="keep the whole table in a .csv")
    options = parser.parse_args()
    digits = torch.as_tensor(am.data.load("digits", binarise="threshold").x_train).float()
    latents = Latents(digits.shape[1], options)
    program = am.Program(latents.model, latents.guide)
    training = am.Training(learning_rate=options.rate, batch_size=options.batch, progress=False)
    if options.first:
        am.fit(program, digits, objective="leave-one-out", num_steps=options.first, seed=1, training=training)
    given = {"num_draws": options.draws, "seed": options.seed, "estimators": options.estimator}
    measured = am.gradient_ladder(program, digits, num_steps=options.steps, training=training, **given)
    if not options.seconds:
        measured.table["seconds"] = float("nan")
    print(measured.describe())
    if options.out is not None:
        measured.table.to_csv(options.out, index_label="estimator")


if __name__ == "__main__":
    main()
