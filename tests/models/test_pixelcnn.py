"""The PixelCNN: a normalised density, windows that are exactly the sight, draws and means that are its own."""

from __future__ import annotations

import itertools

import pytest
import torch

from amortize.errors import ArgumentError
from amortize.models.pixelcnn import PixelCNN
from amortize.random import generator, pyro_rng
from tests.statistics import z_value


def decoder(side=3, sight=1, **settings):
    """A decoder in float64 whose pixels lean on the code and on one another."""
    made = PixelCNN(2, side, sight=sight, hidden=(4,), channels=5, **settings).double()
    with torch.no_grad():
        made.bias.uniform_(-1.0, 1.0, generator=generator(0, "bias"))
        for part in (made.window, made.exit):
            if part is not None:
                part.weight.mul_(3.0)
    return made


def images(num_pixels):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=num_pixels)), dtype=torch.float64)


@pytest.fixture
def z():
    return torch.randn(2, 2, generator=generator(1, "z"), dtype=torch.float64)


@pytest.mark.parametrize("sight", [0, 1, 2])
def test_all_images_together_have_probability_one(sight, z):
    log_prob = decoder(sight=sight)(z[0]).expand([512]).log_prob(images(9))
    torch.testing.assert_close(log_prob.logsumexp(0).exp(), torch.ones((), dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sight", [0, 1, 2, 3, 9])
def test_a_pixel_sees_its_window_and_nothing_else(sight, z):
    side, made = 5, decoder(side=5, sight=sight)
    x = torch.rand(25, generator=generator(2, "x"), dtype=torch.float64)
    entered = made(z[0]).entered
    slopes = torch.autograd.functional.jacobian(lambda image: made.logits(image, entered), x)
    for i, j in itertools.product(range(25), repeat=2):
        rows, columns = i // side - j // side, abs(i % side - j % side)
        assert bool(slopes[i, j] != 0) == (j < i and rows <= sight and columns <= sight), (i, j)


@pytest.mark.parametrize("sight", [0, 1, 2])
def test_one_pixel_at_a_time_gives_the_logits_of_all_at_once(sight, z):
    made = decoder(sight=sight)
    x = images(9)[torch.tensor([37, 411])]
    fn = made(z)
    alone = [made.logit(pixel, made.canvas(x), fn.entered) for pixel in range(9)]
    torch.testing.assert_close(torch.stack(alone, -1), made.logits(x, fn.entered))


def test_draws_have_the_density_s_frequencies(z):
    fn, num = decoder(side=2)(z[0]), 20_000
    with pyro_rng(0, "draws"):
        drawn = fn.sample((num,))
    chances = fn.expand([16]).log_prob(images(4)).exp()
    found = (drawn.unsqueeze(1) == images(4)).all(-1).double().mean(0)
    assert bool(((found - chances).abs() < z_value(16) * (chances * (1 - chances) / num).sqrt()).all())


def test_the_mean_is_unbiased_and_exact_where_pixels_are_independent(z):
    fn, num = decoder(side=2)(z[0]), 4000
    with pyro_rng(0, "means"):
        means = fn.expand([num]).mean
    truth = (fn.expand([16]).log_prob(images(4)).exp().unsqueeze(-1) * images(4)).sum(0)
    assert bool((means.std(0)[1:] > 0.01).all())  # it is an estimate: all but the first pixel lean on a draw
    assert bool(((means.mean(0) - truth).abs() < z_value(4) * means.std(0) / num**0.5 + 1e-12).all())
    blind = decoder(side=2, sight=0)
    torch.testing.assert_close(blind(z).mean, blind.logits(torch.zeros(2, 4), blind(z).entered).sigmoid())


def test_batches_of_codes_and_gradients(z):
    made = decoder()
    codes = torch.stack([z, z + 1.0]).requires_grad_()
    x = images(9)[5]
    together = made(codes).log_prob(x.expand(2, 2, 9))
    alone = torch.stack([made(code).log_prob(x) for code in codes.flatten(0, 1)]).reshape(2, 2)
    torch.testing.assert_close(together, alone)
    (slope,) = torch.autograd.grad(together.sum(), codes)
    assert bool((slope != 0).all())
    assert made(codes).sample((3,)).shape == (3, 2, 2, 9)


def test_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (PixelCNN(2, 3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_sight_beyond_the_image_is_all_of_it():
    assert PixelCNN(2, 3, sight=99).sight == 2


@pytest.mark.parametrize(
    ("sizes", "named"), [((0, 3), "latent_dim"), ((2, 0), "side"), ((2, 3, -1), "sight"), ((2, 3, 1, 0), "channels")]
)
def test_sizes_must_make_sense(sizes, named):
    latent_dim, side, *rest = sizes
    with pytest.raises(ArgumentError, match=named):
        PixelCNN(latent_dim, side, **dict(zip(("sight", "channels"), rest, strict=False)))
