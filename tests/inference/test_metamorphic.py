"""What must not change the log joint or the evidence of a datapoint: order, batch, scale, names, dtype, the past."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import amortize as am
from tests.mixtures import CENTRES, MIXTURES, REAL, WEIGHTS
from tests.problems import PROBLEMS

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=REAL)
SLOPES = torch.tensor([0.5, -1.0, 2.0], dtype=REAL)


def build(plate=None, *, names=("y", "k"), order=(0, 1), one_hot=False, scale=None):
    """A rate y and a class k, both latent, and what is seen of them; each variation says the same of a datapoint."""

    def latents(x):
        def rate():
            return pyro.sample(names[0], dist.Gamma(torch.full_like(x[:, 0], 2.0), 1.0))

        def label():
            probs = WEIGHTS.to(x).expand(x.shape[0], 3)
            return pyro.sample(names[1], dist.OneHotCategorical(probs) if one_hot else dist.Categorical(probs))

        found = {}
        for turn in order:
            found[turn] = (rate, label)[turn]()
        return found[0], found[1]

    def model(x):
        with (plate or standard)(x):
            y, k = latents(x)
            centre = k @ CENTRES.to(x) if one_hot else CENTRES.to(x)[k]
            loc = centre.unsqueeze(-1) + y.unsqueeze(-1) * SLOPES.to(x)
            if scale is None:
                pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)
            else:
                with poutine.scale(scale=scale):
                    pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)

    return model


def standard(x):
    return pyro.plate("data", x.shape[0])


def by_hand(x, u):
    """Log p(x, u) of the model above, its class summed out."""
    prior = dist.Gamma(2.0, 1.0).log_prob(u[:, 0].exp()) + u[:, 0]
    loc = CENTRES[None, :, None] + u.exp()[:, None] * SLOPES
    return prior + (WEIGHTS.log() + dist.Normal(loc, 0.8).log_prob(x[:, None]).sum(-1)).logsumexp(-1)


U = torch.randn(6, 1, generator=torch.Generator().manual_seed(1), dtype=REAL)


def joint(model, x=X, u=U, **settings):
    program = am.Program(model, **settings)
    data = program.prepare(x)
    with torch.no_grad(), program.evaluating():
        return program.log_joint(data).terms(data, u=u.to(program.log_joint(data).like)).joint


VARIATIONS = {
    "as it is": build(),
    "a declared size": build(lambda x: pyro.plate("data", 50_000, subsample=x)),
    "a size and a subsample of indices": build(lambda x: pyro.plate("data", 6, subsample=torch.arange(x.shape[0]))),
    "no size": build(lambda x: pyro.plate("data")),
    "another name of the plate": build(lambda x: pyro.plate("somewhere else", x.shape[0])),
    "other names of the sites": build(names=("zeta", "alpha")),
    "another order of the sites": build(order=(1, 0)),
    "one-hot labels": build(one_hot=True),
    "a scale of one": build(scale=1.0),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_the_log_joint_is_the_same(name):
    torch.testing.assert_close(joint(VARIATIONS[name]), by_hand(X, U))


@pytest.mark.parametrize("name", VARIATIONS)
def test_sites_renamed_from_outside_change_nothing(name):
    """Names are changed by a handler, which the program does not know of."""
    renamed = Renamed(VARIATIONS[name])
    torch.testing.assert_close(joint(renamed), by_hand(X, U))


class Renamed:
    """A program whose sites all get another name."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        with Prefix():
            self.model(x)


class Prefix(poutine.messenger.Messenger):
    def _pyro_sample(self, msg):
        if not msg["name"].startswith("_"):
            msg["name"] = f"renamed.{msg['name']}"


@pytest.mark.parametrize("name", VARIATIONS)
def test_single_precision_agrees_to_its_noise(name):
    torch.testing.assert_close(joint(VARIATIONS[name], X.float()).double(), by_hand(X, U), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [[5, 4, 3, 2, 1, 0], [2], [0, 3], [1, 1, 1, 4]])
def test_rows_taken_permuted_or_repeated_keep_their_log_joint(rows):
    torch.testing.assert_close(joint(build(), X[rows], U[rows]), by_hand(X, U)[rows])


@pytest.mark.parametrize("discrete", ["enumerate", "sample"])
@pytest.mark.parametrize("chains", [2, 5])
def test_folded_chains_equal_looped_ones(chains, discrete):
    program = am.Program(build(), discrete=discrete)
    data = program.prepare(X)
    log_joint = program.log_joint(data)
    rng = torch.Generator().manual_seed(2)
    u = torch.randn(chains, 6, 1, generator=rng, dtype=REAL)
    choices = torch.randint(3, (chains, 6, 1), generator=rng) if discrete == "sample" else None
    flat = None if choices is None else choices.flatten(0, 1)
    folded = log_joint.terms(data.fold(chains), u=u.flatten(0, 1), choices=flat).joint
    looped = [
        log_joint.terms(data, u=u[c], choices=None if choices is None else choices[c]).joint for c in range(chains)
    ]
    torch.testing.assert_close(folded, torch.cat(looped), rtol=1e-12, atol=1e-12)


# The evidence itself: with the exact posterior as guide every weight is p(x), whatever the noise

EXACT = ["normal-normal", "dirichlet-multinomial", "gaussian-mixture", "state-space", "pixel-plate"]


def exact_evidence(problem, x) -> np.ndarray:
    method = am.ImportanceSampling(num_draws=3)
    return am.evidence(problem.program(guide=True), x, method=method).log_evidence


@pytest.mark.parametrize("name", EXACT)
def test_the_evidence_is_the_same_in_any_batch(name):
    problem = PROBLEMS[name]()
    x = problem.data
    whole = exact_evidence(problem, x)
    np.testing.assert_allclose(exact_evidence(problem, x.flip(0))[::-1], whole, rtol=1e-9)
    parts = [exact_evidence(problem, x[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, None))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-9)


@pytest.mark.parametrize("name", ["categorical", "hidden-markov", "ragged", "two-sites"])
def test_evidence_by_enumeration_is_the_same_in_any_batch(name):
    case = MIXTURES[name]()
    whole = am.evidence(am.Program(case.model), case.data).log_evidence
    for rows in ([3, 2, 1, 0], [1], [0, 2]):
        some = am.evidence(am.Program(case.model), tuple(value[rows] for value in case.data)).log_evidence
        np.testing.assert_allclose(some, whole[rows], rtol=1e-12)


def autoencoder(seed: int):
    """A small net under the names that every such program uses; no two of them may meet."""
    torch.manual_seed(seed)
    decoder, encoder = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.5 + seed), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return model, guide


def test_another_program_fitted_before_changes_nothing():
    """The same site, module and parameter names, in the same process, before and in between."""
    x = X.float()
    method = am.ImportanceSampling(num_draws=20)
    clean = am.evidence(am.Program(*autoencoder(0)), x, method=method).log_weights
    program = am.Program(*autoencoder(0))
    other = am.Program(*autoencoder(1))
    am.fit(other, x, num_steps=5)
    np.testing.assert_array_equal(am.evidence(program, x, method=method).log_weights, clean)
    trained = am.evidence(other, x, method=method).log_weights
    am.fit(am.Program(*autoencoder(2)), x, num_steps=5)
    np.testing.assert_array_equal(am.evidence(program, x, method=method).log_weights, clean)
    np.testing.assert_array_equal(am.evidence(other, x, method=method).log_weights, trained)
    assert np.abs(trained - clean).max() > 0.1


@pytest.mark.parametrize("name", ["a declared size", "another name of the plate", "other names of the sites"])
def test_a_whole_run_is_the_same_under_the_same_seed(name):
    """Where a variation asks for the same random numbers in the same order, even the noise is the same."""
    method = am.AIS(num_chains=3, num_temperatures=4, kernel=am.HMC(num_leapfrog=2))
    runs = [am.evidence(am.Program(model), X, method=method, seed=5) for model in (VARIATIONS[name], build())]
    np.testing.assert_allclose(runs[0].log_weights, runs[1].log_weights, rtol=1e-6)
