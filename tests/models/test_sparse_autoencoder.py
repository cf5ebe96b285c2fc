"""Sparse codes: the Laplace prior under a point guide is the L1 penalty; rectifiers make exact zeros; units die."""

from __future__ import annotations

import math

import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.point_parts import Columns, codes, reconstruction_error
from amortize.models.sparse_autoencoder import SparseAutoencoder

PENALTIES = ("laplace", "rectifiers")


def digits() -> torch.Tensor:
    return torch.as_tensor(am.data.load("digits", binarise="grey").x_train).reshape(-1, 64).float()


def trained(x: torch.Tensor, penalty: str, *, sparsity: float = 8.0, beta: float = 1.0) -> SparseAutoencoder:
    model = SparseAutoencoder.from_data(x, 96, penalty=penalty, sparsity=sparsity)
    settings = am.Training(learning_rate=1e-2, schedule="exponential", batch_size=128, progress=False)
    am.fit(model.program(), x, objective=am.BetaELBO(beta=beta), num_steps=400, training=settings)
    return model


def l1_loss(model: SparseAutoencoder, x: torch.Tensor, sparsity: float, noise_scale: float) -> torch.Tensor:
    """By hand: squared error and L1 norm of the codes, and the constants of the two densities; nats a datapoint."""
    loc, scale = model.decoder.loc, model.decoder.scale
    parameters = dict(model.named_parameters())
    encoder = [value for name, value in parameters.items() if name.startswith("encoder")]
    dictionary = parameters[next(name for name in parameters if name.endswith("free_weight"))]
    bias = next(value for name, value in parameters.items() if name.startswith("decoder") and value.ndim == 1)
    z = ((x - loc) / scale) @ encoder[0].T + encoder[1]
    if any(isinstance(module, torch.nn.ReLU) for module in model.modules()):
        z = z.clamp(min=0)
    pattern = dictionary / dictionary.square().sum(0).sqrt()
    error = ((x - loc) / scale - z @ pattern.T - bias).square().sum(1)
    constant = (noise_scale * scale * math.sqrt(2 * math.pi)).log().sum() + z.shape[1] * math.log(2 / sparsity)
    return (error / (2 * noise_scale**2) + sparsity * z.abs().sum(1)).mean() + constant


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_laplace_prior_under_a_point_guide_is_the_l1_penalty(penalty):
    x = digits()[:40].double()
    model = SparseAutoencoder(Columns.of(x), 70, penalty=penalty, sparsity=2.0, noise_scale=0.4, seed=3).double()
    program = model.program()
    data = program.prepare(x)
    ours = model.objective.on(program, data, seed=0)(data).loss
    by_hand = l1_loss(model, x, 2.0, 0.4)
    torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=0)
    for parameter in model.parameters():
        expected, found = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in (by_hand, ours))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_the_prior_makes_codes_small_and_rectifiers_make_them_zero():
    x = digits()
    untrained = SparseAutoencoder.from_data(x, 96).sparsity(x)
    laplace, rectifiers = (trained(x, penalty).sparsity(x) for penalty in PENALTIES)
    assert laplace.exact_zeros == 0.0  # an affine code is nowhere flat
    assert untrained.near_zeros < 0.1
    assert laplace.near_zeros > 0.5
    assert rectifiers.exact_zeros > 0.85


def test_without_the_penalty_codes_are_not_sparse():
    x = digits()
    assert trained(x, "laplace", beta=0.0).sparsity(x).near_zeros < 0.1
    free = trained(x, "rectifiers", beta=0.0)
    assert free.sparsity(x).exact_zeros < 0.6
    assert reconstruction_error(free, x) < reconstruction_error(trained(x, "rectifiers"), x)


def test_units_that_are_always_zero_are_counted():
    x = digits()
    model = SparseAutoencoder.from_data(x, 96, penalty="rectifiers")
    assert model.sparsity(x).always_zero == 0.0
    with torch.no_grad():
        model.encoder.network[0].last_bias[:24] = -1e4
    seen = model.sparsity(x)
    assert seen.always_zero == 0.25
    assert float(seen.activity[:24].max()) == 0.0
    assert seen.exact_zeros == pytest.approx(1 - float(seen.activity.mean()), rel=1e-12)
    code = codes(model, x)
    assert seen.exact_zeros == int((code == 0).sum()) / code.numel()


def test_a_high_price_puts_units_to_sleep():
    x = digits()
    assert trained(x, "rectifiers", sparsity=16.0).sparsity(x).always_zero > 0.4
    assert trained(x, "rectifiers", sparsity=1.0).sparsity(x).always_zero < 0.05


def test_patterns_have_norm_one_so_that_codes_cannot_hide():
    model = trained(digits(), "laplace")
    weight = model.decoder.network[-1].weight
    torch.testing.assert_close(weight.square().sum(0), torch.ones(96))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_it_keeps_the_contract(penalty):
    x = digits()[:20]
    model = SparseAutoencoder.from_data(x, 12, penalty=penalty)
    report = model.program().check(x)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"latent_dim": 0}, "latent_dim: expected"),
        ({"penalty": "l0"}, "penalty: expected 'laplace' or 'rectifiers'"),
        ({"sparsity": 0.0}, "sparsity: expected a positive number"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ArgumentError, match=match):
        SparseAutoencoder.from_data(torch.eye(5), **settings)
    with pytest.raises(DataError, match="x: expected"):
        SparseAutoencoder.from_data(torch.ones(4, 3))
