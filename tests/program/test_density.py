"""The log joint and the guide's density: folded against looped, coordinates, Jacobians, exact answers."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate
from torch.distributions import biject_to

import amortize as am
from amortize.errors import (
    AmortizeWarning,
    ArgumentError,
    ContractError,
    DynamicStructureError,
    GuideMismatchError,
    NotIndependentError,
)
from tests.problems import CONJUGATE, PROBLEMS


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


def log_joint_of(problem):
    program = problem.program()
    data = program.prepare(problem.data)
    return program.log_joint(data), data


def test_folding_equals_looping(problem):
    log_joint, data = log_joint_of(problem)
    u = torch.randn(
        3, data.num_datapoints, log_joint.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    folded = log_joint(data, u)
    for c in range(3):
        for n in range(data.num_datapoints):
            alone = log_joint.terms(data.rows(slice(n, n + 1)), u=u[c, n : n + 1]).joint
            torch.testing.assert_close(folded[c, n : n + 1], alone, rtol=1e-12, atol=1e-12)


def test_dimension_counts_unconstrained_coordinates(problem):
    assert problem.program().dim(problem.data) == problem.dim


def test_integral_over_u_is_the_evidence():
    """The Jacobian is right: exp(log joint) integrates to p(x) over the unconstrained line."""
    for name in ("normal-normal", "gamma-poisson", "beta-bernoulli"):
        log_joint, data = log_joint_of(PROBLEMS[name]())
        row = data.rows(slice(0, 1))

        def density(u: float, log_joint=log_joint, row=row) -> float:
            return float(log_joint.terms(row, u=torch.tensor([[u]], dtype=torch.float64)).joint.exp())

        integral = integrate.quad(density, -12, 12, epsabs=1e-13, limit=400)[0]
        assert np.log(integral) == pytest.approx(PROBLEMS[name]().log_evidence[0], abs=1e-7)


@pytest.mark.parametrize("name", CONJUGATE)
def test_exact_posterior_has_the_evidence_as_its_ratio(name):
    """log p(x, u) - log q(u | x) = log p(x) for every draw: sampler, density and Jacobian agree."""
    problem = PROBLEMS[name]()
    program = problem.program(guide=True)
    data = program.prepare(problem.data)
    _, log_p, log_q = program.guide_density(data).draw(data)
    np.testing.assert_allclose((log_p - log_q).detach(), problem.log_evidence, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONJUGATE)
def test_density_at_a_draw_equals_the_samplers(name):
    problem = PROBLEMS[name]()
    program = problem.program(guide=True)
    guide = program.guide_density(program.prepare(problem.data))
    values, log_q = guide.sample(program.prepare(problem.data))
    torch.testing.assert_close(guide.log_density(program.prepare(problem.data), values), log_q)


def test_prior_draws_have_the_priors_moments():
    program = PROBLEMS["gamma-poisson"]().program()
    data = program.prepare(PROBLEMS["gamma-poisson"]().data).fold(2000)
    log_joint = program.log_joint(data)
    u = log_joint.draw_prior(data).u
    z = biject_to(dist.Gamma(1.0, 1.0).support)(u)
    assert float(z.mean()) == pytest.approx(2.0 / 0.7, rel=0.05)


def test_subsampling_scale_is_divided_out():
    def model(x):
        with pyro.plate("data", 600, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([0.3, -1.0, 2.0])
    program = am.Program(model)
    data = program.prepare(x)
    value = program.log_joint(data)(data, torch.zeros(2, 3, 1))
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + dist.Normal(0.0, 1.0).log_prob(x)
    torch.testing.assert_close(value, expected.expand(2, 3))


def test_masked_observations_add_nothing():
    def model(x, mask):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, mask = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([True, False, True])
    program = am.Program(model)
    data = program.prepare((x, mask))
    terms = program.log_joint(data).terms(data, u=torch.zeros(3, 1))
    assert terms.likelihood[1] == 0 and bool((terms.likelihood[[0, 2]] != 0).all())


def test_masked_latents_are_scored_as_normalised():
    """What a mask hides enters no observation, so scoring it changes no evidence; a flat density would."""

    def model(x, mask):
        with pyro.plate("data", x.shape[0]), pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, mask = torch.tensor([0.3, -1.0]), torch.tensor([True, False])
    local = am.fit_local(am.Program(model), (x, mask))
    exact = dist.Normal(0.0, 2**0.5).log_prob(x) * mask
    np.testing.assert_allclose(local.elbo, exact, atol=0.01)


def test_a_plate_without_a_size_follows_the_data():
    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = am.Program(model)
    data = program.prepare(torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0]))
    assert program.log_joint(data)(data, torch.zeros(2, 5, 1)).shape == (2, 5)


def test_deterministic_sites_and_factors_are_no_observations():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.factor("likelihood", -0.5 * (x - z) ** 2)
            pyro.sample("k", dist.Categorical(logits=torch.stack([z, -z], -1)), obs=(x > 0).long())

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x / 2, 0.7))
            pyro.deterministic("shown", z)

    program, x = am.Program(model, guide), torch.tensor([0.3, -1.0, 2.0])
    assert am.posterior(program, x, num_draws=2)["z"].shape == (2, 3)
    assert set(program.simulate(x)[1]) == {"k"} and program.reconstruct(x) == {}


def test_given_latents_stay_out_of_the_guides_density_and_of_simulations():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("shift", torch.tensor(0.0)), 1.0))
        with pyro.plate("data", x.shape[0]):
            loc = pyro.param("loc", torch.tensor(0.0))
            pyro.sample("z", dist.Normal((x + 5) / 2 + loc, 0.5**0.5))

    program, x = am.Program(model, guide, condition={"w": 5.0}), torch.tensor([3.0, 5.0, 7.0, 4.0])
    latents, _ = program.simulate(torch.zeros(400))
    assert abs(latents["z"].mean() - 5) < 0.5
    result = am.evidence(program, x, method=am.ImportanceSampling(num_draws=50))
    np.testing.assert_allclose(result.log_evidence, dist.Normal(5.0, 2**0.5).log_prob(x), atol=1e-5)
    history = am.fit(program, x, num_steps=20, training=am.Training(learning_rate=0.1)).history
    assert history.elbo.max() < 0
    with pytest.raises(ArgumentError, match="'nope'"):
        am.evidence(am.Program(model, condition={"w": 1.0, "nope": 1.0}), x)


def test_scaled_latents_are_refused_and_scaled_observations_said_to_be():
    def model(latent, observed):
        def run(x):
            with pyro.plate("data", x.shape[0]):
                with pyro.poutine.scale(scale=latent):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with pyro.poutine.scale(scale=observed):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return am.Program(run)

    with pytest.raises(ContractError, match=r"poutine\.scale"):
        am.evidence(model(2.0, 1.0), torch.zeros(3), method=am.AIS(num_chains=2, num_temperatures=2))
    with pytest.warns(AmortizeWarning, match="scaled likelihood"):
        am.evidence(model(1.0, 2.0), torch.zeros(3), method=am.AIS(num_chains=2, num_temperatures=2))


def circular(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.VonMises(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sin(), 1.0), obs=x)


def on_the_sphere(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.ProjectedNormal(torch.ones(3)))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)


def pointlike(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Delta(torch.zeros(x.shape[0])))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message"), [(circular, "circular"), (on_the_sphere, "circular"), (pointlike, "Delta")]
)
def test_latents_without_a_density_over_u_are_refused(model, message):
    with pytest.raises(ContractError, match=message):
        am.evidence(am.Program(model), torch.zeros(4))


def test_guides_that_are_random_or_mix_rows_are_refused():
    def guide(shift):
        def run(x):
            with pyro.plate("data", x.shape[0]):
                pyro.sample("a", dist.Normal(shift(x), 1.0))
                pyro.sample("b", dist.LogNormal(0.0, 1.0))

        return run

    x = torch.linspace(0, 1, 5)
    with pytest.raises(DynamicStructureError, match=r"log q\(z \| x\)"):
        am.posterior(am.Program(two_site_model, guide(lambda x: x + torch.randn_like(x))), x)
    with pytest.raises(NotIndependentError, match=r"log q\(z \| x\)"):
        am.posterior(am.Program(two_site_model, guide(lambda x: x - x.mean(0))), x)


def test_extreme_logits_stay_finite():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=200 * z), obs=x)

    program = am.Program(model)
    data = program.prepare(torch.ones(2))
    terms = program.log_joint(data).terms(data, u=torch.tensor([[5.0], [-5.0]]))
    torch.testing.assert_close(terms.likelihood, torch.tensor([0.0, -1000.0]))


def test_a_row_outside_a_support_is_minus_infinity_and_alone():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Exponential(z.exp()), obs=x)

    program = am.Program(model)
    data = program.prepare(torch.tensor([1.0, 2.0, 3.0, 0.5, 0.7]))
    log_joint = program.log_joint(data)
    bad = program.prepare(torch.tensor([1.0, -2.0, 3.0]))
    value = log_joint.terms(bad, u=torch.zeros(3, 1)).joint
    assert bool(torch.isfinite(value[[0, 2]]).all())


def two_site_model(x):
    with pyro.plate("data", x.shape[0]):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a, b), obs=x)


def guide_with(*sites):
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            for name, fn in sites:
                pyro.sample(name, fn)

    return guide


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (guide_with(("a", dist.Normal(0.0, 1.0))), "misses 'b'"),
        (guide_with(("a", dist.Normal(0.0, 1.0)), ("b", dist.Gamma(1.0, 1.0)), ("c", dist.Normal(0.0, 1.0))), "'c'"),
        (guide_with(("a", dist.Normal(0.0, 1.0)), ("b", dist.Normal(0.0, 1.0))), "values outside the model's support"),
        (guide_with(("a", dist.LogNormal(0.0, 1.0)), ("b", dist.LogNormal(0.0, 1.0))), "only a part"),
        (guide_with(("a", dist.Normal(torch.zeros(2), 1.0).to_event(1)), ("b", dist.LogNormal(0.0, 1.0))), "shape"),
        (guide_with(("a", dist.Delta(torch.tensor(0.0))), ("b", dist.LogNormal(0.0, 1.0))), "a point"),
    ],
)
def test_a_guide_that_does_not_match_is_refused(guide, message):
    with pytest.raises(GuideMismatchError, match=message):
        am.posterior(am.Program(two_site_model, guide), torch.zeros(5))


def test_a_guide_without_the_plate_is_refused():
    def guide(x):
        pyro.sample("a", dist.Normal(torch.zeros(x.shape[0]), 1.0))
        pyro.sample("b", dist.LogNormal(torch.zeros(x.shape[0]), 1.0))

    with pytest.raises(GuideMismatchError, match="no plate 'data'"):
        am.posterior(am.Program(two_site_model, guide), torch.zeros(5))


def test_a_subclass_of_bernoulli_is_scored_by_its_own_density():
    class Missing(dist.Bernoulli):
        def log_prob(self, value):
            return torch.where(value < 0, 0.0, super().log_prob(value.clamp(min=0)))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Missing(logits=z), obs=x)

    program, x = am.Program(model), torch.tensor([1.0, -1.0])  # -1 is missing
    value, _ = program.compiled(x).value_and_grad(torch.full((1, 2, 1), 0.3))
    u = torch.tensor(0.3)
    prior = dist.Normal(0.0, 1.0).log_prob(u)
    torch.testing.assert_close(value[0], torch.stack([prior + dist.Bernoulli(logits=u).log_prob(x[0]), prior]))
