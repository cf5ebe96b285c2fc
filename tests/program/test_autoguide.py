"""AutoGuides as guides: Pyro's own densities, closed forms, and the data they belong to."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer import autoguide as auto

import amortize as am
from amortize.errors import ArgumentError, GuideDataError, GuideMismatchError
from amortize.study.guide_family import guide_family
from tests.statistics import z_value

F64 = torch.float64
TRAINING = am.Training(learning_rate=0.05, schedule="cosine")


@pytest.fixture(autouse=True)
def _double():
    """Flows and init values of AutoGuides follow torch's default."""
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def normals(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.5, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_evidence(x):
    return dist.Normal(0.5, math.sqrt(2)).log_prob(x).numpy()


def several(x):
    """Latents of all kinds in a plate, one with a plate of its own, inside a plate of the data's."""
    with pyro.plate("data", x.shape[0], dim=-1):
        s = pyro.sample("s", dist.Gamma(torch.tensor(3.0), 2.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("inner", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(w[..., 0], 1.0))
        pyro.sample("x", dist.Normal(z.sum(0), s), obs=x)


def whole(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.Gamma(torch.tensor(3.0), 2.0))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(mu, s))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def listed(model):
    guides = auto.AutoGuideList(model)
    guides.append(auto.AutoDiagonalNormal(poutine.block(model, expose=["z"])))
    guides.append(auto.AutoNormal(poutine.block(model, hide=["z"])))
    return guides


def flow(model):
    return auto.AutoIAFNormal(model, hidden_dim=[12])


FACTORISED = {"normal": auto.AutoNormal, "diagonal": auto.AutoDiagonalNormal, "list": listed}
JOINT = {"multivariate": auto.AutoMultivariateNormal, "low-rank": auto.AutoLowRankMultivariateNormal, "flow": flow}
CASES = {f"local {name}": (several, make, False) for name, make in FACTORISED.items()}
CASES |= {f"whole {name}": (whole, make, True) for name, make in {**FACTORISED, **JOINT}.items()}
X = torch.tensor([0.3, -1.0, 1.5, 0.7, 2.0])


def shaken(program, data):
    """The guide's density after its first run, its parameters moved off where they began."""
    program.bind(data)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in program.guide.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return program.guide_density(data)


@pytest.mark.parametrize("case", CASES)
def test_the_density_is_pyros(case):
    model, make, is_whole = CASES[case]
    program = am.Program(model, make(model), whole=is_whole)
    data = program.prepare(X)
    density = shaken(program, data)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(program.guide).get_trace(X)
        values = {name: trace.nodes[name]["value"].detach() for name in density.log_joint.structure.sites}
        rows = {name: value.unsqueeze(0) for name, value in values.items()} if is_whole else values
        ours = density.log_density(data, rows).sum()
        torch.testing.assert_close(ours, trace.log_prob_sum().detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_draws_have_the_density_they_claim(case):
    """E_q[p / q] = 1 for the prior p: draws and density belong together, on each datapoint."""
    model, make, is_whole = CASES[case]
    program = am.Program(model, make(model), whole=is_whole)
    data = program.prepare(X)
    density = shaken(program, data)
    pyro.set_rng_seed(0)
    draw = density.draw(data.fold(200))
    at = density.log_q(data.fold(200), draw.latents.u, None)
    torch.testing.assert_close(at, draw.log_q, rtol=1e-6, atol=1e-6)
    values, log_q = density.sample(data.fold(2))
    torch.testing.assert_close(density.log_density(data.fold(2), values), log_q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FACTORISED)
def test_rows_are_found_by_their_index(name):
    program = am.Program(several, FACTORISED[name](several))
    data = program.prepare(X)
    density = shaken(program, data)
    u = torch.randn(len(X), density.log_joint.dim, generator=torch.Generator().manual_seed(0))
    everything = density.log_q(data, u, None)
    order = torch.tensor([3, 0, 3])
    torch.testing.assert_close(density.log_q(data.rows(order), u[order], None), everything[order])
    torch.testing.assert_close(
        density.log_q(data.rows(slice(1, 4)).fold(2), u[1:4].repeat(2, 1), None)[3:], everything[1:4]
    )
    some = program.guide_density(data.rows(slice(1, 4)))
    torch.testing.assert_close(some.log_q(data.rows(slice(1, 4)), u[1:4], None), everything[1:4])


@pytest.mark.parametrize("make", [auto.AutoNormal, auto.AutoDiagonalNormal, auto.AutoLaplaceApproximation])
def test_trained_where_it_is_exact_every_weight_is_the_evidence(make):
    program = am.Program(normals, make(normals))
    am.fit(program, X, num_steps=500, training=TRAINING)
    result = am.evidence(program, X, method=am.ImportanceSampling(500))
    assert result.start == "guide"
    np.testing.assert_allclose(result.log_evidence, normal_evidence(X), atol=0.02)  # the optimiser's noise, squared
    assert result.log_weights.std(0).max() < 0.3
    draws = am.posterior(program, X, num_draws=500)
    assert draws["z"].shape == (500, 5)
    np.testing.assert_allclose((draws["lp"] - draws["log_q"]).mean(0), normal_evidence(X), atol=0.05)


def test_a_guide_of_each_datapoint_has_no_amortization_gap():
    program = am.Program(several, auto.AutoNormal(several))
    am.fit(program, X, num_steps=800, training=TRAINING)
    assert guide_family(program, X) == "mean-field"
    guide = am.posterior(program, X, num_draws=4000)
    elbo = (guide["lp"] - guide["log_q"]).mean(0)
    error = (guide["lp"] - guide["log_q"]).std(0) / math.sqrt(4000)
    local = am.fit_local(program, X)
    assert (np.abs(elbo - local.elbo) < z_value(5) * np.hypot(error, local.elbo_se) + 0.05).all()


@pytest.mark.parametrize("name", {**FACTORISED, **JOINT})
def test_families(name):
    program = am.Program(whole, {**FACTORISED, **JOINT}[name](whole), whole=True)
    known = {"flow": None, "multivariate": "full-covariance", "low-rank": "low-rank"}
    assert guide_family(program, X) == known.get(name, "mean-field")


def test_laplace_of_a_whole_regression_is_exact():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    y = x.sum(1)
    truth = dist.MultivariateNormal(torch.zeros(6), x @ x.T + 0.25 * torch.eye(6)).log_prob(y)
    program = am.Program(model, auto.AutoLaplaceApproximation(model), whole=True)
    am.fit(program, (x, y), num_steps=1500, training=TRAINING)
    assert guide_family(program, (x, y)) == "full-covariance"
    weights = am.evidence(program, (x, y), method=am.ImportanceSampling(20)).log_weights
    np.testing.assert_allclose(weights, float(truth), atol=1e-3)


def test_a_mode_that_is_none_is_refused():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z**2, 0.1), obs=x)

    program = am.Program(model, auto.AutoLaplaceApproximation(model))
    x = torch.tensor([1.0, 2.0])
    program.bind(program.prepare(x))
    with torch.no_grad():
        program.guide.networks[0].loc.zero_()
    with pytest.raises(GuideMismatchError, match="datapoints 0, 1"):
        am.posterior(program, x, num_draws=2)


def test_discrete_sites_hidden_from_the_guide_are_summed_out():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            z = pyro.sample("z", dist.Normal(torch.tensor([-1.0, 1.0])[k], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    scale = math.sqrt(1.25)
    parts = [math.log(p) + dist.Normal(m, scale).log_prob(X) for p, m in ((0.3, -1.0), (0.7, 1.0))]
    truth = torch.logsumexp(torch.stack(parts), 0).numpy()
    program = am.Program(model, auto.AutoNormal(poutine.block(model, hide=["k"])))
    am.fit(program, X, objective="enum-elbo", num_steps=300, training=TRAINING)
    result = am.evidence(program, X, method=am.ImportanceSampling(2000))
    assert (np.abs(result.log_evidence - truth) < z_value(5) * result.se).all()


def test_a_conditioned_site_is_left_out():
    program = am.Program(whole, auto.AutoNormal(whole), condition={"mu": 0.5, "s": 1.0})
    am.fit(program, X, num_steps=500, training=TRAINING)
    result = am.evidence(program, X, method=am.ImportanceSampling(500))
    np.testing.assert_allclose(result.log_evidence, normal_evidence(X), atol=0.02)


def test_a_plate_that_subsamples_takes_all_the_datapoints():
    def model(x):
        with pyro.plate("data", x.shape[0], subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.5, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    program = am.Program(model, auto.AutoNormal(model))
    am.fit(program, X, num_steps=500, training=TRAINING)
    result = am.evidence(program, X, method=am.ImportanceSampling(500))
    np.testing.assert_allclose(result.log_evidence, normal_evidence(X), atol=0.02)


# The parameters are the program's


def test_the_optimiser_finds_parameters_made_at_the_first_run():
    program = am.Program(normals, auto.AutoNormal(normals))
    assert not list(program.parameters())
    fitted = am.fit(program, X, num_steps=50, training=TRAINING)
    assert fitted.history["elbo"].iloc[-1] > fitted.history["elbo"].iloc[0]
    assert {name.rpartition(".")[2] for name, _ in program.named_parameters()} == {"z_unconstrained"}
    assert fitted.settings["batch_size"] == len(X)
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("case", CASES)
def test_state_copies_and_files_keep_it(case, tmp_path):
    model, make, is_whole = CASES[case]
    program = am.Program(model, make(model), whole=is_whole)
    fitted = am.fit(program, X, num_steps=3)
    before = am.posterior(program, X, num_draws=3, seed=1)["lp"]
    np.testing.assert_array_equal(am.posterior(copy.deepcopy(program), X, num_draws=3, seed=1)["lp"], before)
    fresh = am.Program(model, make(model), whole=is_whole)
    am.load(fitted.save(tmp_path / "guide.pt"), fresh)
    np.testing.assert_allclose(am.posterior(fresh, X, num_draws=3, seed=1)["lp"], before, rtol=1e-10)
    with pytest.raises(GuideDataError, match="others"):
        am.posterior(fresh, X + 1, num_draws=3)
    np.testing.assert_array_equal(am.posterior(program, X, num_draws=3, seed=1)["lp"], before)
    assert program.bound.guide._model is not None


def test_a_program_is_loaded_with_its_guide(tmp_path):
    model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3, dtype=F64).model
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    fitted = am.fit(am.Program(model, auto.AutoNormal(model)), x, num_steps=3)
    loaded = am.load(fitted.save(tmp_path / "guide.pt"))
    ours, theirs = (am.posterior(one.program, x, num_draws=3)["lp"] for one in (fitted, loaded))
    np.testing.assert_array_equal(ours, theirs)


def test_the_models_networks_are_trained_once():
    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def model(self, x):
            pyro.module("decoder", self)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample(
                    "x", dist.Normal(self.layer(z.unsqueeze(-1)).squeeze(-1), pyro.param("s", torch.ones(()))), obs=x
                )

    decoder = Decoder()
    program = am.Program(decoder.model, auto.AutoNormal(decoder.model))
    before = decoder.layer.weight.detach().clone()
    am.fit(program, X, num_steps=5, training=TRAINING)
    assert not torch.equal(decoder.layer.weight, before)
    assert len(list(program.parameters())) == 5  # weight, bias, s, loc and scale


def test_a_guide_trained_by_pyro_is_taken_as_it_is():
    guide = auto.AutoDiagonalNormal(normals)
    svi = SVI(normals, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    pyro.set_rng_seed(0)
    for _ in range(800):
        svi.step(X)
    pyro.clear_param_store()
    program = am.Program(normals, guide)
    with pytest.raises(GuideDataError, match="does not fit 3 datapoints"):
        am.evidence(program, X[:3])
    assert am.evidence(program, X, method=am.ImportanceSampling(200)).khat.max() < 0.7


# Refusals


def test_other_data_are_refused_with_the_way_out():
    program = am.Program(normals, auto.AutoNormal(normals))
    am.fit(program, X, num_steps=1)
    for other in (X + 1, X.flip(0), torch.zeros(9)):
        with pytest.raises(GuideDataError, match=r"encoder.*fit_local"):
            am.evidence(program, other)
    with pytest.raises(GuideDataError):
        am.fit(program, X + 1, num_steps=1)
    assert am.evidence(program, X + 1, start="prior", method=am.ImportanceSampling(3)).log_evidence.shape == (5,)
    assert am.evidence(program, X[:2], method=am.ImportanceSampling(3)).log_evidence.shape == (2,)  # the same rows


@pytest.mark.parametrize("case", CASES)
def test_an_untrained_guide_may_be_made_anew(case):
    model, make, is_whole = CASES[case]
    program = am.Program(model, make(model), whole=is_whole)
    program.bind(program.prepare(X[:2]))  # a look at some of the data
    am.fit(program, X, num_steps=1)
    assert am.posterior(program, X, num_draws=2)["s"].shape == ((2, 1) if is_whole else (2, 5))
    with pytest.raises(GuideDataError):
        am.posterior(program, X[:2] + 1, num_draws=2)


def test_minibatches_are_refused():
    program = am.Program(normals, auto.AutoNormal(normals))
    with pytest.raises(ArgumentError, match=r"batch_size.*encoder"):
        am.fit(program, X, num_steps=1, training=am.Training(batch_size=2))
    many = torch.zeros(300)
    assert am.fit(program, many, num_steps=1).settings["batch_size"] == 300


@pytest.mark.parametrize("name", JOINT)
def test_guides_that_correlate_datapoints_are_refused(name):
    program = am.Program(normals, JOINT[name](normals))
    with pytest.raises(GuideMismatchError, match=r"correlates the 5 datapoints.*fit_local.*whole=True"):
        am.posterior(program, X, num_draws=2)
    one = am.Program(several, JOINT[name](several))  # flows need two latents
    assert am.posterior(one, X[:1], num_draws=2)["s"].shape == (2, 1)


def _structured(model):
    return auto.AutoStructured(model, conditionals={"z": "normal"})


def _doubled(model):
    guides = auto.AutoGuideList(model)
    guides.append(auto.AutoNormal(model))
    guides.append(auto.AutoNormal(model))
    return guides


def _partly(model):
    return auto.AutoNormal(poutine.block(model, hide=["z"]))


REFUSED = {
    "point": (auto.AutoDelta, normals, "AutoDelta is a point"),
    "structured": (_structured, normals, "AutoStructured"),
    "twice": (_doubled, normals, "'z' twice"),
    "missing": (_partly, several, "misses 'z'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_density_is_refused(name):
    make, model, words = REFUSED[name]
    with pytest.raises(GuideMismatchError, match=words):
        am.posterior(am.Program(model, make(model)), X, num_draws=2)


def test_a_support_that_moves_is_refused():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            s = pyro.sample("s", dist.Gamma(torch.tensor(3.0), 2.0))
            z = pyro.sample("z", dist.Uniform(-s, s + 1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(GuideMismatchError, match="'z' depends on other latents"):
        am.posterior(am.Program(model, auto.AutoNormal(model)), X, num_draws=2)


def test_a_joint_guide_of_a_conditioned_site_is_refused():
    program = am.Program(whole, auto.AutoMultivariateNormal(whole), condition={"mu": 0.5}, whole=True)
    with pytest.raises(GuideMismatchError, match=r"samples 'mu'.*hide=\['mu'\]"):
        am.posterior(program, X, num_draws=2)
    hidden = auto.AutoMultivariateNormal(poutine.block(whole, hide=["mu"]))
    program = am.Program(whole, hidden, condition={"mu": 0.5}, whole=True)
    assert am.posterior(program, X, num_draws=2)["z"].shape == (2, 1, 5)
