"""Differentiable bridges: exact weights, exact gradients, and each kind against the one it extends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from amortize.errors import ArgumentError
from amortize.inference.bridge import KINDS, SCORED, UNDERDAMPED, Steps, bridge, differentiable
from amortize.inference.chart import Chart, gaussian_evaluate
from amortize.inference.kernels import Parameters
from amortize.inference.learned_steps import LearnedSteps
from amortize.inference.path import GeometricPath
from amortize.inference.score_network import Features, ScoreNetwork
from amortize.inference.second_order import SecondOrderTerms
from amortize.inference.ula import ULA, ula
from amortize.program.data import Data
from tests.statistics import z_value

DIM = 2
LOG_Z = 1.3
LOC, SCALE = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.5, 0.8]).double()
DENSE = torch.tensor([[[0.6, 0.1], [-0.2, 0.7]]]).double()
WHITENINGS = {"none": None, "diagonal": torch.tensor([[0.6, 0.8]]).double(), "dense": DENSE}


def normal_terms(u):
    """From a standard normal to exp(LOG_Z) times another normal."""
    constant = 0.5 * DIM * math.log(2 * math.pi)
    base = -0.5 * u.square().sum(-1) - constant
    joint = LOG_Z - 0.5 * ((u - LOC) / SCALE).square().sum(-1) - SCALE.log().sum() - constant
    return base, joint - base


def curved_terms(u):
    """From a standard normal to a density with third derivatives."""
    return -0.5 * u.square().sum(-1), 0.3 * u.sin().sum(-1) + 0.1 * u.prod(-1) - 0.05 * u.pow(4).sum(-1)


def steps_of(kind, num_steps=5, *, size=0.5, scale=None):
    persistence = torch.tensor(0.7).double() if kind in UNDERDAMPED else None
    return Steps(
        torch.linspace(0, 1, num_steps + 1).double(), torch.full((num_steps,), size).double(), persistence, scale
    )


def wrong_score(u, v, t):
    """Something that is no time reversal, which the weights must absorb."""
    return (0.3 * u if v is None else 0.3 * u - 0.2 * v) + 0.1 * t


def run(kind, terms, num_rows, *, seed=0, steps=None, score=None):
    noise = torch.Generator().manual_seed(seed)
    u = torch.randn(num_rows, DIM, generator=noise).double()
    steps = steps_of(kind) if steps is None else steps
    with torch.no_grad():
        return bridge(kind, differentiable(terms), u, steps, noise, score=score)


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_weight_is_the_evidence(kind, whitening):
    steps = steps_of(kind, scale=WHITENINGS[whitening])
    score = wrong_score if kind in SCORED else None
    ratio = (run(kind, normal_terms, 20_000, steps=steps, score=score).log_weights - LOG_Z).exp()
    assert abs(ratio.mean() - 1) < z_value(len(KINDS) * len(WHITENINGS)) * ratio.std() / math.sqrt(len(ratio))


@pytest.mark.parametrize("kind", ["ula", "mcd"])
def test_the_mean_weight_is_the_evidence_with_tamed_drifts_too(kind):
    steps = steps_of(kind, size=1.0)._replace(tamed=True)
    noise = torch.Generator().manual_seed(1)
    u, plain = torch.randn(20_000, DIM, generator=noise).double(), steps._replace(tamed=False)
    ends = [bridge(kind, differentiable(normal_terms), u, each, noise.manual_seed(2)) for each in (steps, plain)]
    ratio = (ends[0].log_weights - LOG_Z).exp()
    assert abs(ratio.mean() - 1) < z_value(2) * ratio.std() / math.sqrt(len(ratio))
    assert 0.02 < (ends[0].u != ends[1].u).any(-1).double().mean() < 0.98  # some were cut, and not all


@pytest.mark.parametrize(("kind", "plain"), [("mcd", "ula"), ("ldvi", "uha")])
def test_a_score_of_zero_is_the_kind_without_one(kind, plain):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ScoreNetwork(DIM, 5, momentum=kind == "ldvi", hidden=(8,)).double()
    assert all(p.abs().sum() > 0 for p in (network.first.weight, network.embedding))
    ours = run(kind, curved_terms, 50, score=network)
    theirs = run(plain, curved_terms, 50)
    assert torch.equal(ours.log_weights, theirs.log_weights)
    assert torch.equal(ours.u, theirs.u)


@pytest.mark.parametrize("whitening", ["diagonal", "dense"])
def test_unadjusted_langevin_weighs_as_the_kernel_does(whitening):
    """Summed over steps: what the temperature changes, and the log Metropolis ratio of each move."""
    scale, num_rows = WHITENINGS[whitening], 40
    steps = steps_of("ula", scale=scale)
    ours = run("ula", curved_terms, num_rows, steps=steps)
    path, noise = GeometricPath(curved_terms), torch.Generator().manual_seed(0)
    state = path.evaluate(torch.randn(num_rows, DIM, generator=noise).double())
    log_weights = torch.zeros(num_rows).double()
    for t in range(5):
        log_weights += (steps.betas[t + 1] - steps.betas[t]) * state.ratio
        column = torch.ones(num_rows, 1).double()
        parameters = Parameters(steps.betas[t + 1] * column, steps.step_sizes[t] * column, scale, ULA())
        state, info = ula(state, path, parameters, noise)
        log_weights += info.log_correction
    torch.testing.assert_close(ours.u, state.u)
    torch.testing.assert_close(ours.log_weights, log_weights)


@pytest.mark.parametrize("kind", KINDS)
def test_small_steps_from_the_exact_posterior_leave_no_spread(kind):
    """The ratio is constant there; what spread there is comes from the integrator, and falls with its order."""

    def terms(u):
        base = -0.5 * u.square().sum(-1) - 0.1 * u.pow(4).sum(-1)
        return base, torch.full_like(base, LOG_Z)

    spread = {
        size: float((run(kind, terms, 2000, steps=steps_of(kind, 8, size=size)).log_weights - LOG_Z).std())
        for size in (0.1, 0.2, 1e-3)
    }
    assert spread[1e-3] < 1e-5
    assert spread[0.1] < spread[0.2] / 3.5  # at least second order


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    """In everything that can be trained: start, target, temperatures, sizes, persistence, whitening, score."""

    def log_weights(loc, tilt, raw, sizes, persistence, scale, slant):
        noise = torch.Generator().manual_seed(3)
        eps = torch.randn(3, DIM, generator=noise).double()

        def terms(u):
            base = -0.5 * (u - loc).square().sum(-1)
            return base, curved_terms(u)[1] + (tilt * u).sum(-1)

        betas = torch.cat([raw.new_zeros(1), raw.softmax(0).cumsum(0)])
        steps = Steps(betas, sizes, persistence if kind in UNDERDAMPED else None, scale)
        score = (lambda u, v, t: (u if v is None else u + v).sin() * slant) if kind in SCORED else None
        return bridge(kind, differentiable(terms), loc + eps, steps, noise, score=score).log_weights

    values = ([0.2, -0.1], [0.5, 0.3], [0.1, -0.2, 0.3], [0.4, 0.3, 0.5], 0.6, [[0.7, 0.9]], [0.2, -0.4])
    inputs = tuple(torch.tensor(value).double().requires_grad_() for value in values)
    torch.autograd.gradcheck(log_weights, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_the_same_with_and_without_gradients(kind):
    u = torch.randn(4, DIM, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    recorded = bridge(kind, differentiable(curved_terms), u, steps_of(kind), torch.Generator().manual_seed(2))
    assert recorded.log_weights.requires_grad
    path = GeometricPath(curved_terms)
    with torch.no_grad():
        bare = bridge(kind, path.evaluate, u.detach(), steps_of(kind), torch.Generator().manual_seed(2))
    assert not bare.log_weights.requires_grad
    torch.testing.assert_close(recorded.log_weights.detach(), bare.log_weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(kind):
    def terms(u):
        base, ratio = curved_terms(u)
        return base, ratio * torch.tensor([1.0, torch.nan, 1.0, 1.0]).double()

    ours, whole = run(kind, terms, 4).log_weights, run(kind, curved_terms, 4).log_weights
    assert ours[1].isnan()
    torch.testing.assert_close(ours[[0, 2, 3]], whole[[0, 2, 3]])


@pytest.mark.parametrize("shape", ["dimensions", "rows"])
def test_step_sizes_may_differ_by_dimension_or_row(shape):
    sizes = {"dimensions": torch.tensor([0.4, 0.7]), "rows": torch.linspace(0.1, 0.7, 20_000).unsqueeze(-1)}
    steps = steps_of("mcd")._replace(step_sizes=sizes[shape].double().expand(5, *sizes[shape].shape))
    ratio = (run("mcd", normal_terms, 20_000, steps=steps, score=wrong_score).log_weights - LOG_Z).exp()
    assert abs(ratio.mean() - 1) < z_value(2) * ratio.std() / math.sqrt(len(ratio))


def test_wrong_arguments_are_named():
    evaluate, u, noise = differentiable(normal_terms), torch.zeros(1, DIM).double(), torch.Generator()
    with pytest.raises(ArgumentError, match="kind"):
        bridge("hmc", evaluate, u, steps_of("ula"), noise)
    with pytest.raises(ArgumentError, match="score"):
        bridge("ula", evaluate, u, steps_of("ula"), noise, score=wrong_score)
    with pytest.raises(ArgumentError, match="persistence"):
        bridge("uha", evaluate, u, steps_of("ula"), noise)
    with pytest.raises(ArgumentError, match="one beta more"):
        bridge("ula", evaluate, u, steps_of("ula")._replace(betas=torch.linspace(0, 1, 4)), noise)


# Derivatives as graphs


@pytest.mark.parametrize("backend", ["fx", "eager"])
def test_second_order_terms_are_those_of_autograd(backend):
    gen = torch.Generator().manual_seed(0)
    u, other = (torch.randn(3, DIM, generator=gen).double() for _ in range(2))
    compiled = SecondOrderTerms(curved_terms, (u, other), backend=backend)
    ours, truth = compiled(other.requires_grad_()), differentiable(curved_terms)(other)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)
    torch.autograd.gradcheck(lambda u: compiled(u)[1:], other)


def test_second_order_terms_follow_data_that_change_in_place():
    shift = torch.zeros(3, DIM).double()
    example = torch.ones(3, DIM).double()
    compiled = SecondOrderTerms(
        lambda u: ((u - shift).pow(2).sum(-1), (shift * u.pow(3)).sum(-1)), (example, 2 * example), backend="fx"
    )
    u = example.clone().requires_grad_()
    assert torch.autograd.grad(compiled(u).ratio_gradient.sum(), u)[0].abs().max() == 0
    shift.copy_(example)
    assert compiled(u).base.abs().max() == 0
    torch.testing.assert_close(torch.autograd.grad(compiled(u).ratio_gradient.sum(), u)[0], 6 * example)


# Coordinates


@pytest.mark.parametrize("scale", ["diagonal", "dense"])
def test_a_gaussian_start_in_its_own_coordinates(scale):
    """The analytic base and its gradient are those of the density of u, differentiated in z."""
    loc = torch.tensor([[0.3, -1.0], [2.0, 0.1]]).double()
    factor = torch.tensor([[0.5, 2.0], [0.3, 0.9]]).double()
    dense = torch.diag_embed(factor) + torch.tensor([[0.0, 0.0], [0.4, 0.0]]).double()
    chart = Chart(loc, factor if scale == "diagonal" else dense)
    density = torch.distributions.MultivariateNormal(
        loc, scale_tril=dense if scale == "dense" else torch.diag_embed(factor)
    )

    def joint(u):
        return torch.zeros_like(u[:, 0]), curved_terms(u)[1]

    def terms(z):
        u = chart.u(z)
        base = density.log_prob(u.reshape(-1, 2, DIM)).flatten()
        return base, curved_terms(u)[1] - base

    z = torch.randn(6, DIM, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    ours, truth = gaussian_evaluate(chart, differentiable(joint))(z), differentiable(terms)(z)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)


# What is learned


def test_learned_steps_begin_where_they_are_told():
    betas = torch.tensor([0.0, 0.1, 0.5, 1.0])
    steps = LearnedSteps("uha", 3, step_size=0.2, persistence=0.6, betas=betas, dim=4)()
    torch.testing.assert_close(steps.betas, betas)
    torch.testing.assert_close(steps.step_sizes, torch.full((3, 4), 0.2))
    assert float(steps.persistence.detach()) == pytest.approx(0.6)
    assert LearnedSteps("mcd", 3)().persistence is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "hmc"}, "kind"),
        ({"num_steps": 0}, "num_steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"persistence": 1.0}, "persistence"),
        ({"betas": torch.tensor([0.0, 0.6, 0.5, 1.0])}, "betas"),
        ({"betas": torch.tensor([0.0, 1.0])}, "betas"),
    ],
)
def test_learned_steps_check_their_arguments(settings, message):
    with pytest.raises(ArgumentError, match=message):
        LearnedSteps(**({"kind": "ula", "num_steps": 3} | settings))


def test_features_are_standardised_and_missing_numbers_marked():
    x = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0]])
    data = Data.of((x, np.array([0, 1]), np.array([[9.0, 9.0, 9.0]])), dtype=torch.float32, allow_nan=True)
    features = Features.of(data)
    expected = [[-1.0, 0.0, 0.0, -1.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0]]  # x, label, what was missing; nothing shared
    torch.testing.assert_close(features(data), torch.tensor(expected))
    assert features.dim == 5


def test_a_score_reads_the_features_of_its_own_datapoint():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ScoreNetwork(DIM, 3, momentum=True, num_features=4, hidden=(8, 8))
        torch.nn.init.normal_(network.rest[-1].weight)
        features, z, v = torch.randn(5, 4), torch.randn(15, DIM), torch.randn(15, DIM)
    whole = network(z, v, 2, features)
    alone = network(z[[3, 8, 13]], v[[3, 8, 13]], 2, features[3:4])  # rows are draw-major
    torch.testing.assert_close(whole[[3, 8, 13]], alone)
    assert not torch.allclose(whole, network(z, v, 3, features))
