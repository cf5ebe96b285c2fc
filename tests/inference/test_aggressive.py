"""Guides trained ahead of their model: mutual information, whose parameters move, and the lag."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.mutual_information import mutual_information
from tests.statistics import z_value


def gaussian(spread: float):
    """A guide N(spread * x, 1) of a standard normal latent."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(spread * x, 1.0))

    return am.Program(model, guide)


def measured(program, x, seeds=(0,)) -> np.ndarray:
    data = program.prepare(x)
    with program.evaluating():
        guide = program.guide_density(data)
        return np.array([mutual_information(guide, data, seed=seed) for seed in seeds])


def test_mutual_information_is_that_of_the_mixture():
    """Entropy of the mixture, by a sum over a fine grid, less that of one component."""
    x = torch.linspace(-2, 2, 30, dtype=torch.float64)
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    mixture = dist.Normal(1.5 * x, 1.0).log_prob(z[:, None]).logsumexp(1) - math.log(30)
    entropy = -float((mixture.exp() * mixture).sum() * (z[1] - z[0]))
    exact = entropy - 0.5 * math.log(2 * math.pi * math.e)
    values = measured(gaussian(1.5), x, range(60))
    assert abs(values.mean() - exact) < z_value() * values.std(ddof=1) / 60**0.5


@pytest.mark.parametrize(("spread", "exact"), [(0.0, 0.0), (1e3, math.log(30))])
def test_mutual_information_at_its_ends(spread, exact):
    x = torch.linspace(-2, 2, 30, dtype=torch.float64)
    assert measured(gaussian(spread), x)[0] == pytest.approx(exact, abs=1e-9)


def test_it_is_that_of_all_latents_whatever_their_support():
    """A monotone map of a latent, and a class beside it that says nothing, leave it as it is."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.full((), 0.3, dtype=x.dtype)))
            z = pyro.sample("z", dist.LogNormal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("z", dist.LogNormal(1.5 * x, 1.0))

    x = torch.linspace(-2, 2, 30, dtype=torch.float64)
    ours = measured(am.Program(model, guide, discrete="sample"), x, range(40))
    plain = measured(gaussian(1.5), x, range(40, 80))
    se = math.hypot(ours.std(ddof=1), plain.std(ddof=1)) / 40**0.5
    assert abs(ours.mean() - plain.mean()) < z_value() * se


def small():
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=8, seed=0)
    x = analysis.simulate(200, seed=3)
    weight = 0.01 * torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    return am.models.FactorAnalysis(weight, x.mean(0), torch.ones(8)), x


def test_the_guide_lags_less_and_the_posterior_is_further_from_collapse():
    """A linear VAE that begins without use of its latents: the lag is its amortization gap, in closed form."""
    gaps, information = [], []
    for aggressive in (None, am.Aggressive(max_inner_steps=30, check_every=20, patience=3)):
        analysis, x = small()
        row = []
        for seed in range(2):
            training = am.Training(learning_rate=0.01, aggressive=aggressive)
            am.fit(analysis.program(), x, num_steps=30, seed=seed, training=training)
            row.append(analysis.amortization_gap(x).mean().item())
        gaps.append(row)
        information.append(measured(analysis.program(), x)[0])
    assert (np.array(gaps[1]) < 0.5 * np.array(gaps[0])).all()
    assert information[1] > information[0] + 0.2


def test_inner_steps_move_the_guide_alone_and_outer_steps_the_model_alone():
    analysis, x = small()
    program = analysis.program()
    seen = []

    def look(batch, stream):
        seen.append(program.state())
        return batch

    training = am.Training(aggressive=am.Aggressive(max_inner_steps=4, window=2), redraw=look)
    history = am.fit(program, x, num_steps=1, training=training).history
    seen.append(program.state())
    moved = [{name for name in a if not torch.equal(a[name], b[name])} for a, b in itertools.pairwise(seen)]
    assert len(moved) == history.inner_steps[0] + 1 >= 3
    assert all(names and all(".encoder." in name for name in names) for names in moved[:-1])
    assert moved[-1] and all(".decoder." in name for name in moved[-1])


@pytest.mark.parametrize(("patience", "last"), [(1, 6), (2, 8)])
def test_it_ends_once_the_mutual_information_stops_rising(monkeypatch, patience, last):
    """A new highest at step 4; none at steps 6 and 8."""
    values = iter([1.0, 2.0, 1.5, 2.0, 3.0, 4.0])
    monkeypatch.setattr("amortize.inference.aggressive.mutual_information", lambda guide, data, seed: next(values))
    analysis, x = small()
    aggressive = am.Aggressive(max_inner_steps=2, window=2, check_every=2, patience=patience)
    history = am.fit(analysis.program(), x, num_steps=12, training=am.Training(aggressive=aggressive)).history
    assert history.step[history.inner_steps > 0].max() == last
    assert history.step[history.mutual_information.notna()].max() == last


def test_inner_steps_end_at_the_most_and_where_the_bound_falls():
    analysis, x = small()
    aggressive = am.Aggressive(max_inner_steps=7, window=3)
    training = am.Training(learning_rate=0.01, aggressive=aggressive)
    history = am.fit(analysis.program(), x, num_steps=5, training=training).history
    assert history.inner_steps.isin([6, 7]).all()


def test_settings_are_written_down(tmp_path):
    analysis, x = small()
    training = am.Training(aggressive=am.Aggressive(max_inner_steps=2), validation=x[:20])
    fitted = am.fit(analysis.program(), x, num_steps=1, training=training)
    again = am.load(fitted.save(tmp_path / "fitted.pt"), analysis.program())
    assert again.settings["aggressive"]["max_inner_steps"] == 2
    assert list(again.history.columns) == list(fitted.history.columns)
    plain = am.fit(analysis.program(), x, num_steps=1)
    assert plain.settings["aggressive"] is None and "inner_steps" not in plain.history


def test_objectives_with_parameters_of_their_own_can_lead():
    analysis, x = small()
    training = am.Training(aggressive=am.Aggressive(max_inner_steps=2))
    fitted = am.fit(analysis.program(), x, objective=am.LMCVAE(num_steps=2), num_steps=2, training=training)
    assert fitted.history.inner_steps.iloc[0] == 2 and fitted.extra


@pytest.mark.parametrize("name", ["max_inner_steps", "window", "check_every", "patience", "num_datapoints"])
def test_settings_are_checked(name):
    with pytest.raises(ArgumentError, match=f"Aggressive {name}"):
        am.Aggressive(**{name: 0})


def test_what_cannot_lag_is_refused():
    analysis, x = small()
    training = am.Training(aggressive=am.Aggressive())
    with pytest.raises(ArgumentError, match="aggressive"):
        am.Training(aggressive=True)
    auto = am.Program(analysis.model, pyro.infer.autoguide.AutoNormal(analysis.model))
    with pytest.raises(ArgumentError, match="encoder"):
        am.fit(auto, x, num_steps=1, training=training)
    for part, whose in ((analysis.encoder, "guide"), (analysis.decoder, "model")):
        part.requires_grad_(False)
        with pytest.raises(ArgumentError, match=f"the {whose} has no parameters"):
            am.fit(analysis.program(), x, num_steps=1, training=training)
        part.requires_grad_(True)
