"""The evidence of a VAE on static binarised MNIST: whether all ways agree, how far off they are, and what they cost.

    python benchmarks/mnist_evidence.py --cache DIR [--only agreement bdmc search uniform schedule pictures]

The VAE is that of ``mnist_bounds.py`` (784-200-200-50, objective "vae", seed 0), which trains it into ``--cache`` if it
isn't there. Test images are sorted by digit in the file; a random permutation of them (seed 0) is taken from the front.

agreement  100 images: AIS from the prior with 1000 temperatures and from the guide with 100 (16 chains, 10 leapfrog
           steps), and the importance weighted bound of 10 000 draws, paired by image.
bdmc       The gap between both sides on 100 simulated images, from the guide with 100 and with 1000 temperatures.
search     method="auto" with its defaults on 500 images.
uniform    AIS from the guide, the same temperatures and chains for each of the first 25 images. The chains that would
           bring the mean standard error to 0.05 nats follow from the run (the error falls as one over the root of the
           chains), with the gradients they would take. The cheapest is run with them on 100, and compared with auto.
schedule   A schedule for each datapoint against the shared one, at equal budget: variance of the log weights.
pictures   A grid of images, reconstructions and samples, as a PNG in ``--cache``.

Everything is float32 on one thread; costs are gradients a datapoint, pilots included, a value counting as a third.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mnist_bounds import trained

import amortize as am
from amortize.errors import AmortizeWarning

FX = "fx"  # the same graph in all parts, so that no part waits for machine code
TARGET = 0.05
UNIFORM = {
    "L = 10, 16 x 100": am.AIS(backend=FX),
    "L = 10, 16 x 200": am.AIS(num_temperatures=200, backend=FX),
    "L = 4, 32 x 50": am.AIS(num_chains=32, num_temperatures=50, kernel=am.HMC(num_leapfrog=4), backend=FX),
    "L = 4, 32 x 100": am.AIS(num_chains=32, kernel=am.HMC(num_leapfrog=4), backend=FX),
}


class Bench:
    """The trained program and test images."""

    def __init__(self, cache: Path, epochs: int) -> None:
        data = am.data.load("binarized-mnist")
        train = torch.tensor(data.x_train)
        self.cache = cache
        self.program = trained("vae", 0, train, epochs=epochs, cache=cache).program
        order = torch.randperm(len(data.x_test), generator=torch.Generator().manual_seed(0))
        self.images = torch.tensor(data.x_test)[order]

    def evidence(
        self, name: str, num: int, method: am.Auto | am.AIS | am.ImportanceSampling, **options: object
    ) -> am.Evidence:
        """One run, with a line on what came out."""
        begin = time.perf_counter()
        result = am.evidence(self.program, self.images[:num], method=method, **options)
        values = result.log_evidence
        print(
            f"| {name} | {values.mean():.3f} | {np.sqrt(np.nansum(np.square(result.se))) / num:.3f} "
            f"| {np.nanmean(result.se):.4f} | {result.num_gradients.mean():.0f} | {time.perf_counter() - begin:.0f} |",
            flush=True,
        )
        return result


def header() -> None:
    print("\n| | mean log p(x) | its Monte Carlo error | mean se of a datapoint | gradients a datapoint | s |")
    print("| --- | --- | --- | --- | --- | --- |")


def agreement(bench: Bench) -> None:
    header()
    sampled = bench.evidence("importance sampling, 10 000 draws (PSIS)", 100, am.ImportanceSampling(num_draws=10_000))
    guide = bench.evidence("AIS from the guide, 16 x 100", 100, am.AIS(backend=FX))
    long = am.AIS(num_temperatures=1000, backend=FX)
    prior = bench.evidence("AIS from the prior, 16 x 1000", 100, long, start="prior")
    bound = sampled.lower
    print(f"importance weighted bound {bound.mean():.3f}; k-hat above 0.7 on {(sampled.khat > 0.7).sum()} of 100")
    for name, gain in (
        ("prior 1000 - guide 100", prior.log_evidence - guide.log_evidence),
        ("prior 1000 - bound", prior.log_evidence - bound),
        ("guide 100 - bound", guide.log_evidence - bound),
    ):
        print(f"{name}: {gain.mean():+.3f} +- {gain.std(ddof=1) / 10:.3f} (paired over images)", flush=True)


def bdmc(bench: Bench) -> None:
    print("\n| from the guide | simulated images | lower | upper | gap | s |\n| --- | --- | --- | --- | --- | --- |")
    for num_chains, num_temperatures, num in ((16, 100, 100), (16, 1000, 100)):
        method = am.AIS(num_chains=num_chains, num_temperatures=num_temperatures, backend=FX)
        begin = time.perf_counter()
        both = am.bdmc(bench.program, bench.images[:num], method=method, seed=1)
        gap = both.upper - both.lower
        print(
            f"| {method.num_chains} x {num_temperatures} | {num} | {both.lower.mean():.3f} | {both.upper.mean():.3f} "
            f"| {gap.mean():.3f} +- {gap.std(ddof=1) / math.sqrt(num):.3f} | {time.perf_counter() - begin:.0f} |",
            flush=True,
        )


def search(bench: Bench) -> None:
    header()
    result = bench.evidence("auto, 500 images", 500, am.Auto(backend=FX))
    reached, first = (result.se <= TARGET).sum(), slice(0, 25)
    print(
        f"reached {TARGET}: {reached} of 500; the first 25: mean se {np.nanmean(result.se[first]):.4f}, gradients "
        f"{result.num_gradients[first].mean():.0f}; largest {result.num_gradients.max():.0f}"
    )
    by_means = result.table.groupby("used").agg({"num_gradients": ["count", "mean"], "se": "mean"})
    print(by_means.to_string(), flush=True)
    np.savez(bench.cache / "auto.npz", log_evidence=result.log_evidence, se=result.se, cost=result.num_gradients)


def uniform(bench: Bench) -> None:
    header()
    for name, method in UNIFORM.items():
        result = bench.evidence(f"AIS, {name}", 25, method)
        known = result.se[np.isfinite(result.se)].mean()
        chains = math.ceil(method.num_chains * (known / TARGET) ** 2)
        run = method.num_chains * method.num_temperatures * method.kernel.num_gradients
        total = result.num_gradients.mean() + run * (chains / method.num_chains - 1)
        print(f"{name}: {chains} chains and {total:.0f} gradients for a mean se of {TARGET}", flush=True)
    chosen = am.AIS(num_chains=131, kernel=am.HMC(num_leapfrog=4), backend=FX)  # the cheapest, by the lines above
    result = bench.evidence("AIS, L = 4, 131 x 100, 100 images", 100, chosen, seed=5)
    if (bench.cache / "auto.npz").exists():
        found = np.load(bench.cache / "auto.npz")
        less = found["log_evidence"][:100] - result.log_evidence
        z = less / np.hypot(found["se"][:100], result.se)
        print(f"auto less that: {less.mean():+.4f} +- {less.std(ddof=1) / 10:.4f}; z {z.mean():+.2f}, sd {z.std():.2f}")


def schedule(bench: Bench) -> None:
    print("\n| temperatures | shared: variance of log weights | each its own | ratio |\n| --- | --- | --- | --- |")
    for num_temperatures in (25, 50):
        variances = {}
        for name in ("pilot", "pilot-per-datapoint"):
            runs = [
                am.evidence(
                    bench.program,
                    bench.images[:50],
                    method=am.AIS(16, num_temperatures, kernel=am.HMC(num_leapfrog=4), schedule=name, backend=FX),
                    seed=seed,
                )
                for seed in range(2)
            ]
            variances[name] = np.mean([run.log_weights.var(0, ddof=1) for run in runs], 0)
        shared, own = variances.values()
        ratio = np.log(own / shared)
        print(
            f"| {num_temperatures} | {shared.mean():.3f} | {own.mean():.3f} | {np.exp(ratio.mean()):.3f} "
            f"(+- {np.exp(ratio.mean()) * ratio.std(ddof=1) / math.sqrt(len(ratio)):.3f}) |",
            flush=True,
        )


def pictures(bench: Bench) -> None:
    from PIL import Image

    with torch.no_grad(), bench.program.evaluating():
        shown = bench.images[:16]
        drawn = torch.as_tensor(am.posterior(bench.program, shown, num_draws=1)["z"][0])
        decoder = next(m for m in bench.program.modules() if isinstance(m, am.models.BernoulliVAE)).decoder
        generator = torch.Generator().manual_seed(0)
        prior = torch.randn(drawn.shape, generator=generator)
        rows = [shown, torch.sigmoid(decoder(drawn.to(prior))), torch.sigmoid(decoder(prior))]
    grid = torch.cat([torch.cat(list(row.reshape(-1, 28, 28)), 1) for row in rows], 0)
    path = bench.cache / "vae.png"
    Image.fromarray((255 * (1 - grid)).byte().numpy()).resize((16 * 28 * 3, 3 * 28 * 3)).save(path)
    print(path)


PARTS: dict[str, Callable[[Bench], None]] = {
    "agreement": agreement,
    "bdmc": bdmc,
    "search": search,
    "uniform": uniform,
    "schedule": schedule,
    "pictures": pictures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS), default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AmortizeWarning)
    bench = Bench(options.cache, options.epochs)
    for name in options.only:
        PARTS[name](bench)


if __name__ == "__main__":
    main()
