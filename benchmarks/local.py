"""How fast local posteriors are fitted: against Pyro's own means at equal ELBO, and on a thousand images.

    python benchmarks/local.py [--seeds 3] [--quick]         one thread; minutes, quick: four datapoints of the loop
    python benchmarks/local.py --mnist [--cache DIR]         two threads; 1000 images, full covariance, D = 50

Without ``--mnist``: 100 datapoints of factor analysis (5 latents, 20 observed), mean field, from the prior.
``am.fit_local`` finds where to stop by itself and measures its ELBO on fresh draws; all of that is in its time. For
Pyro, the time is that of the steps alone, up to the first look (every 25 steps, free of charge) at which the exact
ELBO, in closed form, is within the tolerance of the best mean-field ELBO; and of all learning rates and numbers of
particles on the grid, the one that gets there first is what counts. Two tolerances: 0.01 nats, and what
``am.fit_local`` itself was short of. In the loop, each datapoint is fitted by an SVI of its own with
AutoDiagonalNormal, at the settings that were fastest for the first; "in the plate" is one SVI with AutoNormal for all.
Adam's rate falls exponentially to a hundredth over the steps: at a fixed rate none gets there. Everything runs once
before it is timed; seconds are those of the processor, on one thread, so that a busy machine changes them little. With
``--quick``, the loop is timed on four datapoints and multiplied.

With ``--mnist``: a VAE (784-200-200-50) trained by ``benchmarks/mnist_bounds.py``, or taken from its ``--cache``;
static binarised MNIST from ``$AMORTIZE_DATA_DIR``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import amortize as am

NUM, LOOK = 100, 25
TOLERANCE = 0.01  # nats
RATES, PARTICLES, LENGTHS = (0.2, 0.1, 0.05), (16, 4), (200, 400, 800, 1600)
LAST_RATE = 0.01  # of the first


class Problem(NamedTuple):
    """Factor analysis, data drawn from it, and the exact ELBO of any mean-field Gaussians."""

    analysis: am.models.FactorAnalysis
    x: torch.Tensor

    def short(self, loc: torch.Tensor, scale: torch.Tensor, index: slice | int = slice(None)) -> float:
        """By how much the mean ELBO is short of the best one, nats."""
        x = self.x[index].reshape(-1, self.x.shape[1])
        elbo = self.analysis.closed_form().elbo(x.double(), loc.double(), torch.diag_embed(scale.double().square()))
        return float((self.analysis.best_mean_field_elbo(x) - elbo.detach()).mean())


class Run(NamedTuple):
    """Seconds until the tolerance was met (inf where it never was), the steps, and the settings."""

    seconds: float
    num_steps: int
    settings: str


def pyro_model(analysis: am.models.FactorAnalysis) -> Callable[[torch.Tensor], None]:
    """The same model as plain Pyro, without modules to register."""
    weight, bias = (value.detach() for value in (analysis.decoder.weight, analysis.decoder.bias))
    scale = (0.5 * analysis.decoder.log_variance.detach()).exp()
    zero, one = torch.zeros(weight.shape[1]), torch.ones(weight.shape[1])

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(zero, one).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, scale).to_event(1), obs=x)

    return model


def posterior_of(guide: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations (n, D) of a guide."""
    if isinstance(guide, AutoDiagonalNormal):
        return guide.loc.detach().unsqueeze(0), guide.scale.detach().unsqueeze(0)
    loc, scale = guide._get_loc_and_scale("z")
    return loc.detach(), scale.detach()


def svi(
    problem: Problem,
    kind: type,
    index: slice | int,
    tolerance: float,
    settings: tuple[float, int, int],
    limit: float = np.inf,
) -> Run:
    """One SVI, until the exact ELBO is near enough, its steps are taken, or it has lost the race against ``limit``."""
    rate, particles, length = settings
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, x = pyro_model(problem.analysis), problem.x[index].reshape(-1, problem.x.shape[1])
    guide = kind(model)
    optimiser = pyro.optim.ClippedAdam({"lr": rate, "lrd": LAST_RATE ** (1 / length), "clip_norm": 1e9})
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    run, seconds = SVI(model, guide, optimiser, loss), 0.0
    for step in range(LOOK, length + 1, LOOK):
        begin = time.process_time()
        for _ in range(LOOK):
            run.step(x)
        seconds += time.process_time() - begin
        if problem.short(*posterior_of(guide), index) <= tolerance:
            return Run(seconds, step, f"rate {rate}, {particles} particles, over {length}")
        if seconds > limit:
            break
    return Run(np.inf, length, "")


def grid() -> Iterator[tuple[float, int, int]]:
    """Settings of an SVI."""
    return ((rate, particles, length) for length, particles, rate in product(LENGTHS, PARTICLES, RATES))


def fastest(problem: Problem, kind: type, index: slice | int, tolerance: float) -> Run:
    """The settings that get there first."""
    best = Run(np.inf, 0, "")
    for settings in grid():
        run = svi(problem, kind, index, tolerance, settings, best.seconds)
        best = min(best, run, key=lambda each: each.seconds)
    return best


def loop(problem: Problem, tolerance: float, num: int) -> tuple[float, str]:
    """Seconds of the loop over datapoints, each timed anew at the settings that were fastest for a first one."""
    best = fastest(problem, AutoDiagonalNormal, 0, tolerance)
    if not np.isfinite(best.seconds):
        return np.inf, ""
    words = best.settings.replace(",", "").split()
    settings = float(words[1]), int(words[2]), int(words[5])
    runs = [svi(problem, AutoDiagonalNormal, index, tolerance, settings) for index in range(num)]
    missed = sum(not np.isfinite(run.seconds) for run in runs)
    known = [run.seconds for run in runs if np.isfinite(run.seconds)]
    return NUM / num * (sum(known) + missed * max(known)), f"{best.settings}; {missed} of {num} never got there"


def against_pyro(seed: int, num_loop: int) -> None:
    """Print the rows of one seed."""
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=seed)
    problem = Problem(analysis, analysis.simulate(NUM, seed=seed + 1))
    program = analysis.program(None)
    am.fit_local(program, problem.x)
    begin = time.process_time()
    ours = am.fit_local(program, problem.x, seed=seed)
    taken = time.process_time() - begin
    short = problem.short(*(torch.as_tensor(ours.parameters[name]) for name in ("loc", "scale")))
    svi(problem, AutoNormal, slice(None), -np.inf, (0.1, 1, LOOK))
    svi(problem, AutoDiagonalNormal, 0, -np.inf, (0.1, 1, LOOK))
    for tolerance in (TOLERANCE, max(short, 1e-4)):
        plate = fastest(problem, AutoNormal, slice(None), tolerance)
        looped, note = loop(problem, tolerance, num_loop)
        print(
            f"| {seed} | {tolerance:.4f} | {taken:.2f} ({short:.4f} short) | {plate.seconds:.2f} ({plate.settings}) "
            f"| {plate.seconds / taken:.1f} | {looped:.0f} ({note}) | {looped / taken:.0f} |",
            flush=True,
        )


def mnist(cache: Path, num: int, num_threads: int) -> None:
    """Full-covariance posteriors of test images, and their mean-field ones beside them."""
    from mnist_bounds import trained

    torch.set_num_threads(num_threads)
    data = am.data.load("binarized-mnist")
    program = trained("vae", 0, torch.tensor(data.x_train), epochs=30, cache=cache).program
    order = torch.randperm(len(data.x_test), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.x_test)[order[:num]]
    print(
        "| family | images | mean ELBO | se over images | converged | steps, mean and most | gradients an image | s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for family in ("full-covariance", "mean-field"):
        local = am.fit_local(program, images, family=family)
        print(
            f"| {family} | {num} | {local.elbo.mean():.3f} | {local.elbo.std(ddof=1) / num**0.5:.3f} "
            f"| {local.converged.sum()} | {local.num_steps.mean():.0f}, {local.num_steps.max()} "
            f"| {local.num_gradients.mean():.0f} | {local.seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="time four datapoints of the loop, and multiply")
    parser.add_argument("--mnist", action="store_true")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2, help="with --mnist")
    parser.add_argument("--cache", type=Path, default=None, help="where trained programs are kept")
    options = parser.parse_args()
    if options.mnist:
        mnist(options.cache or Path(tempfile.mkdtemp()), options.images, options.threads)
        return
    torch.set_num_threads(1)
    print("| seed | nats short of the best | am.fit_local, s | AutoNormal in the plate, s | ratio | loop, s | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for seed in range(options.seeds):
        against_pyro(seed, 4 if options.quick else NUM)


if __name__ == "__main__":
    main()
