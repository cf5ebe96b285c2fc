"""VQ-VAE-2: the bound of its discrete model, exactly; levels that hear those above; priors that gain by it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.vq_vae_2 import VQVAE2, start_codebooks
from amortize.models.vq_vae_2_parts import Layout
from amortize.program.data import Data
from amortize.random import generator
from tests.statistics import z_value

KINDS = ("pixelcnn", "transformer")


def shaken(model):
    """In float64, with weights of every kind away from zero: residual blocks and priors begin with none."""
    gen = generator(0, "shaken")
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
    return model


def pictures(num=12, side=4):
    return (torch.rand(num, side * side, generator=generator(1, "pictures")) < 0.5).double()


def tiny(prior="pixelcnn", x=None, **settings):
    """Images of 4 x 4 from one code above four, of two values each: 32 configurations."""
    x = pictures() if x is None else x
    settings = {"codebook": {"dim": 3}, "channels": ((4,), (4,)), "prior": prior, **settings}
    model = shaken(VQVAE2.from_data(x, 2, **settings))
    start_codebooks(model, x, generator=generator(2, "codebooks"))
    return model


def spelled_out(model, x, codes):
    """log p(x, k) (N,), of what each part says."""
    top, low = model.levels
    first = top.codebook.vectors[codes[0]]
    second = low.codebook.vectors[codes[1]]
    log_prior = top.prior().log_prob(codes[0]) + low.prior(first).log_prob(codes[1])
    return log_prior + model.decoder(first, second).log_prob(x)


def all_codes(num):
    tables = [torch.tensor(list(itertools.product(range(2), repeat=size))) for size in (1, 4)]
    for first, second in itertools.product(*tables):
        yield first.expand(num, 1), second.expand(num, 4)


@pytest.mark.parametrize("kind", ["uniform", *KINDS])
def test_the_evidence_is_the_sum_over_all_codes(kind):
    x = pictures()
    model = tiny(kind)
    every = torch.stack([spelled_out(model, x, codes) for codes in all_codes(len(x))])
    evidence = am.evidence(model.program(), x)
    torch.testing.assert_close(torch.as_tensor(evidence.log_evidence), every.logsumexp(0).detach())
    assert (evidence.se == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_log_joint_at_the_nearest_codes(kind):
    x = pictures()
    model = tiny(kind)
    top, low = model.levels
    features = model.encoder(x)
    vectors = top.head(features)
    first = torch.cdist(vectors, top.codebook.vectors.unsqueeze(0)).argmin(-1)
    told = low.head(features, top.codebook.vectors[first])
    second = torch.cdist(told, low.codebook.vectors.unsqueeze(0)).argmin(-1)
    data = Data.of(x)
    bound = model.objective.on(model.program(), data, seed=0).measured(data, 1, seed=0)
    torch.testing.assert_close(torch.as_tensor(bound), spelled_out(model, x, (first, second)).detach())
    assert first.unique().numel() == second.unique().numel() == 2


def test_a_level_is_rounded_with_the_level_above_in_view():
    x = pictures(64)
    model = tiny(x=x)
    top = model.levels[0]
    before = [found.codes for found in model.quantised(x)]
    with torch.no_grad():
        top.codebook.vectors.copy_(top.codebook.vectors.flip(0))
    after = [found.codes for found in model.quantised(x)]
    assert torch.equal(before[0], 1 - after[0])  # the same vectors by other names: nothing else may change
    assert torch.equal(before[1], after[1])
    with torch.no_grad():
        top.codebook.vectors.add_(3.0)
    assert not torch.equal(before[1], model.quantised(x)[1].codes)


def test_the_gradient_goes_straight_through_both_levels():
    x = pictures()
    model = tiny()
    run = model.run(x)
    assert [level.codes.shape for level in run.levels] == [(12, 1), (12, 4)]
    run.likelihood.log_prob(x).sum().backward()
    slopes = {name: p.grad is not None and bool((p.grad != 0).any()) for name, p in model.named_parameters()}
    for part in ("encoder", "heads", "decoder"):
        assert all(slope for name, slope in slopes.items() if name.startswith(part)), part
    assert not any(slope for name, slope in slopes.items() if name.startswith("priors"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lower_prior_is_normalised_given_the_codes_above_and_hears_them(kind):
    model = tiny(kind)
    top, low = model.levels
    second = torch.tensor(list(itertools.product(range(2), repeat=4)))
    tables = [low.prior(top.codebook.vectors[[code]]).log_prob(second) for code in (0, 1)]
    for table in tables:
        torch.testing.assert_close(table.logsumexp(0), torch.zeros((), dtype=torch.float64))
    assert float((tables[0] - tables[1]).detach().abs().max()) > 1e-3


def test_three_levels_and_any_leading_dimensions():
    x = pictures(9, side=8)
    model = VQVAE2.from_data(x, 3, codebook={"dim": 2}, channels=((4,), (5,), (6,)))
    assert model.sites == ("codes_1", "codes_2", "codes_3")
    run = model.run(x.float())
    assert [codes.shape for codes in run.codes] == [(9, 1), (9, 4), (9, 16)]
    vectors = [level.codebook.embed(codes) for level, codes in zip(model.levels, run.codes, strict=True)]
    stacked = [each.expand(2, 9, *each.shape[1:]) for each in vectors]
    torch.testing.assert_close(model.decoder(*stacked).log_prob(x)[1], model.decoder(*vectors).log_prob(x))
    assert model.levels[2].prior(*stacked[:2]).sample().shape == (2, 9, 16)
    program = am.fit(model.program(), x.float(), num_steps=6).program
    assert all(torch.isfinite(p).all() for p in program.parameters())


@pytest.fixture(scope="module")
def trained():
    """Of digits, and the digits that were left out."""
    data = am.data.load("digits")
    x, left_out = ((torch.as_tensor(part) > 0.5).float() for part in (data.x_train, data.x_test))
    model = VQVAE2.from_data(x, 8, codebook={"dim": 4}, channels=((12,), (12,)))
    training = am.Training(learning_rate=5e-3, batch_size=64, schedule="cosine")
    am.fit(model.program(), x, num_steps=300, seed=0, training=training)
    return model, left_out


def test_priors_gain_over_uniform_ones_and_the_lower_one_by_the_codes_above(trained):
    model, x = trained
    top, low = model.levels
    first, second = model.run(x).codes
    told = top.codebook.embed(first)
    with torch.no_grad():
        gain = low.prior(told).log_prob(second) + 16 * math.log(8)
        of_others = low.prior(told.roll(1, 0)).log_prob(second)
        of_the_top = top.prior().log_prob(first) + 4 * math.log(8)
    for each in (gain, of_the_top, gain - 16 * math.log(8) - of_others):
        assert each.mean() > z_value(3) * each.std() / len(x) ** 0.5


def test_both_levels_carry_the_image(trained):
    model, x = trained
    run = model.run(x)
    vectors = [level.vectors for level in run.levels]
    whole = run.likelihood.log_prob(x)
    for level in (0, 1):
        swapped = [each.roll(1, 0) if number == level else each for number, each in enumerate(vectors)]
        loss = whole - model.decoder(*swapped).log_prob(x)
        assert loss.mean().item() > 5 * loss.std().item() / len(x) ** 0.5


def test_the_contract_and_training(trained):
    model, x = trained
    program = model.program()
    assert program.check(x[:8]).ok
    simulated = am.Program(model.model).simulate(x[:5], seed=1)[1]["x"]
    assert simulated.shape == (5, 64) and set(simulated.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind", ["normal", "pixelcnn"])
def test_other_pixels(kind):
    x = torch.randn(12, 16, generator=generator(3, "x"), dtype=torch.float64) if kind == "normal" else pictures()
    model = tiny(x=x, decoder=kind)
    every = torch.stack([spelled_out(model, x, codes) for codes in all_codes(len(x))])
    evidence = am.evidence(model.program(), x)
    torch.testing.assert_close(torch.as_tensor(evidence.log_evidence), every.logsumexp(0).detach())
    bound = am.fit(model.program(), x, num_steps=2).history["elbo"]
    assert all(math.isfinite(value) for value in bound)


def test_layouts():
    assert Layout.of(784, ((16, 32), (32,), (8,))) == Layout((2, 4, 7), (8, 32, 32), ((16, 32), (32,), (8,)))
    small, large = (VQVAE2.from_data(torch.eye(side * side)[:9], 2, codebook={"dim": 2}) for side in (8, 28))
    assert [[prior.num_positions for prior in (m.priors[0], m.priors[1].prior)] for m in (small, large)] == [
        [4, 16],
        [16, 49],
    ]


def test_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (tiny(seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"channels": (32, 32)}, "channels"),
        ({"channels": ()}, "channels"),
        ({"channels": ((4,), ())}, "channels"),
        ({"channels": ((4, 4), (4,))}, "channels: expected fewer steps"),
        ({"channels": ((4,), (0,))}, "channels"),
        ({"prior": "flow"}, "prior"),
        ({"num_codes": 1}, "num_codes"),
        ({"codebook": {"dim": 0}}, "dim"),
        ({"codebook": {"size": 3}}, "codebook: expected some of"),
        ({"decoder": "poisson"}, "decoder"),
    ],
)
def test_settings_must_make_sense(settings, named):
    with pytest.raises(ArgumentError, match=named):
        VQVAE2.from_data(pictures(), **{"num_codes": 2, **settings})


def test_data_must_be_square_and_binary():
    with pytest.raises(ArgumentError, match="square"):
        VQVAE2.from_data(torch.eye(12))
    with pytest.raises(DataError, match="zeros and ones"):
        VQVAE2.from_data(torch.full((3, 16), 0.5))
