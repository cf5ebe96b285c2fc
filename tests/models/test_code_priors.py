"""Priors over codes: normalised and causal densities, draws that are their own, conditions that are heard."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch

from amortize.errors import ArgumentError
from amortize.models.code_priors import PixelCNNCodes, TransformerCodes, UniformCodes, code_prior
from amortize.random import generator, pyro_rng
from tests.statistics import z_value

GRID, K, H = (2, 3), 3, 4
P = GRID[0] * GRID[1]
CAUSAL = {
    "pixelcnn": lambda **settings: PixelCNNCodes(*GRID, K, channels=(6, 5), **settings),
    "transformer": lambda **settings: TransformerCodes(P, K, width=8, depth=2, **settings),
}
ALL = {"uniform": lambda condition_dim=0: UniformCodes(P, K, condition_dim=condition_dim), **CAUSAL}


def shaken(prior):
    """In float64, with all of the weights anywhere: a last layer of zeros would hide what the others do."""
    gen = generator(0, "shaken")
    with torch.no_grad():
        for parameter in prior.double().parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
    return prior


def grids(num=P, num_codes=K):
    return torch.tensor(list(itertools.product(range(num_codes), repeat=num)))


def conditions(*leading):
    return torch.randn(*leading, P, H, generator=generator(1, "condition"), dtype=torch.float64)


@pytest.mark.parametrize("kind", ALL)
def test_all_grids_together_have_probability_one(kind):
    log_prob = shaken(ALL[kind]())().log_prob(grids())
    torch.testing.assert_close(log_prob.logsumexp(0).exp(), torch.ones((), dtype=torch.float64), rtol=1e-9, atol=0)
    given = shaken(ALL[kind](condition_dim=H))(conditions(2)).log_prob(grids().unsqueeze(1))
    torch.testing.assert_close(given.logsumexp(0).exp(), torch.ones(2, dtype=torch.float64), rtol=1e-9, atol=0)


def hearing(prior, codes):
    """(P, P): whether position i's logits have a slope in the vector of the code that enters at j."""
    added = torch.zeros(1, prior.num_positions, prior.vectors.embedding_dim, dtype=torch.float64, requires_grad=True)
    handle = prior.vectors.register_forward_hook(lambda module, inputs, vectors: vectors + added)
    logits = prior.logits(codes.unsqueeze(0), prior.places.unsqueeze(0))[0]
    handle.remove()
    slopes = [torch.autograd.grad(each.square().sum(), added, retain_graph=True)[0][0] for each in logits]
    return torch.stack([(slope != 0).any(-1) for slope in slopes])


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_position_hears_all_codes_before_it_and_no_other(kind):
    heard = hearing(shaken(CAUSAL[kind]()), torch.tensor([0, 2, 1, 1, 0, 2]))
    assert torch.equal(heard, torch.ones(P, P, dtype=torch.bool).tril(-1))


def test_the_gated_stacks_have_no_blind_spot():
    prior = shaken(PixelCNNCodes(5, 5, K, channels=(4, 4, 4)))
    heard = hearing(prior, torch.randint(K, (25,), generator=generator(2, "codes")))
    rows, columns = torch.arange(25) // 5, torch.arange(25) % 5
    assert torch.equal(heard, torch.ones(25, 25, dtype=torch.bool).tril(-1))
    narrow = hearing(shaken(PixelCNNCodes(5, 5, K, channels=(4,))), torch.zeros(25, dtype=torch.long))
    up, aside = rows.unsqueeze(1) - rows, (columns.unsqueeze(1) - columns).abs()
    in_sight = (up <= 3) & (aside <= 3) & torch.ones(25, 25, dtype=torch.bool).tril(-1)
    assert bool((in_sight | ~narrow).all()) and not torch.equal(narrow, heard)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_network_that_sees_its_own_code_is_noticed(kind):
    prior = shaken(CAUSAL[kind]())
    honest = prior.logits
    own = torch.eye(K, dtype=torch.float64)
    prior.logits = lambda codes, entered: honest(codes, entered) + own[codes]
    assert abs(prior().log_prob(grids()).logsumexp(0).item()) > 0.5


@pytest.mark.parametrize("kind", CAUSAL)
def test_draws_have_the_density_s_frequencies(kind):
    prior = {"pixelcnn": PixelCNNCodes(2, 2, K, channels=(6,), condition_dim=H)}.get(
        kind, TransformerCodes(4, K, width=8, condition_dim=H)
    )
    fn, num = shaken(prior)(conditions()[:4]), 20_000
    with pyro_rng(0, "draws"):
        drawn = fn.sample((num,))
    table = grids(4)
    chances = fn.log_prob(table).exp()
    places = torch.tensor([K**power for power in (3, 2, 1, 0)])
    found = torch.bincount((drawn * places).sum(-1), minlength=len(table)).double() / num
    assert bool(((found - chances).abs() < z_value(len(table)) * (chances * (1 - chances) / num).sqrt()).all())


DRAWN = {
    **{kind: lambda kind=kind: shaken(CAUSAL[kind](condition_dim=H))(conditions(3)) for kind in CAUSAL},
    "a grid with rows out of sight": lambda: shaken(PixelCNNCodes(8, 2, K, channels=(4,)))().expand([3]),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_draw_uses_the_very_logits_of_the_density(kind, monkeypatch):
    fn, chances = DRAWN[kind](), []
    multinomial = torch.Tensor.multinomial

    def listened(probs, num):
        chances.append(probs)
        return multinomial(probs, num)

    monkeypatch.setattr(torch.Tensor, "multinomial", listened)
    with pyro_rng(0, "draw"):
        codes = fn.sample()
    picked = torch.stack(chances, 1).gather(-1, codes.unsqueeze(-1)).squeeze(-1).log().sum(-1)
    torch.testing.assert_close(picked, fn.log_prob(codes))


@pytest.mark.parametrize("kind", ALL)
def test_an_untrained_prior_is_the_uniform_one(kind):
    prior = ALL[kind]()
    torch.testing.assert_close(prior().log_prob(grids()), torch.full((K**P,), -P * math.log(K)))


@pytest.mark.parametrize("kind", CAUSAL)
def test_training_finds_the_entropy_of_a_rule(kind):
    prior, gen = CAUSAL[kind](seed=1), generator(3, "rule")
    first = torch.randint(K, (256, 1), generator=gen)
    steps = torch.randint(2, (256, P - 1), generator=gen)  # each code is that before it, or the next: a bit each
    codes = torch.cat((first, first + steps.cumsum(1)), 1) % K
    optimiser = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = -prior().log_prob(codes).mean()
        loss.backward()
        optimiser.step()
    entropy = math.log(K) + (P - 1) * math.log(2)
    assert entropy - 0.35 < loss.item() < entropy + 0.1 < P * math.log(K)  # 256 grids are learned by heart in part


@pytest.mark.parametrize("kind", ALL)
def test_shapes_of_batches(kind):
    prior = ALL[kind](condition_dim=H).double()
    fn = prior(conditions(2, 5))
    assert fn.batch_shape == (2, 5) and fn.event_shape == (P,)
    codes = fn.sample((3,))
    assert codes.shape == (3, 2, 5, P) and codes.dtype == torch.long and fn.log_prob(codes).shape == (3, 2, 5)
    wider = fn.expand((4, 2, 5))
    assert wider.sample().shape == (4, 2, 5, P) and wider.log_prob(codes[0]).shape == (4, 2, 5)
    one = ALL[kind]()()
    assert one.batch_shape == () and one.sample().shape == (P,) and one.log_prob(one.sample()).shape == ()


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_condition_is_heard_and_batches_are_apart(kind):
    prior = shaken(CAUSAL[kind](condition_dim=H))
    told = conditions(2).requires_grad_()
    codes = grids()[100:102]
    together = prior(told).log_prob(codes)
    torch.testing.assert_close(together[1], prior(told[1]).log_prob(codes[1]))
    (slope,) = torch.autograd.grad(together[0], told)
    assert bool((slope[0] != 0).all()) and bool((slope[1] == 0).all())


@pytest.mark.parametrize("kind", ALL)
def test_as_a_site_of_pyro(kind):
    prior = ALL[kind]()
    with pyro_rng(0, "site"), pyro.plate("data", 4):
        codes = pyro.sample("codes", prior())
    assert codes.shape == (4, P) and bool(prior().support.check(codes).all())
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        prior().log_prob(torch.full((P,), K))


@pytest.mark.parametrize("kind", CAUSAL)
def test_weights_come_from_the_seed_alone(kind):
    state = torch.random.get_rng_state()
    first, again, other = (CAUSAL[kind](seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", ALL)
def test_by_name(kind):
    assert isinstance(code_prior(kind, (2, 2), K), CLASSES[kind])
    small = code_prior(kind, (2, 2), K, width=4, condition_dim=H)
    assert small(torch.zeros(5, 4, H)).batch_shape == (5,)


CLASSES = {"uniform": UniformCodes, "pixelcnn": PixelCNNCodes, "transformer": TransformerCodes}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: code_prior("markov", (2, 2), K), "prior"),
        (lambda: code_prior("uniform", (0, 2), K), "grid"),
        (lambda: PixelCNNCodes(2, 0, K), "width"),
        (lambda: PixelCNNCodes(2, 2, K, channels=()), "channels"),
        (lambda: PixelCNNCodes(2, 2, K, channels=8), "channels"),
        (lambda: TransformerCodes(4, 0), "num_codes"),
        (lambda: TransformerCodes(4, K, depth=0), "depth"),
        (lambda: TransformerCodes(4, K, width=0), "width"),
        (lambda: UniformCodes(4, K, condition_dim=-1), "condition_dim"),
        (lambda: TransformerCodes(4, K)(torch.zeros(4, 2)), "condition_dim = 0"),
        (TransformerCodes(4, K, condition_dim=2), "condition"),
        (lambda: UniformCodes(4, K, condition_dim=2)(torch.zeros(3, 2)), "condition"),
    ],
)
def test_settings_must_make_sense(make, named):
    with pytest.raises(ArgumentError, match=named):
        make()
