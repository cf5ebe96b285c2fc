"""ViT-VQ: codes on a sphere, patches that see each other, more of a codebook in use, and an exact bound."""

from __future__ import annotations

import itertools

import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.patch_critic_penalty import PatchAdversary
from amortize.models.vit_vq import ViTVQ
from amortize.program.data import Data
from amortize.random import generator

SMALL = {"width": 16, "depth": 1}
HOW = am.Training(learning_rate=5e-3, schedule="cosine", batch_size=64, progress=False)


def binary(num=24, data_dim=64):
    return (torch.rand(num, data_dim, generator=generator(0, "binary")) < 0.4).float()


def test_the_evidence_is_the_sum_over_all_codes_and_the_bound_the_log_joint_at_the_nearest():
    """Four patches of a pixel each, of three codes: 81 configurations, in float64."""
    x = binary(6, 4).double()
    model = ViTVQ.from_data(x, 3, codebook={"dim": 2}, network=SMALL).double()
    stream = generator(1, "shaken")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    book, every = model.codebooks[0], []
    table = torch.tensor(list(itertools.product(range(3), repeat=4)))
    for codes in table:
        k = codes.expand(6, 4)
        every.append(model.priors[0]().log_prob(k) + model.decoder(book.embed(k)).log_prob(x))
    joint = torch.stack(every).detach()
    evidence = am.evidence(model.program(), x)
    torch.testing.assert_close(torch.as_tensor(evidence.log_evidence), joint.logsumexp(0))
    angles = torch.nn.functional.cosine_similarity(model.encoder(x).unsqueeze(-2), book.codes, dim=-1)
    rows = (angles.argmax(-1).unsqueeze(1) == table).all(-1).int().argmax(-1)
    data = Data.of(x)
    bound = model.objective.on(model.program(), data, seed=0).measured(data, 1, seed=0)
    torch.testing.assert_close(torch.as_tensor(bound), joint[rows, torch.arange(6)])


def test_codes_are_rounded_by_their_angle_alone():
    x = binary()
    model = ViTVQ.from_data(x, 8, network=SMALL)
    before = model.run(x)
    with torch.no_grad():
        model.encoder.code.weight.mul_(7.0)
    after = model.run(x)
    assert torch.equal(before.codes[0], after.codes[0])
    torch.testing.assert_close(before.levels[0].vectors.norm(dim=-1), torch.ones(24, 16))
    torch.testing.assert_close(before.likelihood.mean, after.likelihood.mean)


def test_a_code_hears_of_every_patch():
    """Unlike a convolution's: what is in one corner changes the vector of the opposite one."""
    x = binary(1)
    model = ViTVQ.from_data(binary(), 8, network=SMALL)
    x.requires_grad_()
    (seen,) = torch.autograd.grad(model.encoder(x)[0, 0].square().sum(), x)
    assert bool((seen.reshape(8, 8)[-2:, -2:] != 0).all())


@pytest.fixture(scope="module")
def trained():
    """Of digits in four patches; and the digits, with those that were left out."""
    data = am.data.load("digits")
    x, left_out = torch.as_tensor(data.x_train).float(), torch.as_tensor(data.x_test).float()
    model = ViTVQ.from_data(x, 64, network={"patch": 4}, prior="uniform")
    am.fit(model.program(), x, num_steps=250, seed=0, training=HOW)
    return model, x, left_out


def test_images_come_back_by_codes_of_which_most_are_in_use(trained):
    model, x, left_out = trained
    again = model.program().reconstruct(left_out, num_draws=1)["x"]
    blank = x.mean(0).expand_as(left_out)
    error, alike = ((torch.as_tensor(each) - left_out).square().mean() for each in (again, blank))
    shares = model.run(x).codes[0].flatten().bincount(minlength=64).double() / (4 * len(x))
    perplexity = float(torch.exp(-(shares * shares.clamp(min=1e-30).log()).sum()))
    print(f"error {error:.4f}, of the mean {alike:.4f}; perplexity {perplexity:.1f} of 64")
    assert error < 0.5 * alike
    assert perplexity > 32


def test_its_defaults_soon_learn_to_use_the_codes():
    """Where the decoder's places drown its codes, it is still at the mean image after as many steps."""
    data = am.data.load("digits")
    x, left_out = torch.as_tensor(data.x_train).float(), torch.as_tensor(data.x_test).float()
    model = ViTVQ.from_data(x, prior="uniform")
    how = am.Training(learning_rate=3e-3, schedule="cosine", batch_size=100, progress=False)
    am.fit(model.program(), x, num_steps=250, seed=0, training=how)
    with torch.no_grad():
        error = (model.run(left_out).likelihood.mean - left_out).square().mean()
    assert error < 0.1 * (x.mean(0) - left_out).square().mean()


def test_what_one_patch_is_told_changes_the_others_too(trained):
    """The decoder's tokens see each other: a code of another image is seen beside its patch."""
    model, _, left_out = trained
    with torch.no_grad():
        vectors = model.run(left_out[:40]).levels[0].vectors
        swapped = vectors.clone()
        swapped[:, 1] = vectors.roll(1, 0)[:, 1]
        change = (model.decoder(vectors).mean - model.decoder(swapped).mean).abs()
    parts = model.decoder.network.patches.split(change).amax((0, 2))
    assert parts[1] > 0.3
    assert parts[[0, 2, 3]].min() > 0.02


def test_grey_images_a_critic_and_the_contract():
    x = torch.rand(24, 64, generator=generator(0, "grey"))
    model = ViTVQ.from_data(x, 8, network=SMALL, decoder="normal", critic={"channels": (4,)})
    assert model.objective.penalties == (PatchAdversary(channels=(4,)),)
    report = model.program().check(x)
    assert report.ok, str(report)
    fitted = am.fit(model.program(), x, num_steps=6, training=HOW)
    assert any("critic" in name for name in fitted.extra)
    assert ViTVQ.from_data(binary(), 8, network=SMALL).objective.penalties == ()


def test_patches_of_another_size_and_priors():
    x = binary(24, 144)
    model = ViTVQ.from_data(x, 8, network={**SMALL, "patch": 6}, prior="pixelcnn")
    assert model.run(x).codes[0].shape == (24, 4)
    assert ViTVQ.from_data(x, 8, network=SMALL).run(x).codes[0].shape == (24, 16)
    assert model.program().simulate(x)[1]["x"].shape == (24, 144)


def test_what_is_refused():
    with pytest.raises(DataError, match="zeros and ones"):
        ViTVQ.from_data(torch.rand(4, 16))
    with pytest.raises(ArgumentError, match="decoder: expected one of"):
        ViTVQ.from_data(binary(), decoder="pixelcnn")
    with pytest.raises(ArgumentError, match="network: expected some of the settings"):
        ViTVQ.from_data(binary(), network={"heads": 2})
    with pytest.raises(ArgumentError, match="patch: expected a side"):
        ViTVQ.from_data(binary(), network={"patch": 3})
    with pytest.raises(ArgumentError, match="square images"):
        ViTVQ.from_data(binary(data_dim=15))
    with pytest.raises(ArgumentError, match="codebook: expected some of"):
        ViTVQ.from_data(binary(), codebook={"size": 2})
