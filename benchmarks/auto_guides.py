"""Guides made by ``am.auto_guide`` against those written by hand, on programs of the contract suite.

    python benchmarks/auto_guides.py [--family full-covariance] [--num 512] [--steps 2000] [--only VAE]

Each program's own model makes the data, but for the last, a VAE on scanned digits. Model and guide are then trained
together by ``am.fit``, once with the guide of the suite and once with an automatic one, under the same settings; one
without parameters ("fixed") is taken as it is. Prints a markdown table of ELBOs on data that neither saw, in nats a
datapoint, their difference paired over datapoints, and how far the automatic guide's ELBO lies below the evidence
(Pareto-smoothed importance sampling from that guide; "?" where its k-hat says that it can't be told).
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

import amortize as am
from amortize.errors import AmortizeWarning
from amortize.inference.importance import log_ratios, smoothed
from amortize.inference.starts import GuideStart
from tests.cases.case import Case
from tests.cases.sequences import ragged
from tests.programs import PROGRAMS

NUM_TEST = 256
NUM_DRAWS = 256
MOST_KHAT = 0.7
DIGITS = "VAE of digits"
NAMES = (
    "tensor",
    "covariates in a tuple",
    "subsample=",
    "pixel plate in front",
    "pixel plate behind",
    "positive",
    "simplex",
    "support of another latent",
    "parameters with constraints",
    "VAE",
    "convolutions",
    "dropout",
    "state space, packed guide",
    "state space, flow guide",
    "semi-supervised, labels",
    "auxiliary observations in the guide",
    DIGITS,
)


class Measured(NamedTuple):
    """ELBO (N,) of each datapoint, and log evidence and k-hat (N,) from the guide's importance weights."""

    elbo: np.ndarray
    log_evidence: np.ndarray
    khat: np.ndarray


def case_of(name: str) -> Case:
    """A fresh program, its parameters as they begin."""
    if name != DIGITS:
        return PROGRAMS[name]()
    x = images()
    vae = am.models.BernoulliVAE.from_data(x, latent_dim=8, hidden=(64,))
    return Case(vae.model, x, vae.guide, num=len(x))


def images() -> torch.Tensor:
    """Digits of 8 x 8 pixels, on or off."""
    return (torch.as_tensor(am.data.load("digits").x_train).flatten(1).float() > 0.5).float()


def data_of(name: str, case: Case, num: int, seed: int) -> Any:
    """``num`` datapoints drawn from a case's model."""
    if name == DIGITS:
        x = images()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed // 2))
        return x[order[:NUM_TEST]] if seed % 2 == 0 else x[order[NUM_TEST:]]
    if name.startswith("state space"):
        return sequences(case, num, seed)
    program = case.program(guide=False)
    data = program.prepare(case.data)
    folded = data.fold(-(-num // data.num_datapoints)).rows(slice(0, num))
    return program.simulated(folded, seed=seed).data.as_given()


def sequences(case: Case, num: int, seed: int) -> Any:
    """Ragged sequences from the state space: the packed batch holds them a second time."""
    program = case.program(guide=False)
    data = program.prepare(ragged())
    folded = data.fold(-(-num // data.num_datapoints)).rows(slice(0, num))
    _, _, seen, lengths = folded.as_given()
    observed = program.simulate(folded, seed=seed)[1]
    x = torch.stack([torch.as_tensor(observed[f"x_{t}"]) for t in range(seen.shape[1])], 1) * seen.unsqueeze(-1)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x.flip(1), lengths, batch_first=True, enforce_sorted=False)
    return x, packed, seen, lengths


def measured(program: am.Program, x: Any) -> Measured:
    """On fresh draws."""
    data = program.prepare(x)
    with program.evaluating():
        weights = log_ratios(GuideStart(program.guide_density(data)), data, NUM_DRAWS, seed=7, stream="benchmark")
    tail = smoothed(weights)
    assert tail.khat is not None
    return Measured(weights.mean(0), tail.log_evidence, tail.khat)


def is_fixed(program: am.Program, x: Any) -> bool:
    """Whether there is nothing to train."""
    program.prepare(x)
    return not any(parameter.requires_grad for parameter in program.parameters())


def trained(program: am.Program, x: Any, num_steps: int, seed: int) -> am.Program:
    """By ``am.fit``, where there is something to train."""
    if not is_fixed(program, x):
        settings = am.Training(learning_rate=3e-3, schedule="cosine", clip_norm=100.0, progress=False)
        am.fit(program, x, num_steps=num_steps, seed=seed, training=settings)
    return program


def compare(name: str, family: str, num: int, num_steps: int, seed: int) -> tuple[Measured, Measured]:
    """By hand, and automatic."""
    case = case_of(name)
    train, test = data_of(name, case, num, 2 * seed + 1), data_of(name, case, NUM_TEST, 2 * seed)
    by_hand = measured(trained(case.program(), train, num_steps, seed), test)
    case = case_of(name)
    guide = am.auto_guide(case.program(guide=False), train, family=family, seed=seed)
    program = am.Program(case.model, guide, **dict(case.options))
    return by_hand, measured(trained(program, train, num_steps, seed), test)


def row(name: str, by_hand: Measured, auto: Measured) -> str:
    gain = auto.elbo - by_hand.elbo
    error = gain.std(ddof=1) / len(gain) ** 0.5
    below = auto.log_evidence - auto.elbo
    told = bool((auto.khat < MOST_KHAT).mean() > 0.9)
    gap = f"{below.mean():.2f}" if told else "?"
    return f"| {name} | {by_hand.elbo.mean():.2f} | {auto.elbo.mean():.2f} | {gain.mean():+.2f} ± {error:.2f} | {gap} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="full-covariance")
    parser.add_argument("--num", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=NAMES)
    options = parser.parse_args()
    warnings.simplefilter("ignore", AmortizeWarning)
    print("| program | ELBO by hand | ELBO automatic | difference ± se | below the evidence |")
    print("| --- | --- | --- | --- | --- |")
    for name in options.only:
        pair = compare(name, options.family, options.num, options.steps, options.seed)
        case = case_of(name)
        print(row(name + (" (fixed)" if is_fixed(case.program(), case.data) else ""), *pair), flush=True)


if __name__ == "__main__":
    main()
