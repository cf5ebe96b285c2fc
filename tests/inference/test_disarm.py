"""DisARM: unbiased where sites are drawn at once and where they read one another, and quieter than two free draws."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DiscreteLatentError, GuideMismatchError
from amortize.inference import disarm
from amortize.inference.disarm import _Pairs
from tests.discrete_toys import TOYS, Categories, OneHots, OneLayer, TwoLayers, TwoSites, gradients, largest_z

BINARY = ("OneLayer", "TwoSites", "TwoLayers")


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("num_pairs", [1, 3])
def test_the_gradient_is_the_elbos(kind, num_pairs):
    toy = TOYS[kind]()
    found, allowed = largest_z(gradients(toy, am.DisARM(num_pairs)), toy.exact_gradient())
    assert found < allowed


@pytest.mark.parametrize("kind", BINARY)
def test_a_pair_is_less_noise_than_two_draws(kind):
    toy = TOYS[kind]()
    paired, free = (gradients(toy, o, num_blocks=60).var(0).sum() for o in (am.DisARM(), am.LeaveOneOut(2)))
    assert paired < 0.9 * free


def test_confident_logits_are_unbiased_too():
    """Where one of two values is all but ruled out, the pair differs rarely, and counts for more where it does."""
    toy = OneLayer()
    with torch.no_grad():
        toy.encoder.mul_(3.0)
    found, allowed = largest_z(gradients(toy, am.DisARM(), copies=500), toy.exact_gradient())
    assert found < allowed


def test_a_layer_drawn_as_one_pair_throughout_is_found_out():
    """Two stages taken for one: the second layer's logits are not the same in both of a pair."""
    toy = TwoLayers()
    program = toy.program()
    data = program.prepare(toy.x.repeat(300, 1))
    loss = am.DisARM().on(program, data, seed=0)
    exact, parameters = toy.exact_gradient(), list(toy.parameters())
    for wrong in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if wrong:
                patch.setattr(disarm, "stages_of", lambda run, names: (names,))
            torch.manual_seed(0)
            rows = []
            for _ in range(60):
                slopes = torch.autograd.grad(-loss(data).loss, parameters)
                rows.append(torch.cat([slope.flatten() for slope in slopes]))
        found, allowed = largest_z(torch.stack(rows), exact)
        assert (found > allowed) == wrong


def test_branches_share_what_comes_before_and_are_antithetic_at_their_stage():
    torch.manual_seed(0)
    pairs = _Pairs((("a",), ("b",)), 5000)
    logits = torch.tensor([1.5, -0.5]).expand(3, 5000, 2)
    a = pairs.choose("a", logits.reshape(-1, 2)).reshape(3, 5000, 2)
    b = pairs.choose("b", logits.reshape(-1, 2)).reshape(3, 5000, 2)
    assert torch.equal(a[0], a[2]) and not torch.equal(a[0], a[1])
    chance = torch.sigmoid(torch.tensor([1.5, -0.5]))
    for values in (*a, *b):  # each branch is a draw
        assert ((values.mean(0) - chance).abs() < 5 * (chance * (1 - chance) / 5000).sqrt()).all()
    for site, branch in ((a, 1), (b, 2)):  # as often apart as two draws can be
        apart = (site[0] != site[branch]).double().mean(0)
        most = 2 * torch.minimum(chance, 1 - chance)
        assert ((apart - most).abs() < 5 * (most * (1 - most) / 5000 + 1e-9).sqrt()).all()
    free = ((b[0] != b[1]).double().mean(0) - 2 * chance * (1 - chance)).abs()
    assert (free < 5 * (0.25 / 5000) ** 0.5).all()  # once parted, draws of their own


def test_infinite_logits_have_no_slope_and_no_nan():
    pairs = _Pairs((("z",),), 200)
    logits = torch.tensor([torch.inf, 0.3, -torch.inf]).expand(400, 3).clone().requires_grad_()
    values = pairs.choose("z", logits)
    assert (values[:, 0] == 1).all() and (values[:, 2] == 0).all()
    (slope,) = torch.autograd.grad(pairs.ascended(torch.randn(2, 200)).sum(), logits)
    assert slope.isfinite().all() and (slope[:, 0] == 0).all() and (slope[:, 1] != 0).any()


def test_it_trains_and_measures_the_discrete_elbo():
    toy = TwoSites()
    before = toy.exact_bound().item()
    training = am.Training(learning_rate=0.1, validation=toy.x.repeat(500, 1), validate_every=80)
    fitted = am.fit(toy.program(), toy.x, objective=am.DisARM(), num_steps=80, training=training)
    after = toy.exact_bound().item()
    assert after > before + 0.5
    last = fitted.history.iloc[-1]
    assert abs(last.validation_elbo - after) < 0.05


def test_what_it_does_not_take_is_refused_by_name():
    for kind, named in ((Categories, "Categorical"), (OneHots, "OneHotCategorical")):
        with pytest.raises(DiscreteLatentError, match=rf"guide site 'k' is {named}.*'leave-one-out'"):
            am.fit(kind().program(), kind().x, objective=am.DisARM(), num_steps=1)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(model)
    with pytest.raises(GuideMismatchError, match="DisARM takes the logits of an amortized guide"):
        am.fit(am.Program(model, guide), torch.zeros(4), objective=am.DisARM(), num_steps=1)
    with pytest.raises(ArgumentError, match="DisARM num_pairs: expected"):
        am.DisARM(num_pairs=0)
