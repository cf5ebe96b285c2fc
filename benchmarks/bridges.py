"""Trained bridges on two logistic regressions, against published bounds and the known evidence.

    python benchmarks/bridges.py [--only sonar] [--kinds ula ldvi] [--steps 8 32] [--base mean-field] [--longer 1]

Prints a markdown table: the trained bound E[log w] on 10 000 fresh draws with its standard error, the log of their mean
weight, what was published for the same kind and number of steps, log Z, and the seconds of training. The published
figures (the re-run by the authors of controlled Monte Carlo diffusions) have a mean-field base fitted first and then
trained along with step size, schedule and score network, 5 draws a gradient; here 64 draws, a fitted mean-field base
trained along in the same way, and factors of the step size for each dimension. A full-covariance base is no part of
that protocol.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import NamedTuple

import numpy as np
import torch
from global_latents import Problem, problems

import amortize as am
from amortize.errors import AmortizeWarning

NUM_DRAWS = 10_000
ITERATIONS = {"ula": 200, "uha": 200, "dais": 200, "mcd": 300, "ldvi": 300}
LEARNING_RATE = 0.03
PUBLISHED = {
    ("ionosphere", "ula"): {8: -116.40, 32: -114.48, 64: -113.75},
    ("ionosphere", "mcd"): {8: -114.95, 32: -113.23, 64: -112.70},
    ("ionosphere", "uha"): {8: -115.62, 32: -113.42, 64: -112.74},
    ("ionosphere", "ldvi"): {8: -114.66, 32: -112.57, 64: -112.10},
    ("sonar", "ula"): {8: -122.50, 32: -117.47, 64: -115.28},
    ("sonar", "mcd"): {8: -118.25, 32: -113.60, 64: -111.11},
    ("sonar", "uha"): {8: -120.03, 32: -114.00, 64: -111.97},
    ("sonar", "ldvi"): {8: -116.27, 32: -110.90, 64: -110.04},
}


class Row(NamedTuple):
    """One trained bridge: the bound and the estimate with their standard errors, and seconds of training."""

    bound: float
    bound_se: float
    estimate: float
    estimate_se: float
    seconds: float


def train(problem: Problem, local: am.LocalPosterior, *, kind: str, num_steps: int, seed: int, longer: int) -> Row:
    program = local.program
    settings = am.Diffusion(
        kind=kind,
        num_steps=num_steps,
        num_draws=NUM_DRAWS,
        base=local.family,
        num_iterations=longer * ITERATIONS[kind],
        learning_rate=LEARNING_RATE,
    )
    begin = time.perf_counter()
    fitted = settings.fit(program, problem.data, start=local, seed=seed)
    seconds = time.perf_counter() - begin
    evidence = am.evidence(program, problem.data, method=fitted, start=local, seed=seed)
    log_weights = evidence.log_weights[:, 0]
    error = log_weights.std(ddof=1) / np.sqrt(len(log_weights))
    return Row(log_weights.mean(), error, evidence.log_evidence[0], evidence.se[0], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("ionosphere", "sonar"), default=("ionosphere", "sonar"))
    parser.add_argument("--kinds", nargs="+", choices=sorted(ITERATIONS), default=("ula", "mcd", "uha", "ldvi"))
    parser.add_argument("--steps", nargs="+", type=int, default=(8, 32))
    parser.add_argument("--base", choices=("mean-field", "full-covariance"), default="mean-field")
    parser.add_argument("--longer", type=int, default=1, help="so many times the iterations")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AmortizeWarning)
    print("| problem | kind | base | K | seed | E[log w] | log mean w | published E[log w] | log Z | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only:
        problem = problems()[name]()
        program = am.Program(problem.model, whole=True)
        local = am.fit_local(program, problem.data, family=options.base)
        for num_steps in options.steps:
            for kind in options.kinds:
                for seed in range(options.seeds):
                    row = train(problem, local, kind=kind, num_steps=num_steps, seed=seed, longer=options.longer)
                    published = PUBLISHED.get((name, kind), {}).get(num_steps)
                    print(
                        f"| {name} | {kind} | {options.base} | {num_steps} | {seed} | {row.bound:.3f} +- "
                        f"{row.bound_se:.3f} | {row.estimate:.3f} +- {row.estimate_se:.3f} | "
                        f"{'' if published is None else published} | {problem.truth} | {row.seconds:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
