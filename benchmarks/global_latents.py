"""The evidence of whole data sets, by the functions that measure datapoints: regressions and hierarchical models.

    python benchmarks/global_latents.py [--seeds 4] [--only sonar]

Prints a markdown table: log Z by annealing from the prior and from a local posterior, its error, and the time one run
takes. The logistic regressions have standardised columns behind a column of ones and w ~ N(0, I); their answers are
those of sequential Monte Carlo. The Brownian motion (x_t ~ N(x_{t-1}, 0.1), y_t ~ N(x_t, 0.15), the middle ten
unobserved) is linear-Gaussian, so its answer is exact. The eight schools are non-centred, with mu ~ N(0, 5) and
tau ~ HalfCauchy(5); the two starts check one another.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import amortize as am
from amortize.errors import AmortizeWarning

BROWNIAN = 5.613043490773801
METHODS = {"prior": am.AIS(num_chains=64, num_temperatures=1000), "local": am.AIS(num_chains=64, num_temperatures=200)}


class Problem(NamedTuple):
    """A model, its data, and log Z with the error of that figure (NaN where nobody knows)."""

    model: Callable[..., Any]
    data: Any
    truth: float
    truth_se: float
    starts: tuple[str, ...] = ("prior", "local")


def logistic_regression(x: torch.Tensor, y: torch.Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def brownian(y: torch.Tensor, seen: torch.Tensor) -> None:
    innovation, noise = 0.1, 0.15
    steps = pyro.sample("steps", dist.Normal(torch.zeros(len(y)), innovation).to_event(1))
    with pyro.plate("time", len(y)), pyro.poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(steps.cumsum(-1), noise), obs=y)


def eight_schools(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


def radon(y: torch.Tensor, floor: torch.Tensor, county: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread, noise = pyro.sample("spread", dist.HalfNormal(1.0)), pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("counties", int(county.max()) + 1):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("homes", len(y)):
        pyro.sample("y", dist.Normal(mean + spread * effect[county] + slope * floor, noise), obs=y)


def classification(name: str, truth: float, truth_se: float) -> Problem:
    table = am.data.load(name)
    x, y = (np.concatenate(parts) for parts in ((table.x_train, table.x_test), (table.y_train, table.y_test)))
    spread = x.std(0)
    columns = np.concatenate([np.ones((len(x), 1)), (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)], 1)
    labels = torch.tensor(y == y.max()).float()
    return Problem(logistic_regression, (torch.tensor(columns).float(), labels), truth, truth_se)


def problems() -> dict[str, Callable[[], Problem]]:
    return {
        "ionosphere": lambda: classification("ionosphere", -111.61, 0.02),
        "sonar": lambda: classification("sonar", -108.47, 0.04),
        "brownian": _brownian,
        "eight-schools": _eight_schools,
        "radon": _radon,
    }


def _brownian() -> Problem:
    y = torch.tensor(am.data.load("brownian").x_train, dtype=torch.float32).flatten()
    return Problem(brownian, (y.nan_to_num(), torch.isfinite(y)), BROWNIAN, 0.0)


def _eight_schools() -> Problem:
    table = am.data.load("eight-schools")
    arrays = (table.x_train, table.covariates_train["sigma"])
    return Problem(eight_schools, tuple(torch.tensor(array).float() for array in arrays), np.nan, np.nan)


def _radon() -> Problem:
    table = am.data.load("radon")
    floor, county = table.covariates_train["floor"], table.covariates_train["county"]
    data = (torch.tensor(table.x_train).float(), torch.tensor(floor).float(), torch.tensor(county))
    return Problem(radon, data, np.nan, np.nan, ("local",))  # 919 homes: from the prior it takes many temperatures


def rows(name: str, problem: Problem, seeds: range) -> None:
    program = am.Program(problem.model, whole=True)
    for start in problem.starts:
        method = METHODS[start]
        begin = time.perf_counter()
        runs = []
        for seed in seeds:
            origin = (
                am.fit_local(program, problem.data, family="full-covariance", seed=seed) if start == "local" else start
            )
            runs.append(am.evidence(program, problem.data, method=method, start=origin, seed=seed))
        seconds = (time.perf_counter() - begin) / len(seeds)
        values = np.array([run.log_evidence[0] for run in runs])
        settings = f"{method.num_chains} x {method.num_temperatures}"
        truth = "" if np.isnan(problem.truth) else f"{problem.truth:.2f} +- {problem.truth_se:.2f}"
        print(
            f"| {name} | {program.dim(problem.data)} | {start}, {settings} | {values.mean():.3f} | "
            f"{values.std(ddof=1) if len(values) > 1 else np.nan:.3f} | {np.mean([run.se[0] for run in runs]):.3f} | "
            f"{truth} | {seconds:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", choices=sorted(problems()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AmortizeWarning)
    print("| problem | D | start, chains x temperatures | log Z | spread over seeds | reported se | truth | s a run |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, make in problems().items():
        if options.only in (None, name):
            rows(name, make(), range(options.seeds))


if __name__ == "__main__":
    main()
