"""What amortization costs a VAE on static binarised MNIST, on test and on training images, with standard errors.

    python benchmarks/mnist_gaps.py --cache DIR [--seeds 0 1 2] [--num 500] [--only gaps refine]

The VAE is that of ``mnist_bounds.py`` (784-200-200-50, tanh, objective "elbo", 30 epochs of the 50 000 training
images), which trains it into ``--cache`` if it isn't there. Images are random: a permutation (seed 0) of the test
images, which are sorted by digit in the file, and one of the training images, are taken from the front.

gaps    The ledger: the guide's ELBO (1000 draws an image), the best mean-field and full-covariance posterior of each
        image by itself, each scored on 1000 fresh draws, and log p(x) by ``method="auto"``; 500 test and 500 training
        images for each seed of the training. Differences are paired by image.
refine  20 steps of refinement from the guide: the share of the amortization gap that they close, on test images.

Everything is float32. Finished parts are kept in ``--cache``, and found there again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mnist_bounds import trained

import amortize as am

FAMILIES = ("mean-field", "full-covariance")
GAPS = ("inference_gap", "approximation_gap", "amortization_gap")
RUNGS = ("elbo_guide", "elbo_mean_field", "elbo_full_covariance", "log_evidence")
STEPS = 20


class Bench:
    """Programs of each seed, and the images."""

    def __init__(self, cache: Path, epochs: int, num: int) -> None:
        data = am.data.load("binarized-mnist")
        self.cache, self.epochs, self.train = cache, epochs, torch.tensor(data.x_train)
        stream = torch.Generator().manual_seed(0)
        test = torch.tensor(data.x_test)[torch.randperm(len(data.x_test), generator=stream)]
        mixed = self.train[torch.randperm(len(self.train), generator=stream)]
        self.images = {"test": test[:num], "train": mixed[:num]}

    def program(self, seed: int) -> am.Program:
        """Trained."""
        return trained("vae", seed, self.train, epochs=self.epochs, cache=self.cache).program

    def table(self, seed: int, split: str) -> pd.DataFrame:
        """The ledger's table of one seed and split, a row an image."""
        images = self.images[split]
        path = self.cache / f"gaps-{seed}-{split}-{len(images)}.parquet"
        if path.exists():
            return pd.read_parquet(path)
        begin = time.perf_counter()
        ledger = am.gaps(self.program(seed), images, families=FAMILIES, method="auto", seed=seed)
        converged = ", ".join(f"{name} {local.converged.mean():.0%}" for name, local in ledger.local.items())
        print(f"seed {seed}, {split}: {time.perf_counter() - begin:.0f} s; converged: {converged}", flush=True)
        ledger.table.to_parquet(path)
        return ledger.table


def of(values: pd.Series) -> str:
    """Mean and its standard error over images."""
    return f"{values.mean():.3f} +- {values.sem():.3f}"


def gaps(bench: Bench, seeds: list[int]) -> None:
    """The rungs and the gaps of each seed and split."""
    tables = {(seed, split): bench.table(seed, split) for seed in seeds for split in bench.images}
    print("\n| seed, images | " + " | ".join(RUNGS) + " |\n" + "| --- " * (len(RUNGS) + 1) + "|")
    for (seed, split), table in tables.items():
        print(f"| {seed}, {split} | " + " | ".join(of(table[name]) for name in RUNGS) + " |")
    print("\n| seed | gap | test | z | train | test - train | z |\n| --- | --- | --- | --- | --- | --- | --- |")
    for seed in seeds:
        for name in (*GAPS, "full covariance over mean field"):
            test, train = (gap(tables[seed, split], name) for split in ("test", "train"))
            apart, error = test.mean() - train.mean(), np.hypot(test.sem(), train.sem())
            print(
                f"| {seed} | {name} | {of(test)} | {test.mean() / test.sem():.0f} | {of(train)} "
                f"| {apart:.3f} +- {error:.3f} | {apart / error:.1f} |"
            )
    for (seed, split), table in tables.items():
        print(f"seed {seed}, {split}: {violations(table)}")


def gap(table: pd.DataFrame, name: str) -> pd.Series:
    """A gap of each image."""
    return table[name] if name in table else table["elbo_full_covariance"] - table["elbo_mean_field"]


def violations(table: pd.DataFrame) -> str:
    """How many images break an inequality that must hold, by more than three standard errors."""
    pairs = list(itertools.pairwise(RUNGS))
    counts = []
    for low, high in pairs:
        error = np.hypot(table[f"{low}_se"], table[f"{high}_se"])
        counts.append(f"{low} above {high}: {int((table[low] > table[high] + 3 * error).sum())}")
    return "; ".join(counts) + f"; of {len(table)} images"


def refine(bench: Bench, seeds: list[int]) -> None:
    """What a few steps from the guide win."""
    print(
        "\n| seed | steps | gain, nats | share of the amortization gap | ever lowered by > 3 se |\n| --- "
        + "| --- " * 4
        + "|"
    )
    for seed in seeds:
        table = bench.table(seed, "test")
        refined = am.refine(bench.program(seed), bench.images["test"], num_steps=STEPS, seed=seed)
        gain = refined.gain[-1]
        share = gain.mean() / table["amortization_gap"].mean()
        worse = int((refined.gain < -3 * refined.gain_se).any(0).sum())
        print(f"| {seed} | {STEPS} | {of(pd.Series(gain))} | {share:.3f} | {worse} of {len(table)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=["gaps", "refine"], default=["gaps", "refine"])
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.cache, options.epochs, options.num)
    for part in options.only:
        {"gaps": gaps, "refine": refine}[part](bench, options.seeds)


if __name__ == "__main__":
    main()
