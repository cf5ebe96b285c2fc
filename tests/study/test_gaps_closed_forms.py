"""The whole ledger against closed forms: linear-Gaussian posteriors, and guides of three families that miss them.

In float64: the density of torch's low-rank Gaussian is off by tenths of a nat in float32 where its diagonal is small.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import amortize as am
from amortize.models import FactorAnalysis

NUM, DIM, RANK = 48, 5, 2
WIDER, SHIFT = 1.3, 0.1
TOLERANCE = 0.02  # nats a datapoint


def best_low_rank(precision: Tensor, *, num_starts: int = 6) -> tuple[Tensor, Tensor]:
    """Diagonal (D,) and factor (D, R) of the nearest to the posterior's covariance, by search in float64."""
    found: list[tuple[float, tuple[Tensor, Tensor]]] = []
    for seed in range(num_starts):
        gen = torch.Generator().manual_seed(seed)
        log_diagonal = (-precision.diagonal().log()).clone().requires_grad_()
        factor = (0.1 * torch.randn(DIM, RANK, generator=gen, dtype=torch.float64)).requires_grad_()
        search = torch.optim.LBFGS([log_diagonal, factor], max_iter=500, line_search_fn="strong_wolfe")

        def closure(search=search, log_diagonal=log_diagonal, factor=factor):
            search.zero_grad()
            covariance = torch.diag(log_diagonal.exp()) + factor @ factor.T
            loss = 0.5 * ((precision * covariance).sum() - torch.logdet(covariance))
            loss.backward()
            return loss

        search.step(closure)
        found.append((float(closure().detach()), (log_diagonal.exp().detach(), factor.detach())))
    return min(found, key=lambda pair: pair[0])[1]


@pytest.fixture(scope="module")
def model() -> FactorAnalysis:
    return FactorAnalysis.random(latent_dim=DIM, data_dim=12, seed=3, dtype=torch.float64)


@pytest.fixture(scope="module")
def low_rank(model) -> tuple[Tensor, Tensor]:
    return best_low_rank(model.closed_form().precision.detach())


@pytest.fixture(scope="module")
def best(model, low_rank) -> dict[str, Tensor]:
    """The best covariance of each family, float64."""
    exact, (diagonal, factor) = model.closed_form(), low_rank
    return {
        "mean-field": torch.diag(1 / exact.precision.detach().diagonal()),
        "low-rank": torch.diag(diagonal) + factor @ factor.T,
        "full-covariance": exact.covariance.detach(),
    }


def guide_of(model: FactorAnalysis, family: str, covariance: Tensor, low_rank: tuple[Tensor, Tensor]):
    """A guide of that family, with this covariance and a mean that is off."""
    exact, (diagonal, factor) = model.closed_form(), low_rank

    def guide(x):
        loc = (exact.posterior_mean(x.double()) + SHIFT).detach()
        with pyro.plate("data", x.shape[0]):
            if family == "mean-field":
                fn = dist.Normal(loc, covariance.diagonal().sqrt()).to_event(1)
            elif family == "low-rank":
                fn = dist.LowRankMultivariateNormal(loc, WIDER**0.5 * factor, WIDER * diagonal)
            else:
                fn = dist.MultivariateNormal(loc, covariance)
            pyro.sample("z", fn)

    return guide


@pytest.mark.parametrize("family", ["mean-field", "low-rank", "full-covariance"])
def test_every_term_is_its_closed_form_and_the_sums_are_exact(model, best, low_rank, family):
    exact, x = model.closed_form(), model.simulate(NUM, seed=5)
    rows, covariance = x.double(), WIDER * best[family]
    mean = exact.posterior_mean(rows)
    evidence = exact.log_evidence(rows).detach()
    truth = {"log_evidence": evidence, "elbo_guide": exact.elbo(rows, mean + SHIFT, covariance).detach()}
    for name, optimum in best.items():
        truth[f"elbo_{name.replace('-', '_')}"] = exact.elbo(rows, mean, optimum).detach()
    own = truth[f"elbo_{family.replace('-', '_')}"]
    truth["inference_gap"] = evidence - truth["elbo_guide"]
    truth["approximation_gap"], truth["amortization_gap"] = evidence - own, own - truth["elbo_guide"]

    program = am.Program(model.model, guide_of(model, family, covariance, low_rank))
    families = ("full-covariance", "mean-field", am.LowRank(rank=RANK))
    ledger = am.gaps(program, x, families=families, num_draws=4000, seed=1)

    assert ledger.guide_family == ledger.settings["reference"] == family
    assert ledger.families == ("mean-field", "low-rank", "full-covariance")
    for name, values in truth.items():
        error = float((ledger.table[name].to_numpy() - values.numpy()).mean())
        assert abs(error) < TOLERANCE, (name, error)
    steps = [truth[name] for name in ("elbo_guide", "elbo_mean_field", "elbo_low_rank", "elbo_full_covariance")]
    gains = [float((upper - lower).mean()) for lower, upper in zip(steps, [*steps[1:], evidence], strict=True)]
    np.testing.assert_allclose(ledger.tower["gain"], gains, atol=TOLERANCE)

    table = ledger.table
    together = table["approximation_gap"] + table["amortization_gap"]
    np.testing.assert_allclose(together, table["inference_gap"], rtol=0.0, atol=1e-9)
    assert ledger.tower["gain"].sum() == pytest.approx(table["inference_gap"].mean(), abs=1e-9)


def test_the_families_are_told_apart_by_more_than_the_tolerance(model, best):
    exact = model.closed_form()
    x = model.simulate(1).double()
    mean = exact.posterior_mean(x)
    elbos = [float(exact.elbo(x, mean, best[name]).detach()) for name in ("mean-field", "low-rank", "full-covariance")]
    assert elbos[0] + 2 * TOLERANCE < elbos[1] < elbos[2] - 1e-6
