"""What the tests of variational autoencoders share: digits, and bounds with their standard errors."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import amortize as am
from amortize.inference.objective import Objective
from amortize.models.zoo import ZooModel
from amortize.program.program import Program
from amortize.program.rates import RatedRun
from amortize.random import pyro_rng

__all__ = [
    "LATENT_DIM",
    "MARGIN",
    "Measured",
    "bound_of",
    "digits",
    "evidence_of",
    "normal_prior_evidence",
    "rates_of",
    "trained_alike",
]

LATENT_DIM, NUM_STEPS = 4, 1000
MARGIN = 0.2
"""Nats by which a prior must win, for trainings differ by more than the noise of annealing."""


class Measured(NamedTuple):
    """A mean over datapoints in nats, and its standard error over the noise of draws."""

    mean: float
    se: float

    def minus(self, other: Measured) -> Measured:
        """The difference of two that share no noise."""
        return Measured(self.mean - other.mean, float(np.hypot(self.se, other.se)))


def digits(*, grey: bool = False) -> tuple[Tensor, Tensor]:
    """Digits to train on and 48 to test on: zeros and ones, or grey values from 0 to 1."""
    loaded = am.data.load("digits", binarise="grey") if grey else am.data.load("digits")
    return torch.as_tensor(loaded.x_train).float(), torch.as_tensor(loaded.x_test[:48]).float()


def bound_of(
    objective: Objective, program: Program, x: Tensor, state: dict[str, Tensor] | None = None, repeats: int = 16
) -> Measured:
    """An objective's bound on x, with its own parameters as trained (``Fitted.extra``) or as they begin."""
    data = program.prepare(x)
    loss = objective.on(program, data, seed=0)
    if state is not None:
        loss.load_state_dict(state)
    means = np.array([loss.measured(data, 8, seed=seed).mean() for seed in range(repeats)])
    return Measured(float(means.mean()), float(means.std(ddof=1) / np.sqrt(repeats)))


def evidence_of(program: Program, x: Tensor) -> Measured:
    """Log p(x) by annealed importance sampling."""
    found = am.evidence(program, x, method=am.AIS(num_chains=8, num_temperatures=25))
    return Measured(float(found.log_evidence.mean()), float(np.sqrt(np.square(found.se).sum()) / len(x)))


@torch.no_grad()
def rates_of(program: Program, x: Tensor, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The rate of each datapoint as the program says it, and as each draw of the guide does: (N,), (S, N)."""
    data = program.prepare(x)
    with pyro_rng(0, "rates"):
        run = RatedRun.of(program, program.structure(data), data, num_draws)
    drawn = am.posterior(program, x, num_draws=num_draws, seed=1)
    values = torch.as_tensor(np.asarray(drawn["z"]))
    prior = -0.5 * values.square().sum(-1) - 0.5 * values.shape[-1] * np.log(2 * np.pi)
    said = run.rate.reshape(num_draws, len(x)).double()
    return said.mean(0).numpy(), np.asarray(drawn["log_q"]) - prior.numpy()


def trained_alike(model: ZooModel, x: Tensor) -> Program:
    """A model at the budget that priors are compared at."""
    program, training = model.program(), am.Training(learning_rate=1e-2, schedule="exponential", batch_size=128)
    am.fit(program, x, objective="elbo", num_steps=NUM_STEPS, training=training)
    return program


@lru_cache
def normal_prior_evidence() -> Measured:
    """Of held-out digits, with the prior N(0, I)."""
    x, held_out = digits()
    vae = am.models.BernoulliVAE.from_data(x, latent_dim=LATENT_DIM, hidden=(64,))
    return evidence_of(trained_alike(vae, x), held_out)
