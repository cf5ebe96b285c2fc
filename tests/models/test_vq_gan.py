"""VQ-GAN: scored as the discrete model that it is; sharper with its critic than without, at a cost in likelihood."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import amortize as am
from amortize.diagnostics.frechet import frechet_distance
from amortize.errors import ArgumentError, DataError
from amortize.models.patch_critic_penalty import PatchAdversary
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.vq_gan import VQGAN
from amortize.program.data import Data
from amortize.random import generator

SIDE = 8
HOW = am.Training(learning_rate=5e-3, schedule="cosine", batch_size=64, progress=False)


def grey(num=24, data_dim=16):
    return torch.rand(num, data_dim, generator=generator(0, "grey"))


def energy(images):
    """Squared differences of neighbouring pixels, their mean over images."""
    grid = np.asarray(images, dtype=np.float64).reshape(-1, SIDE, SIDE)
    return np.square(np.diff(grid, axis=1)).sum() / len(grid) + np.square(np.diff(grid, axis=2)).sum() / len(grid)


@dataclass(frozen=True)
class Digits:
    """Real images that no model has seen, and a model's reconstructions of them."""

    real: np.ndarray
    again: np.ndarray
    bound: float
    extra: dict[str, torch.Tensor]

    @property
    def error(self) -> float:
        return float(np.sqrt(np.square(self.real - self.again).mean()))


def fitted_to_digits(**critic):
    data = am.data.load("digits", binarise="grey")
    x, real = torch.as_tensor(data.x_train).float(), torch.as_tensor(data.x_test).float()
    model = VQGAN.from_data(x, 16, channels=(16, 16), prior="uniform", critic=critic, seed=0)
    fitted = am.fit(model.program(), x, num_steps=500, seed=0, training=HOW)
    held_out = Data.of(real)
    bound = model.objective.on(fitted.program, held_out, seed=0).measured(held_out, 1, seed=0).mean()
    again = fitted.program.reconstruct(real, num_draws=1)["x"]
    return Digits(real.numpy(), again, float(bound), fitted.extra)


@pytest.fixture(scope="module")
def plain():
    return fitted_to_digits(adversarial=0.0, matching=0.0)


@pytest.fixture(scope="module")
def sharpened():
    return fitted_to_digits()


def test_a_critic_makes_reconstructions_sharper(plain, sharpened):
    """Their gradient energy comes nearer to the data's, for which squared error and likelihood pay."""
    real, blurred, sharp = (energy(images) for images in (plain.real, plain.again, sharpened.again))
    print(f"energy {real:.2f}, {blurred:.2f} without a critic, {sharp:.2f} with it")
    assert blurred < 0.9 * real
    assert abs(real - sharp) < 0.6 * abs(real - blurred)
    assert sharpened.error > plain.error
    assert sharpened.bound < plain.bound


def test_the_distribution_of_patches_is_nearer_to_the_data_s(plain, sharpened):
    """The squared Frechet distance of patches of 3 x 3 pixels."""

    def patches(images):
        found = np.lib.stride_tricks.sliding_window_view(images.reshape(-1, SIDE, SIDE), (3, 3), axis=(1, 2))
        return found[:, ::2, ::2].reshape(-1, 9)

    distances = [frechet_distance(patches(each.again), patches(each.real)) for each in (plain, sharpened)]
    print(distances)
    assert distances[1].squared < 0.7 * distances[0].squared


def test_a_critic_that_is_trained_is_kept_with_the_fit(plain, sharpened):
    names = [name for name in sharpened.extra if "critic" in name]
    assert len(names) == 6
    assert all(not torch.equal(sharpened.extra[name], plain.extra[name]) for name in names if "weight" in name)


def test_the_evidence_is_the_sum_over_all_codes_and_the_bound_the_log_joint_at_the_nearest():
    """One position on images of 2 x 2, of three codes, in float64; the critic has no part in it."""
    x = grey(7, 4).double()
    model = VQGAN.from_data(x, 3, codebook={"dim": 2}, channels=(4,)).double()
    stream = generator(1, "shaken")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
    book, every = model.codebooks[0], []
    for codes in itertools.product(range(3), repeat=1):
        k = torch.tensor([codes]).expand(7, 1)
        every.append(model.priors[0]().log_prob(k) + model.decoder(book.embed(k)).log_prob(x))
    evidence = am.evidence(model.program(), x)
    torch.testing.assert_close(torch.as_tensor(evidence.log_evidence), torch.stack(every).logsumexp(0).detach())
    assert (evidence.se == 0).all()
    data = Data.of(x)
    bound = model.objective.on(model.program(), data, seed=0).measured(data, 1, seed=0)
    nearest = torch.cdist(model.encoder(x), book.codes.unsqueeze(0)).argmin(-1).squeeze(-1)
    expected = torch.stack(every)[nearest, torch.arange(7)].detach()
    torch.testing.assert_close(torch.as_tensor(bound), expected)


def test_the_loss_without_shares_is_that_of_a_vq_vae():
    """All of it but the critic's own hinge, which nothing in the model enters."""
    x = grey(24, 64)
    model = VQGAN.from_data(x, 4, channels=(4, 4), critic={"adversarial": 0.0, "matching": 0.0})
    data = Data.of(x)
    losses = [
        objective.on(model.program(), data, seed=0) for objective in (model.objective, QuantisedELBO())
    ]  # one after the other moves the codebook
    books = {name: value.clone() for name, value in model.codebooks.state_dict().items()}
    gradients = []
    for loss in losses:
        model.codebooks.load_state_dict(books)
        loss.progress = 0.0
        found = loss(data).loss
        names = [name for name, _ in model.named_parameters()]
        gradients.append(dict(zip(names, torch.autograd.grad(found, list(model.parameters()), allow_unused=True))))  # noqa: B905
    for name, ours in gradients[0].items():
        theirs = gradients[1][name]
        assert (ours is None) == (theirs is None) == name.startswith("priors"), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def test_the_added_loss_pulls_as_hard_as_its_share_of_the_likelihood():
    """At the decoder's last layer, whatever the scale of the likelihood."""
    x = grey(24, 64)
    model = VQGAN.from_data(x, 4, channels=(4, 4))
    last = model.decoder.network.layers[-1].weight
    for share in (0.2, 3.0):
        term = PatchAdversary(adversarial=share, matching=0.0).on(model, Data.of(x), seed=0)
        for log_sigma in (0.0, -2.0):
            with torch.no_grad():
                model.decoder.log_sigma.fill_(log_sigma)
            run = model.run(x)
            pulls = [
                torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
                for loss in (term(x, run), -run.likelihood.log_prob(x).mean())
            ]
            torch.testing.assert_close(pulls[0], share * pulls[1], rtol=1e-4, atol=0)


def test_a_perceptual_distance_of_the_user_s():
    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Conv2d(1, 2, 3)
            self.calls = 0

        def forward(self, one, other):
            self.calls += 1
            images = [self.kernel(each.reshape(-1, 1, SIDE, SIDE)) for each in (one, other)]
            return (images[0] - images[1]).square().mean((1, 2, 3))

    torch.manual_seed(0)
    edges, x = Edges(), grey(24, 64)
    before = edges.kernel.weight.clone()
    model = VQGAN.from_data(x, 4, channels=(4, 4), critic={"perceptual": edges, "channels": [4]})
    fitted = am.fit(model.program(), x, num_steps=6, training=HOW)
    assert edges.calls > 0
    assert torch.equal(edges.kernel.weight, before)
    penalty = fitted.settings["objective"]["penalties"][0]
    assert penalty == {
        "name": "patch-adversary", "adversarial": 0.8, "matching": 1.0, "channels": [4], "perceptual": "Edges",
    }  # fmt: skip


def test_the_contract_and_samples():
    x = grey(24, 64)
    model = VQGAN.from_data(x, 4, channels=(4, 4))
    program = model.program()
    report = program.check(x)
    assert report.ok, str(report)
    drawn = program.simulate(x, seed=0)[1]["x"]
    assert drawn.shape == (24, 64)
    binary = VQGAN.from_data((x > 0.5).float(), 4, decoder="bernoulli")
    assert binary.program().check((x > 0.5).float()).ok


def test_what_is_refused():
    with pytest.raises(DataError, match="zeros and ones"):
        VQGAN.from_data(grey(), decoder="bernoulli")
    with pytest.raises(ArgumentError, match="decoder: expected one of"):
        VQGAN.from_data(grey(), decoder="laplace")
    with pytest.raises(ArgumentError, match="square images"):
        VQGAN.from_data(grey(5, 15))
    with pytest.raises(ArgumentError, match=r"critic: expected.*adversarial"):
        VQGAN.from_data(grey(), critic={"weight": 1.0})
    with pytest.raises(ArgumentError, match="PatchAdversary adversarial"):
        VQGAN.from_data(grey(), critic={"adversarial": -1.0})
    with pytest.raises(ArgumentError, match="PatchAdversary channels"):
        VQGAN.from_data(grey(), critic={"channels": 8})
    with pytest.raises(ArgumentError, match="PatchAdversary perceptual"):
        VQGAN.from_data(grey(), critic={"perceptual": 3})
    with pytest.raises(ArgumentError, match="codebook: expected some of"):
        VQGAN.from_data(grey(), codebook={"size": 3})
    with pytest.raises(ArgumentError, match="dim"):
        VQGAN.from_data(grey(), codebook={"dim": 0})
