"""The contractive autoencoder: its penalty is the Frobenius norm, and it flattens codes across the data, not along."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models.autoencoder import Autoencoder
from amortize.models.contractive_autoencoder import ContractiveAutoencoder
from amortize.models.point_parts import Columns
from amortize.program.jacobian import code_jacobian
from amortize.program.rates import RatedRun


def digits() -> torch.Tensor:
    return torch.as_tensor(am.data.load("digits", binarise="grey").x_train).reshape(-1, 64).double()


class Circle(NamedTuple):
    """Points near a circle in a plane of a space of ten dimensions, and unit vectors there."""

    x: torch.Tensor
    along: torch.Tensor
    outward: torch.Tensor
    off_the_plane: torch.Tensor


def circle(num: int, *, seed: int) -> Circle:
    stream = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(9)))[0]
    angle = 2 * math.pi * torch.rand(num, generator=stream)
    outward = angle.cos()[:, None] * frame[0] + angle.sin()[:, None] * frame[1]
    along = -angle.sin()[:, None] * frame[0] + angle.cos()[:, None] * frame[1]
    x = outward + 0.05 * torch.randn(num, 10, generator=stream)
    return Circle(x, along, outward, frame[2].expand(num, -1))


def sensitivity(jacobian: torch.Tensor, direction: torch.Tensor) -> float:
    """Root mean square length by which codes move for a unit step in a direction (N, X)."""
    moved = (jacobian @ direction[..., None]).squeeze(-1)
    return float(moved.square().sum(1).mean().sqrt())


@pytest.mark.parametrize("contraction", [0.0, 1.0])
def test_codes_are_flattened_across_the_data_and_not_along_them(contraction):
    data, new = circle(1024, seed=0), circle(500, seed=1)
    model = ContractiveAutoencoder.from_data(data.x, 32, contraction=contraction)
    settings = am.Training(learning_rate=1e-2, schedule="exponential", batch_size=128, progress=False)
    am.fit(model.program(), data.x, objective=model.objective, num_steps=500, training=settings)
    jacobian = model.jacobian(new.x)
    along, outward, off = (sensitivity(jacobian, d) for d in (new.along, new.outward, new.off_the_plane))
    assert along > 0.75  # the code still follows the data
    if contraction:
        assert off < 0.1 * along
        assert outward < 0.6 * along
    else:  # the same check on a plain autoencoder: every direction counts
        assert off > 0.8 * along


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_penalty_is_the_exact_frobenius_norm_with_its_gradient(weight):
    x = digits()[:30]
    model = ContractiveAutoencoder.from_data(x, 5, contraction=weight, seed=1).double()
    program = model.program()
    data = program.prepare(x)
    (penalty,) = model.objective.penalties
    run = RatedRun.of(program, program.structure(data), data)
    found = penalty.on(program, data, seed=0)(data, run)
    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    matrix, bias = parameters
    standard = (x - model.encoder.loc) / model.encoder.scale
    slope = 1 - torch.tanh(standard @ matrix.T + bias).square()
    exact = weight * (slope.square() @ matrix.square().sum(1)).mean()  # sum_j (1 - z_j^2)^2 |V_j|^2
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)  # the columns' scale is known in float32
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(exact, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(
        weight * model.jacobian(x).square().sum((1, 2)).mean(), exact.detach(), rtol=1e-12, atol=0
    )


def test_the_jacobian_is_that_of_any_point_guide():
    x = digits()[:6]
    model = Autoencoder.from_data(x, 3, hidden=(7, 5)).double()
    program = model.program()
    data = program.prepare(x)
    found = code_jacobian(program, program.structure(data), data)
    one_by_one = [torch.autograd.functional.jacobian(lambda row: model.encoder(row).mean, row) for row in x]
    torch.testing.assert_close(found.detach(), torch.stack(one_by_one), rtol=1e-12, atol=1e-14)
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        change = (model.encoder(x + step).mean - model.encoder(x - step).mean) / 2
    torch.testing.assert_close((found.detach() @ step[..., None]).squeeze(-1), change, rtol=1e-5, atol=1e-12)


def test_the_jacobian_counts_all_data_that_move_a_code():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(x, y):
        slope = pyro.param("slope", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(slope * x - 3.0 * y))

    program = am.Program(model, guide)
    data = program.prepare((torch.arange(4.0), torch.ones(4)))
    expected = torch.tensor([[[2.0, -3.0]]]).expand(4, 1, 2)
    torch.testing.assert_close(code_jacobian(program, program.structure(data), data).detach(), expected)


def test_the_transpose_is_shared_and_trains_as_one():
    x = digits()[:50].float()
    model = ContractiveAutoencoder.from_data(x, 7)
    fitted = am.fit(model.program(), x, objective=model.objective, num_steps=3)
    assert fitted.bound == "distortion + 0 rate + contraction, no bound"
    assert model.encoder.network[0].weight is model.decoder.network.weight
    assert sum(p.numel() for p in model.parameters()) == 7 * 64 + 7 + 64


def test_validation_measures_the_bound_and_the_jacobian_needs_no_gradients():
    x = digits()[:40].float()
    model = ContractiveAutoencoder.from_data(x, 5)
    program = model.program()
    settings = am.Training(validation=x, validate_every=1)
    fitted = am.fit(program, x, objective=model.objective, num_steps=2, training=settings)
    alone = -float(model.decoder(model.encoder(x).mean).log_prob(x).detach().mean())
    assert fitted.history["validation_elbo"].iloc[-1] == pytest.approx(-alone, rel=1e-5)  # the penalty is not in it
    data = program.prepare(x)
    with torch.no_grad():
        found = code_jacobian(program, program.structure(data), data)
    torch.testing.assert_close(found.detach() * model.encoder.scale[0], model.jacobian(x))


def test_it_keeps_the_contract():
    x = digits()[:20].float()
    report = ContractiveAutoencoder.from_data(x, 7).program().check(x)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"latent_dim": 0}, "latent_dim: expected"),
        ({"contraction": -1.0}, r"contraction: expected a number in \[0, inf\)"),
        ({"noise_scale": 0.0}, "noise_scale: expected a positive number"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(ArgumentError, match=match):
        ContractiveAutoencoder.from_data(torch.eye(5), **settings)
    with pytest.raises(DataError, match="x: expected"):
        ContractiveAutoencoder.from_data(torch.ones(4, 3))
    with pytest.raises(ArgumentError, match="one scale for all columns"):
        ContractiveAutoencoder(Columns.of(torch.diag(torch.arange(1.0, 5.0)), "own"), 2)


def test_the_penalty_can_be_taken_in_the_data_s_own_units():
    x = digits()[:30]
    model = ContractiveAutoencoder.from_data(x, 5).double()
    program = model.program()
    data = program.prepare(x)
    run = RatedRun.of(program, program.structure(data), data)
    plain, shared = (
        float(am.Contraction(2.0, scaling=scaling).on(program, data, seed=0)(data, run).detach())
        for scaling in ("none", "shared")
    )
    jacobian = code_jacobian(program, program.structure(data), data).detach()
    assert plain == pytest.approx(2.0 * float(jacobian.square().sum((1, 2)).mean()), rel=1e-12)
    assert shared == pytest.approx(plain * float(x.var(0, correction=0).mean()), rel=1e-12)


def test_guides_with_spread_and_codes_without_slopes_are_refused():
    with pytest.raises(ArgumentError, match="Contraction weight"):
        am.Contraction(-0.1)
    with pytest.raises(ArgumentError, match="Contraction scaling: expected 'none' or 'shared'"):
        am.Contraction(scaling="own")
    model = ContractiveAutoencoder.from_data(torch.eye(5), 2)
    with pytest.raises(ArgumentError, match="floating-point data that vary"):
        am.fit(model.program(), torch.ones(3, 5), objective=model.objective, num_steps=1)
    vae, x = am.models.BernoulliVAE(6, 2), torch.eye(6)
    with pytest.raises(ArgumentError, match="expected a guide that is a point"):
        am.fit(vae.program(), x, objective=am.BetaELBO(penalties=(am.Contraction(),)), num_steps=1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(pyro.param("slope", torch.tensor(0.1)) * x))

    counts = torch.tensor([1, 2, 3])
    with pytest.raises(ArgumentError, match="codes move with floating-point data"):
        am.fit(am.Program(model, guide), counts, objective=am.BetaELBO(penalties=(am.Contraction(),)), num_steps=1)
