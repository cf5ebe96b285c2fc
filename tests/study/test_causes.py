"""Causes: the rules on planted numbers, the experiments by themselves, and guides with one thing wrong, made by hand.

Guides that were trained to be wrong are in ``benchmarks/causes.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.models import FactorAnalysis
from amortize.study import advice as advice_module
from amortize.study.advice import advise
from amortize.study.causes import CAUSES, SHARE, Clues, find_cause
from amortize.study.findings import Finding, examine
from amortize.study.modes import share_multimodal
from amortize.study.probes import continue_training
from tests.statistics import z_value
from tests.study.test_advice import VERDICTS, heavy, planted

# The rules

APPROXIMATION, AMORTIZATION = planted(1.5, 0.3), planted(0.3, 1.5)
OVERFITTED = Clues(train_amortization=0.2, generalisation=1.3, generalisation_se=0.1)
CASES = {
    "correlated": (planted(1.5, 0.1, gain=1.2), Clues(), "correlated-posterior"),
    "correlated by half": (planted(1.5, 0.1, gain=0.5), Clues(), "non-gaussian-posterior"),
    "several modes": (planted(1.5, 0.1, gain=0.1), Clues(multimodal=0.8), "multimodal-posterior"),
    "several modes in a few": (planted(1.5, 0.1, gain=0.1), Clues(multimodal=0.3), "non-gaussian-posterior"),
    "one family alone": (APPROXIMATION, Clues(), "family"),
    "not tried": (AMORTIZATION, Clues(), "encoder"),
    "training on wins": (AMORTIZATION, Clues(continued=1.2, continued_se=0.1), "under-trained-guide"),
    "training on wins little": (AMORTIZATION, Clues(continued=0.4, continued_se=0.1), "small-encoder"),
    "training on loses": (AMORTIZATION, Clues(continued=-2.0, continued_se=0.1), "small-encoder"),
    "training on is noise": (AMORTIZATION, Clues(continued=1.2, continued_se=0.9), "small-encoder"),
    "overfitted": (AMORTIZATION, OVERFITTED, "overfitted-encoder"),
    "overfitted, before the few": (planted(0.1, heavy(1.5)), OVERFITTED, "overfitted-encoder"),
    "generalises": (AMORTIZATION, dataclasses.replace(OVERFITTED, generalisation=0.2), "encoder"),
    "a noisy split": (AMORTIZATION, dataclasses.replace(OVERFITTED, generalisation_se=0.9), "encoder"),
    "nothing, whatever the split": (planted(0.02, 0.03), OVERFITTED, "nothing"),
    "a point": (VERDICTS["guideless"][0], Clues(point=True), "point-guide"),
    "the family, whatever the split": (APPROXIMATION, OVERFITTED, "family"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_on_the_numbers_planted_for_it(case):
    table, clues, cause = CASES[case]
    assert find_cause(examine(table, reference="mean-field"), clues) == cause


def test_every_verdict_has_a_cause_and_every_cause_is_on_the_list():
    from_verdicts = {find_cause(examine(table, reference="mean-field"), Clues()) for table, _ in VERDICTS.values()}
    found = from_verdicts | {cause for _, _, cause in CASES.values()}
    assert found == set(CAUSES)
    assert set(advice_module._EXPLAINED) <= set(CAUSES)


@pytest.mark.parametrize(
    ("table", "clues", "says"),
    [
        (AMORTIZATION, OVERFITTED, "against 0.20 on training data: the encoder overfits"),
        (
            AMORTIZATION,
            Clues(continued=1.2, continued_se=0.1, continued_steps=1000),
            "the guide is under-trained, 1000 steps more win 1.20 ± 0.10 nats; train it longer",
        ),
        (
            AMORTIZATION,
            Clues(continued=0.4, continued_se=0.1, continued_steps=1000),
            "training it for 1000 steps more wins only 0.40 ± 0.10 nats, so a larger encoder would pay",
        ),
        (AMORTIZATION, Clues(continued=-1.0, continued_steps=1000), "1000 steps more wins nothing, so a larger"),
        (
            planted(1.5, 0.1, gain=0.1),
            Clues(multimodal=0.8),
            "80 % of the posteriors looked at have more than one mode",
        ),
    ],
)
def test_the_advice_names_the_cause_with_its_numbers(table, clues, says):
    text = advise(table, reference="mean-field", clues=clues)
    assert says in text
    assert text.startswith("Of the 1.")


def test_a_fitted_family_that_wins_is_the_remedy():
    table = planted(1.5, 0.1, gain=0.1)
    table["elbo_mixture"] = table["elbo_mean_field"] + 1.4
    assert "mixture posteriors would win 1.40" in advise(table, reference="mean-field")
    assert "mixture posteriors would win 1.40" in advise(table, reference="mean-field", clues=Clues(multimodal=1.0))
    table["elbo_mixture"] = table["elbo_mean_field"] + 0.2
    assert "mixture" in advise(table, reference="mean-field")  # as a family to try, without a number of its own
    assert "mixture posteriors" not in advise(table, reference="mean-field")


def test_modes_that_chains_from_the_guide_may_miss_are_warned_of():
    clues = Clues(multimodal=0.5, one_start=True)
    assert "chains from the guide may miss some" in advise(planted(0.02, 0.03), reference="mean-field", clues=clues)
    for other in (Clues(multimodal=0.5), Clues(multimodal=0.05, one_start=True)):
        assert "Beware" not in advise(planted(0.02, 0.03), reference="mean-field", clues=other)


# The experiments


def posterior_of(log_likelihood, dim: int) -> am.Program:
    """A program whose log joint is a standard normal prior and this, at data that all say the same."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(log_likelihood(z), 0.1), obs=x)

    return am.Program(model)


SHAPES = {
    "one mode": (lambda z: z.sum(-1), 0.0),
    "a banana": (lambda z: z[..., 0] + 0.5 * z[..., 1] ** 2, 0.0),
    "a ring": (lambda z: (z**2).sum(-1), 0.0),
    "two modes": (lambda z: z[..., 0] ** 2 + 0 * z[..., 1], 1.0),
    "four modes": (lambda z: 1 + 3 * ((z**2 - 1) ** 2).sum(-1), 1.0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_modes_are_counted_and_a_curved_ridge_is_one(shape):
    program = posterior_of(SHAPES[shape][0], 2)
    share = share_multimodal(program, program.prepare(torch.ones(6)), seed=0)
    assert share == SHAPES[shape][1]


def test_training_on_wins_what_an_untrained_encoder_lacks_and_leaves_no_trace():
    model = FactorAnalysis.random(latent_dim=2, data_dim=5)
    program, x, test = model.program(), model.simulate(256), model.simulate(40, seed=1)
    before, gap = program.state(), float(model.amortization_gap(test).mean())
    gain, se = continue_training(program, program.prepare(test), x)
    assert gap > 1
    assert abs(gain - gap) < 0.05 * gap + z_value() * se
    after = program.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in program.parameters())

    model.set_best_encoder()
    gain, se = continue_training(program, program.prepare(test), x)
    assert abs(gain) < 0.05


def test_what_cannot_be_trained_on_is_not():
    model = FactorAnalysis.random(latent_dim=2, data_dim=3)
    x = model.simulate(10)
    exact = model.program("exact")  # its parameters are the model's
    assert continue_training(exact, exact.prepare(x), x) is None


# Guides with one thing wrong

METHOD = am.AIS(num_chains=8, num_temperatures=30)


Planted = tuple[am.Program, torch.Tensor | None, torch.Tensor]


def upright(angle: float = math.pi / 2, *, data_dim: int = 4) -> FactorAnalysis:
    """Factor analysis whose two loadings meet at an angle; at a right one the posterior is mean-field."""
    weight = torch.zeros(data_dim, 2)
    weight[0, 0], weight[0, 1], weight[1, 1] = 1.5, 1.5 * math.cos(angle), 1.5 * math.sin(angle)
    model = FactorAnalysis(weight, torch.zeros(data_dim), torch.full((data_dim,), 0.25))
    model.set_best_encoder()
    return model


def nothing() -> Planted:
    model = upright()
    return model.program(), model.simulate(200), model.simulate(32, seed=1)


def correlated() -> Planted:
    model = upright(0.3)
    return model.program(), None, model.simulate(32, seed=1)


def under_trained() -> Planted:
    model = upright()
    with torch.no_grad():
        model.encoder.weight.mul_(0.2)
    return model.program(), model.simulate(200), model.simulate(32, seed=1)


class Narrow(torch.nn.Module):
    """An encoder that sees one feature only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([0.6, 0.0]))

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            loc = torch.stack([self.scale[0] * x[:, 0], torch.zeros(len(x))], -1)
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.316, 0.4])).to_event(1))


def small() -> Planted:
    model = upright()
    return am.Program(model.model, Narrow()), model.simulate(200), model.simulate(32, seed=1)


class Memory(torch.nn.Module):
    """An encoder that knows the datapoints it was trained on by heart, and is far off everywhere else."""

    def __init__(self, model: FactorAnalysis, train: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.train_data = model.encoder, train

    def forward(self, x):
        known = torch.cdist(x, self.train_data).amin(-1, keepdim=True) < 1e-3
        loc, scale = self.encoder(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.where(known, loc, loc + 0.8), scale).to_event(1))


def overfitted() -> Planted:
    model = upright()
    train = model.simulate(200)
    return am.Program(model.model, Memory(model, train)), train, model.simulate(32, seed=1)


class OneRoot(torch.nn.Module):
    """x = z1^2 and z2 seen with noise; a guide at the positive root."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.5).to_event(1))
            pyro.sample("x", dist.Normal(torch.stack([z[..., 0] ** 2, z[..., 1]], -1), 0.3).to_event(1), obs=x)

    @staticmethod
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            root = x[:, 0].clamp(min=0.1).sqrt()
            loc, scale = torch.stack([root, 0.96 * x[:, 1]], -1), torch.stack([0.15 / root, 0.294 + 0 * root], -1)
            pyro.sample("z", dist.Normal(loc, scale.clamp(max=0.5)).to_event(1))


def bimodal() -> Planted:
    model = OneRoot()
    gen = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(24, 2, generator=gen)
    z[:, 0] = z[:, 0].sign() * (0.8 + z[:, 0].abs())  # none near zero, where the modes meet
    x = torch.stack([z[:, 0] ** 2, z[:, 1]], -1) + 0.3 * torch.randn(24, 2, generator=gen)
    return am.Program(model, OneRoot.guide), None, x[:24]


WRONG = {
    "nothing": nothing,
    "correlated-posterior": correlated,
    "multimodal-posterior": bimodal,
    "under-trained-guide": under_trained,
    "small-encoder": small,
    "overfitted-encoder": overfitted,
}


@functools.cache
def ledger_of(cause: str) -> am.Ledger:
    program, train, test = WRONG[cause]()
    return am.gaps(program, test, x_train=train, method=METHOD, num_draws=200)


@pytest.mark.filterwarnings("ignore:for .* datapoints one of")
@pytest.mark.parametrize("cause", WRONG)
def test_the_ledger_names_what_is_wrong(cause):
    ledger = ledger_of(cause)
    assert ledger.cause == cause, ledger


@pytest.mark.filterwarnings("ignore:for .* datapoints one of")
def test_evidence_is_not_too_low_where_the_guide_has_one_of_two_modes():
    program, _, x = bimodal()
    grid = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)
    first = dist.Normal(0.0, 1.5).log_prob(grid) + dist.Normal(grid**2, 0.3).log_prob(x[:, :1].double())
    truth = first.logsumexp(1) + math.log(grid[1] - grid[0])
    truth = truth + dist.Normal(0.0, math.hypot(1.5, 0.3)).log_prob(x[:, 1].double())
    ledger = ledger_of("multimodal-posterior")
    error = ledger.table["log_evidence"] - truth.numpy()
    assert abs(error.mean()) < 0.02 + z_value() * ledger.summary.loc["log_evidence", "mc_se"]
    assert am.evidence(program, x, method=METHOD).log_evidence.mean() < truth.mean() - 0.4


def test_a_finding_keeps_its_promise_of_what_is_known():
    finding = examine(planted(1.5, 0.3), reference="mean-field")
    assert isinstance(finding, Finding)
    assert math.isnan(finding.dependence_gain)
    low = planted(1.5, 0.3)
    low["elbo_low_rank"] = low["elbo_mean_field"] + 1.0
    assert examine(low, reference="mean-field").dependence_gain == pytest.approx(1.0)
    assert find_cause(examine(low, reference="mean-field"), Clues()) == "correlated-posterior"
    assert SHARE * 1.5 < 1.0
    assert np.isnan(examine(low, reference="mean-field").richest_gain)
