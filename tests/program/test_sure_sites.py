"""Guides that are sure of a discrete latent are known from those that are not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.program.points import sure_sites

SURE = {
    "bernoulli": (dist.Bernoulli, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.9])),
    "categorical": (dist.Categorical, torch.tensor([[0.0, 1.0]]), torch.tensor([[0.1, 0.9]])),
    "one-hot": (dist.OneHotCategorical, torch.tensor([[0.0, 1.0]]), torch.tensor([[0.1, 0.9]])),
}


def program_of(kind, probs, *, discrete):
    family, sure, _ = SURE[kind]

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", family(torch.full(sure.shape, 0.5)).to_event(1))
            shift = k.float().reshape(x.shape[0], -1).sum(-1)
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", family(probs.expand(x.shape[0], *probs.shape)).to_event(1))

    return am.Program(model, guide, discrete=discrete)


@pytest.mark.parametrize("kind", SURE)
def test_sure_and_unsure(kind):
    x = torch.zeros(3)
    for probs, expected in zip(SURE[kind][1:], (("k",), ()), strict=True):
        program = program_of(kind, probs, discrete="sample")
        assert sure_sites(program, program.prepare(x)) == expected
    summed = program_of(kind, SURE[kind][1], discrete="enumerate")
    assert sure_sites(summed, summed.prepare(x)) == ()


def test_a_sure_guide_s_weights_are_not_trusted():
    x = torch.zeros(3)
    program = program_of("bernoulli", SURE["bernoulli"][1], discrete="sample")
    found = am.evidence(program, x, method=am.ImportanceSampling(num_draws=50))
    assert not found.trusted.any()
    assert (found.log_evidence < am.evidence(program, x, discrete="enumerate").log_evidence).all()
