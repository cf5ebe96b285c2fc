"""Relaxed discrete distributions in log space, their discrete twins, and programs whose guides have them."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

import amortize as am
from amortize.program.relaxed import discrete_twin, is_relaxed, relaxed_twin
from amortize.random import generator
from tests.statistics import z_value

CONFIDENT = torch.tensor([[40.0, 0.0, -40.0], [0.0, 60.0, 55.0], [-10.0, 12.0, -80.0]])


def wide(shape: tuple[int, ...]) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=generator(0, "logits"), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_densities_are_those_of_torch_where_torch_has_them(temperature):
    logits = wide((5, 4))
    bits, codes = (
        am.RelaxedBernoulli(temperature, logits=logits),
        am.RelaxedOneHotCategorical(temperature, logits=logits),
    )
    t = torch.tensor(temperature, dtype=torch.float64)
    torch.manual_seed(0)
    y, v = bits.rsample(), codes.rsample()
    assert torch.allclose(bits.log_prob(y), LogitRelaxedBernoulli(t, logits=logits).log_prob(y), atol=1e-10)
    assert torch.allclose(codes.log_prob(v), ExpRelaxedCategorical(t, logits=logits).log_prob(v), atol=1e-10)


def test_a_relaxed_bit_integrates_to_one():
    fn = am.RelaxedBernoulli(0.4, logits=torch.tensor(1.3, dtype=torch.float64))
    y = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    assert torch.trapezoid(fn.log_prob(y).exp(), y).item() == pytest.approx(1.0, abs=1e-8)


def test_two_categories_are_a_bit():
    logits = wide((6, 2))
    pair = am.RelaxedOneHotCategorical(0.7, logits=logits)
    bit = am.RelaxedBernoulli(0.7, logits=logits[:, 0] - logits[:, 1])
    torch.manual_seed(0)
    value = pair.rsample()
    assert torch.allclose(pair.log_prob(value), bit.log_prob(value[:, 0] - value[:, 1]), atol=1e-9)


def test_densities_stay_finite_at_a_low_temperature_where_those_of_torch_do_not():
    logits, t = CONFIDENT.repeat(500, 1), torch.tensor(0.1)
    torch.manual_seed(0)
    ours = am.RelaxedOneHotCategorical(0.1, logits=logits)
    assert torch.isfinite(ours.log_prob(ours.rsample())).all()
    bits = am.RelaxedBernoulli(0.1, logits=logits)
    assert torch.isfinite(bits.log_prob(bits.rsample())).all()
    theirs = dist.RelaxedOneHotCategorical(t, logits=logits, validate_args=False)
    assert (~torch.isfinite(theirs.log_prob(theirs.rsample()))).double().mean() > 0.7


def test_gradients_stay_finite_at_a_low_temperature():
    for kind in (am.RelaxedOneHotCategorical, am.RelaxedBernoulli):
        logits = CONFIDENT.clone().requires_grad_()
        fn = kind(0.1, logits=logits)
        torch.manual_seed(1)
        value = fn.rsample()
        (fn.log_prob(value).sum() + (fn.point(value, straight_through=True) ** 2).sum()).backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_hard_value_has_the_discrete_distribution(temperature):
    logits = wide((4,)) / 2
    num = 20_000
    torch.manual_seed(0)
    codes = am.RelaxedOneHotCategorical(temperature, logits=logits)
    share = codes.point(codes.rsample((num,)), straight_through=True).mean(0)
    expected = logits.softmax(-1)
    assert ((share - expected).abs() < z_value(4) * (expected * (1 - expected) / num).sqrt()).all()
    bits = am.RelaxedBernoulli(temperature, logits=logits)
    share, expected = bits.point(bits.rsample((num,)), straight_through=True).mean(0), torch.sigmoid(logits)
    assert ((share - expected).abs() < z_value(4) * (expected * (1 - expected) / num).sqrt()).all()


def test_a_straight_through_draw_is_stored_cloned_and_scored_again():
    for fn in (am.RelaxedOneHotCategorical(0.1, logits=CONFIDENT), am.RelaxedBernoulli(0.1, logits=CONFIDENT)):
        torch.manual_seed(0)
        value = fn.rsample()
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        for copied in (value.clone(), value.detach().numpy().copy(), torch.load(file)):
            again = torch.as_tensor(copied)
            assert torch.equal(fn.log_prob(again), fn.log_prob(value)) and torch.isfinite(fn.log_prob(again)).all()
            hard = fn.point(again, straight_through=True)
            assert torch.equal(hard, fn.point(value, straight_through=True)) and set(hard.unique().tolist()) <= {
                0.0,
                1.0,
            }


def test_the_straight_through_value_has_the_gradient_of_the_soft_one():
    weight = torch.tensor([1.0, -2.0, 0.5])
    grads = []
    for straight_through in (False, True):
        logits = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
        fn = am.RelaxedOneHotCategorical(0.8, logits=logits)
        torch.manual_seed(3)
        (fn.point(fn.rsample(), straight_through=straight_through) * weight).sum().backward()
        grads.append(logits.grad)
    assert torch.allclose(*grads)


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (am.RelaxedBernoulli(0.5, logits=torch.zeros(2, 3)), td.Bernoulli),
        (am.RelaxedOneHotCategorical(0.5, probs=torch.ones(2, 3) / 3), td.OneHotCategorical),
        (dist.RelaxedBernoulli(torch.tensor(0.5), torch.ones(2, 3) / 2), td.Bernoulli),
        (dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), torch.ones(2, 3) / 2), td.Bernoulli),
        (dist.RelaxedOneHotCategorical(torch.tensor(0.5), torch.ones(2, 3)), td.OneHotCategorical),
        (dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), torch.ones(2, 3)), td.OneHotCategorical),
    ],
)
def test_each_relaxation_has_a_discrete_twin(fn, kind):
    assert is_relaxed(fn.to_event(1)) and not is_relaxed(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    twin = discrete_twin(fn.to_event(1).mask(torch.tensor(True)))
    assert isinstance(twin.base_dist.base_dist, kind)
    assert twin.event_shape == fn.to_event(1).event_shape and twin.batch_shape == fn.to_event(1).batch_shape
    back = relaxed_twin("z", fn.to_event(1), None)
    assert torch.allclose(back.logits.softmax(-1), torch.ones(2, 3) / 3) and (back.temperature == 0.5).all()


def test_a_categorical_index_has_no_relaxation_and_the_error_says_so():
    with pytest.raises(am.errors.DiscreteLatentError, match="OneHotCategorical"):
        relaxed_twin("k", dist.Categorical(torch.ones(3)), 0.5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: am.RelaxedBernoulli(0.0, logits=torch.zeros(2)), "temperature"),
        (lambda: am.RelaxedBernoulli(0.5), "logits"),
        (lambda: am.RelaxedOneHotCategorical(0.5, logits=torch.zeros(2), probs=torch.ones(2) / 2), "both"),
        (lambda: am.RelaxedOneHotCategorical(0.5, logits=torch.tensor(1.0)), "categories"),
    ],
)
def test_wrong_settings_are_named(make, match):
    with pytest.raises(am.errors.ArgumentError, match=match):
        make()


# Programs


class Bits(torch.nn.Module):
    """Eight bits behind ten pixels, with a guide in several spellings."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        gen = generator(0, "bits")
        self.weight = torch.nn.Parameter(1.5 * torch.randn(8, 10, generator=gen, dtype=torch.float64))
        self.reading = torch.nn.Parameter(0.5 * torch.randn(10, 8, generator=gen, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(torch.full((8,), 0.3, dtype=torch.float64)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight - 1.0).to_event(1), obs=x)

    def guide(self, x):
        logits, t = x @ self.reading, torch.tensor(0.4, dtype=torch.float64)
        made = {
            "discrete": lambda: dist.Bernoulli(logits=logits),
            "ours": lambda: am.RelaxedBernoulli(0.4, logits=logits),
            "soft": lambda: dist.RelaxedBernoulli(t, logits=logits),
            "straight-through": lambda: dist.RelaxedBernoulliStraightThrough(t, logits=logits),
        }
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", made[self.kind]().to_event(1))

    def program(self, **settings):
        return am.Program(self.model, self.guide, **settings)


@pytest.fixture(scope="module")
def x():
    return torch.as_tensor(Bits("discrete").program().simulate(torch.zeros(40, 10, dtype=torch.float64))[1]["x"])


@pytest.mark.parametrize("kind", ["ours", "soft", "straight-through"])
def test_a_relaxed_guide_is_scored_as_its_discrete_twin(kind, x):
    relaxed, discrete = Bits(kind).program(discrete="sample"), Bits("discrete").program(discrete="sample")
    assert relaxed.check(x).ok
    results = [am.posterior(program, x, num_draws=50, seed=1) for program in (relaxed, discrete)]
    assert set(np.unique(results[0]["z"])) == {0.0, 1.0}
    for name in results[1]:
        assert np.array_equal(results[0][name], results[1][name])


def test_importance_sampling_from_a_relaxed_guide_finds_the_exact_evidence(x):
    program = Bits("straight-through").program(discrete="sample")
    am.fit(program, x, num_steps=300, training=am.Training(learning_rate=2e-2))
    exact = am.evidence(program, x, discrete="enumerate").log_evidence
    found = am.evidence(program, x, method=am.ImportanceSampling(num_draws=4000), seed=0)
    assert abs(found.log_evidence - exact).mean() < 0.02
    assert (abs(found.log_evidence - exact) < z_value(40) * found.se + 1e-3).all()


def test_annealing_over_bits_finds_the_exact_evidence(x):
    program = Bits("soft").program(discrete="sample")
    exact = am.evidence(program, x, discrete="enumerate").log_evidence
    found = am.evidence(program, x, method=am.AIS(num_chains=200, num_temperatures=40), start="prior", seed=0)
    assert abs(found.log_evidence - exact).mean() < 0.02


def test_a_continuous_relaxed_latent_is_left_as_it_is():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.7), torch.ones(x.shape[0], 3) / 3))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.RelaxedOneHotCategorical(torch.tensor(0.9), torch.ones(x.shape[0], 3) / 3))

    program, data = am.Program(model, guide), torch.zeros(4)
    assert program.dim(data) == 2
    draws = am.posterior(program, data, num_draws=20)["z"]
    assert len(np.unique(draws)) > 20


class Chain(dist.TorchDistribution):
    """Three numbers from 0 to 3, each near the one before it."""

    arg_constraints = {}  # noqa: RUF012
    support = td.constraints.independent(td.constraints.integer_interval(0, 3), 1)
    move = torch.tensor([[4.0, 1, 0.5, 0.1], [1, 3, 1, 0.2], [0.1, 1, 2, 1], [1, 1, 1, 5]], dtype=torch.float64)

    def __init__(self, batch_shape=()):
        super().__init__(torch.Size(batch_shape), torch.Size([3]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Chain(batch_shape)

    def log_prob(self, value):
        table = self.move.log().log_softmax(-1)
        result = -np.log(4.0) + table[value[..., 0], value[..., 1]] + table[value[..., 1], value[..., 2]]
        return result.expand(self.batch_shape)

    def sample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape
        parts = [torch.randint(4, shape)]
        for _ in range(2):
            parts.append(td.Categorical(self.move[parts[-1]]).sample())
        return torch.stack(parts, -1)


@pytest.mark.parametrize("mode", ["enumerate", "sample"])
def test_a_joint_distribution_of_integers_is_as_many_variables(mode):
    means = torch.tensor([[-2.0, -0.5, 0.5, 2.0]], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", Chain())
            pyro.sample("x", dist.Normal(means[0][k], 0.7).to_event(1), obs=x)

    x = torch.tensor([[-2.0, 0.4, 2.1], [1.0, 1.0, 1.0]], dtype=torch.float64)
    program = am.Program(model, discrete=mode)
    structure = program.structure(program.prepare(x))
    assert structure.sites["k"].variables == (3,) and structure.sites["k"].cardinality == 4
    terms = []
    for path in itertools.product(range(4), repeat=3):
        k = torch.tensor(path)
        terms.append(Chain().log_prob(k) + dist.Normal(means[0][k], 0.7).log_prob(x).sum(-1))
    exact = torch.stack(terms).logsumexp(0).numpy()
    method = am.AIS(num_chains=200, num_temperatures=30)
    found = am.evidence(program, x, method=method, seed=0)
    if mode == "enumerate":
        assert np.allclose(found.log_evidence, exact, atol=1e-10)
    else:
        assert (abs(found.log_evidence - exact) < z_value(2) * found.se).all() and (found.se < 0.1).all()
