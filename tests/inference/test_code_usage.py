"""Which codes a guide uses: known guides of each kind, and where training keeps it."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.diagnostics import code_information
from amortize.errors import ArgumentError, ContractError

NUM, POSITIONS, CODES = 40, 3, 5


def table(*, sure=False):
    """Logits (N, P, K) of a guide that looks its datapoint up: x is the row's number."""
    gen = torch.Generator().manual_seed(0)
    return torch.randn(NUM, POSITIONS, CODES, generator=gen, dtype=torch.float64) * (2e5 if sure else 2.0)


def rows():
    return torch.arange(NUM, dtype=torch.float64).unsqueeze(1)


def program_of(logits, *, one_hot=False, relaxed=False):
    """A program whose guide has these logits."""
    weights = torch.nn.Parameter(torch.zeros(CODES, dtype=torch.float64))
    make = dist.OneHotCategorical if one_hot or relaxed else dist.Categorical

    def model(x):
        pyro.param("weights", weights)
        with pyro.plate("data", x.shape[0]):
            codes = pyro.sample("codes", make(logits=logits.new_zeros(POSITIONS, CODES)).to_event(1))
            soft = codes if make is dist.OneHotCategorical else torch.nn.functional.one_hot(codes, CODES).double()
            pyro.sample("x", dist.Normal((soft @ weights).sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        found = logits[x[:, 0].long()]
        with pyro.plate("data", x.shape[0]):
            if relaxed:
                pyro.sample("codes", am.RelaxedOneHotCategorical(0.5, logits=found).to_event(1))
            else:
                pyro.sample("codes", make(logits=found).to_event(1))

    return am.Program(model, guide)


@pytest.mark.parametrize("kind", [{}, {"one_hot": True}, {"relaxed": True}], ids=["integers", "one-hot", "relaxed"])
def test_counts_are_of_the_most_probable_codes_and_information_of_the_probabilities(kind):
    logits = table()
    usage = am.code_usage(program_of(logits, **kind), rows())["codes"]
    best = logits.argmax(-1)
    expected = [[int((best[:, p] == k).sum()) for k in range(CODES)] for p in range(POSITIONS)]
    np.testing.assert_array_equal(usage.counts, expected)
    np.testing.assert_allclose(usage.information, code_information(logits.softmax(-1)), atol=1e-12)


def test_batches_are_added_up(monkeypatch):
    program = program_of(table())
    whole = am.code_usage(program, rows())["codes"]
    monkeypatch.setattr("amortize.inference.code_usage.MAX_ROWS", 7)
    parts = am.code_usage(program, rows())["codes"]
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_allclose(whole.information, parts.information)
    assert whole.perplexity_se == pytest.approx(parts.perplexity_se)


def test_a_guide_that_knows_nothing_tells_nothing_whatever_it_draws():
    """Draws of a uniform guide are spread over all codes; its one most probable code is not."""
    usage = am.code_usage(program_of(torch.zeros(NUM, POSITIONS, CODES, dtype=torch.float64)), rows())["codes"]
    assert usage.perplexity == pytest.approx(1.0)
    np.testing.assert_allclose(usage.information, 0.0, atol=1e-12)


def test_sure_codes_tell_their_entropy():
    usage = am.code_usage(program_of(table(sure=True)), rows())["codes"]
    np.testing.assert_allclose(np.exp(usage.information), usage.position_perplexities)


def test_probabilities_that_hang_on_another_latent_are_averaged_over_it():
    """q(k) given a coin: 0.9 or 0.3 for code 0, hence 0.6 in the mean."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            u = pyro.sample("u", dist.Uniform(0.0, 1.0))
            codes = pyro.sample("codes", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(u + codes, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            u = pyro.sample("u", dist.Uniform(torch.zeros_like(x), torch.ones_like(x)))
            first = torch.where(u < 0.5, 0.9, 0.3)
            pyro.sample("codes", dist.Categorical(torch.stack([first, 1 - first], -1)))

    program = am.Program(model, guide, discrete="sample")
    assert am.code_usage(program, torch.zeros(500), num_draws=64)["codes"].counts[0, 0] > 450
    assert am.code_usage(program, torch.zeros(500), num_draws=1)["codes"].counts[0, 0] < 350


def test_usage_stands_in_the_history_where_training_is_validated():
    x = rows()
    program = program_of(torch.nn.Parameter(table()))
    training = am.Training(validation=x[:20], validate_every=2, progress=False)
    fitted = am.fit(program, x, objective="graph-elbo", num_steps=5, training=training)
    seen = fitted.history.dropna(subset="codes_perplexity")
    assert seen["step"].tolist() == [2, 4, 5]
    last = am.code_usage(program, x[:20])["codes"]
    assert seen["codes_perplexity"].iloc[-1] == pytest.approx(last.perplexity)
    assert seen["codes_num_dead"].iloc[-1] == last.num_dead
    assert seen["codes_information"].iloc[-1] == pytest.approx(last.information.sum())


def test_where_there_are_no_codes_there_are_no_columns():
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    training = am.Training(validation=torch.zeros(4, 4), progress=False)
    history = am.fit(analysis.program(), torch.zeros(8, 4), num_steps=1, training=training).history
    assert not any(name.endswith("_perplexity") for name in history)
    with pytest.raises(ArgumentError, match="draws a site from a Categorical"):
        am.code_usage(analysis.program(), torch.zeros(8, 4))
    with pytest.raises(ContractError, match="guide"):
        am.code_usage(am.Program(analysis.model), torch.zeros(8, 4))
