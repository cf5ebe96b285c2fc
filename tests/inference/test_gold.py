"""The gold standard against posteriors that are known: conjugate ones, and ones with two modes by quadrature."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError, DiscreteLatentError
from tests.problems import PROBLEMS, Square, two_that_fail
from tests.statistics import z_value

SHORT = {"num_warmup": 180, "num_draws": 500}


@pytest.mark.parametrize("name", ["dirichlet-multinomial", "gaussian-mixture", "state-space"])
def test_conjugate_posteriors(name):
    """Nothing tells the draws from those of the exact posterior."""
    problem = PROBLEMS[name]()
    gold = am.gold_standard(problem.program(), problem.data, **SHORT)
    assert gold.trusted.all(), gold.table
    table = gold.compare({"exact": problem.program(guide=True)}, num_draws=3000)
    z = z_value(3 * len(table))
    assert (table["bias"].abs() < z * table["bias_se"]).all()
    assert ((table["sd_ratio"] - 1).abs() < z * table["sd_ratio_se"]).all()
    assert (table["c2st"] < 0.5 + z * table["c2st_se"]).all()
    assert (table["bias_se"] < 0.15).all() and (table["wasserstein"] < 4 * table["wasserstein_noise"]).all()
    if name == "gaussian-mixture":
        check_classes(gold, problem.data.numpy())


def check_classes(gold: am.GoldStandard, x: np.ndarray) -> None:
    """The class, which the model sums out, is drawn from its exact conditional."""
    weights, centres = np.array([0.5, 0.3, 0.2]), np.array([[-2.0, 0.0], [1.0, 1.5], [2.0, -1.0]])
    log_p = np.log(weights) + stats.norm(centres, np.hypot(0.6, 1)).logpdf(x[:, None]).sum(-1)
    exact = np.exp(log_p - np.logaddexp.reduce(log_p, 1)[:, None])
    assert gold.draws["k"].shape == gold.lp.shape
    found = (gold.draws["k"][..., None] == np.arange(3)).mean((0, 1))
    error = np.sqrt(exact * (1 - exact) / gold.ess_bulk.min(1)[:, None])
    assert (np.abs(found - exact) < z_value(18) * error + 1e-3).all()


SQUARE = Square(mean=0.2)
TWO_MODES = torch.tensor([0.1, 1.0, 2.5, 6.0], dtype=torch.float64)


def test_two_modes_are_visited_in_their_shares():
    gold = am.gold_standard(am.Program(SQUARE.model), TWO_MODES, num_warmup=240, num_draws=1000)
    assert gold.trusted.all() and (gold.jump_rate > 0.1).all()
    share, mean, sd = SQUARE.moments(TWO_MODES)
    z = gold.draws["z"]
    least = gold.ess_bulk.min(1)
    error = z_value(4) / np.sqrt(least)
    assert (np.abs((z > 0).mean((0, 1)) - share) < error * np.sqrt(share * (1 - share))).all()
    assert (np.abs(z.mean((0, 1)) - mean) < error * sd).all()
    assert (np.abs(z.std((0, 1)) / sd - 1) < error).all()


def test_two_modes_in_two_dimensions_and_other_coordinates():
    """(a, b) with x = (a^2, log b) + noise, b log-normal: the modes of a, and b by conjugacy."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Normal(torch.full((), 0.2, dtype=x.dtype), 1.0))
            b = pyro.sample("b", dist.LogNormal(torch.zeros((), dtype=x.dtype), 1.0))
            loc = torch.stack([a**2, b.log()], -1)
            pyro.sample("x", dist.Normal(loc, 0.3).to_event(1), obs=x)

    x = torch.tensor([[2.5, 1.0], [6.0, -1.0]], dtype=torch.float64)
    gold = am.gold_standard(am.Program(model), x, num_warmup=240, num_draws=800)
    assert gold.trusted.all()
    share, _, _ = SQUARE.moments(x[:, 0])
    error = z_value(6) / np.sqrt(gold.ess_bulk.min(1))
    assert (np.abs((gold.draws["a"] > 0).mean((0, 1)) - share) < error * np.sqrt(share * (1 - share))).all()
    log_b = np.log(gold.draws["b"]).reshape(-1, 2)
    sd = (1 + 1 / 0.09) ** -0.5
    assert (np.abs(log_b.mean(0) - x[:, 1].numpy() / 0.09 * sd**2) < error * sd).all()
    assert (np.abs(log_b.std(0) / sd - 1) < error).all()


def test_nuts_agrees_with_the_exact_posterior():
    problem = PROBLEMS["state-space"]()
    settings = {"kernel": "nuts", "num_chains": 2, "num_warmup": 120, "num_draws": 250}
    gold = am.gold_standard(problem.program(), problem.data[:1], **settings)
    assert gold.trusted.all() and (gold.num_gradients > 740).all() and (gold.jump_rate == 0).all()
    table = gold.compare({"exact": problem.program(guide=True)}, num_draws=2000)
    z = z_value(2 * len(table))
    assert (table["bias"].abs() < z * table["bias_se"]).all()
    assert ((table["sd_ratio"] - 1).abs() < z * table["sd_ratio_se"]).all()


@pytest.mark.filterwarnings("ignore:1 of 1 datapoints are not to be trusted")
def test_nuts_agrees_with_quadrature_where_modes_are_connected():
    """A barrier of a nat; chains this short cross it often enough for their own error, and not for R-hat's 1.01."""
    problem, x = Square(mean=0.2, noise=0.7), torch.tensor([1.2], dtype=torch.float64)
    gold = am.gold_standard(am.Program(problem.model), x, kernel="nuts", num_chains=4, num_warmup=150, num_draws=600)
    share, mean, sd = problem.moments(x)
    error = z_value(3) / np.sqrt(gold.ess_bulk.min())
    z = gold.draws["z"]
    assert gold.rhat.max() < 1.05 and gold.ess_bulk.min() > 100 and 0.3 < share[0] < 0.9
    assert abs((z > 0).mean() - share) < error * np.sqrt(share * (1 - share))
    assert abs(z.mean() - mean) < error * sd and abs(z.std() / sd - 1) < error


def test_nuts_between_two_modes_is_not_trusted():
    """It does not jump; begun at draws of the prior, both chains would be in one mode half of the time."""
    settings = {"kernel": "nuts", "num_chains": 2, "num_warmup": 60, "num_draws": 60}
    for seed in range(3):
        with pytest.warns(AmortizeWarning, match="1 of 1 datapoints are not to be trusted.*disagree"):
            gold = am.gold_standard(am.Program(SQUARE.model), TWO_MODES[3:], seed=seed, **settings)
        assert not gold.trusted.any() and gold.rhat.max() > 1.3


def test_a_datapoint_that_fails_is_not_trusted_and_spoils_no_other():
    model, x, _ = two_that_fail()
    with pytest.warns(AmortizeWarning, match="2 of 4"):
        gold = am.gold_standard(am.Program(model), x, **SHORT)
    assert gold.trusted.tolist() == [True, False, True, False]
    z = gold.draws["z"].reshape(-1, 4)[:, [0, 2]]
    error = z_value(2) / np.sqrt(gold.ess_bulk.min(1)[[0, 2]])
    assert (np.abs(z.mean(0) - x[[0, 2]].numpy() / 2) < error * 0.5**0.5).all()


def test_too_short_a_run_says_so():
    problem = PROBLEMS["pixel-plate"]()
    with pytest.warns(AmortizeWarning, match="6 of 6 .*effective|6 of 6 .*disagree"):
        gold = am.gold_standard(problem.program(), problem.data, num_warmup=60, num_draws=20)
    assert not gold.trusted.any() and set(gold.table["trusted"]) == {False}
    assert "0 of them trusted" in str(gold)


def test_a_whole_data_set_is_one_datapoint():
    """A regression without a plate for its latents: the posterior is Gaussian, in closed form."""

    def model(t, y):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2, dtype=t.dtype), 2.0).to_event(1))
        with pyro.plate("data", len(t)):
            pyro.sample("y", dist.Normal(slope[0] + slope[1] * t, 0.5), obs=y)

    t = torch.linspace(0, 3, 12, dtype=torch.float64)
    y = 1 + 0.5 * t + 0.5 * torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gold = am.gold_standard(am.Program(model, whole=True), (t, y), **SHORT)
    design = np.stack([np.ones(12), t.numpy()], 1)
    covariance = np.linalg.inv(design.T @ design / 0.25 + np.eye(2) / 4)
    mean, sd = covariance @ design.T @ y.numpy() / 0.25, np.sqrt(np.diag(covariance))
    draws = gold.draws["slope"].reshape(-1, 2)
    error = z_value(4) / np.sqrt(gold.ess_bulk.min())
    assert gold.trusted.all() and gold.draws["slope"].shape == (4, 500, 1, 2)
    assert (np.abs(draws.mean(0) - mean) < error * sd).all() and (np.abs(draws.std(0) / sd - 1) < error).all()


def test_a_guide_that_is_far_too_narrow_is_no_bad_start():
    problem = PROBLEMS["normal-normal"]()

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x + 3.0, 0.01))

    gold = am.gold_standard(am.Program(problem.model, guide), problem.data[:2], start="guide", **SHORT)
    table = gold.compare({"exact": problem.program(guide=True)})
    assert gold.trusted.all() and (table["bias"].abs() < z_value(2) * table["bias_se"]).all()


def test_seeds():
    problem = PROBLEMS["normal-normal"]()
    program, x = problem.program(), problem.data[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)
        first, again, other = (am.gold_standard(program, x, num_warmup=30, num_draws=30, seed=s) for s in (0, 0, 1))
    assert (first.u == again.u).all() and (first.u != other.u).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "mala"}, "kernel: expected one of"),
        ({"kernel": am.HMC()}, "kernel: expected one of"),
        ({"num_chains": 1}, "num_chains: expected an integer of at least 2"),
        ({"num_warmup": 10}, "num_warmup"),
        ({"num_draws": 0}, "num_draws"),
        ({"start": "here"}, "start: expected one of"),
        ({"target_acceptance": 1.0}, "target_acceptance"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_are_checked(arguments, message):
    problem = PROBLEMS["normal-normal"]()
    with pytest.raises(ArgumentError, match=message):
        am.gold_standard(problem.program(), problem.data, **arguments)


def test_programs_without_anything_to_move_are_refused():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(DiscreteLatentError, match="no continuous latents"):
        am.gold_standard(am.Program(model), torch.zeros(2))
    with pytest.raises(DiscreteLatentError, match="'k' are sampled"):
        am.gold_standard(am.Program(model, discrete="sample"), torch.zeros(2))
