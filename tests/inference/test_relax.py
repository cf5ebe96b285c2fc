"""RELAX and REBAR: unbiased whatever the control variate is, and quieter as it learns."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DiscreteLatentError
from amortize.inference.relax_draws import BitDraw, OneHotDraw
from amortize.random import pyro_rng
from tests.discrete_toys import TOYS, Categories, OneHots, OneLayer, TwoLayers, gradients, largest_z
from tests.statistics import z_value

SOFT = ("OneLayer", "TwoSites", "TwoLayers", "OneHots")


def learned(toy, objective, num_steps=80):
    """A loss whose own parameters alone have learned, and its data."""
    program = toy.program()
    data = program.prepare(toy.x.repeat(20, 1))
    loss = objective.on(program, data, seed=0)
    optimiser = torch.optim.Adam(loss.own_parameters(), lr=0.04)
    with pyro_rng(0, "learn"):
        for _ in range(num_steps):
            optimiser.zero_grad()
            loss(data).loss.backward()
            optimiser.step()
    return loss, data


def slopes(toy, loss, data, num=40):
    rows = []
    with pyro_rng(1, "slopes"):
        for _ in range(num):
            found = torch.autograd.grad(-loss(data).loss, list(toy.parameters()))
            rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("objective", [am.RELAX(temperature=0.2), am.RELAX(2, hidden=None)], ids=["relax", "rebar"])
def test_the_gradient_is_the_elbos(kind, objective):
    toy = TOYS[kind]()
    found, allowed = largest_z(gradients(toy, objective), toy.exact_gradient())
    assert found < allowed


@pytest.mark.parametrize("kind", [OneHots, TwoLayers])
def test_any_control_variate_is_unbiased(kind):
    """With parameters as wrong as may be: scales of the other sign, hot and cold sites, a network of noise."""
    toy = kind()
    data = toy.program().prepare(toy.x.repeat(300, 1))
    loss = am.RELAX(hidden=(6,)).on(toy.program(), data, seed=0)
    with torch.no_grad(), pyro_rng(3, "wrong"):
        for parameter in loss.own_parameters():
            parameter.normal_()
    found, allowed = largest_z(slopes(toy, loss, data), toy.exact_gradient())
    assert found < allowed


def test_learning_lowers_the_variance_and_below_that_of_two_draws():
    toy = OneLayer()
    loss, data = learned(toy, am.RELAX(temperature=5.0, hidden=(16,)))
    after = slopes(toy, loss, data)
    fresh = am.RELAX(temperature=5.0, hidden=(16,)).on(toy.program(), data, seed=0)
    before = slopes(toy, fresh, data)
    free = slopes(toy, am.LeaveOneOut(2).on(toy.program(), data, seed=0), data)
    guide = slice(-toy.encoder.numel(), None)
    spread = [rows[:, guide].var(0).sum().item() for rows in (after, before, free)]
    assert spread[0] < 0.8 * spread[1] and spread[0] < spread[2]
    found, allowed = largest_z(after, toy.exact_gradient())
    assert found < allowed


def test_the_variances_slope_is_that_of_the_mean_square():
    """The step of the control variate's parameters against finite differences, the noise held."""
    toy = OneLayer()
    data = toy.program().prepare(toy.x.repeat(20, 1))
    loss = am.RELAX(hidden=None).on(toy.program(), data, seed=0)
    own = [loss.log_temperatures, loss.scales]
    kept = []
    quieter = loss._quieter

    def kept_and_quieter(found):
        kept.append(sum(slope.square().sum(-1).mean() for slope in found).detach().item())
        return quieter(found)

    loss._quieter = kept_and_quieter

    def noise():
        with pyro_rng(0, "noise"):
            terms = loss(data)
        return terms.loss, kept[-1]

    found = torch.autograd.grad(noise()[0], own)
    for parameter, slope in zip(own, found, strict=True):
        ends = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter.add_(step)
            ends.append(noise()[1])
            with torch.no_grad():
                parameter.sub_(step)
        torch.testing.assert_close(slope.item(), (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("draw", "shape"), [(BitDraw, (5,)), (OneHotDraw, (5,))])
def test_z_given_b_has_the_law_of_z(draw, shape):
    """Both have the same moments, and the same discrete value, whatever the logits."""
    num = 20_000
    with pyro_rng(0, "law"):
        logits = 1.5 * torch.randn(shape, dtype=torch.float64)
        found = draw.of(logits.expand(num, *shape))
    for power in (1, 2):
        gap = found.z.detach().pow(power) - found.z_given.detach().pow(power)
        assert (gap.mean(0).abs() < z_value(10) * gap.std(0) / num**0.5).all()
    if draw is BitDraw:
        assert torch.equal(found.z_given > 0, found.hard > 0)
    else:
        assert torch.equal(found.z_given.argmax(-1), found.hard.argmax(-1))
    chance = found.hard.mean(0)
    exact = torch.sigmoid(logits) if draw is BitDraw else logits.softmax(-1)
    assert ((chance - exact).abs() < z_value(5) * (exact * (1 - exact) / num).sqrt()).all()


@pytest.mark.parametrize("draw", [BitDraw, OneHotDraw])
def test_confident_logits_stay_finite(draw):
    logits = torch.tensor([-60.0, 0.0, 60.0]).expand(1000, 3)
    with pyro_rng(0, "far"):
        found = draw.of(logits)
    for z in (found.z, found.z_given):
        value = found.soft(z, torch.tensor(0.1))
        (slope,) = torch.autograd.grad(value.square().sum(), found.free, retain_graph=True)
        assert value.isfinite().all() and slope.isfinite().all()


def test_a_control_variate_at_the_very_z_behind_b_is_found_out(monkeypatch):
    """Taken for a draw of z given b, it would leave the paths out."""
    real = BitDraw.of.__func__

    def same(cls, logits):
        found = real(cls, logits)
        return cls(found.logits, found.free, found.noise, found.z, found.z, found.hard)

    monkeypatch.setattr(BitDraw, "of", classmethod(same))
    toy = OneLayer()
    data = toy.program().prepare(toy.x.repeat(300, 1))
    rows = slopes(toy, am.RELAX(hidden=None).on(toy.program(), data, seed=0), data)
    found, allowed = largest_z(rows, toy.exact_gradient())
    assert found > allowed


def test_it_trains_one_hot_latents_and_measures_the_discrete_elbo():
    toy = OneHots()
    before = toy.exact_bound().item()
    training = am.Training(learning_rate=0.05, validation=toy.x.repeat(500, 1), validate_every=60)
    fitted = am.fit(toy.program(), toy.x, objective=am.RELAX(4), num_steps=60, training=training)
    after = toy.exact_bound().item()
    assert after > before + 0.5
    assert abs(fitted.history.validation_elbo.iloc[-1] - after) < 0.05
    assert float((fitted.extra["log_temperatures"] - torch.tensor(0.5).log()).abs().max()) > 0.01


def test_what_it_does_not_take_is_refused_by_name():
    with pytest.raises(DiscreteLatentError, match=r"'k' is Categorical.*Bernoulli or OneHotCategorical.*leave-one-out"):
        am.fit(Categories().program(), Categories().x, objective=am.RELAX(), num_steps=1)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    loc = torch.nn.Parameter(torch.tensor(0.0))

    def guide(x):
        pyro.param("loc", loc)

    with pytest.raises(DiscreteLatentError, match="samples nothing"):
        am.fit(am.Program(model, guide), torch.zeros(4), objective=am.RELAX(), num_steps=1)


@pytest.mark.parametrize(
    "rounds",
    [
        lambda self, k: self.decoder.reshape(2, 3, -1)[[0, 1], k.argmax(-1)].sum(-2),
        lambda self, k: (k > 0.5).to(k).flatten(-2) @ self.decoder,
    ],
    ids=["argmax", "threshold"],
)
def test_a_model_that_rounds_its_latents_is_refused(rounds):
    """Its control variate would jump: a bias of which nothing else tells."""

    class Rounds(OneHots):
        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                k = pyro.sample("k", dist.OneHotCategorical(logits=self.prior.expand(x.shape[0], 2, 3)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=rounds(self, k)).to_event(1), obs=x)

    toy = Rounds()
    with pytest.raises(DiscreteLatentError, match=r"jumps between soft values.*leave-one-out"):
        am.fit(toy.program(), toy.x, objective=am.RELAX(), num_steps=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: am.RELAX(num_particles=0),
        lambda: am.RELAX(temperature=0.0),
        lambda: am.RELAX(hidden=[5]),
        lambda: am.RELAX(hidden=(0,)),
    ],
)
def test_settings_are_checked(make):
    with pytest.raises(ArgumentError, match=r"RELAX \w+: expected"):
        make()
