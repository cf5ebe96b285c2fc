"""Factor analysis: its closed forms, its parameters, and its Pyro model and guides against them."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal

from amortize.errors import ArgumentError, DataError
from amortize.models import FactorAnalysis
from amortize.random import pyro_rng
from tests.statistics import z_value

F64 = torch.float64


@pytest.fixture
def model() -> FactorAnalysis:
    return FactorAnalysis.random(latent_dim=3, data_dim=6, seed=1, dtype=F64)


@pytest.fixture
def x(model) -> torch.Tensor:
    return model.simulate(8, seed=2)


def perturb(model: FactorAnalysis, size: float = 0.1, seed: int = 3) -> FactorAnalysis:
    gen = torch.Generator().manual_seed(seed)
    model.set_best_encoder()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=gen, dtype=F64))
    return model


def test_gaps_add_up_and_have_their_signs(model, x):
    perturb(model)
    approximation, amortization = model.approximation_gap(x), model.amortization_gap(x)
    torch.testing.assert_close(approximation + amortization, model.inference_gap(x), rtol=0.0, atol=1e-12)
    assert bool((approximation > 0.01).all())
    assert float(approximation.std()) < 1e-12
    assert bool((amortization > 0).all())
    torch.testing.assert_close(model.inference_gap(x), model.log_evidence(x) - model.guide_elbo(x))


def test_the_best_encoder_has_no_amortization_gap_and_any_other_has_one(model, x):
    model.set_best_encoder()
    assert float(model.amortization_gap(x).abs().max()) < 1e-11
    mean, covariance = model.posterior(x)
    loc, scale = model.encoder(x)
    torch.testing.assert_close(loc, mean)
    torch.testing.assert_close(scale, covariance.inverse().diagonal() ** -0.5)
    for seed in range(5):
        assert bool((perturb(model, 1e-3, seed).amortization_gap(x) > 0).all())


def test_guide_elbo_is_that_of_its_own_gaussian(model, x):
    perturb(model)
    loc, scale = model.encoder(x)
    truth = model.closed_form().elbo(x, loc, torch.diag(scale**2))
    torch.testing.assert_close(model.guide_elbo(x), truth.detach())


def test_the_encoder_starts_at_the_prior(model, x):
    loc, scale = model.encoder(x)
    assert bool((loc == 0).all())
    assert bool((scale == 1).all())
    prior_elbo = model.closed_form().elbo(x, loc, torch.eye(3, dtype=F64))
    torch.testing.assert_close(model.guide_elbo(x), prior_elbo.detach())


def test_simulated_data_have_the_model_s_moments(model):
    num = 200_000
    x = model.simulate(num, seed=5)
    exact = model.closed_form()
    covariance = (exact.weight @ exact.weight.T + torch.diag(exact.variance)).detach()
    marginal = MultivariateNormal(exact.bias.detach(), covariance)
    log_p = marginal.log_prob(x)
    se = log_p.std() / num**0.5
    assert abs(float(log_p.mean() + marginal.entropy())) < z_value() * float(se)
    z_scores = (x.mean(0) - exact.bias.detach()) / (covariance.diagonal() / num).sqrt()
    assert float(z_scores.abs().max()) < z_value(6)


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
def test_pyro_model_and_guides_have_the_closed_form_densities(noise, x):
    model = FactorAnalysis.random(latent_dim=3, data_dim=6, seed=1, dtype=F64)
    if noise == "isotropic":
        exact = model.closed_form()
        model = FactorAnalysis(exact.weight, exact.bias, torch.tensor([0.5], dtype=F64))
    perturb(model)
    for guide in (model.guide, model.exact_guide):
        log_p, log_q, z = one_draw(model, guide, x)
        exact = model.closed_form()
        truth = MultivariateNormal(exact.bias, exact.weight @ exact.weight.T + torch.diag(exact.variance))
        posterior = MultivariateNormal(*model.posterior(x))
        torch.testing.assert_close(log_p, truth.log_prob(x) + posterior.log_prob(z))
        if guide == model.exact_guide:
            torch.testing.assert_close(log_q, posterior.log_prob(z))
            torch.testing.assert_close(log_p - log_q, model.log_evidence(x))
        else:
            loc, scale = model.encoder(x)
            torch.testing.assert_close(log_q, MultivariateNormal(loc, torch.diag(scale**2)).log_prob(z))


def one_draw(model, guide, x) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with pyro.get_param_store().scope(), pyro_rng(0, "test"), torch.no_grad():
        drawn = pyro.poutine.trace(guide).get_trace(x)
        joint = pyro.poutine.trace(pyro.poutine.replay(model.model, drawn)).get_trace(x)
        joint.compute_log_prob()
        drawn.compute_log_prob()
    log_p = joint.nodes["z"]["log_prob"] + joint.nodes["x"]["log_prob"]
    return log_p, drawn.nodes["z"]["log_prob"], drawn.nodes["z"]["value"]


def test_a_frozen_decoder_is_left_alone_without_a_warning(model, x):
    model.decoder.requires_grad_(False)
    with pyro.get_param_store().scope(), pyro_rng(0, "test"):
        loss = pyro.infer.Trace_ELBO().differentiable_loss(model.model, model.guide, x)
        loss.backward()
        assert sorted(pyro.get_param_store()) == ["encoder$$$bias", "encoder$$$log_scale", "encoder$$$weight"]
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_pyro_s_elbo_is_the_guide_elbo(model, x):
    perturb(model)
    num = 4000
    with pyro.get_param_store().scope(), pyro_rng(1, "test"), torch.no_grad():
        losses = torch.tensor([pyro.infer.Trace_ELBO().loss(model.model, model.guide, x) for _ in range(num)])
    se = float(losses.std()) / num**0.5
    assert abs(float(losses.mean() + model.guide_elbo(x).sum())) < z_value() * se


def test_probabilistic_pca_is_the_maximum_of_the_likelihood():
    data = FactorAnalysis.random(latent_dim=2, data_dim=5, dtype=F64).simulate(100, seed=1)
    fitted = FactorAnalysis.probabilistic_pca(data, latent_dim=2, dtype=F64)
    total = fitted.closed_form().log_evidence(data).sum()
    gradients = torch.autograd.grad(total, list(fitted.decoder.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-8
    for seed in range(10):
        other = FactorAnalysis.probabilistic_pca(data, latent_dim=2, dtype=F64)
        gen = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in other.decoder.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=gen, dtype=F64))
        assert float(other.log_evidence(data).sum()) < float(total.detach())


def test_one_seed_gives_one_model_and_no_global_draw():
    state = torch.random.get_rng_state()
    first, again, other = (FactorAnalysis.random(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.decoder.weight, again.decoder.weight)
    assert not torch.equal(first.decoder.weight, other.decoder.weight)
    assert torch.equal(first.simulate(3, seed=4), again.simulate(3, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.decoder.weight.shape == (20, 5)
    assert first.decoder.weight.dtype == torch.float32


def test_closed_forms_are_float64_of_float32_parameters_and_take_arrays():
    model = FactorAnalysis.random()
    x = model.simulate(4)
    assert model.log_evidence(x).dtype == torch.float64
    torch.testing.assert_close(model.log_evidence(x.numpy()), model.log_evidence(x), rtol=0.0, atol=0.0)
    assert not model.guide_elbo(x).requires_grad


@pytest.mark.parametrize(
    ("weight", "bias", "variance", "says"),
    [
        (torch.zeros(3), torch.zeros(3), torch.ones(3), "weight"),
        (torch.zeros(3, 2), torch.zeros(2), torch.ones(3), "bias"),
        (torch.zeros(3, 2), torch.zeros(3), torch.ones(2), "variance"),
        (torch.zeros(3, 2), torch.zeros(3), torch.zeros(3), "positive"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(weight, bias, variance, says):
    with pytest.raises(ArgumentError, match=says):
        FactorAnalysis(weight, bias, variance)


def test_wrong_data_and_arguments_are_refused(model):
    with pytest.raises(DataError, match=r"expected shape \(N, 6\), got \(4, 5\)"):
        model.log_evidence(torch.zeros(4, 5))
    with pytest.raises(ArgumentError, match="guide"):
        model.program("full")
    with pytest.raises(ArgumentError, match="latent_dim: expected 1 to 5"):
        FactorAnalysis.probabilistic_pca(torch.randn(10, 6, generator=torch.Generator().manual_seed(0)), 6)
    with pytest.raises(DataError, match="no variance is left"):
        FactorAnalysis.probabilistic_pca(torch.ones(10, 1) * torch.arange(10.0)[:, None].expand(10, 3), 2)
    with pytest.raises(DataError, match="finite"):
        FactorAnalysis.probabilistic_pca(torch.full((4, 3), float("nan")), 1)
