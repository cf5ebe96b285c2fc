"""The relaxed ELBO: what it is at each temperature, against sums over all configurations of discrete latents."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.program.rates import RatedRun
from amortize.program.relaxing import Relax
from amortize.random import generator, pyro_rng
from tests.statistics import z_value

KINDS = ("bits", "one-hot", "two layers")


class Small(torch.nn.Module):
    """Six bits, two one-hot latents of three, or three bits above three bits; four real numbers observed."""

    def __init__(self, kind: str = "bits") -> None:
        super().__init__()
        self.kind = kind
        gen = generator(0, kind)

        def made(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=gen, dtype=torch.float64))

        self.decoder, self.encoder, self.upper, self.down = made(6, 4), made(4, 6), made(3, 3), made(3, 3)

    def _prior(self, num):
        if self.kind == "one-hot":
            return dist.OneHotCategorical(logits=torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)).expand([num, 2])
        return dist.Bernoulli(torch.full((num, 3 if self.kind == "two layers" else 6), 0.3, dtype=torch.float64))

    def model(self, x):
        num = x.shape[0]
        with pyro.plate("data", num):
            z = pyro.sample("z", self._prior(num).to_event(1))
            if self.kind == "two layers":
                lower = pyro.sample("lower", dist.Bernoulli(logits=z @ self.down).to_event(1))
                z = torch.cat([z, lower], -1)
            loc = (z.flatten(-2) if self.kind == "one-hot" else z) @ self.decoder
            pyro.sample("x", dist.Normal(loc, 1.5).to_event(1), obs=x)

    def guide(self, x):
        logits = x @ self.encoder
        with pyro.plate("data", x.shape[0]):
            if self.kind == "one-hot":
                logits = logits.unflatten(-1, (2, 3))
                pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))
            elif self.kind == "two layers":
                lower = pyro.sample("lower", dist.Bernoulli(logits=logits[..., :3]).to_event(1))
                pyro.sample("z", dist.Bernoulli(logits=lower @ self.upper).to_event(1))
            else:
                pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    def program(self):
        return am.Program(self.model, self.guide, discrete="sample")

    def configurations(self):
        if self.kind == "one-hot":
            eye = torch.eye(3, dtype=torch.float64)
            return [{"z": torch.stack(pair)} for pair in itertools.product(eye, repeat=2)]
        bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64)
        if self.kind == "bits":
            return [{"z": row} for row in bits]
        return [{"z": row[:3], "lower": row[3:]} for row in bits]

    def elbo(self, x):
        """Of the discrete program, exactly: (N,)."""
        total = 0.0
        for values in self.configurations():
            at = {name: value.expand(len(x), *value.shape) for name, value in values.items()}
            with torch.no_grad():
                q = pyro.poutine.trace(pyro.poutine.condition(self.guide, data=at)).get_trace(x)
                p = pyro.poutine.trace(pyro.poutine.condition(self.model, data=at)).get_trace(x)
            q.compute_log_prob()
            p.compute_log_prob()
            log_q = sum(q.nodes[name]["log_prob"] for name in at)
            log_p = sum(p.nodes[name]["log_prob"] for name in (*at, "x"))
            total = total + log_q.exp() * (log_p - log_q)
        return total


@pytest.fixture(scope="module")
def x():
    return torch.randn(5, 4, generator=generator(0, "x"), dtype=torch.float64)


def values_of(small, x, objective, num=4000):
    """The training value of each datapoint, and its standard error."""
    program = small.program()
    loss = objective.on(program, program.prepare(x), seed=0)
    data = program.prepare(x.repeat(num, 1))
    with pyro_rng(0, "test"):
        bound = loss(data).bound.reshape(num, -1)
    return bound.mean(0), bound.std(0) / num**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_hard_values_with_the_discrete_rate_have_the_mean_of_the_discrete_elbo(kind, x):
    small = Small(kind)
    mean, se = values_of(small, x, am.ConcreteELBO(temperature=0.7, straight_through=True))
    assert ((mean - small.elbo(x)).abs() < z_value(5) * se).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_relaxed_value_comes_to_the_discrete_elbo_as_the_temperature_falls(kind, x):
    small = Small(kind)
    away = []
    for temperature in (2.0, 0.02):
        mean, se = values_of(small, x, am.ConcreteELBO(temperature=temperature))
        away.append(float((mean - small.elbo(x)).abs().max()))
    assert away[1] < 0.1 < away[0]
    assert (se < 0.1).all()


def test_the_relaxed_rate_is_above_the_discrete_one_at_every_temperature(x):
    """Temperature is but a unit of y, and a hard value is a function of the relaxed one."""
    small = Small()
    program = small.program()
    data = program.prepare(x.repeat(4000, 1))
    rates = {}
    for temperature in (None, 0.05, 2.0):
        relax = Relax(("z",), temperature=temperature or 1.0, relaxed_rates=temperature is not None)
        with pyro_rng(0, "test"), torch.no_grad():
            rates[temperature] = RatedRun.of(program, program.structure(data), data, relax=relax).rates["z"]
    assert torch.allclose(rates[0.05], rates[2.0], atol=1e-8)
    assert (rates[2.0].reshape(4000, 5, 6).mean(0) > rates[None].reshape(4000, 5, 6)[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_the_elbo_of_the_discrete_program(kind, x):
    small = Small(kind)
    program = small.program()
    loss = am.ConcreteELBO(temperature=0.3).on(program, program.prepare(x), seed=0)
    draws = np.stack([loss.measured(program.prepare(x), 20, seed=seed) for seed in range(50)])
    se = draws.std(0, ddof=1) / 50**0.5
    assert (abs(draws.mean(0) - small.elbo(x).numpy()) < z_value(5) * se).all()


def test_a_relaxed_rate_is_a_divergence_of_relaxed_variables(x):
    """Against quadrature over y of one bit, at the temperatures of guide and prior."""
    small = Small()
    program = small.program()
    data = program.prepare(x[:1].repeat(20_000, 1))
    relax = Relax(("z",), temperature=0.6, relaxed_rates=True, prior_temperature=0.9)
    with pyro_rng(0, "test"), torch.no_grad():
        run = RatedRun.of(program, program.structure(data), data, relax=relax)
    rate = run.rates["z"]
    y = torch.linspace(-150, 150, 300_001, dtype=torch.float64)
    logits = (x[0] @ small.encoder).detach()
    for place in range(6):
        q = am.RelaxedBernoulli(0.6, logits=logits[place]).log_prob(y)
        p = am.RelaxedBernoulli(0.9, probs=torch.tensor(0.3, dtype=torch.float64)).log_prob(y)
        exact = torch.trapezoid(q.exp() * (q - p), y)
        column = rate[:, place]
        assert abs(column.mean() - exact) < z_value(6) * column.std() / len(column) ** 0.5


def test_training_by_it_raises_the_discrete_elbo_to_near_its_best(x):
    small = Small("one-hot")
    for weights in (small.decoder, small.upper, small.down):
        weights.requires_grad_(False)
    program = small.program()
    before = small.elbo(x).mean()
    training = am.Training(learning_rate=5e-2, schedule="cosine")
    am.fit(
        program, x, objective=am.ConcreteELBO(temperature=1.0, final_temperature=0.3), num_steps=600, training=training
    )
    exact = am.evidence(program, x, discrete="enumerate").log_evidence.mean()
    after = float(small.elbo(x).mean())
    assert before < after - 0.5 and after < exact
    enumerated = Small("one-hot")
    for weights in (enumerated.decoder, enumerated.upper, enumerated.down):
        weights.requires_grad_(False)
    optimiser = torch.optim.Adam([enumerated.encoder], lr=5e-2)
    for _ in range(250):
        optimiser.zero_grad()
        loss = -_differentiable_elbo(enumerated, x).mean()
        loss.backward()
        optimiser.step()
    assert after > float(enumerated.elbo(x).mean()) - 0.1


def _differentiable_elbo(small, x):
    total = 0.0
    logits = (x @ small.encoder).unflatten(-1, (2, 3))
    prior = small._prior(len(x)).to_event(1)
    q = dist.OneHotCategorical(logits=logits).to_event(1)
    for values in small.configurations():
        z = values["z"].expand(len(x), 2, 3)
        log_p = prior.log_prob(z) + dist.Normal(z.flatten(-2) @ small.decoder, 1.5).to_event(1).log_prob(x)
        log_q = q.log_prob(z)
        total = total + log_q.exp() * (log_p - log_q)
    return total


def test_the_temperature_falls_geometrically_over_its_share_of_the_steps(x):
    program = Small().program()
    settings = am.ConcreteELBO(temperature=1.0, final_temperature=0.25, anneal=0.5)
    loss = settings.on(program, program.prepare(x), seed=0)
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        loss.progress = progress
        found.append(loss.temperature)
    assert found == pytest.approx([1.0, 0.5, 0.25, 0.25])


def test_particles_are_averaged(x):
    small = Small()
    one, several = (values_of(small, x, am.ConcreteELBO(temperature=0.5, num_particles=k), num=1000) for k in (1, 8))
    assert ((one[0] - several[0]).abs() < z_value(5) * (one[1] ** 2 + several[1] ** 2).sqrt()).all()
    assert (several[1] < 0.6 * one[1]).all()


def test_beta_multiplies_the_rate(x):
    small = Small("one-hot")
    program = small.program()
    data = program.prepare(x)
    terms = []
    for beta in (0.0, 1.0, 3.0):
        loss = am.ConcreteELBO(temperature=0.5, beta=beta).on(program, data, seed=0)
        with pyro_rng(1, "test"):
            terms.append(loss(data).bound)
    assert torch.allclose(terms[0] - terms[2], 3 * (terms[0] - terms[1]))


def test_guides_that_say_their_temperature_are_trained_by_it(x):
    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", am.RelaxedBernoulli(0.37, logits=x @ small.encoder).to_event(1))

    small = Small()
    program = am.Program(small.model, guide, discrete="sample")
    fitted = am.fit(program, x, num_steps=2)
    assert fitted.objective == "concrete-elbo" and "discrete" in fitted.bound
    relax = Relax(("z",))
    with program.relaxing(relax):
        program.guide(x)
    assert (relax.drawn["z"].fn.temperature == 0.37).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"final_temperature": 0.5}, "temperature"),
        ({"temperature": 1.0, "final_temperature": -1.0}, "final_temperature"),
        ({"anneal": 2.0}, "anneal"),
        ({"rate": "soft"}, "rate"),
        ({"prior_temperature": 0.5}, "prior_temperature"),
        ({"straight_through": 1}, "straight_through"),
        ({"beta": -1.0}, "beta"),
        ({"num_particles": 0}, "num_particles"),
    ],
)
def test_wrong_settings_are_named(settings, match):
    with pytest.raises(am.errors.ArgumentError, match=match):
        am.ConcreteELBO(**settings)


def test_programs_that_cannot_be_relaxed_are_refused_with_the_way_out(x):
    def index_model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(k.double()[..., None], 1.0).expand([x.shape[0], 4]).to_event(1), obs=x)

    weight = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))

    def index_guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.Categorical(logits=x @ pyro.param("weight", weight)))

    with pytest.raises(am.errors.DiscreteLatentError, match="OneHotCategorical"):
        am.fit(am.Program(index_model, index_guide), x, objective="concrete-elbo", num_steps=1)
    with pytest.raises(am.errors.DiscreteLatentError, match="leaves out"):
        am.fit(am.Program(Small().model, lambda x: pyro.param("w", weight)), x, objective="concrete-elbo", num_steps=1)
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    with pytest.raises(am.errors.ArgumentError, match="none"):
        am.fit(analysis.program(), x.float(), objective="concrete-elbo", num_steps=1)
