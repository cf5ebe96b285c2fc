"""Three non-linear layers bring nothing over principal components; five do, and only because they are not linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.autoencoder import Autoencoder
from amortize.models.linear_autoencoder import principal_axes
from amortize.models.point_parts import codes, reconstruction_error


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = am.data.load("digits", binarise="grey")
    return tuple(torch.as_tensor(part).reshape(-1, 64).double() for part in (data.x_train, data.x_test))


def trained(model: Autoencoder, x: torch.Tensor, num_steps: int) -> Autoencoder:
    settings = am.Training(learning_rate=1e-2, schedule="exponential", batch_size=128, progress=False)
    am.fit(model.program(), x, objective=model.objective, num_steps=num_steps, training=settings)
    return model


def error_of_axes(x: torch.Tensor, y: torch.Tensor, latent_dim: int) -> float:
    """What the principal axes of x leave of y, in the unit of `reconstruction_error`."""
    axes, _ = principal_axes(x, latent_dim)
    scale = x.var(0, correction=0).mean().sqrt()
    centred = (y - x.mean(0)) / scale
    return float((centred - centred @ axes @ axes.T).square().mean())


def test_three_layers_come_to_the_principal_components_error_and_no_further():
    x, _ = digits()
    _, least = principal_axes(x, 2)
    model = trained(Autoencoder.from_data(x, 2, hidden=()).double(), x, 1200)
    assert model.num_layers == 3
    assert least * (1 - 1e-6) <= reconstruction_error(model, x) < 1.03 * least


@pytest.mark.parametrize("seed", range(5))
def test_no_weights_of_three_layers_beat_the_principal_components(seed):
    x, _ = digits()
    model = Autoencoder.from_data(x, 3, hidden=(), seed=seed).double()
    with torch.no_grad():  # the best affine readout of any code, by least squares
        code = torch.cat([codes(model, x), torch.ones(len(x), 1, dtype=torch.float64)], 1)
        standard = (x - model.decoder.loc) / model.decoder.scale
        left = standard - code @ torch.linalg.lstsq(code, standard).solution
    assert float(left.square().mean()) >= principal_axes(x, 3)[1]


def test_five_layers_leave_less_in_training_and_on_new_data():
    x, y = digits()
    model = trained(Autoencoder.from_data(x, 2).double(), x, 500)
    assert model.num_layers == 5
    assert reconstruction_error(model, x) < 0.85 * principal_axes(x, 2)[1]
    assert reconstruction_error(model, y) < 0.85 * error_of_axes(x, y, 2)


def test_five_linear_layers_do_not():
    x, _ = digits()
    model = Autoencoder.from_data(x, 2).double()
    for network in (model.encoder.network, model.decoder.network):
        network.layers[1] = nn.Identity()  # in place of tanh
    trained(model, x, 500)
    assert reconstruction_error(model, x) >= principal_axes(x, 2)[1] * (1 - 1e-6)


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_it_keeps_the_contract(hidden):
    x = digits()[0][:30].float()
    model = Autoencoder.from_data(x, 3, hidden=hidden, scaling="own", seed=2)
    report = model.program().check(x)
    assert report.ok, str(report)
    assert model.num_layers == 3 + 2 * len(hidden)
    assert model.program().reconstruct(x)["x"].shape[-2:] == (30, 64)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"latent_dim": 0}, "latent_dim: expected"), ({"hidden": (0,)}, "sizes"), ({"scaling": "all"}, "scaling")],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ArgumentError, match=match):
        Autoencoder.from_data(torch.eye(5), **settings)
    with pytest.raises(DataError, match="x: expected"):
        Autoencoder.from_data(torch.zeros(3), 2)
