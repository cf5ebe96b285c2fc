"""The critic of patches: who learns from what, how losses are weighed, how far a patch reaches, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amortize.errors import ArgumentError
from amortize.models.patch_critic import PatchCritic, PatchGame, balanced
from amortize.random import generator


def critic(data_dim=64, channels=(4, 8)):
    return PatchCritic(data_dim, channels=channels, generator=generator(0, "critic")).double()


@pytest.fixture
def images():
    stream = generator(0, "images")
    return [torch.rand(5, 64, generator=stream, dtype=torch.float64) for _ in range(2)]


def test_each_side_learns_from_its_own_loss_alone(images):
    """The critic's gradient is that of the hinge, whatever the decoder's losses weigh; the decoder's has no hinge."""
    data, made = images
    shift = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    found = {}
    for weights in ((0.0, 0.0), (0.7, 2.0)):
        game = PatchGame(critic(), adversarial=weights[0], matching=weights[1])
        moved = made + shift
        total = game(data, moved, (data - moved).square().sum(), last=shift)
        found[weights] = torch.autograd.grad(total, [*game.parameters(), shift], allow_unused=True)
    hinge = PatchGame(critic(), adversarial=0.0, matching=0.0)
    alone = torch.autograd.grad(hinge.of_the_critic(data, made), list(hinge.parameters()))
    for gradients in found.values():
        for ours, theirs in zip(gradients, alone, strict=False):
            torch.testing.assert_close(ours, theirs)
    assert found[0.0, 0.0][-1] is None
    assert found[0.7, 2.0][-1].norm() > 0


def test_a_loss_s_gradient_is_as_long_as_asked_for(images):
    data, made = images
    shift = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    distortion = 37 * (data - made - shift).square().sum()
    long = torch.autograd.grad(distortion, shift, retain_graph=True)[0].norm()
    scores = critic()(made + shift)[0]
    for share in (0.3, 2.0):
        weighed = balanced(-scores.mean(), distortion, last=shift, share=share)
        (slope,) = torch.autograd.grad(weighed, shift, retain_graph=True)
        torch.testing.assert_close(slope.norm(), share * long, rtol=1e-6, atol=0)
        (plain,) = torch.autograd.grad(-scores.mean(), shift, retain_graph=True)
        torch.testing.assert_close(slope / slope.norm(), plain / plain.norm())
    flat = balanced(0.0 * scores.sum(), distortion, last=shift, share=1.0)
    assert torch.autograd.grad(flat, shift)[0].abs().max() == 0


def test_the_hinge_in_closed_form(images):
    game = PatchGame(critic(), adversarial=1.0, matching=1.0)
    for parameter in game.parameters():
        nn.init.zeros_(parameter)
    assert game.of_the_critic(*images) == 2.0
    nn.init.constant_(game.critic.last.bias, 0.25)
    assert game.of_the_critic(*images) == 0.75 + 1.25
    nn.init.constant_(game.critic.last.bias, 3.0)
    assert game.of_the_critic(*images) == 4.0  # the data lie beyond the margin


def test_a_score_sees_its_patch_alone():
    """Two layers that halve the side, and the last one: 15 pixels across."""
    network = critic(784, (4, 8))
    x = torch.zeros(1, 784, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.1)
    scores, features = network(x)
    assert scores.shape == (1, 7, 7)
    assert [tuple(each.shape[1:]) for each in features] == [(4, 14, 14), (8, 7, 7)]
    (seen,) = torch.autograd.grad(scores[0, 3, 3], x)
    rows = (seen.reshape(28, 28) != 0).any(1).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 15


def test_a_perceptual_distance_takes_the_features_place_and_is_not_trained(images):
    data, made = images
    seen = []

    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, one, other):
            seen.append((one, other))
            return self.scale * (one - other).abs().mean(-1)

    distance = Distance()
    game = PatchGame(critic(), adversarial=0.0, matching=1.0, perceptual=distance)
    assert all(parameter is not distance.scale for parameter in game.parameters())
    shift = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    distortion = (data - made - shift).square().sum()
    total = game(data, made + shift, distortion, last=shift)
    (slope,) = torch.autograd.grad(total, shift, retain_graph=True)
    (expected,) = torch.autograd.grad((data - made - shift).abs().mean(), shift, retain_graph=True)
    (length,) = torch.autograd.grad(distortion, shift)
    torch.testing.assert_close(slope, expected / expected.norm() * length.norm(), rtol=1e-6, atol=1e-9)
    assert seen[0][0] is data


def test_a_critic_learns_to_tell_blurred_images_from_sharp_ones():
    """And one that is given the same images twice learns nothing: what it descends is about the images."""
    stream = generator(1, "lines")
    sharp = (torch.rand(256, 8, 8, generator=stream) > 0.7).float()
    blurred = nn.functional.avg_pool2d(sharp[:, None], 3, stride=1, padding=1)[:, 0]
    losses = {}
    for name, made in (("blurred", blurred), ("same", sharp)):
        network = PatchCritic(64, channels=(8,), generator=generator(0, "critic"))
        game = PatchGame(network, adversarial=1.0, matching=1.0)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(60):
            optimiser.zero_grad()
            loss = game.of_the_critic(sharp.flatten(1), made.flatten(1))
            loss.backward()
            optimiser.step()
        losses[name] = float(loss.detach())
    assert losses["blurred"] < 0.2
    assert losses["same"] >= 2.0


def test_what_is_refused():
    with pytest.raises(ArgumentError, match="square images"):
        critic(60)
    with pytest.raises(ArgumentError, match="channels"):
        critic(channels=())
    with pytest.raises(ArgumentError, match="channels"):
        critic(channels=(0,))
