"""Wasserstein autoencoders beside a VAE: how far all codes together are from the prior, and how well data come back.

    python benchmarks/wae.py [--seeds 3]                                     # 8 x 8 digits, 64-64-4, 800 steps
    python benchmarks/wae.py --data mnist --latent-dim 8 --hidden 200 --steps 1000 --rate 2e-3 --seeds 1

The discrepancy (`amortize.diagnostics.mmd`) is that of the codes of all digits, or of 2000 held-out images of MNIST,
from as many draws of the prior; a VAE's codes are draws of its encoder. Reconstructions are of held-out data, their
error the root of the mean square. All are trained by Adam at a rate that falls from ``--rate`` along a cosine, 128 data
a step.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import amortize as am
from amortize.diagnostics.mmd import Discrepancy, mmd_test
from amortize.models import AdversarialWAE, BernoulliVAE, DiscrepancyWAE
from amortize.random import pyro_rng

FORMS = {"vae": BernoulliVAE, "wae-mmd": DiscrepancyWAE, "wae-gan": AdversarialWAE}
COMPARED = 2000


def codes(program: am.Program, x: torch.Tensor) -> np.ndarray:
    """A draw of the guide for each datapoint, (N, D)."""
    data = program.prepare(x)
    with program.evaluating(), torch.no_grad(), pyro_rng(0, "codes"):
        drawn: np.ndarray = program.guide_density(data, points=True).sample(data)[0]["z"].numpy()
    return drawn


def measured(form: str, data: tuple[torch.Tensor, ...], seed: int, options: Any) -> tuple[Discrepancy, float, float]:
    """Discrepancy, error, and seconds of training."""
    train, held_out, compared = data
    model = FORMS[form].from_data(train, latent_dim=options.latent_dim, hidden=tuple(options.hidden), seed=seed)
    objective = am.BetaELBO() if form == "vae" else model.objective
    how = am.Training(learning_rate=options.rate, schedule="cosine", batch_size=128, progress=False)
    program = model.program()
    fitted = am.fit(program, train, objective=objective, num_steps=options.steps, seed=seed, training=how)
    found = codes(program, compared)
    prior = np.random.default_rng(0).normal(size=found.shape)
    away = program.reconstruct(held_out)["x"] - held_out.numpy()
    return mmd_test(found, prior, num_permutations=200), float(np.sqrt(np.mean(away**2))), fitted.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latent-dim", type=int, default=4)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=5e-3)
    options = parser.parse_args()
    loaded = am.data.load(options.data, binarise=None if options.data == "digits" else "static")
    train, held_out = (torch.as_tensor(part).float() for part in (loaded.x_train, loaded.x_test))
    if options.data == "mnist":
        held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:COMPARED]]
    compared = torch.cat([train, held_out]) if options.data == "digits" else held_out
    print("| model, seed | squared MMD | noise | p | error, held out | training, s |\n" + "| --- " * 6 + "|")
    for seed in range(options.seeds):
        for form in FORMS:
            found, error, seconds = measured(form, (train, held_out, compared), seed, options)
            row = f"{found.squared:.5f} | {found.noise:.5f} | {found.p_value:.3f} | {error:.4f} | {seconds:.0f}"
            print(f"| {form}, {seed} | {row} |", flush=True)


if __name__ == "__main__":
    main()
