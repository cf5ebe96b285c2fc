"""How much of its codebook a VQ-VAE uses, and what a prior of its codes is worth: MNIST and Fashion-MNIST.

    python benchmarks/codebooks.py [--only usage|prior] [--sets mnist fashion-mnist] [--num-steps 500]

Images binarised at one half. Each model: a grid of 7 x 7 codes of 128 vectors of 16 numbers, convolutions of 32
channels, 5000 training images, batches of 64, Adam at 0.003 falling to 0 by a cosine, one seed. Prints two tables in
markdown. Usage: codebooks begun at vectors of data, or at random ones (N(0, I)), learned by gradient or by moving
averages, with and without restarts; perplexity, dead codes and -log p(x | k) on 1000 held-out images. Prior: encoder
and decoder of the last row rest, and each prior is trained on their codes, 32 at a step; the bound log p(x, k) on the
same images, in nats and in bits a dimension, with the standard error over images of what it gains over the uniform one.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import amortize as am
from amortize.diagnostics.bits import bits_per_dim
from amortize.models.code_priors import code_prior
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.vq_vae import VQVAE
from amortize.random import generator

CODES, TRAINED, HELD_OUT = 128, 5000, 1000
WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "random, by gradient": (False, {"ema": None, "restarts": 0.0}),
    "random, by gradient, restarts": (False, {"ema": None}),
    "random, moving averages": (False, {"restarts": 0.0}),
    "random, moving averages, restarts": (False, {}),
    "data, by gradient": (True, {"ema": None, "restarts": 0.0}),
    "data, moving averages": (True, {"restarts": 0.0}),
    "data, moving averages, restarts": (True, {}),
}
"""Whether the codebook begins at data, and its settings; the last is how a VQ-VAE comes."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["usage", "prior"])
    parser.add_argument("--sets", nargs="*", default=["mnist", "fashion-mnist"])
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--prior-steps", type=int, default=1000)
    settings = parser.parse_args()
    data = {name: images(name) for name in settings.sets}
    if settings.only != "prior":
        print(
            "| data | codebook | perplexity | dead of 128 | -log p(x given k), nats |\n| --- | --- | --- | --- | --- |"
        )
        for name, (x, test) in data.items():
            for way in WAYS:
                print(f"| {name} | {way} | {usage_row(trained(x, way, settings.num_steps), test)} |", flush=True)
    if settings.only != "usage":
        print("\n| data | prior | log p(x, k), nats | bits a dimension | gain, bits a dimension |")
        print("| --- | --- | --- | --- | --- |")
        for name, (x, test) in data.items():
            prior_rows(name, trained(x, "data, moving averages, restarts", settings.num_steps), x, test, settings)


def images(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out ones, a random choice of the first and of the second; both sets are sorted by class."""
    found = am.data.load(name, binarise="threshold")
    parts = []
    for part, num in ((found.x_train, TRAINED), (found.x_test, HELD_OUT)):
        order = torch.randperm(len(part), generator=generator(0, name))[:num]
        parts.append(torch.as_tensor(part)[order].float())
    return parts[0], parts[1]


def trained(x: torch.Tensor, way: str, num_steps: int) -> VQVAE:
    """A VQ-VAE under a uniform prior."""
    at_data, codebook = WAYS[way]
    model = VQVAE.from_data(x, CODES, codebook=codebook, prior="uniform")
    if not at_data:
        book = model.levels[0].codebook
        gen = generator(0, "random codebook")
        book.start(torch.randn(CODES, book.dim, generator=gen), generator=gen)
    fit(model, x, num_steps, QuantisedELBO(), batch_size=64)
    return model


def fit(model: VQVAE, x: torch.Tensor, num_steps: int, objective: QuantisedELBO, *, batch_size: int) -> None:
    """In place, all alike."""
    training = am.Training(learning_rate=3e-3, batch_size=batch_size, schedule="cosine", progress=False)
    am.fit(model.program(), x, objective=objective, num_steps=num_steps, training=training)


@torch.no_grad()
def bounds(model: VQVAE, test: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log p(x | k) and log p(k) at the nearest codes k, (N,) each in nats: their sum is the bound on log p(x)."""
    model.eval()
    parts = [(model.run(x), x) for x in test.split(250)]
    likelihood = torch.cat([run.likelihood.log_prob(x) for run, x in parts])
    prior = torch.cat([model.log_prior(run.codes) for run, _ in parts])
    return likelihood.double().numpy(), prior.double().numpy()


def usage_row(model: VQVAE, test: torch.Tensor) -> str:
    """Perplexity with its standard error, dead codes, and the cost of the pixels."""
    usage = am.code_usage(model.program(), test)["codes"]
    likelihood = bounds(model, test)[0]
    return f"{usage.perplexity:.1f} +- {usage.perplexity_se:.1f} | {usage.num_dead} | {of(-likelihood)}"


def prior_rows(name: str, model: VQVAE, x: torch.Tensor, test: torch.Tensor, settings: argparse.Namespace) -> None:
    """Of the same codes under each prior."""
    likelihood, uniform = bounds(model, test)
    for kind in ("uniform", "pixelcnn", "transformer"):
        prior = uniform
        if kind != "uniform":
            model.priors[0] = code_prior(kind, (7, 7), CODES)
            fit(model, x, settings.prior_steps, QuantisedELBO(first=0.0), batch_size=32)
            prior = bounds(model, test)[1]
        bits, gain = bits_per_dim(likelihood + prior, 784), bits_per_dim(uniform - prior, 784)
        gained = "" if kind == "uniform" else of(gain, 4)
        print(f"| {name} | {kind} | {of(likelihood + prior)} | {of(bits, 4)} | {gained} |", flush=True)


def of(values: np.ndarray, digits: int = 2) -> str:
    """Mean and its standard error."""
    return f"{values.mean():.{digits}f} +- {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


if __name__ == "__main__":
    main()
