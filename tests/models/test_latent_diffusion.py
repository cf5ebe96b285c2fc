"""Latent diffusion: bound, evidence and samples against the normal prior on digits; its two stages; its contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import amortize as am
from amortize.diagnostics.mmd import mmd_test
from amortize.errors import ArgumentError, DataError
from amortize.models.bernoulli_vae import BernoulliVAE
from amortize.models.latent_diffusion import LatentDiffusion, TwoStageELBO
from amortize.models.vae import VAE, StandardNormal
from amortize.program.rates import RatedRun
from amortize.random import generator, pyro_rng
from tests.statistics import z_value

STEPS = 1500
WEAK = TwoStageELBO(first=0.35, beta=0.3)
"""A first stage that charges little for the code, as latent diffusion has it, leaves the prior more to learn."""


def binary(num, num_pixels=6):
    return (torch.rand(num, num_pixels, generator=generator(0, "x")) < 0.4).float()


class WithNormalPrior(VAE):
    """The encoder and decoder of a latent diffusion under N(0, I)."""

    @classmethod
    def from_data(cls, x, *, seed=0):
        model = LatentDiffusion.from_data(x, seed=seed)
        return cls(prior=StandardNormal(8), decoder=model.decoder, encoder=model.encoder)


def with_normal_prior(model):
    """Its program, of networks that are trained."""
    prior = StandardNormal(model.prior.latent_dim)
    return WithNormalPrior(prior=prior, decoder=model.decoder, encoder=model.encoder).program()


@pytest.fixture(scope="module")
def digits():
    data = am.data.load("digits")
    return torch.as_tensor(data.x_train).float(), torch.as_tensor(data.x_test).float()


@pytest.fixture(scope="module")
def trained(digits):
    model = LatentDiffusion.from_data(digits[0])
    training = am.Training(learning_rate=1e-2, batch_size=100, schedule="cosine", progress=False)
    fitted = am.fit(model.program(), digits[0], objective=WEAK, num_steps=STEPS, training=training)
    assert fitted.bound == "ELBO"
    return model


def gains(model, x, num_draws=64):
    """Of each datapoint's ELBO over the one with N(0, I), (N,) nats: encoder and decoder cancel."""
    with torch.no_grad(), pyro_rng(0, "gains"):
        z = model.encoder(x).sample((num_draws,))
        gain: np.ndarray = (-model.prior.cost(z) - Normal(0.0, 1.0).log_prob(z).sum(-1)).mean(0).numpy()
    return gain


def test_the_bound_is_better_than_with_the_normal_prior(trained, digits):
    """On held-out digits, in pairs; and of the prior that the first stage leaves there is no gain."""
    gain = gains(trained, digits[1])
    assert gain.mean() > z_value() * gain.std(ddof=1) / len(gain) ** 0.5
    untrained = LatentDiffusion.from_data(digits[0])
    untrained.encoder, untrained.decoder = trained.encoder, trained.decoder
    none = gains(untrained, digits[1])
    assert not none.mean() > z_value() * none.std(ddof=1) / len(none) ** 0.5


def test_evidence_is_better_than_with_the_normal_prior(trained, digits):
    method = am.ImportanceSampling(num_draws=256)
    found = am.evidence(trained.program(), digits[1], method=method)
    normal = am.evidence(with_normal_prior(trained), digits[1], method=method)
    gain = found.log_evidence - normal.log_evidence
    assert gain.mean() > z_value() * gain.std(ddof=1) / len(gain) ** 0.5


def test_samples_are_nearer_to_digits_than_the_normal_prior_s(trained, digits):
    like = torch.zeros(len(digits[0]), 64)
    near, far = (
        mmd_test(program.simulate(like, seed=0)[1]["x"], digits[0], num_permutations=20)
        for program in (trained.program(), with_normal_prior(trained))
    )
    assert near.squared + z_value() * near.noise < far.squared


def test_each_stage_trains_its_own_part():
    x = binary(12)
    for first, moved in ((1.0, {"encoder", "decoder"}), (0.0, {"prior"}), (0.5, {"encoder", "decoder", "prior"})):
        model = LatentDiffusion.from_data(x, latent_dim=2, num_noisings=3, hidden=(5,))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        am.fit(model.program(), x, objective=TwoStageELBO(first=first), num_steps=4)
        changed = {
            name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
        }
        assert changed == moved
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_at_the_start_its_elbo_is_the_vae_s():
    """The same networks, draws of the code alike: on each datapoint the path costs nothing."""
    x = binary(10)
    model = LatentDiffusion.from_data(x, latent_dim=2, hidden=(8,))
    vae = BernoulliVAE.from_data(x, latent_dim=2, hidden=(8,))
    method = am.ImportanceSampling(num_draws=1000)
    ours, theirs = (am.evidence(made.program(), x, method=method) for made in (model, vae))
    error = np.hypot(ours.se, theirs.se)
    assert bool((np.abs(ours.log_evidence - theirs.log_evidence) < z_value(10) * error + 1e-4).all())


def test_a_guide_that_draws_in_another_order_than_the_model_is_rated_by_its_draws():
    """At the start code and path together cost what the code costs under N(0, I), on every draw.

    A divergence in closed form at the code, given the path that was drawn from it, would say more.
    """
    x = binary(20)
    model = LatentDiffusion.from_data(x, latent_dim=2, hidden=(8,))
    program = model.program()
    data = program.prepare(x)
    with pyro_rng(0, "rated"), torch.no_grad():
        run = RatedRun.of(program, program.structure(data), data)
    z = run.values["z"]
    expected = model.encoder(x).log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(run.rate, expected, rtol=0, atol=1e-4)


def test_it_keeps_the_contract():
    x = binary(6)
    model = LatentDiffusion.from_data(x, latent_dim=2, num_noisings=3, hidden=(5,))
    program = model.program()
    report = program.check(x)
    assert report.ok, str(report)
    latents, observed = program.simulate(x, seed=0)
    assert {name: value.shape for name, value in latents.items()} == {"path": (6, 3, 2), "z": (6, 2)}
    assert observed["x"].shape == (6, 6)
    assert program.reconstruct(x)["x"].shape == (6, 6)


def test_networks_of_images():
    x = binary(6, 64)
    model = LatentDiffusion.from_data(x, latent_dim=2, network="conv", hidden=(2, 3))
    am.fit(model.program(), x, objective=model.objective, num_steps=2)


def test_the_objective_is_one_of_latent_diffusions():
    x = binary(6)
    with pytest.raises(ArgumentError, match="DiffusionPrior"):
        am.fit(BernoulliVAE.from_data(x).program(), x, objective=TwoStageELBO(), num_steps=2)


@pytest.mark.parametrize(("settings", "named"), [({"first": 1.5}, "first"), ({"beta": -1.0}, "beta")])
def test_objective_settings(settings, named):
    with pytest.raises(ArgumentError, match=named):
        TwoStageELBO(**settings)


def test_what_it_refuses():
    with pytest.raises(DataError, match="zeros and ones"):
        LatentDiffusion.from_data(torch.full((3, 4), 0.5))
    with pytest.raises(ArgumentError, match="num_noisings"):
        LatentDiffusion.from_data(binary(3), num_noisings=0)
