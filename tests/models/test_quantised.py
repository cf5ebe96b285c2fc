"""The skeleton of quantised models: its bound and its evidence exactly, and which stage trains what."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.models import VQVAE, BernoulliVAE
from amortize.models.quantised_elbo import QuantisedELBO, QuantisedPenalty, QuantisedPenaltyTerm
from amortize.random import generator
from tests.statistics import z_value

K, SIDE = 3, 4


def pictures(num=6):
    return (torch.rand(num, SIDE * SIDE, generator=generator(0, "pictures")) < 0.5).double()


def tiny(prior="pixelcnn", x=None, **codebook):
    """Images of 4 x 4 from 2 x 2 codes of three vectors, 81 configurations; weights away from where they begin."""
    x = pictures() if x is None else x
    model = VQVAE.from_data(x, K, codebook={"dim": 2, **codebook}, channels=(4,), prior=prior).double()
    gen = generator(0, "shaken")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
        model.levels[0].codebook.start(model.encoder(x), generator=gen)
    return model


def joint(model, x, codes):
    """log p(x, k) (N,) at codes (N, 4), of what each part says."""
    vectors = model.levels[0].codebook.vectors[codes]
    return model.priors[0]().log_prob(codes) + model.decoder(vectors).log_prob(x)


def log_evidence(model, x):
    """The sum over all 81 grids."""
    grids = torch.tensor(list(itertools.product(range(K), repeat=4)))
    return torch.stack([joint(model, x, grid.expand(len(x), -1)) for grid in grids]).logsumexp(0)


# The discrete model


@pytest.mark.parametrize("prior", ["uniform", "pixelcnn", "transformer"])
def test_the_bound_is_that_of_the_nearest_codes(prior):
    x, model = pictures(), tiny(prior)
    program = model.program()
    found = QuantisedELBO().on(program, program.prepare(x), seed=0).measured(program.prepare(x), 1, seed=0)
    distance = (model.encoder(x).unsqueeze(-2) - model.levels[0].codebook.vectors).norm(dim=-1)
    expected = joint(model, x, distance.argmin(-1)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (found <= log_evidence(model, x).detach().numpy()).all()


def test_the_bound_in_training_is_that_of_the_discrete_model():
    x, model = pictures(), tiny(ema=None, restarts=0.0)
    program = model.program()
    data = program.prepare(x)
    loss = QuantisedELBO().on(program, data, seed=0)
    expected = loss.measured(data, 1, seed=0)
    for progress in (0.0, 0.9):
        loss.progress = progress
        np.testing.assert_allclose(loss(data).bound.numpy(), expected, rtol=1e-10)


def test_the_evidence_is_the_sum_over_all_codes():
    x, model = pictures(), tiny()
    expected = log_evidence(model, x).detach().numpy()
    exact = am.evidence(model.program(), x)
    np.testing.assert_allclose(exact.log_evidence, expected, rtol=1e-10)
    assert (exact.se == 0).all()


def test_annealing_by_gibbs_moves_meets_the_sum():
    x, model = pictures(2), tiny("uniform", x=pictures(2))
    expected = log_evidence(model, x).detach().numpy()
    method = am.AIS(num_chains=64, num_temperatures=8)
    found = am.evidence(model.program(), x, method=method, discrete="sample", start="prior")
    ratio = np.exp(found.log_evidence - expected)  # unbiased
    assert (np.abs(ratio - 1) < z_value(2) * found.se * ratio).all(), (ratio, found.se)
    assert (found.se > 0).all() and (found.se < 0.1).all()


def test_the_nearest_codes_alone_are_no_evidence():
    """What a guide that is sure of its codes gives is marked as not to be trusted; an open one finds more."""
    x, model = pictures(), tiny("uniform")
    expected = log_evidence(model, x).detach().numpy()
    method = am.ImportanceSampling(num_draws=2000)
    sure = am.evidence(model.program(), x, method=method, discrete="sample")
    assert (sure.log_evidence < expected - 1).all()
    assert not sure.trusted.any() and np.isnan(sure.se).all()
    found = am.evidence(model.softened(20.0), x, method=method, discrete="sample")
    assert found.trusted.sum() >= 4
    assert (np.abs(found.log_evidence - expected) < z_value(6) * found.se + 0.01).all()  # smoothed tails are biased


def test_a_softened_guide_hardens_as_it_cools():
    x, model = pictures(), tiny()
    nearest = model.quantised(x)[0].codes
    book, vectors = model.levels[0].codebook, model.encoder(x)
    distances = (vectors.unsqueeze(-2) - book.vectors).square().sum(-1)
    torch.testing.assert_close(book.assigned(vectors, 0.7).base_dist.probs, (-distances / 0.7).softmax(-1))
    assert torch.equal(book.assigned(vectors, 1e-6).sample(), nearest)
    assert torch.equal(book.assigned(vectors).sample(), nearest)
    with pytest.raises(ArgumentError, match="temperature"):
        model.softened(0.0)


def test_the_program_s_sites():
    x, model = pictures(), tiny("uniform")
    program = model.program()
    report = program.check(x)
    assert report.ok, str(report)
    latents, observed = program.simulate(x, seed=0)
    assert latents["codes"].shape == (6, 4)
    assert observed["x"].shape == (6, 16)
    assert program.reconstruct(x)["x"].shape == (6, 16)


# Training


def changed(model, x, objective, num_steps=4):
    """Names of the parts that training moved."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    am.fit(model.program(), x, objective=objective, num_steps=num_steps, training=am.Training(learning_rate=0.05))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    return {name.split(".")[0] for name in moved}


@pytest.mark.parametrize("codebook", [{}, {"ema": None, "restarts": 0.0}])
def test_each_stage_trains_its_own_parts(codebook):
    x = pictures()
    assert changed(tiny(**codebook), x, QuantisedELBO(first=1.0)) == {"encoder", "codebooks", "decoder"}
    assert changed(tiny(**codebook), x, QuantisedELBO(first=0.0)) == {"priors"}
    assert changed(tiny("uniform", **codebook), x, QuantisedELBO(first=0.0)) == {"encoder", "codebooks", "decoder"}


def test_the_loss_is_what_the_equation_says():
    x, model = pictures(), tiny(ema=None, restarts=0.0)
    program = model.program()
    data = program.prepare(x)
    level = model.quantised(x)[0]
    nll = -model.decoder(model.levels[0].codebook.vectors[level.codes]).log_prob(x)
    loss = QuantisedELBO(commitment=0.7).on(program, data, seed=0)
    loss.progress = 0.0
    torch.testing.assert_close(loss(data).loss, (nll + 1.7 * level.commitment).mean())
    loss.progress = 0.9
    torch.testing.assert_close(loss(data).loss, -model.log_prior([level.codes]).mean())


def test_the_encoder_learns_through_the_rounding():
    """Of the likelihood alone, without the commitment's pull; not where the rounding stops its gradient."""
    x, model = pictures(), tiny()
    model.run(x).likelihood.log_prob(x).sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in model.encoder.parameters())
    stopped = tiny()
    codes = stopped.quantised(x)[0].codes
    stopped.decoder(stopped.levels[0].codebook.embed(codes)).log_prob(x).sum().backward()
    assert all(parameter.grad is None for parameter in stopped.encoder.parameters())


class _Shift(QuantisedPenaltyTerm):
    def __init__(self, weight):
        super().__init__()
        self.weight, self.shift = weight, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, run):
        return self.weight * (run.levels[0].vectors.mean() - self.shift - 1.0) ** 2


@dataclass(frozen=True)
class _Penalty(QuantisedPenalty):
    name: ClassVar[str] = "shift"
    weight: float = 10.0

    def on(self, model, data, *, seed):
        return _Shift(self.weight)

    def settings(self):
        return {"name": self.name, **asdict(self)}


def test_a_penalty_is_added_and_trained_along():
    x, objective = pictures(), QuantisedELBO(penalties=(_Penalty(),))
    fitted = am.fit(tiny().program(), x, objective=objective, num_steps=5)
    assert float(fitted.extra["penalties.0.shift"]) != 0
    assert fitted.settings["objective"]["penalties"] == [{"name": "shift", "weight": 10.0}]
    program = tiny(ema=None, restarts=0.0).program()
    data = program.prepare(x)
    with_it, without = (each.on(program, data, seed=0) for each in (objective, QuantisedELBO()))
    with_it.progress = without.progress = 0.0
    mean = program.model.networks[0].run(x).levels[0].vectors.mean()
    torch.testing.assert_close(with_it(data).loss - without(data).loss, 10 * (mean - 1) ** 2)
    np.testing.assert_array_equal(with_it.measured(data, 1, seed=0), without.measured(data, 1, seed=0))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"first": 1.5}, "first"), ({"commitment": -1.0}, "commitment"), ({"penalties": (am.MMD(),)}, "penalties")],
)
def test_objective_settings(settings, named):
    with pytest.raises(ArgumentError, match=named):
        QuantisedELBO(**settings)


def test_the_objective_is_one_of_quantised_models():
    x = pictures().float()
    with pytest.raises(ArgumentError, match="quantised models"):
        am.fit(BernoulliVAE.from_data(x).program(), x, objective=QuantisedELBO(), num_steps=2)
