"""Automatic guides: their densities in closed form on sites of every kind, what they read, and their errors."""

from __future__ import annotations

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import amortize as am
from amortize.errors import (
    ArgumentError,
    ContractError,
    DataError,
    DiscreteLatentError,
    GuideMismatchError,
)
from amortize.program.auto_guide_sites import StandardNormal
from amortize.program.handlers import Record
from amortize.random import pyro_rng
from tests.programs import PROGRAMS

REAL = torch.float64
GAUSSIAN = ("mean-field", "low-rank", "full-covariance")
FLOWS = ("iaf", "coupling", "spline")
NUM = 6


def mixed(x, seen=None):
    """A positive number, a simplex, a matrix in a further plate, and an interval that follows the first."""
    one = torch.ones((), dtype=REAL)
    with pyro.plate("data", x.shape[0], dim=-1):
        scale = pyro.sample("scale", dist.LogNormal(0 * one, 0.5 * one))
        pyro.sample("share", dist.Dirichlet(torch.ones(3, dtype=REAL)))
        end = pyro.sample("end", dist.Uniform(-scale, scale + 1))
        with pyro.plate("parts", 2, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=REAL), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum((0, -1)) + end, scale), obs=x)


def steps(x, seen):
    """Three latents in a chain, hidden by a mask where nothing is seen."""
    z = torch.zeros(len(x), 2, dtype=REAL)
    with pyro.plate("data", x.shape[0]):
        for t in range(3):
            with pyro.poutine.mask(mask=seen[:, t]):
                z = pyro.sample(f"z_{t}", dist.Normal(0.5 * z, 1.0).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(z.sum(-1), 0.5), obs=x[:, t])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=REAL)


RAGGED = (numbers(NUM, 3), torch.arange(3) < torch.tensor([3, 1, 2, 3, 2, 1]).unsqueeze(-1))


def shaken(guide, spread=0.3, seed=0):
    """Weights away from where they begin, at which the guide reads no data."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=stream, dtype=REAL))
    return guide


def made(model, x, family, **settings):
    program = am.Program(model)
    guide = shaken(am.auto_guide(program, x, family=family, hidden=(5,), **settings))
    return am.Program(model, guide), guide


def log_q(program, x, u, chains=1):
    data = program.prepare(x).fold(chains)
    with program.evaluating(), torch.no_grad():
        density = program.guide_density(program.prepare(x))
        return density.log_q(data, u, density.log_joint.terms(data, u=u))


def called(guide, *args, **kwargs):
    with pyro.get_param_store().scope():
        return guide(*args, **kwargs)


def joint_of(guide, x):
    with torch.no_grad():
        return guide.encoder(guide.features(x if isinstance(x, tuple) else (x,), {}))


def tril_of(joint):
    return torch.diag_embed(joint.scale) if joint.tril is None else joint.tril


@pytest.mark.parametrize("family", GAUSSIAN)
def test_density_over_u_is_the_encoders_gaussian(family):
    x = numbers(NUM)
    program, guide = made(mixed, x, family)
    u = numbers(NUM, program.dim(x), seed=1)
    joint = joint_of(guide, x)
    exact = MultivariateNormal(joint.loc, scale_tril=tril_of(joint)).log_prob(u)
    torch.testing.assert_close(log_q(program, x, u), exact, rtol=1e-9, atol=1e-9)


def test_a_wrong_density_of_the_noise_is_noticed(monkeypatch):
    x = numbers(NUM)
    program, guide = made(mixed, x, "full-covariance")
    monkeypatch.setattr(StandardNormal, "log_density", lambda _, w: Normal(0.0, 1.2).log_prob(w))
    u = numbers(NUM, program.dim(x), seed=1)
    joint = joint_of(guide, x)
    exact = MultivariateNormal(joint.loc, scale_tril=tril_of(joint)).log_prob(u)
    assert (log_q(program, x, u) - exact).abs().min() > 1e-3


@pytest.mark.parametrize("family", GAUSSIAN)
def test_what_a_mask_hides_is_a_standard_normal_apart_from_the_rest(family):
    program, guide = made(steps, RAGGED, family)
    u = numbers(NUM, 6, seed=1)
    joint, seen = joint_of(guide, RAGGED), RAGGED[1].repeat_interleave(2, -1)
    tril = tril_of(joint)
    for n, value in enumerate(log_q(program, RAGGED, u)):
        kept = seen[n]
        exact = MultivariateNormal(joint.loc[n, kept], scale_tril=tril[n][kept][:, kept]).log_prob(u[n, kept])
        hidden = Normal(0.0, 1.0).log_prob(u[n, ~kept]).sum()
        torch.testing.assert_close(value, exact + hidden, rtol=1e-9, atol=1e-9)


def pushed(guide, x, monkeypatch):
    """U (D,) of one datapoint as a function of the standard normal numbers (D,) behind it."""

    def u_of(noise):
        left = list(noise.split([site.layout.size for site in guide.plan.sites.values()]))
        monkeypatch.setattr(StandardNormal, "draw", lambda *_: (left.pop(0).unsqueeze(0), None))
        record = Record()
        with pyro.get_param_store().scope(), record:
            guide(*x)
        drawn = [record.messages[name] for name in guide.plan.sites]
        return torch.cat([msg["fn"].layout.rows(msg["fn"].transform.inv(msg["value"]))[0] for msg in drawn])

    return u_of


@pytest.mark.parametrize("family", FLOWS)
@pytest.mark.parametrize(("model", "x"), [(mixed, (numbers(1),)), (steps, tuple(part[:1] for part in RAGGED))])
def test_density_of_a_flow_is_that_of_what_it_pushes_forward(family, model, x, monkeypatch):
    program, guide = made(model, x, family)
    noise = numbers(program.dim(x), seed=3)
    u_of = pushed(guide, x, monkeypatch)
    u = u_of(noise).detach()
    jacobian = torch.autograd.functional.jacobian(u_of, noise)
    monkeypatch.undo()
    assert jacobian.triu(1).abs().max() > 1e-3  # within a site any number may lead
    exact = Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_q(program, x, u.unsqueeze(0))[0], exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["full-covariance", *FLOWS])
def test_density_of_a_draw_is_the_same_by_the_way_back(family):
    x = numbers(NUM)
    program, _ = made(mixed, x, family)
    data = program.prepare(x)
    with program.evaluating(), pyro_rng(0, "test"):
        density = program.guide_density(data)
        draw = density.draw(data)
    torch.testing.assert_close(log_q(program, x, draw.latents.u), draw.log_q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FLOWS)
def test_flows_begin_as_their_gaussian(family):
    x = numbers(NUM)
    flow, gaussian = (am.auto_guide(mixed, x, family=name) for name in (family, "full-covariance"))
    u = numbers(NUM, 8, seed=1)
    values = [log_q(am.Program(mixed, guide), x, u) for guide in (flow, gaussian)]
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-6)


SUITE = {
    "labels": "mean-field",
    "partly observed": "spline",
    "missing entries by obs_mask": "full-covariance",
    "given global": "full-covariance",
    "packed sequences": "coupling",
    "support of the data": "low-rank",
    "subsample=": "full-covariance",
    "pixel plate behind": "iaf",
    "correlation matrix": "full-covariance",
    "positive definite": "spline",
    "counts with a library size": "low-rank",
    "semi-supervised, no labels": "full-covariance",
    "parameters with constraints": "full-covariance",
}


@pytest.mark.parametrize("name", SUITE)
def test_the_contract_holds_on_programs_of_the_suite(name):
    case = PROGRAMS[name]()
    guide = shaken(am.auto_guide(case.program(guide=False), case.data, family=SUITE[name], hidden=(8,)), 0.2)
    report = am.Program(case.model, guide, **dict(case.options)).check(case.data)
    assert report.ok, str(report)
    assert [row.key for row in report.rows if row.verdict == "not tried"] == []


def test_the_guide_begins_at_the_priors_middle_and_spread():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.tensor([10.0, -3.0], dtype=REAL), 0.01).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    guide = am.auto_guide(model, numbers(400))
    joint = joint_of(guide, numbers(NUM))
    torch.testing.assert_close(joint.loc, torch.tensor([10.0, -3.0], dtype=REAL).expand(NUM, 2), rtol=0, atol=2e-3)
    torch.testing.assert_close(joint.scale, torch.full((NUM, 2), 0.01, dtype=REAL), rtol=0.15, atol=0)


def test_discrete_latents_are_left_out_where_summed_out_and_drawn_where_sampled():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(torch.ones(3, dtype=REAL) / 3))
            b = pyro.sample("b", dist.Bernoulli(torch.full((2,), 0.5, dtype=REAL)).to_event(1))
            z = pyro.sample("z", dist.Normal(k.to(REAL), 1.0))
            pyro.sample("x", dist.Normal(z + b.sum(-1), 1.0), obs=x)

    x = numbers(NUM)
    left = am.auto_guide(model, x)
    assert set(called(left, x)) == {"z"} and am.Program(model, left).check(x).ok
    sampled = am.Program(model, discrete="sample")
    guide = shaken(am.auto_guide(sampled, x, family="full-covariance"))
    assert set(called(guide, x)) == {"k", "b", "z"}
    assert am.Program(model, guide, discrete="sample").check(x).ok
    same = torch.cat([guide.features((x[:1],), {}).expand(7, -1), torch.eye(7, dtype=REAL)], -1)
    assert guide.encoder(same).loc.std() > 0.01  # z is given what was drawn of k and b


def test_data_of_another_size_and_calls_by_keyword():
    def model(x, c):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = shaken(am.auto_guide(model, (numbers(NUM), numbers(NUM, seed=1)), family="mean-field"))
    x, c = numbers(3, seed=2), numbers(3, seed=3)
    joints = [
        guide.encoder(guide.features(*call)).loc for call in (((x, c), {}), ((x,), {"c": c}), ((), {"c": c, "x": x}))
    ]
    assert torch.equal(joints[0], joints[1]) and torch.equal(joints[0], joints[2])
    assert called(guide, c=c, x=x)["z"].shape == (3,)


def read(model, x, call=None, **options):
    guide = am.auto_guide(am.Program(model, **options), x)
    return guide.features((x if call is None else call,), {})


def observing(likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=REAL), 1.0))
            pyro.sample("x", likelihood(z), obs=x)

    return model


def test_floats_are_standardised_counts_go_through_a_logarithm_and_labels_are_one_hot():
    x = 5 + 3 * numbers(50)
    rows = read(observing(lambda z: dist.Normal(z, 1.0)), x)
    torch.testing.assert_close(rows, ((x - x.mean()) / x.std(correction=0)).unsqueeze(1))
    counts = torch.arange(50, dtype=REAL)
    rows = read(observing(lambda z: dist.Poisson(z.exp())), counts)
    logs = counts.log1p()
    torch.testing.assert_close(rows, ((logs - logs.mean()) / logs.std(correction=0)).unsqueeze(1))
    labels = torch.tensor([0, 1, 2, 3] * 5)
    model = observing(lambda z: dist.Categorical(logits=z.unsqueeze(-1) * torch.arange(4)))
    assert read(model, labels).shape == (20, 5)
    assert torch.equal(read(model, labels, torch.tensor([3, 9]))[:, 1:].argmax(-1), torch.tensor([3, 0]))
    assert float(read(model, labels, torch.tensor([9]))[:, 1:].sum()) == 0  # a label never seen is none of them


def test_missing_numbers_are_zeros_with_a_column_that_says_so():
    x = numbers(30, 2)
    x[::3, 0] = torch.nan

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=REAL), 1.0))
            filled = dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).mask(~x.isnan()).to_event(1)
            pyro.sample("x", filled, obs=x.nan_to_num())

    rows = read(model, x, allow_nan=True)
    assert rows.shape == (30, 4) and bool(rows.isfinite().all())
    assert torch.equal(rows[:, 2] == 1, x[:, 0].isnan()) and float(rows[::3, 0].abs().sum()) == 0
    torch.testing.assert_close(rows[~x[:, 0].isnan(), 0].mean(), torch.zeros((), dtype=REAL), rtol=0, atol=1e-6)


def test_features_of_the_users_own():
    case = PROGRAMS["ragged list by hook"]()
    with pytest.raises(ArgumentError, match=r"nothing to read.*features="):
        am.auto_guide(case.program(), case.data)
    guide = am.auto_guide(
        case.program(), case.data, features=lambda sequences: torch.stack([s.mean() for s in sequences])
    )
    assert am.Program(case.model, shaken(guide), **dict(case.options)).check(case.data).ok


def test_the_network_of_features_is_trained_along():
    network = torch.nn.Linear(2, 3).double()
    model = observing(lambda z: dist.Normal(z.unsqueeze(-1), 1.0).expand([len(z), 2]).to_event(1))
    guide = am.auto_guide(model, numbers(NUM, 2), features=network)
    assert any(parameter is network.weight for parameter in guide.parameters())


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"family": "gaussian"}, ArgumentError, "family: expected one of mean-field"),
        ({"hidden": 64}, ArgumentError, "hidden: expected a sequence"),
        ({"hidden": (64, 0)}, ArgumentError, "hidden"),
        ({"features": 3}, ArgumentError, "features"),
        ({"seed": -1}, ArgumentError, "seed"),
    ],
)
def test_wrong_settings_are_named(settings, error, words):
    with pytest.raises(error, match=words):
        am.auto_guide(mixed, numbers(NUM), **settings)


def test_programs_that_have_no_such_guide():
    with pytest.raises(ContractError, match="nothing to amortize"):
        am.auto_guide(am.Program(mixed, whole=True), numbers(NUM))
    with pytest.raises(ArgumentError, match="model"):
        am.auto_guide(3, numbers(NUM))

    def binomial(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Binomial(4, torch.tensor(0.5, dtype=REAL)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(DiscreteLatentError, match=r"'k' \(Binomial\).*summed out"):
        am.auto_guide(am.Program(binomial, discrete="sample"), numbers(NUM))

    def ragged(x, seen):
        with pyro.plate("data", x.shape[0], dim=-2), pyro.plate("time", 3, dim=-1), pyro.poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=REAL), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ContractError, match=r"parts of the latent 'z'.*full-covariance"):
        am.auto_guide(ragged, RAGGED, family="spline")
    program, guide = made(ragged, RAGGED, "full-covariance")
    assert program.check(RAGGED).ok
    u, joint = numbers(NUM, 3, seed=1), joint_of(guide, RAGGED)
    kept = RAGGED[1][2]
    exact = MultivariateNormal(joint.loc[2, kept], scale_tril=joint.tril[2][kept][:, kept]).log_prob(u[2, kept])
    exact = exact + Normal(0.0, 1.0).log_prob(u[2, ~kept]).sum()
    torch.testing.assert_close(log_q(program, RAGGED, u)[2], exact, rtol=1e-9, atol=1e-9)


def test_a_guide_meets_other_data_and_other_models():
    guide = am.auto_guide(PROGRAMS["shared matrix"]().model, (numbers(NUM, 4).float(), numbers(2, 4).float()))
    with pytest.raises(DataError, match=r"data x: .*4 numbers a datapoint, got 5"):
        called(guide, numbers(NUM, 5).float(), numbers(2, 5).float())
    guide = am.auto_guide(observing(lambda z: dist.Normal(z, 1.0)), numbers(NUM))
    with pytest.raises(GuideMismatchError, match="misses 'end', 'scale', 'share'"):
        am.posterior(am.Program(mixed, guide), numbers(NUM), num_draws=2)


def test_a_seed_makes_the_same_guide_and_copies_are_apart():
    x = numbers(NUM)
    first, again, other = (am.auto_guide(mixed, x, family="low-rank", seed=seed) for seed in (1, 1, 2))
    state = [torch.cat([p.flatten() for p in guide.parameters()]) for guide in (first, again, other)]
    assert torch.equal(state[0], state[1]) and not torch.equal(state[0], state[2])
    twin = shaken(copy.deepcopy(first))
    assert torch.equal(torch.cat([p.flatten() for p in first.parameters()]), state[0])
    assert called(twin, x)["z"].shape == (2, NUM, 2)


def test_the_models_own_parameters_stay_its_own_where_it_runs_inside():
    def model(x):
        wide = pyro.param("wide", torch.tensor(1.0, dtype=REAL), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Uniform(-wide, wide))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x = numbers(NUM)
    program = am.Program(model, am.auto_guide(model, x))
    program.prepare(x)
    names = [name for name, _ in program.named_parameters() if name.endswith("wide")]
    assert len(names) == 1
    with torch.no_grad():
        dict(program.named_parameters())[names[0]].fill_(np.log(3.0))
    assert program.check(x).ok
    draws = am.posterior(program, x, num_draws=400)["z"]
    assert 1.0 < np.abs(draws).max() < 3.0  # the guide's support is the model's, as training has moved it
