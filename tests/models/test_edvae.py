"""The evidential discrete VAE: what its two guides cost, in closed form, and that both are of one model."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence

import amortize as am
from amortize.errors import ArgumentError
from amortize.models import EdVAE
from amortize.models.edvae import EvidentialELBO
from amortize.models.edvae_parts import MOST, Evidential, dirichlet_rates
from amortize.random import pyro_rng
from tests.models.test_dvae import CODES, log_guides, log_joints
from tests.statistics import z_value
from tests.vaes import digits


def tiny(*, sure=4.0, seed=0):
    """Double precision, 3^4 configurations of codes, and six images; how sure the encoder begins."""
    x, _ = digits()
    edvae = EdVAE.from_data(x, CODES, code_dim=2, channels=(3, 4), beta=0.1, seed=seed).double()
    with torch.no_grad():
        edvae.decoder.network.first.weight.mul_(3.0)
        edvae.encoder.network.last.weight.mul_(sure)
    return edvae, x[:6].double()


def test_the_two_rates_differ_by_what_saying_pi_costs():
    gen = torch.Generator().manual_seed(0)
    alpha = 1 + torch.randn(20, 5, generator=gen, dtype=torch.float64).mul(3).exp()
    rates = dirichlet_rates(alpha)
    shares, eye = alpha / alpha.sum(-1, keepdim=True), torch.eye(5, dtype=torch.float64)
    apart = kl_divergence(Dirichlet(alpha.unsqueeze(1) + eye), Dirichlet((1 + eye).expand(20, 5, 5)))
    torch.testing.assert_close(rates.joint - rates.collapsed, (shares * apart).sum(-1))
    assert (rates.joint > rates.collapsed).all()


def test_no_evidence_costs_nothing():
    assert [float(rate) for rate in dirichlet_rates(torch.ones(7))] == pytest.approx([0.0, 0.0], abs=1e-5)


def test_what_is_trained_is_the_reconstruction_and_the_dirichlets_rate_at_its_price():
    """At the lowest temperature codes are hard, so the value is that of drawn codes less the price of the rate."""
    edvae, x = tiny()
    objective = EvidentialELBO(beta=0.1, warmup=0.0, temperature=1e-3, final_temperature=1e-3)
    program = edvae.program()
    data = program.prepare(x)
    loss = objective.on(program, data, seed=0)
    with pyro_rng(0, "draws"):
        draws = np.stack([loss(data).bound.numpy() for _ in range(400)])
    collapsed = edvae.collapsed()
    log_joint = log_joints(collapsed, x) + 4 * np.log(CODES)
    with torch.no_grad():
        rate = dirichlet_rates(edvae.encoder(x)).joint.sum(-1)
    exact = ((log_guides(collapsed, x).exp() * log_joint).sum(0) - 0.1 * rate).numpy()
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - exact) < z_value(len(x)) * error + 1e-6).all()


def test_what_is_measured_is_the_elbo_of_the_discrete_model():
    edvae, x = tiny()
    collapsed = edvae.collapsed()
    log_q = log_guides(collapsed, x)
    exact = (log_q.exp() * (log_joints(collapsed, x) - log_q)).sum(0).numpy()
    program = edvae.program()
    data = program.prepare(x)
    loss = edvae.objective.on(program, data, seed=0)
    draws = np.stack([loss.measured(data, 16, seed=seed) for seed in range(16)])
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - exact) < z_value(len(x)) * error).all()


def test_a_share_far_below_what_single_precision_tells_from_zero_keeps_its_density():
    edvae, x = tiny()
    edvae, x = edvae.float(), x.float()
    with torch.no_grad():
        edvae.encoder.network.last.weight.zero_()
        edvae.encoder.network.last.bias.copy_(torch.arange(CODES) * -9.0 + MOST)
        alpha = edvae.encoder(x).double()
    guide = pyro.poutine.trace(edvae.program().guide).get_trace(x).nodes["codes"]["fn"]
    for code in range(CODES):
        one_hot = torch.eye(CODES)[code].expand(alpha.shape)
        exact = (alpha[..., code] / alpha.sum(-1)).log().sum(-1)
        torch.testing.assert_close(guide.log_prob(one_hot).double(), exact, atol=1e-4, rtol=0)


def test_the_rate_s_price_climbs_and_the_temperature_falls():
    edvae, x = tiny()
    program = edvae.program()
    loss = EvidentialELBO(warmup=0.5, temperature=1.0, final_temperature=0.25, anneal=0.5).on(
        program, program.prepare(x), seed=0
    )
    loss.progress = 0.25
    assert (loss._climbed(), loss._temperature()) == pytest.approx((0.5, 0.5))
    loss.progress = 0.75
    assert (loss._climbed(), loss._temperature()) == pytest.approx((1.0, 0.25))


def test_the_weight_of_a_draw_is_that_of_its_codes_alone():
    """pi comes from its exact conditional, so it leaves no trace: log p(x | k) - log K P - log q(k | x)."""
    edvae, x = tiny()
    program = edvae.program()
    drawn = am.posterior(program, x, num_draws=20, discrete="sample", seed=0)
    codes = torch.as_tensor(np.asarray(drawn["codes"]))
    with torch.no_grad():
        alpha = edvae.encoder(x)
        log_q = (codes * (alpha / alpha.sum(-1, keepdim=True)).log()).sum((-1, -2))
        log_joint = edvae.decoder(codes).log_prob(x) - codes.shape[2] * np.log(CODES)
    np.testing.assert_allclose(drawn["lp"] - drawn["log_q"], (log_joint - log_q).numpy(), atol=1e-8)


def test_the_evidence_is_that_of_the_collapsed_model_and_its_exact_sum():
    edvae, x = tiny(sure=0.3)  # so that weights have no tail
    collapsed = edvae.collapsed()
    exact = log_joints(collapsed, x).logsumexp(0).numpy()
    np.testing.assert_allclose(am.evidence(collapsed.program(), x).log_evidence, exact, atol=1e-9)
    found = am.evidence(
        edvae.program(), x, method=am.ImportanceSampling(2000), start="guide", discrete="sample", seed=0
    )
    assert (np.abs(np.exp(found.log_evidence - exact) - 1) < z_value(len(x)) * found.se).all()


def test_the_guide_that_draws_pi_first_has_a_bound_that_is_worse_by_what_pi_costs():
    """The published guide, pi and then codes given pi, against the same codes with pi from its exact conditional."""
    edvae, x = tiny()
    collapsed = edvae.collapsed()
    log_q = log_guides(collapsed, x)
    exact = (log_q.exp() * (log_joints(collapsed, x) - log_q)).sum(0).numpy()
    with torch.no_grad():
        rates = dirichlet_rates(edvae.encoder(x))
    price = (rates.joint - rates.collapsed).sum(-1).numpy()
    for first, expected in ((False, exact), (True, exact - price)):
        draws = bounds(edvae, x, pi_first=first)
        error = draws.std(0, ddof=1) / np.sqrt(len(draws))
        assert (np.abs(draws.mean(0) - expected) < z_value(2 * len(x)) * error).all()


@torch.no_grad()
def bounds(edvae, x, *, pi_first, num_draws=1000):
    """Log p(x, pi, k) - log q(pi, k | x) of draws of a guide, (S, N)."""
    alpha, num = edvae.encoder(x), (num_draws,)
    with pyro_rng(0, "bounds"):
        if pi_first:
            pi = Dirichlet(alpha).sample(num)
            codes = torch.distributions.OneHotCategorical(pi).sample()
            log_q = (Dirichlet(alpha).log_prob(pi) + (codes * pi.log()).sum(-1)).sum(-1)
        else:
            shares = alpha / alpha.sum(-1, keepdim=True)
            codes = torch.distributions.OneHotCategorical(shares).sample(num)
            pi = Dirichlet(1 + codes).sample()
            log_q = ((codes * shares.log()).sum(-1) + Dirichlet(1 + codes).log_prob(pi)).sum(-1)
    prior = (Dirichlet(torch.ones_like(alpha)).log_prob(pi) + (codes * pi.log()).sum(-1)).sum(-1)
    return (prior + edvae.decoder(codes).log_prob(x) - log_q).numpy()


def test_evidence_is_one_and_up_and_finite():
    alpha = Evidential(torch.nn.Identity())(torch.tensor([-200.0, 0.0, MOST, 500.0]))
    assert alpha.tolist() == pytest.approx([1.0, 2.0, 1 + np.exp(MOST), 1 + np.exp(MOST)])


def test_it_keeps_the_contract_and_shares_parameters_with_the_collapsed_model():
    x, _ = digits()
    edvae = EdVAE.from_data(x, 16, channels=(4, 4))
    report = edvae.program().check(x[:6])
    assert report.ok, str(report)
    assert {id(p) for p in edvae.collapsed().parameters()} == {id(p) for p in edvae.parameters()}
    torch.testing.assert_close(edvae.codes(x[:9]), edvae.collapsed().codes(x[:9]))


def test_what_it_refuses():
    with pytest.raises(ArgumentError, match="beta"):
        EdVAE.from_data(torch.zeros(3, 64), beta=-1.0)
    with pytest.raises(ArgumentError, match="num_codes"):
        EdVAE.from_data(torch.zeros(3, 64), 1)
    for settings, words in (
        ({"beta": -1.0}, "beta"),
        ({"warmup": 2.0}, "warmup"),
        ({"temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(ArgumentError, match=words):
            EvidentialELBO(**settings)
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    with pytest.raises(ArgumentError, match="trains am"):
        am.fit(analysis.program(), torch.zeros(8, 4), objective=EvidentialELBO(), num_steps=1)
