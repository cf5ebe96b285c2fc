"""Flows as local posteriors: exact inverses and densities, evidence by quadrature, and what must not be claimed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import jacrev

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.families import flow_fit
from amortize.inference.families.flow import IAF, Coupling, Flow, FlowFamily, Spline
from amortize.inference.families.flow_density import FlowDensity, Frame
from amortize.inference.families.flow_map import FlowMap, Layers
from amortize.inference.families.flow_noise import even_normal
from tests.problems import Square
from tests.statistics import z_value

KINDS = {"iaf": IAF, "coupling": Coupling, "spline": Spline, "flow": Flow}
DIMS = (1, 2, 5)


def member(family: FlowFamily, dim: int, num: int = 3) -> FlowDensity:
    """Flows whose weights are not the identity's, in frames that are not the standard one, in float64."""
    gen = torch.Generator().manual_seed(dim)
    like = torch.zeros(num, dim, dtype=torch.float64)
    flow = FlowMap(family.layers(), dim, like)
    start = flow.identity(num)
    weights = start + 0.3 * torch.randn(start.shape, generator=gen, dtype=like.dtype)
    root = torch.randn(num, dim, dim, generator=gen, dtype=like.dtype).tril(-1) + 1.5 * torch.eye(dim)
    loc = torch.randn(num, dim, generator=gen, dtype=like.dtype)
    return family.density({"weights": weights, "loc": loc, "scale_tril": root})


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_inverse_gives_back_the_noise_and_the_density_of_draws(kind, dim):
    density = member(KINDS[kind](), dim)
    noise = torch.randn(20, 3, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, log_q = density.pushed(noise)
    back, _ = density.flow.pull(density.weights, density.frame.into(u))
    assert (u - noise).abs().max() > 0.1
    torch.testing.assert_close(back, noise, atol=1e-6, rtol=0)
    torch.testing.assert_close(density.log_density(u), log_q, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_that_of_the_change_of_variables(kind, dim):
    """By the determinant of the whole Jacobian, from automatic differentiation, one datapoint at a time."""
    density = member(KINDS[kind](), dim)
    noise = torch.randn(1, 3, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, log_q = density.pushed(noise)
    jacobian = jacrev(lambda value: density.pushed(value)[0])(noise)[0, :, :, 0]  # (N, D, N, D)
    for n in range(3):
        log_det = torch.linalg.slogdet(jacobian[n, :, n])[1]
        exact = dist.Normal(0.0, 1.0).log_prob(noise[0, n]).sum() - log_det
        torch.testing.assert_close(log_q[0, n], exact, atol=1e-8, rtol=1e-8)
        others = [m for m in range(3) if m != n]
        assert (jacobian[n][:, others] == 0).all()  # a datapoint's draws hang on its own noise alone


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_datapoint_touch_no_other(kind):
    density = member(KINDS[kind](), 3)
    noise = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = density.weights.clone()
    moved[1] += 0.1
    before, after = density.pushed(noise)[0], FlowDensity(density.flow, moved, density.frame).pushed(noise)[0]
    assert (before[:, [0, 2]] == after[:, [0, 2]]).all() and (before[:, 1] != after[:, 1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_density_has_the_gradient_that_finite_differences_have(kind):
    density = member(KINDS[kind](num_layers=2, hidden=(4,)), 2)
    u = density.draw(2, torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(density.log_density, (u,), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_begins_at_the_identity(kind, dim):
    like = torch.zeros(2, dim, dtype=torch.float64)
    flow = FlowMap(KINDS[kind]().layers(), dim, like)
    noise = torch.randn(7, 2, dim, generator=torch.Generator().manual_seed(0), dtype=like.dtype)
    y, log_det = flow.push(flow.identity(2), noise)
    torch.testing.assert_close(y, noise, atol=1e-12, rtol=0)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-12, rtol=0)


def test_a_diagonal_frame_is_the_triangular_one_with_that_diagonal():
    gen = torch.Generator().manual_seed(0)
    loc, scale = torch.randn(3, 4, generator=gen), torch.rand(3, 4, generator=gen) + 0.5
    thin, full = Frame(loc, scale), Frame(loc, torch.diag_embed(scale))
    y = torch.randn(5, 3, 4, generator=gen)
    torch.testing.assert_close(thin.out(y), full.out(y))
    torch.testing.assert_close(thin.into(thin.out(y)), y)
    torch.testing.assert_close(full.into(full.out(y)), y)
    torch.testing.assert_close(thin.log_det(), full.log_det())


@pytest.mark.parametrize("dim", [1, 2, 12])
def test_even_noise_is_normal_and_less_noisy_than_independent_draws(dim):
    """Means over sets are unbiased for the first two moments, and vary less from set to set."""
    sets, size = 4000, 64
    noise = even_normal(size, sets, torch.Generator().manual_seed(0), torch.zeros(1, dim, dtype=torch.float64))
    for values, exact, spread in ((noise, 0.0, 1.0), (noise.square(), 1.0, math.sqrt(2))):
        mean = values.mean(0)
        assert (abs(mean.mean(0) - exact) < z_value(2 * dim) * mean.std(0) / math.sqrt(sets)).all()
        assert (mean.std(0) < 0.5 * spread / math.sqrt(size)).all()
    one = noise[17, :, 0]  # each draw by itself is exactly normal
    share = (one < 0.5).double().mean()
    exact = dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5))
    assert abs(share - exact) < z_value() * math.sqrt(exact * (1 - exact) / sets)
    product = (noise[..., 0] * noise[..., -1]).mean(0) if dim > 1 else torch.zeros(2)
    assert abs(product.mean()) <= z_value() * product.std() / math.sqrt(sets)


SCALE = 0.2


SQUARE = Square(noise=SCALE)


def two_squares(x):
    """Two modes in the plane, neither at the same height nor along an axis."""
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = torch.stack([z[..., 0] ** 2, z[..., 1] + 0.5 * z[..., 0]], -1)
        pyro.sample("x", dist.Normal(mean, SCALE).to_event(1), obs=x)


def conjugate(x):
    """A Gaussian posterior, and log p(x) = log N(x; 0, 2)."""
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def banana(x):
    """One bent mode."""
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 1] + z[..., 0] ** 2, SCALE), obs=x)


def quadrature(program, x, dim):
    """Log p(x_n), (N,) nats, by a sum over a grid."""
    data = program.prepare(x)
    axis = torch.linspace(-6, 6, 601 if dim == 2 else 6001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    log_joint = program.log_joint(data)
    each = [
        log_joint.terms(data.rows(torch.tensor([n])).fold(len(grid)), u=grid.to(log_joint.like)).joint.double()
        for n in range(data.num_datapoints)
    ]
    return torch.stack(each).logsumexp(1).detach().numpy() + dim * math.log(float(axis[1] - axis[0]))


def gaps(model, x, family, dim, **settings):
    """Log p(x) less the ELBO, of the family and of full covariance, and the family's posterior."""
    program = am.Program(model)
    evidence = quadrature(program, x, dim)
    local = am.fit_local(program, x, family=family, seed=1, **settings)
    return evidence - local.elbo, evidence - am.fit_local(program, x, family="full-covariance").elbo, local


@pytest.fixture(scope="module")
def parted():
    return gaps(SQUARE.model, torch.tensor([0.6, 0.8]), Flow(num_layers=2), 1)


def test_splines_close_the_gap_of_two_modes_on_the_line(parted):
    gap, gaussian, local = parted
    assert (gap > -z_value(2) * local.elbo_se - 1e-3).all()  # a bound stays one
    assert (gaussian > 0.65).all() and (gap < 0.1 * gaussian).all()
    assert local.converged.all() and local.family == "flow"


def test_draws_visit_both_modes_as_evenly_as_the_gap_implies(parted):
    """The gap is KL(q || p), and no less than that of the modes' shares alone; p's are one half each."""
    gap, _, local = parted
    draws = local.draws(4000, seed=0)["z"]
    assert draws.shape == (4000, 2)
    share = (draws > 0).mean(0)
    kl = share * np.log(2 * share) + (1 - share) * np.log(2 * (1 - share))
    assert (kl < gap + z_value(2) * local.elbo_se + 1e-3).all() and (kl < 0.05).all()


def test_a_flow_starts_chains_whose_evidence_is_exact(parted):
    _, _, local = parted
    x = local.data.leaves[0]
    program = am.Program(SQUARE.model)
    found = am.evidence(program, x, start=local, method=am.ImportanceSampling(num_draws=2000), seed=0)
    exact = quadrature(program, x, 1)
    error = found.log_evidence - exact
    assert (abs(error) < z_value(2) * found.se + 1e-3).all()
    annealed = am.evidence(program, x, start=local, method=am.AIS(num_chains=16, num_temperatures=4), seed=0)
    assert (abs(annealed.log_evidence - exact) < z_value(2) * annealed.se + 1e-3).all()


def test_the_trace_goes_up_and_its_costs_add_up(parted):
    local = parted[2]
    assert (np.diff(local.trace_seconds) > 0).all() and (np.diff(local.trace_num_gradients) > 0).all()
    assert local.trace_elbo.shape == (len(local.trace_seconds), 2)
    assert (local.trace_elbo[-1] > local.trace_elbo[0]).all()
    assert (local.trace_num_gradients[-1] >= local.num_gradients).all()


@pytest.mark.parametrize("family", [Coupling(num_layers=2), IAF(num_layers=2)], ids=["coupling", "iaf"])
def test_affine_flows_follow_a_bent_posterior(family):
    gap, gaussian, local = gaps(banana, torch.tensor([1.0]), family, 2, num_steps=200)
    assert (gap > -z_value() * local.elbo_se - 1e-3).all()
    assert (gaussian > 0.5).all() and (gap < 0.1 * gaussian).all()


def test_splines_find_two_modes_in_the_plane():
    x = torch.tensor([[0.5, 1.0]])
    gap, gaussian, local = gaps(two_squares, x, Spline(num_layers=2), 2, num_steps=100)
    assert (gap > -z_value() * local.elbo_se - 1e-3).all()
    assert (gap < 0.25 * gaussian).all()


@pytest.mark.parametrize("kind", ["coupling", "iaf", "spline"])
def test_a_gaussian_posterior_is_kept(kind):
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=6, seed=0)
    x = analysis.simulate(4, seed=1)
    family = KINDS[kind](num_layers=1, hidden=(8,), num_draws=8)
    local = am.fit_local(analysis.program(), x, family=family, init="prior", num_steps=100)
    exact = analysis.log_evidence(x).detach().double().numpy()
    assert (abs(local.elbo - exact) < z_value(4) * local.elbo_se + 0.02).all()


def test_one_latent_alone_is_scaled_and_shifted_by_affine_flows():
    """Such a flow is a Gaussian, so that it leaves out a mode: log 2 nats."""
    program, x = am.Program(SQUARE.model), torch.tensor([0.9])
    local = am.fit_local(program, x, family=IAF(num_layers=1, num_draws=16), num_steps=60)
    assert local.elbo.shape == (1,)
    assert quadrature(program, x, 1)[0] - local.elbo[0] > math.log(2) - 0.05 - z_value() * local.elbo_se[0]


def test_a_flow_that_went_astray_gives_way_to_its_frame(monkeypatch):
    """Break the optimiser: what comes back is the Gaussian, and not called converged."""
    real = flow_fit.ascend

    def astray(problem, theta, draw, *, name, rate):
        ended = real(replace(problem, num_steps=1), theta, draw, name=name, rate=rate)
        return replace(ended, theta=ended.theta + 1.0)

    monkeypatch.setattr(flow_fit, "ascend", astray)
    x = torch.tensor([0.5, -0.9])
    local = am.fit_local(am.Program(conjugate), x, family=Flow(num_layers=1))
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).double().numpy()
    assert (abs(local.elbo - exact) < z_value(2) * local.elbo_se + 0.02).all()
    assert not local.converged.any()


def test_a_datapoint_that_is_nowhere_finite_spoils_no_other():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("likelihood", torch.where(x > 5, torch.full_like(x, float("nan")), -0.5 * (x - z) ** 2))

    family = IAF(num_layers=1, num_draws=16)
    local = am.fit_local(am.Program(model), torch.tensor([0.5, 9.0]), family=family, num_steps=100, num_restarts=0)
    assert np.isnan(local.elbo[1]) and not local.converged[1]
    assert np.isfinite(local.elbo[0])
    alone = -0.5 * 0.5**2 / 2 + 0.5 * math.log(0.5)
    assert abs(local.elbo[0] - alone) < z_value() * local.elbo_se[0] + 0.02


def test_too_few_steps_are_not_called_converged():
    local = am.fit_local(am.Program(SQUARE.model), torch.tensor([0.5, 0.9]), family=Flow(num_layers=1), num_steps=5)
    assert not local.converged.any()


def test_fits_in_parts_are_fits(monkeypatch):
    monkeypatch.setattr("amortize.inference.families.flow.MAX_WEIGHTS", 1)
    x = torch.tensor([-1.0, 0.3])
    family = IAF(num_layers=1, num_draws=8)
    local = am.fit_local(am.Program(conjugate), x, family=family, num_steps=80)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).double().numpy()
    assert (abs(local.elbo - exact) < z_value(2) * local.elbo_se + 0.1).all()
    assert local.parameters["weights"].shape[0] == 2 and len(set(local.parameters["loc"][:, 0])) == 2


def test_many_latents_take_a_diagonal_frame():
    analysis = am.models.FactorAnalysis.random(latent_dim=4, data_dim=6, seed=0)
    x = analysis.simulate(2, seed=1)
    family = Coupling(num_layers=1, num_draws=16, frame="mean-field")
    local = am.fit_local(analysis.program(), x, family=family, init="prior", num_steps=80)
    assert local.parameters["scale"].shape == (2, 4) and "scale_tril" not in local.parameters
    floor = analysis.best_mean_field_elbo(x).detach().double().numpy()
    assert (local.elbo > floor - z_value(2) * local.elbo_se - 0.02).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"hidden": (0,)}, "hidden"),
        ({"hidden": 8}, "tuple"),
        ({"frame": "laplace"}, "frame"),
    ],
)
def test_settings_are_checked(settings, message):
    for kind in KINDS.values():
        with pytest.raises(ArgumentError, match=message):
            kind(**settings)
    with pytest.raises(ArgumentError, match="num_bins"):
        Spline(num_bins=1)


def test_settings_can_be_written_down_and_read_again():
    family = Spline(num_layers=2, hidden=(8, 4), num_bins=5)
    written = {name: list(value) if isinstance(value, tuple) else value for name, value in family.settings().items()}
    assert Spline.of(written) == family
    assert Layers("spline", 2, (8, 4), 5) == Spline.of(written).layers()
