"""NVIL: baselines that know nothing of the draws leave the mean alone, and take the spread away."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference import nvil
from amortize.inference.score_baselines import Inputs
from amortize.program.data import Data
from amortize.random import pyro_rng
from tests.discrete_toys import TOYS, OneHots, OneLayer, TwoLayers, gradients, largest_z


class Levels(OneLayer):
    """The same with a further observation, which no latent explains, and which tells datapoints apart by far."""

    def model(self, x):
        super().model(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x.new_zeros(()), 1.0), obs=4 * x[:, 0])

    def log_joint(self, x, z):
        return super().log_joint(x, z) + dist.Normal(x.new_zeros(()), 1.0).log_prob(4 * x[:, 0])


class Tall(TwoLayers):
    """Two layers of which the first one is worth tens of nats."""

    def build(self):
        super().build()
        with torch.no_grad():
            self.decoder.mul_(10.0)


def trained_loss(toy, objective, num_steps=150):
    """The loss after its own parameters alone have learned, and its data."""
    program = toy.program()
    data = program.prepare(toy.x.repeat(40, 1))
    loss = objective.on(program, data, seed=0)
    optimiser = torch.optim.Adam(loss.own_parameters(), lr=0.015)
    with pyro_rng(0, "learn"):
        for _ in range(num_steps):
            optimiser.zero_grad()
            loss(data).loss.backward()
            optimiser.step()
    return loss, data


@pytest.fixture(scope="module")
def learned():
    """A toy, the loss with a learned network, and the data."""
    toy = Levels()
    return toy, *trained_loss(toy, am.NVIL(normalise=False))


def slopes(toy, loss, data, num=40):
    parameters = list(toy.parameters())
    rows = []
    with pyro_rng(1, "slopes"):
        for _ in range(num):
            found = torch.autograd.grad(-loss(data).loss, parameters)
            rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_gradient_is_the_elbos_in_length_too_where_nothing_is_normalised(kind, num_particles):
    toy = TOYS[kind]()
    objective = am.NVIL(num_particles, normalise=False)
    found, allowed = largest_z(gradients(toy, objective), toy.exact_gradient())
    assert found < allowed


def test_normalising_changes_the_guides_length_and_nothing_else():
    """Of a guide whose f spreads by more than a nat: the direction is the ELBO's, the length shorter."""
    toy = OneHots()
    rows, exact = gradients(toy, am.NVIL(decay=0.999)), toy.exact_gradient()
    guide = slice(toy.prior.numel() + toy.decoder.numel(), None)
    found, allowed = largest_z(rows, exact, lambda row: row[: guide.start])
    assert found < allowed
    found, allowed = largest_z(rows, exact, lambda row: row[guide])
    assert found > allowed
    length = (rows.mean(0)[guide] @ exact[guide]) / exact[guide].square().sum()
    assert 0.2 < length < 0.9
    found, allowed = largest_z(rows, exact * length, lambda row: row[guide])
    assert found < allowed


def test_learned_baselines_stay_unbiased_and_lower_the_variance(learned):
    toy, loss, data = learned
    without = gradients(toy, am.NVIL(normalise=False), copies=40, num_blocks=40)
    rows = slopes(toy, loss, data)
    found, allowed = largest_z(rows, toy.exact_gradient())
    assert found < allowed
    assert rows.var(0).sum() < 0.5 * without.var(0).sum()


def test_the_network_learns_what_f_is_on_average(learned):
    toy, loss, data = learned
    with torch.no_grad():
        said = loss.networks[0](loss.inputs(data.rows(slice(0, 3)))).squeeze(-1)
        said = loss.signal_mean.flatten() + loss.unit.flatten() * said
        log_weights = toy.log_joint(toy.x, toy.configurations()) - toy.log_q(toy.x, toy.configurations())
        exact = (toy.log_q(toy.x, toy.configurations()).exp() * log_weights).sum(0)
    assert exact.std() > 3
    torch.testing.assert_close(said, exact, atol=0.4, rtol=0.0)


def test_a_baseline_that_looks_at_its_own_draw_is_found_out(monkeypatch):
    def peeking(self, batch, particles):
        return 0.5 * (particles.log_joint - particles.log_q).detach() / self.unit

    toy = OneLayer()
    monkeypatch.setattr(nvil._Loss, "_expected", peeking)
    found, allowed = largest_z(gradients(toy, am.NVIL(normalise=False)), toy.exact_gradient())
    assert found > allowed


def test_the_second_layers_baseline_reads_the_first_layers_draws():
    """What the observations cost hangs on the first layer alone: the second one's signal loses its noise."""
    toy = Tall()
    loss, data = trained_loss(toy, am.NVIL(normalise=False, hidden=(20,)))
    assert [network[0].in_features for network in loss.networks] == [4, 6]
    rows, free = (slopes(toy, a, data) for a in (loss, am.LeaveOneOut(2).on(toy.program(), data, seed=0)))
    exact = toy.exact_gradient()
    found, allowed = largest_z(rows, exact)
    assert found < allowed
    second = slice(-toy.second.numel(), None)
    assert rows[:, second].var(0).sum() < 0.1 * free[:, second].var(0).sum()


def test_the_first_step_knows_nothing_of_its_own_draws():
    toy, rows = OneLayer(), []
    data = toy.program().prepare(toy.x.repeat(10, 1))
    loss = am.NVIL(normalise=False).on(toy.program(), data, seed=0)
    fresh = {name: value.clone() for name, value in loss.state_dict().items()}
    for seed in range(120):
        loss.load_state_dict(fresh)
        with pyro_rng(seed, "first"):
            found = torch.autograd.grad(-loss(data).loss, list(toy.parameters()))
        rows.append(torch.cat([part.flatten() for part in found]))
    found, allowed = largest_z(torch.stack(rows), toy.exact_gradient())
    assert found < allowed


def test_a_later_step_takes_off_the_average_of_earlier_ones_and_nothing_of_its_own():
    """One more nat of it takes the mean score from the guide's gradient; many draws would hide one that peeks."""
    toy = OneLayer()
    data = toy.program().prepare(toy.x)
    loss = am.NVIL(normalise=False).on(toy.program(), data, seed=0)

    def slope(mean):
        loss.unit.fill_(1.0), loss.signal_variance.fill_(1.0), loss.signal_mean.fill_(mean)
        with pyro_rng(0, "later"):
            return torch.autograd.grad(-loss(data).loss, [toy.encoder])[0]

    with pyro_rng(0, "later"):
        drawn = loss.trained.particles(data, 1, cut=True)
    score = torch.autograd.grad(drawn.log_q.mean(), [toy.encoder])[0]
    torch.testing.assert_close(slope(2.0) - slope(3.0), score)


def test_measuring_moves_no_average():
    toy = OneLayer()
    data = toy.program().prepare(toy.x.repeat(50, 1))
    loss = am.NVIL().on(toy.program(), data, seed=0)
    loss(data)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    first, second = loss.measured(data, 3, seed=0), loss.measured(data, 3, seed=0)
    assert (first == second).all()
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_what_the_network_reads_is_centred_and_takes_missing_numbers_at_the_mean():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [torch.nan, 5.0]])
    data = Data.of((x, torch.tensor(2.0), torch.tensor([0, 1, 2])), allow_nan=True)
    inputs = Inputs(data, torch.zeros((), dtype=torch.float64))
    assert inputs.width == 3
    root = 1.5**0.5
    expected = torch.tensor([[-1, 0, -root], [1, 0, 0], [0, 0, root]], dtype=torch.float64)
    torch.testing.assert_close(inputs(data), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: am.NVIL(num_particles=0),
        lambda: am.NVIL(hidden=[10]),
        lambda: am.NVIL(hidden=(0,)),
        lambda: am.NVIL(decay=1.0),
        lambda: am.NVIL(normalise="yes"),
    ],
)
def test_settings_are_checked(make):
    with pytest.raises(ArgumentError, match=r"NVIL \w+: expected"):
        make()
