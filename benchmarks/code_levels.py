"""What a second level of codes is worth, and what its prior gains by hearing the first: VQ-VAE and VQ-VAE-2 on MNIST.

    python benchmarks/code_levels.py [--num-train 2000] [--num-steps 400] [--prior-steps 400]

Images binarised at one half; grids of 7 x 7, and of 4 x 4 above it, of 64 codes of 16 numbers; convolutions of 32
channels; batches of 64, Adam at 0.003 falling to 0 by a cosine, one seed. The networks are trained first, under uniform
priors; then they rest, and priors are trained on their codes: PixelCNNs, where "apart" gives the lower level one that
does not hear the codes above. Prints a table in markdown, of 1000 held-out images: -log p(x | k) in nats, the bound
log p(x, k), that in bits a dimension, and what the prior gains over the uniform one, with standard errors over images;
and below it what hearing the codes above gains, image by image.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import amortize as am
from amortize.diagnostics.bits import bits_per_dim
from amortize.models.code_priors import code_prior
from amortize.models.quantised import Quantised
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.vq_vae import VQVAE
from amortize.models.vq_vae_2 import VQVAE2
from amortize.models.vq_vae_2_parts import Regardless
from amortize.random import generator

CODES, SIDE, HELD_OUT = 64, 7, 1000
MODELS = {"VQ-VAE, 7 x 7": VQVAE, "VQ-VAE-2, 4 x 4 and 7 x 7": VQVAE2}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--prior-steps", type=int, default=400)
    settings = parser.parse_args()
    x, test = images(settings.num_train)
    print("| model | prior | -log p(x given k) | log p(x, k), nats | bits a dimension | gain, bits a dimension |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, constructor in MODELS.items():
        model = constructor.from_data(x, CODES, prior="uniform")
        fit(model, x, settings.num_steps, QuantisedELBO())
        likelihood, uniform = bounds(model, test)
        row(name, "uniform", likelihood, uniform, uniform)
        found = {}
        for kind, given in priors_of(constructor, x).items():
            model.priors = given
            fit(model, x, settings.prior_steps, QuantisedELBO(first=0.0))
            found[kind] = bounds(model, test)[1]
            row(name, kind, likelihood, found[kind], uniform)
        if len(found) > 1:
            heard = found["pixelcnn"] - found["pixelcnn, apart"]
            print(f"\nhearing the codes above gains {of(heard)} nats an image, {of(bits_per_dim(-heard, 784), 4)} bits")


def priors_of(constructor: type, x: torch.Tensor) -> dict[str, torch.nn.ModuleList]:
    """New ones, of each kind."""
    found = {"pixelcnn": constructor.from_data(x[:64], CODES, prior="pixelcnn").priors}
    if constructor is VQVAE2:
        apart = constructor.from_data(x[:64], CODES, prior="pixelcnn").priors
        apart[1] = Regardless(code_prior("pixelcnn", (SIDE, SIDE), CODES, seed=1))
        found["pixelcnn, apart"] = apart
    return found


def images(num_train: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out ones, a random choice of each; both sets are sorted by class."""
    found = am.data.load("mnist", binarise="threshold")
    parts = []
    for part, num in ((found.x_train, num_train), (found.x_test, HELD_OUT)):
        order = torch.randperm(len(part), generator=generator(0, "mnist"))[:num]
        parts.append(torch.as_tensor(part)[order].float())
    return parts[0], parts[1]


def fit(model: Quantised, x: torch.Tensor, num_steps: int, objective: QuantisedELBO) -> None:
    """In place, all alike."""
    training = am.Training(learning_rate=3e-3, batch_size=64, schedule="cosine", progress=False)
    am.fit(model.program(), x, objective=objective, num_steps=num_steps, training=training)


@torch.no_grad()
def bounds(model: Quantised, test: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log p(x | k) and log p(k) at the nearest codes k, (N,) each in nats: their sum is the bound on log p(x)."""
    model.eval()
    runs = [(model.run(x), x) for x in test.split(250)]
    likelihood = torch.cat([run.likelihood.log_prob(x) for run, x in runs])
    prior = torch.cat([model.log_prior(run.codes) for run, _ in runs])
    return likelihood.double().numpy(), prior.double().numpy()


def row(name: str, kind: str, likelihood: np.ndarray, prior: np.ndarray, uniform: np.ndarray) -> None:
    """A line of the table."""
    bound, gain = likelihood + prior, of(bits_per_dim(uniform - prior, 784), 4) if kind != "uniform" else ""
    print(
        f"| {name} | {kind} | {of(-likelihood)} | {of(bound)} | {of(bits_per_dim(bound, 784), 4)} | {gain} |",
        flush=True,
    )


def of(values: np.ndarray, digits: int = 2) -> str:
    """Mean and its standard error."""
    return f"{values.mean():.{digits}f} +- {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


if __name__ == "__main__":
    main()
