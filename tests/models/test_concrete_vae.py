"""The VAE with a discrete code: the sum over all codes, training by relaxation, and that it is scored as discrete."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import ConcreteVAE
from tests.statistics import z_value
from tests.vaes import digits

CODES = {"bits": {"latent_dim": 4}, "categories": {"latent_dim": 2, "categories": 3}}


def every_code(latent_dim: int, categories: int = 2) -> torch.Tensor:
    """All values of a code: (C, D) bits, or (C, D, K)."""
    chosen = torch.tensor(list(product(range(categories), repeat=latent_dim)))
    return chosen.double() if categories == 2 else torch.nn.functional.one_hot(chosen, categories).double()


def by_hand(vae: ConcreteVAE, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Log p(x), (N,), as a sum over codes."""
    prior = vae.prior().log_prob(codes)
    likelihood = Bernoulli(logits=vae.decoder.network(codes)[:, None]).log_prob(x).sum(-1)
    return (prior[:, None] + likelihood).logsumexp(0).detach()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return (torch.rand(40, 12, generator=torch.Generator().manual_seed(0)) < 0.4).double()


def shaken(x: torch.Tensor, **settings: object) -> ConcreteVAE:
    """A model whose every parameter has moved, in float64."""
    vae = ConcreteVAE.from_data(x, hidden=(8,), **settings).double()
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    return vae


@pytest.mark.parametrize("code", CODES)
def test_evidence_is_the_sum_over_all_codes(code, x):
    vae = shaken(x, **CODES[code])
    found = am.evidence(vae.program(), x)
    codes = every_code(**CODES[code])
    np.testing.assert_allclose(found.log_evidence, by_hand(vae, x, codes).numpy(), rtol=1e-10)
    assert (found.se == 0).all()
    lacking = by_hand(vae, x, codes[1:]).numpy()  # a sum without one of them is noticed
    assert not np.allclose(found.log_evidence, lacking, rtol=1e-10)


@pytest.mark.parametrize("code", CODES)
def test_the_guide_s_elbo_is_that_of_the_discrete_program(code, x):
    """Validation scores hard draws; a relaxed score of the same parameters is off by far more than its noise."""
    vae, codes = shaken(x, **CODES[code]), every_code(**CODES[code])
    q = vae.encoder(x).log_prob(codes[:, None].expand(len(codes), len(x), *codes.shape[1:])).exp()
    torch.testing.assert_close(q.sum(0), torch.ones_like(q[0]))
    likelihood = Bernoulli(logits=vae.decoder.network(codes)[:, None]).log_prob(x).sum(-1)
    exact = (q * (vae.prior().log_prob(codes)[:, None] + likelihood - q.log())).sum(0).mean().item()
    program = vae.program()
    data = program.prepare(x)
    loss = vae.objective.on(program, data, seed=0)
    measured = np.array([loss.measured(data, 20, seed=seed).mean() for seed in range(20)])
    se = measured.std(ddof=1) / np.sqrt(len(measured))
    assert abs(measured.mean() - exact) < z_value() * se
    hot = am.ConcreteELBO(temperature=2.0).on(program, data, seed=0).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        relaxed = np.array([float(hot(data).bound.mean()) for _ in range(100)])
    assert abs(relaxed.mean() - exact) > 2 * z_value() * relaxed.std(ddof=1) / 10


HARD = am.ConcreteELBO(temperature=0.7, straight_through=True)
TRAININGS = {
    "concrete": {"latent_dim": 6},
    "straight-through": {"latent_dim": 6, "objective": HARD},
    "nvil": {"latent_dim": 6, "objective": "nvil"},
    "concrete categories": {"latent_dim": 3, "categories": 4},
}


@pytest.mark.parametrize("how", TRAININGS)
def test_training_makes_the_code_carry_the_digits(how):
    x, held_out = digits()
    held_out = held_out[:24]
    vae = ConcreteVAE.from_data(x, hidden=(32,), **TRAININGS[how])
    program = vae.program()
    without = am.evidence(program, held_out).log_evidence.mean()
    training = am.Training(learning_rate=1e-2, schedule="cosine", batch_size=100)
    fitted = am.fit(program, x, objective=vae.objective, num_steps=300, training=training)
    found = am.evidence(program, held_out)
    assert found.log_evidence.mean() > without + 1.5
    assert (found.se == 0).all()
    assert fitted.bound.startswith("ELBO" if how == "nvil" else "relaxed ELBO in training")
    again = am.evidence(program, held_out, discrete="sample", method=am.ImportanceSampling(num_draws=1000))
    away = again.log_evidence.mean() - found.log_evidence.mean()
    assert abs(away) < z_value() * np.sqrt(np.square(again.se).sum()) / len(held_out) + 0.02


def test_a_guide_that_reads_nothing_is_noticed():
    """The check of the last test fails for a code that the encoder doesn't fill."""
    x, held_out = digits()
    held_out = held_out[:24]
    vae = ConcreteVAE.from_data(x, 6, hidden=(32,))
    for parameter in vae.encoder.parameters():
        parameter.requires_grad_(False).zero_()
    program = vae.program()
    before = am.evidence(program, held_out).log_evidence.mean()
    training = am.Training(learning_rate=1e-2, schedule="cosine", batch_size=100)
    am.fit(program, x, num_steps=200, training=training)
    assert am.evidence(program, held_out).log_evidence.mean() < before + 1.5


def test_a_uniform_prior_stays_and_a_learned_one_moves(x):
    for prior in ("learned", "uniform"):
        vae = ConcreteVAE.from_data(x.float(), 4, hidden=(), prior=prior)
        am.fit(vae.program(), x.float(), objective=vae.objective, num_steps=5)
        assert bool((vae.prior.logits != 0).any()) == (prior == "learned")


def test_it_begins_at_the_data_s_means(x):
    vae = ConcreteVAE.from_data(x, 4, hidden=(8,))
    torch.testing.assert_close(vae.decoder.network.network.last_bias.sigmoid(), ((x.sum(0) + 0.5) / 41).float())
    torch.testing.assert_close(vae.encoder.centre, x.mean(0).float())


@pytest.mark.parametrize("code", CODES)
def test_the_contract_holds(code, x):
    report = ConcreteVAE.from_data(x.float(), **CODES[code]).program().check(x.float())
    assert report.ok, str(report)


def test_what_does_not_fit_is_named(x):
    with pytest.raises(DataError, match="zeros and ones"):
        ConcreteVAE.from_data(x + 0.5)
    for name, wrong in {"latent_dim": 0, "categories": 1, "prior": "flat", "hidden": 64}.items():
        with pytest.raises(ArgumentError, match=name):
            ConcreteVAE.from_data(x.float(), **{name: wrong})
