"""Posteriors that are too wide, too narrow, beside the mark or right by construction, against the gold standard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import amortize as am
from amortize.errors import ArgumentError
from tests.statistics import z_value

NUM = 4000


@pytest.fixture(scope="module")
def analysis():
    return am.models.FactorAnalysis.random(latent_dim=2, data_dim=5, seed=0, dtype=torch.float64)


@pytest.fixture(scope="module")
def gold(analysis):
    return am.gold_standard(analysis.program(), analysis.simulate(3, seed=1), num_warmup=240, num_draws=1000)


def draws(analysis, gold, *, scale=1.0, shift=0.0, seed=0) -> dict[str, np.ndarray]:
    """Of the exact posterior, widened and moved along each axis by so many of its sds."""
    mean, covariance = (part.detach().numpy() for part in analysis.posterior(gold.data.leaves[0]))
    noise = np.random.default_rng(seed).normal(size=(NUM, 3, 2)) @ np.linalg.cholesky(covariance).T
    return {"z": mean + scale * noise + shift * np.sqrt(np.diag(covariance))}


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.5, 0.0), (0.6, 0.0), (1.0, 0.5), (2.0, -1.0)])
def test_errors_made_on_purpose_are_measured(analysis, gold, scale, shift):
    """Bias and ratio of sds are what was done; Wasserstein-1 as for normal marginals, sd times E|z| or the shift."""
    table = gold.compare({"q": draws(analysis, gold, scale=scale, shift=shift)})
    z = z_value(3 * len(table))
    assert gold.trusted.all() and table["trusted"].all()
    assert ((table["bias"] - shift).abs() < z * table["bias_se"]).all()
    assert ((table["sd_ratio"] - scale).abs() < z * table["sd_ratio_se"]).all()
    away = stats.foldnorm(abs(shift) / max(abs(scale - 1), 1e-9)).mean() * abs(scale - 1) if scale != 1 else abs(shift)
    allowed = z * table["wasserstein_se"] + 2 * table["wasserstein_noise"]
    assert ((table["wasserstein"] - away).abs() < allowed).all()
    same = scale == 1 and shift == 0
    assert ((table["c2st"] - 0.5).abs() < z * table["c2st_se"]).all() == same
    assert (table["c2st"] > 0.5 + 3 * table["c2st_se"]).all() == (not same)


def test_a_shift_is_told_apart_as_well_as_can_be(analysis, gold):
    """By d = |L^-1 shift| standard deviations of the joint posterior: Phi(d / 2)."""
    _, covariance = (part.detach().numpy() for part in analysis.posterior(gold.data.leaves[0]))
    moved = np.linalg.solve(np.linalg.cholesky(covariance), np.sqrt(np.diag(covariance)))
    table = gold.compare({"q": draws(analysis, gold, shift=1.0)})
    best = stats.norm.cdf(np.linalg.norm(moved) / 2)
    assert ((table["c2st"] - best).abs() < z_value(3) * table["c2st_se"] + 0.02).all()


def test_guides_and_local_posteriors(analysis, gold):
    """The exact guide and full covariance are right; mean field is too narrow by the correlation it leaves out."""
    x = gold.data.leaves[0]
    locals_ = {name: am.fit_local(analysis.program(), x, family=name) for name in ("mean-field", "full-covariance")}
    table = gold.compare({"exact": analysis.program("exact"), **locals_})
    assert list(table.columns[:3]) == ["posterior", "datapoint", "latent"] and len(table) == 3 * 3 * 2
    assert table["latent"].tolist()[:2] == ["z[0]", "z[1]"]
    z = z_value(6 * 3)
    for name in ("exact", "full-covariance"):
        rows = table[table["posterior"] == name]
        assert (rows["bias"].abs() < z * rows["bias_se"] + 0.02).all()
        assert ((rows["sd_ratio"] - 1).abs() < z * rows["sd_ratio_se"] + 0.02).all()
        assert (rows["c2st"] < 0.5 + z * rows["c2st_se"] + 0.01).all()
    narrow = table[table["posterior"] == "mean-field"]
    _, covariance = (part.detach().numpy() for part in analysis.posterior(x))
    exact = np.sqrt(1 / np.diag(np.linalg.inv(covariance)) / np.diag(covariance))
    error = (narrow["sd_ratio"] - np.tile(exact, 3)).abs()
    assert (error < z * narrow["sd_ratio_se"] + 0.02).all()


def test_refined_guides(analysis, gold):
    """A guide that is off by an sd comes near the exact posterior, by a map of its draws that may turn them."""
    x = gold.data.leaves[0]

    def guide(x):
        mean, covariance = (part.detach() for part in analysis.posterior(x))
        with pyro.plate("data", len(x)):
            sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
            pyro.sample("z", dist.Normal(mean + sd, 1.5 * sd).to_event(1))

    program = am.Program(analysis.model, guide)
    refined = am.refine(program, x, num_steps=200, stretch="full")
    table = gold.compare({"guide": program, "refined": refined}).groupby("posterior")
    assert refined.refined.all() and (table["bias"].min()["guide"] > 0.9)
    assert table["bias"].agg(lambda bias: bias.abs().max())["refined"] < 0.15
    assert table["sd_ratio"].agg(lambda ratio: (ratio - 1).abs().max())["refined"] < 0.15
    assert table["c2st"].max()["refined"] < table["c2st"].min()["guide"]


def test_a_point_is_told_apart_always(analysis, gold):
    """Points have no density, so that their draws come by site; the mode of a Gaussian is its mean."""
    point = am.fit_local(analysis.program(), gold.data.leaves[0], family="point")
    mean = analysis.posterior(gold.data.leaves[0])[0].detach().numpy()
    table = gold.compare({"fitted": point, "given": {"z": np.broadcast_to(mean, (200, 3, 2))}}, num_draws=400)
    assert (table["sd_ratio"] < 1e-9).all() and (table["sd_ratio_se"] < 1e-9).all() and (table["c2st"] > 0.9).all()
    assert (table["bias"].abs() < z_value(12) * table["bias_se"] + 0.02).all()


def test_sites_are_compared_in_their_own_space():
    """A rate by its mean, not its log: Gamma(2 + x, 2) against one that is twice as large."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([3.0, 8.0], dtype=torch.float64)
    gold = am.gold_standard(am.Program(model), x, num_warmup=180, num_draws=500)
    shape = 2 + x.numpy()
    twice = 2 * np.random.default_rng(0).gamma(shape, 0.5, size=(NUM, 2))
    table = gold.compare({"twice": {"rate": twice}})
    assert table["latent"].tolist() == ["rate", "rate"]
    assert (np.abs(table["bias"] - np.sqrt(shape)) < z_value(2) * table["bias_se"] + 0.1).all()
    assert (np.abs(table["sd_ratio"] - 2) < z_value(2) * table["sd_ratio_se"]).all()


def test_where_draws_are_few_no_classifier_speaks(analysis, gold):
    few = replace(gold, ess_tail=np.where(np.arange(3)[:, None] == 1, 50.0, gold.ess_tail))
    table = few.compare({"exact": analysis.program("exact")}, num_draws=200).groupby("datapoint")["c2st"].first()
    assert np.isnan(table).tolist() == [False, True, False]


def test_the_same_seed_gives_the_same_table(analysis, gold):
    tables = [gold.compare({"q": analysis.program("exact")}, num_draws=200, seed=seed) for seed in (0, 0, 1)]
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])


def test_what_does_not_fit_is_refused(analysis, gold):
    other = am.models.FactorAnalysis.random(latent_dim=3, data_dim=5, seed=0, dtype=torch.float64)
    elsewhere = am.fit_local(analysis.program(), analysis.simulate(3, seed=2), num_steps=10)
    refined = am.refine(analysis.program(), analysis.simulate(3, seed=2), num_steps=1)
    refused = {
        "expected the latents of the gold standard": other.program(),
        "was fitted to other data": elsewhere,
        "was refined on other data": refined,
        "expected a Program, a LocalPosterior, a Refinement or a dict": 3,
        "of every latent site, z missing": {"y": np.zeros((100, 3, 2))},
        "of shape": {"z": np.zeros((100, 2, 2))},
    }
    for message, posterior in refused.items():
        with pytest.raises(ArgumentError, match=rf"posteriors\['it'\]: .*{message}"):
            gold.compare({"it": posterior})
    with pytest.raises(ArgumentError, match="posteriors: expected a dict"):
        gold.compare([analysis.program()])
    with pytest.raises(ArgumentError, match="num_draws"):
        gold.compare({"it": analysis.program()}, num_draws=10)
    with pytest.raises(ArgumentError, match="knows no program"):
        replace(gold, program=None).compare({"it": analysis.program()})
