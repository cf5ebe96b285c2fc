"""The denoising autoencoder learns the score, cleans what it sees, and only in training makes noise of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.autoencoder import Autoencoder
from amortize.models.denoising_autoencoder import Corrupted, DenoisingAutoencoder, noise_to_target
from amortize.models.point_parts import Columns, FixedNormal, codes, reconstruction_error
from amortize.random import pyro_rng

CENTRES = torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.1]])
WIDTH = 0.7


def mixture(num: int, *, seed: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    which = torch.randint(3, (num,), generator=stream)
    return CENTRES[which] + WIDTH * torch.randn(num, 2, generator=stream)


def score(x: torch.Tensor) -> torch.Tensor:
    """Gradient of the log density of the mixture, in closed form."""
    away = (CENTRES - x[:, None]).double()
    weights = torch.softmax(-away.square().sum(-1) / (2 * WIDTH**2), 1)
    return (weights[..., None] * away).sum(1) / WIDTH**2


def against_score(noise: float, *, noisy: bool = True) -> tuple[float, float]:
    """Cosine between the learned and the true score on new points, and the relative error."""
    model = DenoisingAutoencoder(Columns(torch.zeros(2), torch.ones(2)), 8, hidden=(32,), noise=noise)
    model.train(noisy)
    settings = am.Training(learning_rate=3e-2, schedule="exponential", batch_size=1024, progress=False)
    x, new = mixture(8192, seed=0), mixture(2000, seed=1)
    am.fit(model.program(), x, objective=model.objective, num_steps=1500, training=settings)
    learned, true = model.score(new).double(), score(new)
    return float((learned * true).sum() / (learned.norm() * true.norm())), float((learned - true).norm() / true.norm())


def test_the_score_of_a_mixture_is_learned_the_better_the_smaller_the_noise():
    cosines, errors = zip(*(against_score(noise) for noise in (0.8, 0.5, 0.3)), strict=True)
    assert cosines[-1] > 0.95
    assert errors[0] > 1.2 * errors[1] > 1.2**2 * errors[2]


def test_without_noise_in_training_there_is_no_score():
    assert against_score(0.3, noisy=False)[0] < 0.9


def test_a_linear_one_has_the_score_of_a_gaussian():
    stream = torch.Generator().manual_seed(2)
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    x = torch.randn(20, 2, generator=stream, dtype=torch.float64)
    best = cov @ torch.linalg.inv(cov + 0.25 * torch.eye(2, dtype=torch.float64))  # r(t) = E[x | t]
    model = DenoisingAutoencoder(Columns(torch.zeros(2), torch.ones(2)), 2, hidden=(), noise=0.5).double()
    with torch.no_grad():
        for module, weight in ((model.encoder.network[1], torch.eye(2)), (model.decoder.network, best)):
            for parameter in module.parameters():
                parameter.zero_()
            module.bypass.layers[0].weight.copy_(weight)
    exact = -x @ torch.linalg.inv(cov + 0.25 * torch.eye(2, dtype=torch.float64))  # of the data with the noise on them
    torch.testing.assert_close(model.score(x), exact, rtol=1e-10, atol=1e-12)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = am.data.load("digits", binarise="grey")
    return tuple(torch.as_tensor(part).reshape(-1, 64).float() for part in (data.x_train, data.x_test))


def trained(model: DenoisingAutoencoder | Autoencoder, x: torch.Tensor) -> DenoisingAutoencoder | Autoencoder:
    settings = am.Training(learning_rate=5e-3, schedule="exponential", batch_size=128, progress=False)
    am.fit(model.program(), x, objective=model.objective, num_steps=600, training=settings)
    return model


def test_noisy_digits_come_out_cleaner():
    x, y = digits()
    levels = (0.0, 0.5, 1.0, 1.5)
    plain = noise_to_target(trained(Autoencoder.from_data(x, 16), x), y, levels)
    robust = noise_to_target(trained(DenoisingAutoencoder.from_data(x, 16, noise=1.0), x), y, levels)
    assert plain[0] < robust[0]  # it pays for it where there is no noise
    assert robust[2] < 0.8 * plain[2]
    assert robust[3] < 0.8 * plain[3]
    assert (np.diff(robust) > 0).all()
    assert robust[-1] - robust[0] < 0.7 * (plain[-1] - plain[0])


def test_masked_digits_are_filled_in():
    x, y = digits()
    seen = torch.rand(y.shape, generator=torch.Generator().manual_seed(5)) >= 0.4
    masked = torch.where(seen, y, x.mean(0))
    plain = trained(Autoencoder.from_data(x, 16), x)
    filling = trained(DenoisingAutoencoder.from_data(x, 16, corruption="masking", noise=0.4), x)
    assert reconstruction_error(filling, masked, y) < 0.95 * reconstruction_error(plain, masked, y)


def test_the_curve_starts_at_the_clean_error_and_takes_the_noise_it_says():
    x, _ = digits()
    model = DenoisingAutoencoder.from_data(x, 4)
    assert noise_to_target(model, x, (0.0,))[0] == pytest.approx(reconstruction_error(model, x), rel=1e-6)
    again = noise_to_target(model, x, (0.7,), seed=3)
    assert again == noise_to_target(model, x, (0.7,), seed=3) != noise_to_target(model, x, (0.7,), seed=4)


@pytest.mark.parametrize(("corruption", "noise"), [("gaussian", 0.8), ("masking", 0.3)])
def test_corruption_is_as_asked_and_in_training_only(corruption, noise):
    corrupt, ones = Corrupted(corruption, noise), torch.ones(200, 100)
    assert torch.equal(corrupt.eval()(ones), ones)
    with pyro_rng(0, "test"):
        seen = corrupt.train()(ones)
    if corruption == "gaussian":
        assert float((seen - ones).std()) == pytest.approx(noise, rel=0.03)  # 4 standard errors are 2 %
    else:
        assert set(seen.unique().tolist()) == {0.0, 1.0}
        assert float((seen == 0).float().mean()) == pytest.approx(noise, abs=0.013)  # 4 standard errors


def test_training_aims_at_clean_data():
    x = digits()[0][:50].double()
    model = DenoisingAutoencoder.from_data(x, 4, noise=0.6).double()
    program = model.program()
    data = program.prepare(x)
    loss = model.objective.on(program, data, seed=0)
    with pyro_rng(0, "test"):
        found = float(loss(data).loss.detach())
    decoder = model.decoder
    assert isinstance(decoder, FixedNormal)
    with pyro_rng(0, "test"), torch.no_grad():
        expected = -float(model.decoder(model.encoder(x).mean).log_prob(x).mean())
    assert found == pytest.approx(expected, rel=1e-12)
    clean = -float(decoder(codes(model, x)).log_prob(x).detach().mean())
    assert found != pytest.approx(clean, rel=1e-3)


@pytest.mark.parametrize("corruption", ["gaussian", "masking"])
def test_it_keeps_the_contract(corruption):
    x = digits()[0][:30]
    model = DenoisingAutoencoder.from_data(x, 3, corruption=corruption)
    report = model.program().check(x)
    assert report.ok, str(report)
    assert torch.equal(codes(model, x), codes(model, x))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"latent_dim": 0}, "latent_dim: expected"),
        ({"corruption": "salt"}, "corruption: expected 'gaussian' or 'masking'"),
        ({"noise": 0.0}, "noise: expected a positive number"),
        ({"corruption": "masking", "noise": 1.0}, r"noise: expected a number in \(0, 1\)"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ArgumentError, match=match):
        DenoisingAutoencoder.from_data(torch.eye(5), **settings)
    with pytest.raises(DataError, match="x: expected"):
        DenoisingAutoencoder.from_data(torch.ones(4, 3))
    masking = DenoisingAutoencoder.from_data(torch.eye(5), corruption="masking")
    with pytest.raises(ArgumentError, match="score: expected"):
        masking.score(torch.eye(5))
    with pytest.raises(ArgumentError, match="levels: expected"):
        noise_to_target(masking, torch.eye(5), (-1.0,))
    with pytest.raises(ArgumentError, match="expected a deterministic autoencoder"):
        noise_to_target(am.models.BernoulliVAE(5, 2), torch.eye(5), (1.0,))
