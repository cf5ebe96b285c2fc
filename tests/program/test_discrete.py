"""How discrete latents are treated: what is summed out and by what, what is sampled, and what is refused."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import amortize as am
from amortize.errors import ArgumentError, DiscreteLatentError, UnboundedDiscreteError
from amortize.program.handlers import choices_of, chosen
from tests.mixtures import CENTRES, MIXTURES, REAL, WEIGHTS

X = torch.tensor([0.3, -1.2, 0.8, 2.1], dtype=REAL)


def treatment(model, data=X, **settings):
    program = am.Program(model, **settings)
    return program.structure(program.prepare(data))


def bits(num, *, continuous=False, **infer):
    """``num`` bits in one site, which cannot be contracted; beside a continuous latent if asked for."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=REAL), 1.0)) if continuous else 0.0
            half = dist.Bernoulli(torch.full((num,), 0.5, dtype=REAL)).to_event(1)
            b = pyro.sample("b", half, infer=infer)
            pyro.sample("x", dist.Normal(z + b.sum(-1), 1.0), obs=x)

    return model


def two(first=None, second=None):
    """A class of three, and seven bits below it."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer=first)
            z = pyro.sample("z", dist.Normal(CENTRES[k], 1.0))
            b = pyro.sample("b", dist.Bernoulli(torch.full((7,), 0.5, dtype=REAL)).to_event(1), infer=second)
            pyro.sample("x", dist.Normal(z + b.sum(-1), 1.0), obs=x)

    return model


def test_few_configurations_are_tiled_and_many_contracted():
    for name, mixture in ((name, make()) for name, make in MIXTURES.items()):
        structure = treatment(mixture.model, mixture.data)
        few = structure.num_configurations <= 64
        assert structure.summation == ("tiling" if few else "contraction"), name
        assert structure.enumerated == structure.discrete and structure.reason.endswith("configurations")


@pytest.mark.parametrize(
    ("num", "continuous", "mode", "expected"),
    [
        (6, True, None, "tiling"),
        (7, True, None, "none"),  # 128 configurations beside HMC: sampled
        (7, True, "enumerate", "tiling"),
        (7, True, "sample", "none"),
        (12, False, None, "tiling"),  # nothing else to sample: exact
        (13, False, None, "none"),
        (13, False, "enumerate", "tiling"),
        (2, False, "sample", "none"),
    ],
)
def test_cost_and_the_override_decide(num, continuous, mode, expected):
    structure = treatment(bits(num, continuous=continuous), discrete=mode)
    assert structure.summation == expected
    assert structure.sampled == (() if expected == "tiling" else ("b",))
    assert structure.num_choices == (0 if expected == "tiling" else num)


@pytest.mark.parametrize("way", ["parallel", "sequential"])
def test_what_the_user_marked_is_summed_out(way):
    assert treatment(bits(7, continuous=True, enumerate=way)).summation == "tiling"
    assert treatment(bits(7, continuous=True, enumerate=way), discrete="sample").sampled == ("b",)
    mixed = treatment(two(first={"enumerate": way}))
    assert mixed.enumerated == ("k",) and mixed.sampled == ("b",) and mixed.summation == "tiling"
    assert treatment(two()).sampled == ("k", "b")


def test_summed_out_and_sampled_in_one_program():
    """The class summed out, the bits sampled: log p(x, u, b), with b given, is a sum of three terms by hand."""
    program = am.Program(two(first={"enumerate": "parallel"}))
    data = program.prepare(X)
    u = torch.tensor([[0.1], [-0.4], [2.0], [0.7]], dtype=REAL)
    choices = torch.randint(2, (4, 7), generator=torch.Generator().manual_seed(0))
    joint = program.log_joint(data).terms(data, u=u, choices=choices).joint
    prior = (WEIGHTS.log() + dist.Normal(CENTRES, 1.0).log_prob(u)).logsumexp(-1) + 7 * torch.tensor(0.5).log()
    expected = prior + dist.Normal(u[:, 0] + choices.sum(-1), 1.0).log_prob(X)
    torch.testing.assert_close(joint, expected, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_listed_is_refused_by_name():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("count", dist.Poisson(torch.tensor(3.0, dtype=REAL)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    for mode in (None, "enumerate", "sample"):
        with pytest.raises(UnboundedDiscreteError, match=r"'count'.*Truncate it to a Categorical"):
            am.evidence(am.Program(model, discrete=mode), X)


def test_too_many_configurations_are_refused_with_a_way_out():
    with pytest.raises(DiscreteLatentError, match=r"'b' are to be summed out, but there are 131072.*discrete='sample'"):
        treatment(bits(17), discrete="enumerate")
    with pytest.raises(DiscreteLatentError, match="contraction fails: NotImplementedError"):
        treatment(bits(17, enumerate="parallel"))
    with pytest.raises(ArgumentError, match="expected None, 'enumerate' or 'sample', got 'exact'"):
        treatment(bits(2), discrete="exact")


def counts(x, total):
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Binomial(total, torch.tensor(0.4, dtype=REAL)))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def test_values_that_differ_between_datapoints_are_refused_by_name():
    """The first four datapoints, which discovery sees, agree; the last does not."""
    total = torch.tensor([3.0, 3.0, 3.0, 3.0, 5.0], dtype=REAL)
    with pytest.raises(UnboundedDiscreteError, match="'k' can be listed for the first datapoints but not for all"):
        am.evidence(am.Program(counts), (torch.zeros(5, dtype=REAL), total))
    alone = am.evidence(am.Program(counts), (torch.zeros(1, dtype=REAL), total[4:])).log_evidence
    exact = (stats.binom(5, 0.4).pmf(range(6)) * stats.norm(range(6)).pdf(0.0)).sum()
    assert alone == pytest.approx([torch.tensor(exact).log().item()])


def cat(ks):
    return torch.stack(ks, -1).to(REAL).sum(-1)


def view(ks):
    return sum(k.view(k.shape[-1]).to(REAL) for k in ks)


@pytest.mark.parametrize("join", [cat, view])
def test_a_program_that_does_not_broadcast_is_tiled(join):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            ks = [
                pyro.sample(f"k_{i}", dist.Categorical(torch.ones(size, dtype=REAL))) for i, size in enumerate((9, 8))
            ]
            pyro.sample("x", dist.Normal(join(ks), 1.0), obs=x)

    structure = treatment(model)
    assert structure.summation == "tiling" and "no contraction: " in structure.reason
    total = torch.arange(9)[:, None] + torch.arange(8)
    exact = (
        dist.Normal(total.to(REAL), 1.0).log_prob(X[:, None, None]).flatten(1).logsumexp(-1) - torch.tensor(72.0).log()
    )
    torch.testing.assert_close(
        torch.tensor(am.evidence(am.Program(model), X).log_evidence), exact, rtol=1e-6, atol=1e-6
    )


def mixes_rows(num):
    """Broadcasts, but wrongly: it subtracts the mean over the first dimension, which is the batch only by itself."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            ks = [pyro.sample(f"k_{i}", dist.Categorical(WEIGHTS)) for i in range(num)]
            for i, k in enumerate(ks):
                value = CENTRES[k]
                shift = 0.0 if value.dim() == 1 else value.mean(0)
                pyro.sample(f"x_{i}", dist.Normal(value - shift, 1.0), obs=x)

    return model


@pytest.mark.parametrize("num", [4, 8, 12])
def test_a_program_that_broadcasts_wrongly_is_caught(num):
    """With 81 configurations by tiling all of them, with 531441 by tiling groups of sites."""
    structure = treatment(mixes_rows(num))
    assert structure.summation == ("tiling" if 3**num <= 4096 else "none") and "differs from tiling" in structure.reason


def test_a_variable_with_as_many_values_as_rows_tried_hides_nothing():
    """Two values flattened into a batch of two look like the batch."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            ks = [pyro.sample(f"k_{i}", dist.Bernoulli(torch.tensor(0.5, dtype=REAL))) for i in range(7)]
            pyro.sample("x", dist.Normal(ks[0].reshape(-1), 1.0), obs=x)
            pyro.sample("y", dist.Normal(sum(ks), 1.0), obs=x)

    assert treatment(model).summation == "tiling"


def moving(x):
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Uniform(torch.zeros((), dtype=REAL), 1.0 + k))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_a_class_that_moves_a_support_is_sampled():
    """z has no u of its own without k: a guide's density over u would need it."""
    structure = treatment(moving)
    assert structure.sampled == ("k",) and "the support of 'z' changes" in structure.reason
    with pytest.raises(DiscreteLatentError, match="the support of 'z' changes"):
        treatment(moving, discrete="enumerate")


@pytest.mark.parametrize(
    "fn",
    [
        dist.OneHotCategorical(torch.ones(2, 3)).to_event(1),
        dist.Bernoulli(torch.full((2,), 0.5)).to_event(1),
        dist.Categorical(torch.ones(2, 3)).to_event(1),
    ],
    ids=["one-hot", "bits", "integers"],
)
def test_values_and_their_places_in_the_list_say_the_same(fn):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(pyro.sample("z", fn).flatten(1).sum(-1), 1.0), obs=x)

    site = treatment(model).sites["z"]
    places = torch.cartesian_prod(*[torch.arange(site.cardinality)] * site.num_variables)
    values = chosen(site, fn, places)
    assert len(torch.unique(values, dim=0)) == len(places)
    assert torch.equal(choices_of(site, fn, values), places)
