"""Summing discrete latents out: tiling, contraction and sums written by hand agree, in value and in gradient."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.program.enumerate import Placement, Runner, summed
from tests.mixtures import CENTRES, MIXTURES, MOVES, REAL, Mixture, forward

WAYS = [(name, method) for name, make in MIXTURES.items() for method in make().methods]


def prepared(mixture: Mixture, **settings):
    program = am.Program(mixture.model, **settings)
    data = program.prepare(mixture.data)
    return program, data, program.structure(data)


def evaluate(mixture: Mixture, method: str, u: torch.Tensor, rows=slice(None)):
    _, data, structure = prepared(mixture)
    runner = Runner(mixture.model, structure.sites, structure.plate, u.new_zeros(()), structure.batch_ndim)
    return summed(runner, data.rows(rows), Placement(u=u), structure.discrete, method)


def point(mixture: Mixture) -> torch.Tensor:
    num = len(mixture.data[0])
    return torch.randn(num, mixture.dim, generator=torch.Generator().manual_seed(3), dtype=REAL)


@pytest.mark.parametrize(("name", "method"), WAYS)
def test_the_sum_is_the_one_by_hand(name, method):
    mixture = MIXTURES[name]()
    u = point(mixture).requires_grad_()
    terms = evaluate(mixture, method, u)
    expected = mixture.by_hand(u, *mixture.data)
    torch.testing.assert_close(terms.joint, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(terms.prior + terms.likelihood, terms.joint)
    if mixture.dim:
        ours, theirs = (torch.autograd.grad(value.sum(), u, retain_graph=True)[0] for value in (terms.joint, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "method"), WAYS)
def test_rows_alone_and_permuted_have_the_same_sum(name, method):
    mixture = MIXTURES[name]()
    u = point(mixture)
    together = evaluate(mixture, method, u)
    for index in ([2], [3, 1], [3, 2, 1, 0]):
        rows = torch.tensor(index)
        some = evaluate(mixture, method, u[rows], rows)
        for field in ("prior", "likelihood", "jacobian"):
            torch.testing.assert_close(getattr(some, field), getattr(together, field)[rows])


@pytest.mark.parametrize("name", [name for name in MIXTURES if MIXTURES[name]().dim])
def test_tiling_and_contraction_split_prior_and_likelihood_alike(name):
    mixture = MIXTURES[name]()
    u = point(mixture)
    priors = [evaluate(mixture, method, u).prior for method in mixture.methods]
    torch.testing.assert_close(priors[0], priors[-1])
    values = [evaluate(mixture, method, u).values["z"] for method in mixture.methods]
    torch.testing.assert_close(values[0], values[-1])


@pytest.mark.parametrize("name", MIXTURES)
def test_the_verb_gives_the_same_numbers(name):
    mixture = MIXTURES[name]()
    program, data, structure = prepared(mixture)
    assert structure.summation in mixture.methods and not structure.sampled
    with torch.no_grad():
        joint = program.log_joint(data).terms(data, u=point(mixture)).joint
    torch.testing.assert_close(joint, mixture.by_hand(point(mixture), *mixture.data))
    if not mixture.dim:
        result = am.evidence(program, mixture.data)
        torch.testing.assert_close(torch.tensor(result.log_evidence), joint)
        assert result.method == "exact enumeration" and not result.se.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_that_disagree_do_not_underflow(dtype):
    """Two sharp observations of one class that are 40 apart: each alone leaves the other's class no probability."""
    centres = torch.arange(100, dtype=dtype)

    def model(x, y):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(torch.ones(100, dtype=dtype)))
            pyro.sample("x", dist.Normal(centres[k], 0.1), obs=x)
            pyro.sample("y", dist.Normal(centres[k], 0.1), obs=y)

    x = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=dtype)
    y = x + torch.tensor([0.0, 0.0, 0.0, 40.0], dtype=dtype)
    program = am.Program(model)
    assert program.structure(program.prepare((x, y))).summation == "contraction"
    log_p = torch.stack([dist.Normal(centres, 0.1).log_prob(value[:, None]) for value in (x, y)]).double().sum(0)
    exact = (log_p - torch.tensor(100.0).double().log()).logsumexp(-1)
    result = torch.tensor(am.evidence(program, (x, y)).log_evidence)
    torch.testing.assert_close(result, exact, rtol=1e-6, atol=1e-5)


def test_forbidden_moves_give_no_nan():
    """A chain that can only stay or go on: value and gradient in a latent are finite by tiling and by contraction."""
    moves = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]], dtype=REAL)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=REAL)

    def model(x):
        k = torch.zeros((), dtype=torch.long)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=REAL), 1.0))
            for t in pyro.markov(range(4)):
                k = pyro.sample(f"k_{t}", dist.Categorical(moves[k]))
                pyro.sample(f"x_{t}", dist.Normal(z + CENTRES[k], 0.5), obs=x[:, t])

    mixture = Mixture(model, (x,), lambda *_: torch.zeros(0), 1)
    u = point(mixture).requires_grad_()
    results = []
    for method in ("tiling", "contraction"):
        joint = evaluate(mixture, method, u).joint
        results.append((joint, torch.autograd.grad(joint.sum(), u)[0]))
    assert all(bool(torch.isfinite(value).all()) for pair in results for value in pair)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("length", [2, 60])
def test_the_cost_of_a_chain_is_linear(length):
    """Sixty states of three values: 4e28 configurations."""
    mixture = MIXTURES["hidden-markov"]()
    x = torch.randn(3, length, generator=torch.Generator().manual_seed(2), dtype=REAL)
    torch.testing.assert_close(torch.tensor(am.evidence(am.Program(mixture.model), x).log_evidence), forward(x))


def test_a_plate_of_pixels_below_a_class_is_summed_within_it():
    """Pixels depend on each other through a class of the datapoint: p(x) = sum_j p(j) prod_pixels sum_k ..."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-2):
            j = pyro.sample("j", dist.Categorical(MOVES[0]))
            with pyro.plate("pixels", 7, dim=-1):
                k = pyro.sample("k", dist.Categorical(MOVES[j]))
                pyro.sample("x", dist.Normal(CENTRES[k], 0.7), obs=x)

    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(4), dtype=REAL)
    log_p = dist.Normal(CENTRES, 0.7).log_prob(x[:, :, None])  # row, pixel, k
    inner = (MOVES.log()[None, :, None] + log_p[:, None]).logsumexp(-1).sum(-1)  # row, j
    exact = (MOVES[0].log() + inner).logsumexp(-1)
    torch.testing.assert_close(torch.tensor(am.evidence(am.Program(model), x).log_evidence), exact)


@pytest.mark.parametrize("plate", [lambda x: pyro.plate("data"), lambda x: pyro.plate("data", 900, subsample=x)])
def test_plates_without_a_size_or_with_a_subsample_are_contracted_too(plate):
    def model(x):
        with plate(x):
            k = pyro.sample("k", dist.Categorical(torch.ones(len(x), 90, dtype=REAL)))
            pyro.sample("x", dist.Normal(0.1 * k, 0.5), obs=x)

    x = torch.randn(5, generator=torch.Generator().manual_seed(5), dtype=REAL)
    program = am.Program(model)
    exact = dist.Normal(0.1 * torch.arange(90), 0.5).log_prob(x[:, None]).logsumexp(-1) - torch.tensor(90.0).log()
    assert program.structure(program.prepare(x)).summation == "contraction"
    torch.testing.assert_close(torch.tensor(am.evidence(program, x).log_evidence), exact, rtol=1e-6, atol=1e-6)
    assert am.posterior(program, x, num_draws=3)["k"].shape == (3, 5)
