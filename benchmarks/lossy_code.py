"""The lossy-code curve of the VLAE and the priors of latent diffusion on digits: bits in the code, bounds, evidence.

    python benchmarks/lossy_code.py [--num-steps 800] [--sights 0 1 2 3 7] [--num-evaluated 64]

Prints two tables in markdown. Everything is trained on the 1442 training digits (8 x 8, binarised), and measured on the
first held-out ones: bits in the code, KL(q(z | x) || p(z)), by 64 draws; evidence by AIS from the guide, with its
standard error over datapoints; samples by the kernel two-sample statistic (x 1000) of as many draws as training digits.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

import amortize as am
from amortize.diagnostics.mmd import mmd_test
from amortize.models import VLAE, BernoulliVAE, LatentDiffusion
from amortize.models.latent_diffusion import TwoStageELBO
from amortize.program.program import Program
from amortize.random import pyro_rng

ANNEALING = am.AIS(num_chains=8, num_temperatures=50)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=800)
    parser.add_argument("--sights", type=int, nargs="*", default=[0, 1, 2, 3, 7])
    parser.add_argument("--betas", type=float, nargs="*", default=[1.0, 0.5, 0.3])
    parser.add_argument("--num-evaluated", type=int, default=64)
    settings = parser.parse_args()
    digits = am.data.load("digits")
    x, test = (torch.as_tensor(part).float() for part in (digits.x_train, digits.x_test[: settings.num_evaluated]))
    print("| sight | objective | bits in the code | log p(x), nats |\n| --- | --- | --- | --- |")
    for warmup in (0.0, 0.2):
        for sight in settings.sights:
            vlae = VLAE.from_data(x, latent_dim=6, sight=sight)
            train(vlae.program(), x, am.BetaELBO(warmup=warmup), settings.num_steps)
            kind = f"warm-up {warmup:g}" if warmup else "ELBO"
            print(f"| {sight} | {kind} | {bits(vlae, test):.2f} | {evidence(vlae.program(), test)} |", flush=True)
    print("\n| first stage | prior | log p(x), nats | samples |\n| --- | --- | --- | --- |")
    for beta in settings.betas:
        diffusion = LatentDiffusion.from_data(x)
        objective = TwoStageELBO(first=0.5, beta=beta)
        train(diffusion.program(), x, objective, 2 * settings.num_steps)
        normal = BernoulliVAE.from_data(x)
        normal.decoder, normal.encoder = diffusion.decoder.network, Moments(diffusion.encoder)
        for name, program in (("N(0, I)", normal.program()), ("diffusion", diffusion.program())):
            found = evidence(program, test)
            print(f"| beta = {beta:g} | {name} | {found} | {samples(program, x):.2f} |", flush=True)


class Moments(torch.nn.Module):
    """An encoder's mean and scale, as `BernoulliVAE` takes them."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of data (N, X), each (N, D)."""
        found = self.encoder(x)
        return found.mean, found.stddev


def train(program: Program, x: torch.Tensor, objective: am.inference.objective.Objective, num_steps: int) -> None:
    """All alike: Adam at 0.01 with a cosine, batches of 100."""
    training = am.Training(learning_rate=1e-2, batch_size=100, schedule="cosine", progress=False)
    am.fit(program, x, objective=objective, num_steps=num_steps, training=training)


def bits(vlae: VLAE, x: torch.Tensor) -> float:
    """In the code, mean over datapoints."""
    with torch.no_grad(), pyro_rng(0, "bits"):
        posterior = vlae.encoder(x)
        z = posterior.sample((64,))
        return float((posterior.log_prob(z) - vlae.prior().log_prob(z)).mean()) / math.log(2)


def evidence(program: Program, x: torch.Tensor) -> str:
    """Mean log p(x) and its standard error over datapoints."""
    found = am.evidence(program, x, method=ANNEALING).log_evidence
    return f"{found.mean():.2f} +- {found.std(ddof=1) / np.sqrt(len(found)):.2f}"


def samples(program: Program, x: torch.Tensor) -> float:
    """The squared discrepancy of draws and data, times 1000."""
    drawn = program.simulate(torch.zeros_like(x), seed=0)[1]["x"]
    return 1000 * mmd_test(drawn, x.numpy(), num_permutations=1).squared


if __name__ == "__main__":
    main()
