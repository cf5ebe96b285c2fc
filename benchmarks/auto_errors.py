"""Whether the errors that method="auto" reports are honest, where the answer is known.

    python benchmarks/auto_errors.py [--seeds 6]

Factor analysis, z 5, x 20, 32 datapoints drawn from the model, in float32. z = (estimate - truth) / reported error,
over datapoints and seeds. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch

import amortize as am
from amortize.errors import AmortizeWarning

NARROWER = 1.0  # in log scale


def row(name: str, analysis: am.models.FactorAnalysis, x: torch.Tensor, method: am.Auto, **options: object) -> None:
    exact = analysis.log_evidence(x).detach().double().numpy()
    seeds = range(options.pop("seeds"))
    runs = [am.evidence(analysis.program(), x, method=method, seed=seed, **options) for seed in seeds]
    error = np.concatenate([run.log_evidence - exact for run in runs])
    z = error / np.concatenate([run.se for run in runs])
    missed = sum(int((~(run.se <= method.target_se)).sum()) for run in runs)
    cost = np.mean([run.num_gradients.mean() for run in runs])
    spread = z.std(ddof=1)
    print(
        f"| {name} | {method.target_se} | {z.mean():+.2f} +- {spread / np.sqrt(z.size):.2f} | {spread:.2f} "
        f"| {np.abs(z).max():.1f} | {error.mean():+.4f} | {missed} | {cost:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AmortizeWarning)
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    x = torch.tensor(analysis.program().simulate(torch.zeros(32, 20))[1]["x"])
    print("| guide | target | mean of z | sd of z | largest size | mean error, nats | missed | gradients |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    row("none (prior)", analysis, x, am.Auto(), start="prior", seeds=seeds)
    analysis.set_best_encoder()
    row("best linear", analysis, x, am.Auto(), seeds=seeds)
    with torch.no_grad():
        analysis.encoder.log_scale -= NARROWER
    row("best linear, 2.7 times too narrow", analysis, x, am.Auto(), seeds=seeds)
    row("the same, refine=False", analysis, x, am.Auto(target_se=0.1, refine=False), seeds=seeds)


if __name__ == "__main__":
    main()
