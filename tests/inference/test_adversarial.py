"""The adversary: whose gradient goes where, the ratio it learns, and what deceiving it brings about."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softplus

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.prior_codes import PriorCodes
from amortize.program.rates import RatedRun
from amortize.random import generator
from tests.inference.test_mmd import TRUTH, Shifted


def standardised() -> torch.Tensor:
    x = torch.randn(500, 2, generator=generator(0, "x"))
    return (x - x.mean(0)) / x.std(0)


def parts(weight: float):
    guide, x = Shifted(), standardised()
    program = am.Program(guide.model, guide.guide)
    data = program.prepare(x)
    term = am.Adversary(weight=weight, hidden=(8,)).on(program, data, seed=0)
    run = RatedRun.of(program, program.structure(data), data)
    return guide, program, data, term, run


def test_each_of_the_two_descends_a_loss_of_its_own():
    guide, program, data, term, run = parts(weight=3.0)
    torch.manual_seed(0)
    value = term(data, run)
    torch.manual_seed(0)
    codes = PriorCodes(program, data)
    drawn, own = codes.drawn(data, run), codes.of(run)
    learned = softplus(-term.network(drawn)).mean() + softplus(term.network(own)).mean()
    deceived = softplus(-term.network(own)).mean()
    torch.testing.assert_close(value, learned + 3.0 * deceived)
    of_both = [*term.parameters(), guide.shift, guide.log_scale]
    found = torch.autograd.grad(value, of_both, retain_graph=True)
    expected = [*torch.autograd.grad(learned, list(term.parameters()), retain_graph=True)]
    expected += torch.autograd.grad(3.0 * deceived, [guide.shift, guide.log_scale])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_without_hidden_layers_it_learns_the_log_ratio_of_two_gaussians():
    """Of N(0, 1) to N(m, 1) that is m^2 / 2 - m z, a straight line, which no finite sample gives quite."""
    guide, program, data, _, run = parts(weight=1.0)
    with torch.no_grad():
        guide.shift.copy_(torch.tensor([0.8, 1.0]))
        guide.log_scale.copy_(torch.tensor([1.0, 2.0]).log())
    run = RatedRun.of(program, program.structure(data), data)
    term = am.Adversary(hidden=()).on(program, data, seed=0)
    optimiser = torch.optim.Adam(term.parameters(), lr=0.02)
    torch.manual_seed(0)
    tail = torch.zeros(3)
    for step in range(1500):
        optimiser.zero_grad()
        term(data, run).backward(retain_graph=True)
        optimiser.step()
        if step >= 500:
            linear = term.network[0]
            tail += torch.cat([linear.weight[0], linear.bias]).detach() / 1000
    assert abs(float(tail[0]) + 0.8) < 0.15
    assert abs(float(tail[1])) < 0.15
    assert abs(float(tail[2]) - 0.32) < 0.15


def learned(num_steps: int, monkeypatch: pytest.MonkeyPatch | None = None) -> torch.Tensor:
    if monkeypatch is not None:  # broken on purpose: the guide is told to help the adversary
        truth = PriorCodes.of
        monkeypatch.setattr(PriorCodes, "of", lambda self, run: 2 * truth(self, run).detach() - truth(self, run))
    guide = Shifted()
    objective = am.BetaELBO(beta=0.0, penalties=(am.Adversary(weight=1.0, hidden=(32,)),))
    how = am.Training(learning_rate=0.01, schedule="cosine", batch_size=125)
    program = am.Program(guide.model, guide.guide)
    am.fit(program, standardised(), objective=objective, num_steps=num_steps, training=how)
    return torch.cat([guide.shift, guide.log_scale.exp()]).detach()


def test_deceiving_it_brings_the_codes_to_the_prior():
    assert float((learned(1000) - TRUTH).abs().max()) < 0.4


def test_a_guide_that_helps_it_is_noticed(monkeypatch):
    assert float((learned(300, monkeypatch) - TRUTH).abs().max()) > 1.0


def test_its_weights_come_from_the_seed_and_are_kept_with_the_fit():
    x, objective = torch.eye(6), am.BetaELBO(beta=0.0, penalties=(am.Adversary(hidden=(5,)),))

    def fitted(seed: int) -> am.Fitted:
        vae = am.models.BernoulliVAE(6, 2, hidden=(4,))
        return am.fit(vae.program(), x, objective=objective, num_steps=3, seed=seed)

    first, again, other = (fitted(seed).extra for seed in (0, 0, 1))
    assert {tuple(value.shape) for value in first.values()} == {(5, 2), (5,), (1, 5), (1,)}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"hidden": [4]}, {"hidden": (0,)}])
def test_wrong_settings(settings):
    with pytest.raises(ArgumentError, match="Adversary"):
        am.Adversary(**settings)
