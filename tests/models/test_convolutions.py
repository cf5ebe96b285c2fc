"""Convolutional networks: sizes, seeds, the mirror, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from amortize.errors import ArgumentError
from amortize.models.convolutions import ConvDecoder, ConvEncoder, ResidualBlock, side_of
from amortize.models.vae_parts import reading, writing


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [1, 5, 7, 8, 28])
@pytest.mark.parametrize("residual", [False, True])
def test_there_and_back_again(side, residual):
    encoder = ConvEncoder(side**2, 6, channels=(4, 3), generator=stream(), residual=residual)
    decoder = ConvDecoder(6, side**2, channels=(3, 4), generator=stream(), residual=residual)
    assert encoder(torch.rand(5, side**2)).shape == (5, 6)
    assert decoder(torch.rand(5, 6)).shape == (5, side**2)
    assert decoder(torch.rand(2, 5, 6)).shape == (2, 5, side**2)


def test_the_encoder_s_first_step_is_a_convolution_of_the_image():
    encoder = ConvEncoder(9, 2, channels=(1,), generator=stream()).double()
    x = torch.rand(4, 9, dtype=torch.float64, generator=stream(1))
    step = encoder.layers[0]
    padded = functional.pad(x.reshape(4, 3, 3), (1, 1, 1, 1))
    by_hand = [(padded[:, i : i + 3, j : j + 3] * step.weight[0, 0]).sum((1, 2)) for i in (0, 2) for j in (0, 2)]
    hidden = functional.silu(torch.stack(by_hand, -1))
    torch.testing.assert_close(encoder(x), hidden @ encoder.last.weight.T)


def test_each_output_of_the_decoder_can_be_moved_by_the_code():
    decoder = ConvDecoder(3, 49, channels=(5, 4), generator=stream())
    z = torch.rand(1, 3, generator=stream(1))
    slopes = torch.autograd.functional.jacobian(decoder, z).reshape(49, 3)
    assert bool((slopes.abs().amax(1) > 0).all())


def test_a_residual_block_begins_as_the_identity_and_does_not_stay_it():
    block = ResidualBlock(3, generator=stream())
    images = torch.randn(2, 3, 4, 4, generator=stream(1))
    torch.testing.assert_close(block(images), images)
    block(images).square().sum().backward()
    assert any(bool((p.grad.abs() > 0).any()) for p in block.parameters())


def test_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (
        ConvEncoder(16, 2, channels=(3,), generator=stream(seed), residual=True).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.parametrize("data_dim", [0, 13, 63, 785])
def test_what_is_no_square_is_refused(data_dim):
    with pytest.raises(ArgumentError, match="square"):
        side_of(data_dim)
    with pytest.raises(ArgumentError, match="square"):
        reading(data_dim, 2, network="conv", hidden=None, generator=stream())


@pytest.mark.parametrize("channels", [(), (0,), (4, -1)])
def test_channels_are_counts(channels):
    with pytest.raises(ArgumentError, match="channels"):
        ConvEncoder(16, 2, channels=channels, generator=stream())


def test_networks_have_names():
    with pytest.raises(ArgumentError, match="'mlp', 'conv', 'residual'"):
        writing(2, 16, network="transformer", hidden=None, generator=stream())
