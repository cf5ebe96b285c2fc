"""The tables of docs/ladder.md: one posterior by every rung from maximum likelihood to the exact one, then amortized.

    python benchmarks/ladder.py

A Gaussian with unknown mean and variance and a linear regression, 64 data sets of each; moments are those of the first
data set, ELBOs are means over all of them. Then the Gaussian with a guide that reads the data, trained on 2000 other
data sets, and a decoder network in place of the known likelihood: a VAE of the digits, on 64 that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

import amortize as am

NUM, FAMILIES = 64, ("mean-field", "full-covariance", "flow")
Pick = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def gaussian() -> pd.DataFrame:
    """Moments of mu and log v."""
    problem = am.models.UnknownGaussian()
    x = problem.simulate(NUM, num_observations=8)
    after, first = problem.posterior(x), x[0].double()
    moments = [float(part[0]) for pair in zip(after.mean, after.sd, strict=True) for part in pair]
    likelihood = [float(first.mean()), 0.0, float(first.var(correction=0).log()), 0.0]
    rows = climb(problem.program(), x, lambda draws: [draws["mu"], np.log(draws["variance"])])
    return table(likelihood, rows, moments, problem.log_evidence(x), ("mu", "log v"))


def regression() -> pd.DataFrame:
    """Moments of the first two weights, which the data tell apart badly."""
    problem = am.models.LinearRegression.random()
    y = problem.simulate(NUM)
    mean, covariance = problem.posterior(y)
    least = problem.least_squares(y)
    sd = covariance.diagonal().sqrt()
    moments = [float(value) for pair in ((mean[0, 0], sd[0]), (mean[0, 1], sd[1])) for value in pair]
    likelihood = [float(least[0, 0]), 0.0, float(least[0, 1]), 0.0]
    rows = climb(problem.program(), y, lambda draws: [draws["w"][..., 0], draws["w"][..., 1]])
    return table(likelihood, rows, moments, problem.log_evidence(y), ("w1", "w2"))


def climb(program: am.Program, x: torch.Tensor, pick: Pick) -> dict[str, list[float]]:
    """The rungs between maximum likelihood and the exact posterior."""
    rows = {"MAP": [*moments_of(pick(am.fit_local(program, x, family="point").draws(1)), 0), math.nan]}
    for family in FAMILIES:
        local = am.fit_local(program, x, family=family)
        rows[family] = [*moments_of(pick(local.draws(4000)), 0), float(local.elbo.mean())]
    nuts = am.gold_standard(program, x[:2], kernel="nuts")
    pooled = {name: draws.reshape(-1, *draws.shape[2:]) for name, draws in nuts.draws.items()}
    rows["NUTS"] = [*moments_of(pick(pooled), 0), math.nan]
    return rows


def moments_of(draws: list[np.ndarray], datapoint: int) -> list[float]:
    """Mean and standard deviation of each quantity (S, N)."""
    return [float(value) for draw in draws for value in (draw[:, datapoint].mean(), draw[:, datapoint].std())]


def table(
    likelihood: list[float],
    rows: dict[str, list[float]],
    exact: list[float],
    log_evidence: torch.Tensor,
    names: tuple[str, str],
) -> pd.DataFrame:
    """A row a rung."""
    ladder = {"maximum likelihood": [*likelihood, math.nan], **rows, "exact": [*exact, float(log_evidence.mean())]}
    columns = [f"{what} of {name}" for name in names for what in ("mean", "sd")]
    return pd.DataFrame.from_dict(ladder, orient="index", columns=[*columns, "mean ELBO"])


def amortized() -> am.Ledger:
    """What a guide loses that was trained on other data sets."""
    problem = am.models.UnknownGaussian()
    program = problem.program(problem.encoder())
    training = am.Training(learning_rate=1e-2, schedule="cosine")
    am.fit(program, problem.simulate(2000, num_observations=8, seed=1), num_steps=3000, training=training)
    return am.gaps(program, problem.simulate(NUM, num_observations=8), families=FAMILIES)


def autoencoder() -> am.Ledger:
    """A VAE of the digits."""
    digits = am.data.load("digits")
    x = torch.as_tensor(digits.x_train)
    program = am.models.BernoulliVAE.from_data(x, latent_dim=8, hidden=(64,)).program()
    am.fit(program, x, num_steps=4000, training=am.Training(schedule="cosine"))
    return am.gaps(program, torch.as_tensor(digits.x_test)[:NUM])


def markdown(frame: pd.DataFrame) -> str:
    """As a table, an unknown value left out."""
    lines = ["| | " + " | ".join(map(str, frame.columns)) + " |", "| --- " * (len(frame.columns) + 1) + "|"]
    for name, row in frame.iterrows():
        cells = ["" if not np.isfinite(value) else f"{value:.3f}" for value in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    for part in (gaussian, regression):
        print(f"\n{part.__name__}\n\n{markdown(part())}", flush=True)
    for ledger in (amortized(), autoencoder()):
        print(f"\n{markdown(ledger.summary)}\n\n{ledger.advice}", flush=True)


if __name__ == "__main__":
    main()
