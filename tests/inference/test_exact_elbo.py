"""The exact bound of discrete guides, held against densities written a second time and summed in Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DiscreteLatentError
from amortize.inference import exact_elbo
from amortize.inference.exact_elbo import exact_bound
from tests.discrete_toys import TOYS, OneLayer, TwoLayers, flat


def bound_and_gradient(toy, num_particles=1):
    program = toy.program()
    data = program.prepare(toy.x)
    terms = am.ExactELBO(num_particles=num_particles).on(program, data, seed=0)(data)
    return terms.bound.mean(), flat(torch.autograd.grad(-terms.loss, list(toy.parameters()), materialize_grads=True))


@pytest.mark.parametrize("num_particles", [1, 2, 3])
@pytest.mark.parametrize("kind", TOYS)
def test_bound_and_gradient_are_the_sums_over_all_configurations(kind, num_particles):
    toy = TOYS[kind]()
    bound, gradient = bound_and_gradient(toy, num_particles)
    torch.testing.assert_close(bound, toy.exact_bound(num_particles).detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient, toy.exact_gradient(num_particles), rtol=1e-10, atol=1e-11)


def test_a_sum_that_forgets_a_configuration_is_noticed(monkeypatch):
    def all_but_one(*args):
        return {name: table[:-1] for name, table in whole(*args).items()}

    whole = exact_elbo.configurations
    monkeypatch.setattr(exact_elbo, "configurations", all_but_one)
    toy = TwoLayers()
    bound, _ = bound_and_gradient(toy)
    assert abs(bound - toy.exact_bound()) > 1e-4


@pytest.mark.parametrize("kind", [OneLayer, TwoLayers])
def test_it_does_not_hang_on_how_configurations_are_chunked(kind, monkeypatch):
    """They are run again on the way back: a guide that states its distributions once, and one that reads its draws."""
    toy = kind()
    whole = bound_and_gradient(toy)
    monkeypatch.setattr(exact_elbo, "MAX_ROWS", 8)
    for one, other in zip(bound_and_gradient(toy), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_running_statistics_follow_a_batch_once(monkeypatch):
    class Normed(OneLayer):
        def build(self):
            super().build()
            self.norm = torch.nn.BatchNorm1d(4, dtype=torch.float64)

        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Bernoulli(logits=self.prior.expand(x.shape[0], 3)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.norm(z @ self.decoder)).to_event(1), obs=x)

    monkeypatch.setattr(exact_elbo, "MAX_ROWS", 9)
    toy = Normed()
    am.fit(toy.program(), toy.x, objective="exact-elbo", num_steps=4)
    assert toy.norm.num_batches_tracked == 4


@pytest.mark.parametrize("num_particles", [1, 2, 5])
def test_the_quadrature_of_many_draws_is_the_sum_over_sets_of_them(num_particles):
    """Log weights that lie 30 nats apart, and a configuration that the guide rules out."""
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=gen, dtype=torch.float64)
    logits[0, 1] = -torch.inf
    log_q = logits.log_softmax(0)
    log_joint = 10 * torch.randn(4, 3, generator=gen, dtype=torch.float64) - 50
    total = torch.zeros(3, dtype=torch.float64)
    for chosen in itertools.product(range(4), repeat=num_particles):
        rows = list(chosen)
        share = log_q[rows].sum(0).exp()
        value = (log_joint - log_q)[rows].logsumexp(0) - math.log(num_particles)
        total += torch.where(share > 0, share * value, 0.0)
    torch.testing.assert_close(exact_bound(log_joint, log_q, num_particles).bound, total, rtol=1e-12, atol=1e-11)


def test_what_the_model_rules_out_makes_the_bound_infinite_and_spoils_no_other():
    log_q = torch.full((2, 2), 0.5, dtype=torch.float64).log()
    log_joint = torch.tensor([[-torch.inf, -1.0], [0.0, -2.0]], dtype=torch.float64)
    bound = exact_bound(log_joint, log_q, 2).bound
    assert bound[0] == -torch.inf
    torch.testing.assert_close(bound[1], exact_bound(log_joint[:, 1:], log_q[:, 1:], 2).bound[0])


def test_more_draws_rise_to_the_evidence():
    toy = OneLayer()
    program = toy.program()
    data, exact = program.prepare(toy.x), am.evidence(program, toy.x).log_evidence.mean()
    bounds = [
        am.ExactELBO(num_particles=k).on(program, data, seed=0).measured(data, 1, seed=0).mean()
        for k in (1, 4, 64, 4096)
    ]
    assert np.all(np.diff(bounds) > 0)
    assert 0 < exact - bounds[-1] < 1e-3


class PointGuide(OneLayer):
    """Whose guide is sure of itself: the log probabilities of all other configurations are -inf."""

    def guide(self, x):
        index = (x @ self.encoder).argmax(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(probs=torch.eye(3, dtype=x.dtype)[index]).to_event(1))


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_guide_that_is_sure_has_a_finite_bound_and_gradient(num_particles):
    toy = PointGuide()
    bound, gradient = bound_and_gradient(toy, num_particles)
    z = torch.eye(3, dtype=torch.float64)[(toy.x @ toy.encoder).argmax(-1)]
    by_hand = torch.stack([toy.log_joint(x[None], {"z": one[None]})[0] for x, one in zip(toy.x, z, strict=True)]).mean()
    torch.testing.assert_close(bound, by_hand.detach(), rtol=0, atol=1e-5)  # Bernoulli's logits are clamped
    assert gradient.isfinite().all() and gradient.abs().max() > 0.01


class LeavesOut(TwoLayers):
    """The guide draws the lower layer; the top one is summed out of the model."""

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(logits=x @ self.first).to_event(1))


def test_sites_that_the_guide_leaves_out_are_summed_out_of_the_model():
    toy = LeavesOut()
    z = toy.configurations()
    tops = toy.log_joint(toy.x, z).reshape(4, 4, 3)
    marginal = torch.logsumexp(tops, 1)
    log_q = (
        (z["z"] * (toy.x @ toy.first) - torch.nn.functional.softplus(toy.x @ toy.first)).sum(-1).reshape(4, 4, 3)[:, 0]
    )
    exact = (log_q.exp() * (marginal - log_q)).sum(0).mean()
    gradient = flat(torch.autograd.grad(exact, list(toy.parameters()), materialize_grads=True))
    found = bound_and_gradient(toy)
    torch.testing.assert_close(found[0], exact.detach())
    torch.testing.assert_close(found[1], gradient)


def test_training_by_it_reaches_what_the_family_can():
    """Until its own gradient has gone, and the one written out with it."""
    toy = OneLayer()
    program = toy.program()
    before = toy.exact_bound().item()
    fitted = am.fit(program, toy.x, objective="exact-elbo", num_steps=400, training=am.Training(learning_rate=0.05))
    history = fitted.history.elbo
    assert history.iloc[0] == pytest.approx(before, abs=1e-12)
    assert history.iloc[-1] > before + 0.5
    assert toy.exact_gradient().norm() < 0.1 * OneLayer().exact_gradient().norm()
    assert fitted.bound == "ELBO" and fitted.settings["objective"]["num_particles"] == 1


def continuous(x):
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Bernoulli(torch.full((x.shape[0],), 0.5)))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def continuous_guide(x):
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("k", dist.Bernoulli(torch.full((x.shape[0],), 0.5)))
        pyro.sample("z", dist.Normal(x, scale.abs()))


def bits(num):
    logits = torch.nn.Parameter(torch.zeros(num))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(torch.full((x.shape[0], num), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        pyro.param("logits", logits)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(logits=logits.expand(x.shape[0], num)).to_event(1))

    return am.Program(model, guide)


def left_out(x):
    pyro.param("unused", torch.tensor(0.0))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (lambda: am.Program(continuous, continuous_guide), "'z' is continuous.*LeaveOneOut"),
        (lambda: bits(13), "8192 configurations.*4096.*VIMCO"),
        (lambda: am.Program(bits(3).model, left_out), "samples no discrete latent.*'auto'"),
    ],
)
def test_what_can_not_be_summed_is_refused_with_the_way_out(program, words):
    with pytest.raises(DiscreteLatentError, match=words):
        am.fit(program(), torch.tensor([0.3, 1.2]), objective=am.ExactELBO(), num_steps=1)


def test_wrong_settings_are_refused():
    with pytest.raises(ArgumentError, match="ExactELBO num_particles"):
        am.ExactELBO(num_particles=0)
