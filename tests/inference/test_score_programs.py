"""What programs the estimators of discrete latents take: plates, running statistics, masks, relaxed guides, layers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortize as am
from amortize.random import pyro_rng
from tests.discrete_toys import OneLayer, TwoLayers, largest_z

EVERY = {
    "nvil": am.NVIL(normalise=False),
    "leave-one-out": am.LeaveOneOut(2),
    "vimco": am.VIMCO(2),
    "disarm": am.DisARM(),
    "relax": am.RELAX(hidden=(8,)),
}


class Normed(nn.Module):
    """Batch statistics on both sides; ``layers`` says whether the guide reads its own draws."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        self.higher = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        self.decoder = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
        self.middle = nn.Linear(2, 3)

    def model(self, x):
        with pyro.plate("data", 5000, subsample=x):
            logits = x.new_zeros(3)
            if self.layers == 2:
                top = pyro.sample("top", dist.Bernoulli(logits=x.new_zeros(2)).to_event(1))
                logits = self.middle(top)
            z = pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", 5000, subsample=x):
            z = pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))
            if self.layers == 2:
                pyro.sample("top", dist.Bernoulli(logits=self.higher(z)).to_event(1))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", EVERY)
def test_subsampling_plates_and_running_statistics(name, layers):
    """Statistics follow each batch once, whatever the number of runs; the bound is in nats a datapoint."""
    normed = Normed(layers)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    fitted = am.fit(am.Program(normed.model, normed.guide), x, objective=EVERY[name], num_steps=6)
    assert normed.encoder[1].num_batches_tracked == 6 and normed.decoder[1].num_batches_tracked == 6
    if layers == 2:
        assert normed.higher[1].num_batches_tracked == 6
    assert fitted.history.elbo.between(-60, 0).all() and fitted.history.gradient_norm.between(1e-4, 1e4).all()


@pytest.mark.parametrize("name", EVERY)
def test_a_relaxed_guide_is_scored_as_its_discrete_twin(name):
    """The same draws, bound and gradients as those of the guide that says Bernoulli."""
    found = []
    for relaxed in (False, True):
        toy = OneLayer()

        def guide(x, toy=toy, relaxed=relaxed):
            logits = x @ toy.encoder
            fn = am.RelaxedBernoulli(0.3, logits=logits) if relaxed else dist.Bernoulli(logits=logits)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", fn.to_event(1))

        toy.guide = guide
        program = toy.program()
        data = program.prepare(toy.x.repeat(20, 1))
        loss = EVERY[name].on(program, data, seed=0)
        with pyro_rng(0, "twins"):
            terms = loss(data)
        slopes = torch.autograd.grad(terms.loss, [toy.prior, toy.decoder])
        found.append((terms.bound, *slopes))
    for discrete, twin in zip(*found, strict=True):
        torch.testing.assert_close(discrete, twin)


@pytest.mark.parametrize("name", EVERY)
def test_one_batch_draws_differ_and_a_seed_brings_them_back(name):
    toy = TwoLayers()
    program = toy.program()
    data = program.prepare(toy.x.repeat(20, 1))
    loss = EVERY[name].on(program, data, seed=0)
    loss(data)  # NVIL begins with draws of its own
    bounds = []
    for seed in (0, 0, 1):
        with pyro_rng(seed, "seeds"):
            bounds.append(loss(data).bound)
    assert torch.equal(bounds[0], bounds[1]) and not torch.equal(bounds[0], bounds[2])


@pytest.mark.parametrize("name", EVERY)
def test_latents_that_the_guide_leaves_out_are_summed_out(name):
    """Two bits, the second one summed out by the model: the gradient is that of the bound of the first alone."""
    slope = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    gap = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gap = gap

        def forward(self, x):
            with pyro.plate("data", x.shape[0]):
                a = pyro.sample("a", dist.Bernoulli(x.new_tensor(0.4)))
                b = pyro.sample("b", dist.Bernoulli(x.new_tensor(0.3)))
                pyro.sample("x", dist.Normal(self.gap * a - b, 1.0), obs=x)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, x):
            with pyro.plate("data", x.shape[0]):
                pyro.sample("a", dist.Bernoulli(logits=self.slope * x))

    def log_joint(a):
        b = torch.tensor([0.0, 1.0], dtype=torch.float64).unsqueeze(-1)
        inside = dist.Normal(gap * a - b, 1.0).log_prob(x) + dist.Bernoulli(x.new_tensor(0.3)).log_prob(b)
        return inside.logsumexp(0) + dist.Bernoulli(x.new_tensor(0.4)).log_prob(x.new_tensor(a))

    q = dist.Bernoulli(logits=slope * x)
    log_qs = [q.log_prob(torch.full_like(x, a)) for a in (0.0, 1.0)]
    weights = [log_joint(a) - log_q for a, log_q in zip((0.0, 1.0), log_qs, strict=True)]
    if name == "vimco":
        pairs = [(i, j) for i in range(2) for j in range(2)]
        each = [(log_qs[i] + log_qs[j]).exp() * torch.stack([weights[i], weights[j]]).logsumexp(0) for i, j in pairs]
        exact = sum(each) - torch.tensor(2.0).log()
    else:
        exact = sum(log_q.exp() * weight for log_q, weight in zip(log_qs, weights, strict=True))
    truth = torch.stack(torch.autograd.grad(exact.mean(), [gap, slope]))
    program = am.Program(Model(), Guide())
    data = program.prepare(x.repeat(200))
    loss = EVERY[name].on(program, data, seed=0)
    with pyro_rng(0, "left"):
        rows = [torch.stack(torch.autograd.grad(-loss(data).loss, [gap, slope])) for _ in range(30)]
    found, allowed = largest_z(torch.stack(rows), truth)
    assert found < allowed


@pytest.mark.parametrize("sure", [1.0, 20.0])
def test_a_guide_that_is_sure_of_what_it_reads_is_scored_as_one_that_reads(sure):
    """Any few runs of it draw the same below, and so say the same above: its other draws count all the same."""
    toy = TwoLayers()
    x = (torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    with torch.no_grad():
        toy.first.copy_(sure * torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.2, 0.0], [0.0, 0.2]]))
        toy.second.mul_(4.0)
        z = toy.configurations()
        log_q = toy.log_q(x - 0.5, z)
        exact = (log_q.exp() * (toy.log_joint(x, z) - log_q)).sum(0)

    def guide(x):
        toy.guide(x - 0.5)

    program = am.Program(toy.model, guide)
    loss = am.ExactELBO().on(program, program.prepare(x), seed=0)
    assert loss.measured(program.prepare(x), 1, seed=0) == pytest.approx(exact.numpy(), abs=1e-6)
