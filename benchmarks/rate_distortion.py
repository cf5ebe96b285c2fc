"""Distortion and rate over beta, and collapse under a strong decoder with what prevents it, on binarised digits.

    python benchmarks/rate_distortion.py [--steps 400] [--seeds 1] [--figure curve.png]

Prints markdown tables, nats a test image: distortion -E[log p(x | z)], rate KL(q || p), their sum (the negative
ELBO), the mutual information of datapoints and codes, and active units. The first has the beta-VAE (64-64-8, tanh) at
each price; with ``--figure`` the curve is drawn, too. The others have a decoder that sees the code and all pixels
before (a PixelCNN of full sight) behind deep and narrow networks that are slow to learn a code, trained by the ELBO as
it is, by KL annealing, by free bits, and by a guide trained ahead of the model.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import amortize as am
from amortize.diagnostics.collapse import active_units
from amortize.inference.mutual_information import mutual_information
from amortize.models.networks import MLP
from amortize.models.pixelcnn import PixelCNN
from amortize.models.vae import VAE, DiagonalNormal, StandardNormal, log_odds_of_means
from amortize.models.vlae import VLAE
from amortize.program.rates import RatedRun
from amortize.random import generator, pyro_rng

BETAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LATENTS, CHANNELS = 4, 32
WIDTHS = (8, 16)  # of three hidden layers between images and codes
NUM_DRAWS = 16


class Measured(NamedTuple):
    """Of test images, nats; active units of D."""

    distortion: float
    rate: float
    information: float
    active: float


def measured(vae: VAE, x: Tensor) -> Measured:
    """Of a trained model."""
    program = vae.program()
    data = program.prepare(x)
    with program.evaluating(), torch.no_grad(), pyro_rng(0, "rate-distortion"):
        run = RatedRun.of(program, program.structure(data), data, NUM_DRAWS)
        information = mutual_information(program.guide_density(data), data, seed=0)
        active = active_units(vae.encoder(x).mean.numpy())
    return Measured(float(run.distortion.mean()), float(run.rate.mean()), information, float(active.sum()))


def strong(x: Tensor, width: int, seed: int) -> VAE:
    """A VAE whose decoder sees all pixels before, and learns of the code slowly."""
    side, slow = round(x.shape[1] ** 0.5), (width,) * 3
    decoder = PixelCNN(LATENTS, side, sight=side - 1, channels=CHANNELS, hidden=slow, seed=seed)
    with torch.no_grad():
        decoder.bias.copy_(log_odds_of_means(x))
    network = MLP((x.shape[1], *slow, 2 * LATENTS), generator=generator(seed, "encoder"))
    return VLAE(prior=StandardNormal(LATENTS), decoder=decoder, encoder=DiagonalNormal(network))


REMEDIES: dict[str, dict[str, Any]] = {
    "the ELBO as it is": {"objective": am.BetaELBO()},
    "KL annealing over 80 % of the steps": {"objective": am.BetaELBO(warmup=0.8)},
    "free bits, 0.5 nats a latent": {"objective": am.BetaELBO(free_bits=0.5)},
    "a guide trained ahead": {
        "objective": am.BetaELBO(),
        "aggressive": am.Aggressive(max_inner_steps=10, check_every=10, patience=3),
    },
}


def curve(x: Tensor, held_out: Tensor, *, num_steps: int, seed: int) -> list[Measured]:
    """A point for each beta."""
    found = []
    for beta in BETAS:
        vae = am.models.BetaVAE.from_data(x, beta=beta, seed=seed)
        training = am.Training(learning_rate=3e-3, schedule="cosine", batch_size=128)
        am.fit(vae.program(), x, objective=vae.objective, num_steps=num_steps, seed=seed, training=training)
        found.append(measured(vae, held_out))
    return found


def collapse(x: Tensor, held_out: Tensor, *, width: int, num_steps: int, seed: int) -> list[Measured]:
    """A row for each remedy."""
    found = []
    for remedy in REMEDIES.values():
        vae = strong(x, width, seed)
        training = am.Training(learning_rate=1e-2, batch_size=128, aggressive=remedy.get("aggressive"))
        am.fit(
            vae.program(), x, objective=remedy["objective"], num_steps=num_steps, seed=seed, training=training
        )  # fmt: skip
        found.append(measured(vae, held_out))
    return found


def table(title: str, names: list[str], runs: list[list[Measured]]) -> str:
    """Means over seeds; the standard deviation of the rate where there are several."""
    values = np.array(runs)
    lines = [f"| {title} | distortion | rate | sum | mutual information | active units |", "| --- |" + " ---: |" * 5]
    for place, name in enumerate(names):
        distortion, rate, information, active = values[:, place].mean(0)
        spread = f" ± {values[:, place, 1].std(ddof=1):.2f}" if len(values) > 1 else ""
        lines.append(
            f"| {name} | {distortion:.2f} | {rate:.2f}{spread} | {distortion + rate:.2f} | {information:.2f} |"
            f" {active:.1f} |"
        )
    return "\n".join(lines)


def draw(points: list[Measured], path: str) -> None:
    """Rate against distortion."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    axes.plot([p.rate for p in points], [p.distortion for p in points], "o-", color="#2a6f97")
    for beta, point in zip(BETAS, points, strict=True):
        axes.annotate(f"{beta:g}", (point.rate, point.distortion), xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="rate (nats)", ylabel="distortion (nats)", title="digits: one point a beta")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--figure", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = am.data.load("digits")
    x, held_out = torch.as_tensor(loaded.x_train).float(), torch.as_tensor(loaded.x_test).float()
    runs = [curve(x, held_out, num_steps=given.steps, seed=seed) for seed in range(given.seeds)]
    print(table("beta", [f"{beta:g}" for beta in BETAS], runs) + "\n", flush=True)
    if given.figure:
        draw(runs[0], given.figure)
    for width in WIDTHS:
        runs = [collapse(x, held_out, width=width, num_steps=given.steps, seed=seed) for seed in range(given.seeds)]
        print(table(f"{width} wide, trained by", list(REMEDIES), runs) + "\n", flush=True)


if __name__ == "__main__":
    main()
