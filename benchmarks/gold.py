"""The gold standard on a VAE of MNIST: how far guide and local posteriors are from the exact posterior, image by image.

    python benchmarks/gold.py [--cache DIR] [--images 8] [--nuts 1] [--seed 0]

The VAE is that of ``mnist_bounds.py`` (784-200-200-50, seed 0), trained here or found in ``--cache``; test images are
in the order of a fixed permutation. Data are read from ``$AMORTIZE_DATA_DIR``.

Prints a markdown table, a row a posterior: means over images and latents, with standard errors over images, of the root
mean square bias in the posterior's sds, the ratio of sds, Wasserstein-1 in the posterior's sds beside the noise it
would have were there no difference, and the classifier two-sample test. Rows "long HMC again" and "NUTS" (on the first
``--nuts`` images alone) say what chains of another seed, and of someone else's sampler, would get.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mnist_bounds import trained

import amortize as am

FAMILIES = ("mean-field", "full-covariance")


def row(name: str, table: pd.DataFrame) -> str:
    """Means over images and latents, with standard errors over images."""
    each = table.assign(square=table["bias"] ** 2).groupby("datapoint").mean(numeric_only=True)
    each["bias"] = np.sqrt(each["square"])
    columns = [each[name] for name in ("bias", "sd_ratio", "wasserstein", "wasserstein_noise", "c2st")]
    cells = [f"{column.mean():.3f} +- {column.sem() if len(column) > 1 else np.nan:.3f}" for column in columns]
    return f"| {name} | {len(each)} | {' | '.join(cells)} |"


def independent(gold: am.GoldStandard) -> dict[str, np.ndarray]:
    """Its draws, thinned to as many as it has effective ones: (K, N, ...) by site."""
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in gold.draws.items()}
    size = len(next(iter(flat.values())))
    picked = np.linspace(0, size - 1, int(min(gold.ess_bulk.min(), gold.ess_tail.min(), size))).round().astype(int)
    return {name: array[picked] for name, array in flat.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--nuts", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=None)
    options = parser.parse_args()
    data = am.data.load("binarized-mnist")
    cache = options.cache or Path(tempfile.mkdtemp())
    program = trained("vae", 0, torch.tensor(data.x_train), epochs=options.epochs, cache=cache).program
    order = torch.randperm(len(data.x_test), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.x_test)[order[: options.images]]
    gold = am.gold_standard(program, x, seed=options.seed)
    print(gold, f"in {gold.seconds:.0f} s; R-hat at most {gold.rhat.max():.4f}")
    posteriors = {"guide": program, **{name: am.fit_local(program, x, family=name) for name in FAMILIES}}
    posteriors["long HMC again"] = independent(am.gold_standard(program, x, seed=options.seed + 1))
    print("| posterior | images | bias (rms), sds | ratio of sds | Wasserstein-1, sds | its noise | C2ST |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    table = gold.compare(posteriors, seed=options.seed)
    for name, rows in table.groupby("posterior", sort=False):
        print(row(str(name), rows), flush=True)
    if options.nuts:
        few = x[: options.nuts]
        nuts = am.gold_standard(program, few, kernel="nuts", num_warmup=200, num_draws=300, seed=options.seed)
        print(nuts, f"in {nuts.seconds:.0f} s; R-hat at most {nuts.rhat.max():.4f}")
        same = am.gold_standard(program, few, seed=options.seed)
        print(row("NUTS", same.compare({"NUTS": independent(nuts)}, seed=options.seed)))


if __name__ == "__main__":
    main()
