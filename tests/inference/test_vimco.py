"""VIMCO: its gradient is that of the bound of K draws, which is another than the ELBO's."""

from __future__ import annotations

import math

import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference import vimco
from amortize.inference.vimco import without_each
from tests.discrete_toys import TOYS, Categories, OneLayer, gradients, largest_z


@pytest.mark.parametrize("kind", TOYS)
def test_the_gradient_is_that_of_the_bound_of_k_draws(kind):
    toy = TOYS[kind]()
    found, allowed = largest_z(gradients(toy, am.VIMCO(2)), toy.exact_gradient(2))
    assert found < allowed


def test_three_draws_too_and_not_the_elbos():
    toy = Categories()
    rows = gradients(toy, am.VIMCO(3))
    found, allowed = largest_z(rows, toy.exact_gradient(3))
    assert found < allowed
    found, allowed = largest_z(rows, toy.exact_gradient(1))
    assert found > allowed


def test_a_baseline_that_keeps_the_draws_own_weight_is_found_out(monkeypatch):
    def own(log_weights):
        return log_weights.softmax(0) * log_weights

    monkeypatch.setattr(vimco, "without_each", own)
    toy = OneLayer()
    found, allowed = largest_z(gradients(toy, am.VIMCO(2), num_blocks=60), toy.exact_gradient(2))
    assert found > allowed


def test_the_others_bound_is_the_formulas_and_finite_far_out():
    weights = torch.tensor([[0.2], [-1.0], [3.0]], dtype=torch.float64)
    by_hand = []
    for k in range(3):
        others = [float(weights[j, 0]) for j in range(3) if j != k]
        total = sum(math.exp(w) for w in others) + math.exp(sum(others) / 2)
        by_hand.append(math.log(total / 3))
    torch.testing.assert_close(without_each(weights).flatten(), torch.tensor(by_hand, dtype=torch.float64))
    far = without_each(weights * 1000 - 5000)
    assert far.isfinite().all()
    impossible = without_each(torch.tensor([[0.0], [-1.0], [-torch.inf]]))
    assert impossible.isfinite().all()  # one draw of no weight leaves the credit of the others finite


def test_the_bound_rises_with_the_draws():
    toy = OneLayer()
    exact = [toy.exact_bound(k).item() for k in (1, 2, 3)]
    assert exact[0] < exact[1] < exact[2]
    data = toy.program().prepare(toy.x.repeat(4000, 1))
    for k in (2, 3):
        bound = am.VIMCO(k).on(toy.program(), data, seed=0).measured(data, 1, seed=0)
        assert abs(bound.mean() - exact[k - 1]) < 4 * bound.std() / len(bound) ** 0.5


def test_it_trains_a_guide_of_categories():
    toy = Categories()
    before = toy.exact_bound().item()
    am.fit(toy.program(), toy.x, objective=am.VIMCO(4), num_steps=60, training=am.Training(learning_rate=0.1))
    assert toy.exact_bound().item() > before + 0.5


@pytest.mark.parametrize("value", [1, 0, 2.5])
def test_one_draw_has_no_others(value):
    with pytest.raises(ArgumentError, match="VIMCO num_particles: expected an integer of at least 2"):
        am.VIMCO(num_particles=value)
