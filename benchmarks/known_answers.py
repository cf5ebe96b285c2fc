"""Every estimator against answers known exactly.

    python benchmarks/known_answers.py [--seeds 8]

Prints a markdown table: the error of the mean over datapoints, its mean, spread and largest size over seeds, and the
figure asked for. The model is ``am.models.FactorAnalysis.random()``, z 5, x 20, 64 datapoints, float32: W and b
standard normal, psi uniform on [0.25, 1], so that the posterior is about five times narrower than the prior. The last
rows are the problems of ``tests/problems.py``, 6 datapoints each, float64: conjugate pairs, a Gaussian mixture against
its enumeration, a linear-Gaussian state space against the Kalman filter.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import amortize as am
from amortize.errors import AmortizeWarning

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.problems import PROBLEMS

NUM = 64


def problem() -> tuple[am.models.FactorAnalysis, torch.Tensor, np.ndarray]:
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    x = torch.tensor(analysis.program().simulate(torch.zeros(NUM, 20))[1]["x"])
    analysis.set_best_encoder()
    return analysis, x, exact(analysis.log_evidence(x))


def exact(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().numpy()


def annealing(seeds: range) -> Iterator[tuple[str, np.ndarray, str]]:
    analysis, x, truth = problem()
    programs = {
        "the prior": (analysis.program(), "prior"),
        "the best linear guide": (analysis.program(), "guide"),
        "the exact posterior": (am.Program(analysis.model, analysis.exact_guide), "guide"),
    }
    for name, (program, start) in programs.items():
        runs = [am.evidence(program, x, start=start, seed=seed) for seed in seeds]
        yield f"AIS from {name}, 16 x 100: mean error", _means(runs, truth), "<= 0.02"
        if "exact" in name:
            spread = np.array([np.abs(run.log_weights - truth).max() for run in runs])
            yield "the same: largest deviation of a log weight", spread, "rounding"
    for count in (3, 10):
        method = am.AIS(num_chains=256, num_temperatures=count)
        warnings.simplefilter("ignore", AmortizeWarning)  # so few temperatures: single weights dominate, as they must
        runs = [am.evidence(programs["the prior"][0], x, start="prior", method=method, seed=seed) for seed in seeds]
        ratio = np.exp(np.stack([run.log_weights for run in runs]) - truth).reshape(len(runs), -1)
        z = (ratio.mean() - 1) / (ratio.std(ddof=1) / np.sqrt(ratio.size))
        yield f"AIS from the prior, {count} temperatures: (E[w]/Z - 1) / se", np.array([z]), "within 4"


def local(seeds: range) -> Iterator[tuple[str, np.ndarray, str]]:
    analysis, x, truth = problem()
    answers = {"mean-field": exact(analysis.best_mean_field_elbo(x)), "full-covariance": truth}
    for family, answer in answers.items():
        for init in ("prior", "guide"):
            fits = [am.fit_local(analysis.program(), x, family=family, init=init, seed=seed) for seed in seeds]
            error = np.array([(fit.elbo - answer).mean() for fit in fits])
            yield f"{family} from the {init}: mean error of the ELBO", error, "<= 0.02"


def gaps(seeds: range) -> Iterator[tuple[str, np.ndarray, str]]:
    analysis, x, _ = problem()
    with torch.no_grad():  # an encoder that is off, so that there is something to amortize
        analysis.encoder.weight += 0.01
        analysis.encoder.log_scale += 0.2
    ledgers = [am.gaps(analysis.program(), x, seed=seed) for seed in seeds]
    for name in ("inference_gap", "approximation_gap", "amortization_gap"):
        truth = exact(getattr(analysis, name)(x)).mean()
        error = np.array([ledger.summary.loc[name, "mean"] - truth for ledger in ledgers])
        yield f"linear VAE, {name} ({truth:.2f} nats): error of the mean", error, "<= 0.03"


def problems(seeds: range) -> Iterator[tuple[str, np.ndarray, str]]:
    """From the prior; where the posterior has several modes, chains must be many."""
    for name, make in PROBLEMS.items():
        truth, chains = make(), 4000 if name == "gaussian-mixture" else 128
        method = am.AIS(num_chains=chains, num_temperatures=60, kernel=am.HMC(num_leapfrog=5))
        runs = [am.evidence(truth.program(), truth.data, method=method, start="prior", seed=seed) for seed in seeds]
        yield f"{name}, AIS from the prior, {chains} x 60: mean error", _means(runs, truth.log_evidence), "<= 0.02"


def _means(runs: list[am.Evidence], truth: np.ndarray) -> np.ndarray:
    return np.array([(run.log_evidence - truth).mean() for run in runs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = range(parser.parse_args().seeds)
    parts: list[Callable[[range], Iterator[tuple[str, np.ndarray, str]]]] = [annealing, local, gaps, problems]
    print("| quantity | mean over seeds | sd over seeds | largest size | asked for |\n| --- | --- | --- | --- | --- |")
    begin = time.perf_counter()
    for part in parts:
        for name, values, wanted in part(seeds):
            spread = values.std(ddof=1) if len(values) > 1 else float("nan")
            row = (f"{values.mean():+.4f}", f"{spread:.4f}", f"{np.abs(values).max():.4f}", wanted)
            print(f"| {name} | {' | '.join(row)} |", flush=True)
    print(f"\n{len(seeds)} seeds, {time.perf_counter() - begin:.0f} s, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
