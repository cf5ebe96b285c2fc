"""Training with tighter bounds on static binarised MNIST: whether the model is better, and by how much.

    python benchmarks/mnist_bounds.py [--epochs 30] [--seeds 0 1 2] [--cache DIR] [--only NAME ...]

The network of Burda et al. (2016), one stochastic layer: 784-200-200-50, tanh, output bias at the training mean; 50 000
training images, batches of 100, Adam, 3e-3 falling to 0 by a cosine, the same number of epochs for each objective.
Gradients of L-MCVAE are clipped at a norm of 50 (they are near 30): without, its first steps overshoot and it diverges.
Data are read from ``$AMORTIZE_DATA_DIR``. Trained programs are kept in ``--cache``, and found there again.

Prints a markdown table: the objective's own bound on 2000 test images, and the evidence of 200 of them by AIS from the
guide (16 chains, 100 temperatures); differences are paired with the VAE of the same seed, image by image. Test images
are sorted by digit in the file, so a random permutation of them (seed 0) is taken from the front.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import amortize as am

BATCH, MEASURED, ANNEALED = 100, 2000, 200
OBJECTIVES = {"vae": am.IWAE(num_particles=1), "iwae-5": am.IWAE(num_particles=5), "l-mcvae-5": am.LMCVAE(num_steps=5)}


class Row(NamedTuple):
    """What was measured of one trained program."""

    bound: np.ndarray
    evidence: np.ndarray
    se: np.ndarray


def make(x: torch.Tensor, seed: int) -> am.Program:
    """784-200-200-50."""
    return am.models.BernoulliVAE.from_data(x, latent_dim=50, hidden=(200, 200), seed=seed).program()


def trained(name: str, seed: int, x: torch.Tensor, *, epochs: int, cache: Path) -> am.Fitted:
    """From the cache, or trained and put there."""
    path = cache / f"{name}-{seed}.pt"
    if path.exists():
        return am.load(path, make(x, seed))
    clip_norm = 50.0 if name.startswith("l-mcvae") else None
    training = am.Training(learning_rate=3e-3, batch_size=BATCH, schedule="cosine", clip_norm=clip_norm)
    num_steps = epochs * (len(x) // BATCH)
    objective = "elbo" if name == "vae" else OBJECTIVES[name]
    fitted = am.fit(make(x, seed), x, objective=objective, num_steps=num_steps, seed=seed, training=training)
    fitted.save(path)
    return fitted


def measured(fitted: am.Fitted, name: str, images: torch.Tensor, num_annealed: int) -> Row:
    """The objective's own bound on all images, one draw each, and the evidence of the first ones."""
    program, objective = fitted.program, OBJECTIVES[name]
    data = program.prepare(images)
    loss = objective.on(program, data, seed=0)
    loss.load_state_dict(fitted.extra)
    with program.evaluating():
        bound = loss.measured(data, 4, seed=0)
    evidence = am.evidence(program, images[:num_annealed], method=am.AIS())
    return Row(bound, evidence.log_evidence, evidence.se)


def of(values: np.ndarray) -> str:
    """Mean and its standard error over images."""
    return f"{values.mean():.2f} +- {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--train-only", action="store_true")
    options = parser.parse_args()
    cache = options.cache or Path(tempfile.mkdtemp())
    data = am.data.load("binarized-mnist")
    train = torch.tensor(data.x_train)
    order = torch.randperm(len(data.x_test), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.x_test)[order[:MEASURED]]
    print(
        "| objective, seed | its own bound | minus the VAE's ELBO | log p(x) by AIS | minus the VAE's | training, s |"
    )
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for seed in options.seeds:
        reference: Row | None = None
        for name in options.only:
            fitted = trained(name, seed, train, epochs=options.epochs, cache=cache)
            if options.train_only:
                continue
            row = measured(fitted, name, images, ANNEALED)
            reference = row if name == "vae" else reference
            gains = ("", "")
            if reference is not None and name != "vae":
                gains = (of(row.bound - reference.bound), of(row.evidence - reference.evidence))
            print(
                f"| {name}, {seed} | {of(row.bound)} | {gains[0]} | {row.evidence.mean():.2f} | {gains[1]} "
                f"| {fitted.seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
