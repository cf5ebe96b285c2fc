"""The masked autoencoder: it fills in what it doesn't see, sees nothing of what it fills in, and learns by that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.masked_autoencoder import MaskedAutoencoder, deal
from amortize.models.transformer import Attention, Patches, Transformer

SIDE = 8


@pytest.fixture(scope="module")
def digits():
    return am.data.load("digits", binarise="grey")


@pytest.fixture(scope="module")
def trained(digits):
    model = MaskedAutoencoder.from_data(digits.x_train, width=32)
    entry = am.models.MODELS["masked-autoencoder"].fit
    training = am.Training(batch_size=128, progress=False, **entry)
    am.fit(model.program(), digits.x_train, objective=model.objective, num_steps=1000, training=training)
    return model


def small(**settings):
    x = torch.rand(6, SIDE * SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MaskedAutoencoder.from_data(x, width=16, **settings).double(), x


def views(model):
    """For each group of patches: which they are, and the pixels (X,) that are hidden when only they are seen."""
    patches = model.encoder.patches
    for member in model.decoder.member:
        pixels = patches.join((~member).unsqueeze(-1).expand(patches.num, patches.pixels))
        yield member, pixels.numpy()


@torch.no_grad()
def filled(model, x, member):
    """The images (N, X) that the decoder makes of the codes of some patches alone."""
    model.eval()
    codes = model.encoder(x).mean.reshape(len(x), model.encoder.patches.num, -1)
    parts = model.decoder.fill(codes, member)
    return (model.decoder.loc + model.decoder.scale * model.decoder.patches.join(parts)).numpy()


def neighbours(x, hidden):
    """Hidden pixels as the nearest visible one, and as a mean of the visible ones, weighed by 1 / distance^2."""
    places = np.stack(np.unravel_index(np.arange(SIDE * SIDE), (SIDE, SIDE)), 1)
    squared = np.square(places[hidden][:, None] - places[~hidden][None]).sum(-1)
    weight = 1 / squared
    return x[:, ~hidden][:, squared.argmin(1)], x[:, ~hidden] @ (weight / weight.sum(1, keepdims=True)).T


def test_three_quarters_of_the_patches_are_hidden_and_filled_in_better_than_by_means_or_neighbours(trained, digits):
    x, mean = digits.x_test, digits.x_train.mean(0)
    errors = {"model": [], "mean": [], "nearest": [], "neighbours": []}
    for member, hidden in views(trained):
        assert hidden.mean() == 0.75
        nearest, weighed = neighbours(x, hidden)
        tried = {"mean": mean[hidden], "nearest": nearest, "neighbours": weighed}
        tried["model"] = filled(trained, torch.as_tensor(x), member)[:, hidden]
        for name, values in tried.items():
            errors[name].append(np.square(values - x[:, hidden]).mean(1))
    each = {name: np.mean(values, 0) for name, values in errors.items()}  # a number an image
    assert each["model"].mean() < 0.75 * min(each[name].mean() for name in ("mean", "nearest", "neighbours"))
    for name in ("mean", "nearest", "neighbours"):
        gain = each[name] - each["model"]
        assert gain.mean() > 10 * gain.std() / len(gain) ** 0.5, name


def test_codes_of_another_image_fill_in_worse_than_the_mean(trained, digits):
    x = torch.as_tensor(digits.x_test)
    hidden = next(views(trained))
    other = filled(trained, x.roll(1, 0), hidden[0])[:, hidden[1]]
    truth = digits.x_test[:, hidden[1]]
    assert np.square(other - truth).mean() > np.square(digits.x_train.mean(0)[hidden[1]] - truth).mean()


def probe(model, digits, num=100, repeats=12):
    """Share of test labels that a linear classifier of the features gets right after ``num`` labels, each repeat."""
    train, test = (model.features(x).numpy() for x in (digits.x_train, digits.x_test))
    loc, scale = train.mean(0), train.std(0)
    scores = []
    for first in range(0, num * repeats, num):
        rows = slice(first, first + num)
        fitted = LogisticRegression(max_iter=2000).fit((train[rows] - loc) / scale, digits.y_train[rows])
        scores.append(fitted.score((test - loc) / scale, digits.y_test))
    return np.array(scores)


def test_a_linear_probe_of_the_trained_encoder_is_above_random_ones(trained, digits):
    found = probe(trained, digits)
    for seed in range(3):
        at_random = probe(MaskedAutoencoder.from_data(digits.x_train, width=32, seed=seed), digits)
        assert (found > at_random).all()
        assert found.mean() > at_random.mean() + 0.1


def test_the_decoder_detaches(digits):
    model, x = small()
    before = model.features(x)
    taken = model.encoder.state_dict()
    del model.decoder
    assert torch.equal(model.features(x), before)
    other = small(seed=5)[0]
    other.encoder.load_state_dict(taken)
    assert torch.equal(other.features(x), before)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (other.encoder, other.decoder))
    assert encoder > 4 * decoder  # asymmetric


def peeks(model, x):
    """Share of the patches whose mean depends on their own pixels, or on another image."""
    x = x.clone().requires_grad_()
    means = model.eval().decoder(model.encoder(x).mean).mean
    patches, found = model.encoder.patches, []
    for own in torch.eye(patches.num, dtype=torch.bool):
        mine = patches.join(own.unsqueeze(-1).expand(patches.num, patches.pixels))
        (slope,) = torch.autograd.grad(means[0, mine].sum(), x, retain_graph=True)
        assert (slope[0, ~mine] != 0).any()
        found.append(bool((slope[0, mine] != 0).any() or (slope[1:] != 0).any()))
    return np.mean(found)


def test_a_patch_is_never_predicted_from_itself():
    model, x = small()
    assert peeks(model, x) == 0.0
    model.encoder.group0 = torch.arange(16)  # sees everything, as one that hides nothing would
    assert peeks(model, x) == 1.0


def test_in_training_what_is_hidden_is_not_seen_and_alone_is_scored():
    model, x = small()
    model.train()
    x.requires_grad_()
    torch.manual_seed(0)
    code = model.encoder(x).mean.reshape(len(x), 16, -1)
    seen = (code != 0).any(-1)
    assert (seen.sum(-1) == 4).all()
    assert len({tuple(row) for row in seen.tolist()}) > 1  # drawn for each image
    (slope,) = torch.autograd.grad(code.square().sum(), x)
    by_patch = model.encoder.patches.split(slope)
    assert (by_patch[~seen] == 0).all()
    assert (by_patch[seen] != 0).any()
    code, target = code.detach().flatten(1), x.detach()
    scored = model.decoder(code).log_prob(target)
    parts = model.encoder.patches.split(target).clone()
    parts[seen] += 1.0
    assert torch.equal(model.decoder(code).log_prob(model.encoder.patches.join(parts)), scored)
    parts[~seen] += 1.0
    assert not torch.isclose(model.decoder(code).log_prob(model.encoder.patches.join(parts)), scored).any()


def test_codes_of_what_is_hidden_count_for_nothing():
    model, x = small()
    member = model.decoder.member[0]
    codes = model.eval().encoder(x).mean.reshape(len(x), 16, -1)
    changed = torch.where(member.unsqueeze(-1), codes, codes + 5.0)
    assert torch.equal(model.decoder.fill(codes, member), model.decoder.fill(changed, member))
    assert not torch.allclose(model.decoder.fill(codes, member), model.decoder.fill(codes + 5.0, member))


def test_it_keeps_the_contract_and_is_the_same_each_time_outside_of_training():
    model, x = small()
    program = model.program()
    report = program.check(x)
    assert report.ok, str(report)
    assert program.dim(x) == 16 * 8
    again = program.reconstruct(x)["x"]
    assert np.array_equal(again, program.reconstruct(x, seed=1)["x"])
    assert again.shape == x.shape


def test_one_seed_gives_one_model_and_no_global_draw():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, x = small(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), small(seed=2)[0].parameters(), strict=True))
    assert not torch.equal(first.features(x), small(seed=3)[0].features(x))


@pytest.mark.parametrize(
    ("num", "visible", "sizes"), [(16, 0.25, [4] * 4), (49, 0.25, [13, 12, 12, 12]), (4, 0.5, [2, 2])]
)
def test_every_patch_is_in_one_group(num, visible, sizes):
    groups = deal(num, visible, seed=0)
    assert [len(group) for group in groups] == sizes
    assert sorted(torch.cat(groups).tolist()) == list(range(num))


def test_patches_are_squares_and_the_way_back_is_exact():
    patches = Patches(36, 3)
    image = torch.arange(36.0).reshape(6, 6)
    assert torch.equal(patches.split(image.flatten())[1], image[:3, 3:].flatten())
    x = torch.randn(2, 5, 36)
    assert torch.equal(patches.join(patches.split(x)), x)
    assert (Patches(784).num, Patches(784).pixels) == (16, 49)


def test_attention_is_that_of_torch_and_a_transformer_knows_no_order():
    stream = torch.Generator().manual_seed(0)
    attention = Attention(8, 2, generator=stream).double()
    tokens = torch.randn(3, 5, 8, generator=stream, dtype=torch.float64)
    query, key, value = attention.inputs(tokens).chunk(3, -1)
    heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (query, key, value)]
    mixed = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
    assert torch.allclose(attention(tokens), attention.outputs(mixed), atol=1e-12)
    network = Transformer(8, depth=2, num_heads=2, generator=stream).double()
    assert torch.allclose(network(tokens.flip(1)), network(tokens).flip(1), atol=1e-12)
    assert torch.allclose(network(tokens[:1]), network(tokens)[:1], atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"patch": 3}, "patch"),
        ({"patch": 8}, "patch"),
        ({"visible": 0.0}, "visible"),
        ({"visible": 0.9}, "visible"),
        ({"visible": 0.01}, "visible"),
        ({"width": 30}, "width"),
        ({"code_dim": 0}, "code_dim"),
    ],
)
def test_wrong_settings_are_refused(settings, named):
    with pytest.raises(ArgumentError, match=named):
        MaskedAutoencoder.from_data(torch.rand(4, 64), **settings)


@pytest.mark.parametrize(
    ("x", "error"), [(torch.rand(4, 63), ArgumentError), (torch.ones(4, 64), DataError), (torch.rand(64), DataError)]
)
def test_wrong_data_are_refused(x, error):
    with pytest.raises(error):
        MaskedAutoencoder.from_data(x)
