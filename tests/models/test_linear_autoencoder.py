"""The linear autoencoder: it finds the principal subspace, and nothing less does."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.linear_autoencoder import LinearAutoencoder, principal_axes
from amortize.models.point_parts import Columns, codes, reconstruction_error

SETTINGS = am.Training(learning_rate=1e-2, schedule="exponential", batch_size=1442, progress=False)


def digits() -> torch.Tensor:
    return torch.as_tensor(am.data.load("digits", binarise="grey").x_train).reshape(-1, 64).double()


def wine() -> torch.Tensor:
    return torch.as_tensor(am.data.load("wine").x_train).double()


def angle(model: LinearAutoencoder, axes: torch.Tensor) -> float:
    """Largest principal angle between the decoder's columns and the axes, radians."""
    return float(scipy.linalg.subspace_angles(model.weight.detach().numpy(), axes.numpy()).max())


@pytest.mark.parametrize(
    ("load", "latent_dim", "scaling", "num_steps"), [(digits, 4, "shared", 1200), (wine, 3, "own", 2000)]
)
def test_training_finds_the_principal_subspace_and_its_error(load, latent_dim, scaling, num_steps):
    x = load()
    model = LinearAutoencoder.from_data(x, latent_dim, scaling=scaling).double()
    axes, least = principal_axes(x, latent_dim, scaling=scaling)
    assert angle(model, axes) > 0.5  # nothing was given away at the start
    am.fit(model.program(), x, objective=model.objective, num_steps=num_steps, training=SETTINGS)
    assert angle(model, axes) < 1e-2
    assert least * (1 - 1e-9) <= reconstruction_error(model, x) < least * (1 + 1e-3)


def test_a_decoder_alone_does_not_find_it():
    x = wine()
    model = LinearAutoencoder.from_data(x, 3, scaling="own").double()
    model.encoder.requires_grad_(False)  # at random weights
    am.fit(model.program(), x, objective=model.objective, num_steps=2000, training=SETTINGS)
    axes, least = principal_axes(x, 3, scaling="own")
    assert angle(model, axes) > 0.1
    assert reconstruction_error(model, x) > 1.05 * least


def test_the_reconstruction_term_is_a_squared_error():
    x = wine()[:7]
    model = LinearAutoencoder.from_data(x, 2, scaling="own", noise_scale=0.3).double()
    fitted = am.fit(model.program(), x, objective=model.objective, num_steps=1, training=SETTINGS)
    fresh = LinearAutoencoder.from_data(x, 2, scaling="own", noise_scale=0.3).double()
    scale = 0.3 * fresh.decoder.scale
    constant = scale.log().sum() + 0.5 * 13 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    expected = -0.5 * 13 * reconstruction_error(fresh, x) / 0.3**2 - float(constant)
    assert fitted.history["elbo"].iloc[0] == pytest.approx(expected, rel=1e-12)
    assert "0 rate" in fitted.bound


def test_columns_that_never_change_have_scale_one():
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [2.0, 2.0, 6.0]])
    own, shared = Columns.of(x, "own"), Columns.of(x, "shared")
    torch.testing.assert_close(own.scale, torch.tensor([(2 / 3) ** 0.5, 1.0, 8**0.5]))
    torch.testing.assert_close(shared.scale, torch.full((3,), ((2 / 3 + 8) / 3) ** 0.5))
    torch.testing.assert_close(own.loc, torch.tensor([2.0, 2.0, 2.0]))


def test_it_keeps_the_contract_and_leaves_global_randomness_alone():
    x, state = wine().float(), torch.random.get_rng_state()
    model = LinearAutoencoder.from_data(x, 3, scaling="own", seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    report = model.program().check(x[:20])
    assert report.ok, str(report)
    assert codes(model, x).shape == (len(x), 3)
    assert model.encoder.training  # as it was before


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"latent_dim": 13}, ArgumentError, "latent_dim: expected 1 to 12"),
        ({"latent_dim": 0}, ArgumentError, "latent_dim"),
        ({"scaling": "none"}, ArgumentError, "scaling: expected 'shared' or 'own'"),
        ({"noise_scale": 0.0}, ArgumentError, "noise_scale: expected a positive number"),
    ],
)
def test_wrong_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        LinearAutoencoder.from_data(wine(), **settings)


@pytest.mark.parametrize("bad", [torch.ones(4, 3), torch.zeros(3), torch.full((3, 2), float("nan"))])
def test_wrong_data_are_refused(bad):
    with pytest.raises(DataError, match="x: expected"):
        LinearAutoencoder.from_data(bad, 1)
    good = LinearAutoencoder.from_data(torch.eye(4), 1)
    with pytest.raises(DataError, match="target: expected shape"):
        reconstruction_error(good, torch.eye(4), torch.ones(3, 4))


def test_other_models_have_no_such_error():
    with pytest.raises(ArgumentError, match="expected a deterministic autoencoder, got BernoulliVAE"):
        reconstruction_error(am.models.BernoulliVAE(4, 2), torch.eye(4))
