"""Discovery: what it reads, and the contract's errors by name."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortize as am
from amortize.errors import (
    ArgumentError,
    ContractError,
    DataError,
    DynamicStructureError,
    GlobalLatentError,
    GuideMismatchError,
    NoDataPlateError,
    NotIndependentError,
    PlateSizeError,
)

X = torch.linspace(-1, 1, 10)


def good(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        s = pyro.sample("s", dist.Dirichlet(torch.ones(4)))
        pyro.sample("x", dist.Normal(z.sum(-1) + s[..., 0], 1.0), obs=x)


def test_reads_plate_sites_and_sizes():
    program = am.Program(good)
    structure = program.structure(program.prepare(X))
    assert structure.plate == "data" and structure.dim == 5 and structure.observed == ("x",)
    assert structure.sites["s"].shape == (4,) and structure.sites["s"].unconstrained_shape == (3,)
    assert (structure.sites["s"].start, structure.sites["s"].stop) == (2, 5)
    text = program.describe(X)
    assert "'data', 10 datapoints" in text and "D = 5" in text


def test_check_says_ok_clause_by_clause():
    report = am.Program(good).check(X)
    assert report.ok and "rows independent" in str(report)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_datapoints_are_enough(size):
    program = am.Program(good)
    assert program.structure(program.prepare(X[:size])).plate == "data"


def no_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def sequential(x):
    for i in pyro.plate("data", x.shape[0]):
        z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def global_latent(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def typed_in_size(x):
    with pyro.plate("data", 10):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def unrelated_plate(x):
    with pyro.plate("pixels", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.sum().expand(3))


def no_latent(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def sites_follow_the_data(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0).to_event(1).expand([x.shape[0]]))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def centred(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)


def factor_outside(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.factor("penalty", -z.square().sum())


def random_numbers(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + torch.randn(()), 1.0), obs=x)


BREACHES = {
    "no-plate": (no_plate, NoDataPlateError, "no vectorised pyro.plate"),
    "sequential": (sequential, NoDataPlateError, "sequential"),
    "global-latent": (global_latent, GlobalLatentError, r"condition=\{'w': value\}"),
    "typed-in-size": (typed_in_size, PlateSizeError, "typed in"),
    "unrelated-plate": (unrelated_plate, PlateSizeError, "no plate follows"),
    "no-latent": (no_latent, ContractError, "nothing to infer"),
    "sites-follow-the-data": (sites_follow_the_data, DynamicStructureError, "change with the data"),
    "batch-statistics": (centred, NotIndependentError, "z.mean"),
    "factor-outside": (factor_outside, NotIndependentError, "'penalty' stands outside"),
    "random-numbers": (random_numbers, DynamicStructureError, "between two runs"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breaches_are_named(name):
    model, error, message = BREACHES[name]
    with pytest.raises(error, match=message):
        am.evidence(am.Program(model), X, method=am.AIS(num_chains=2, num_temperatures=2))
    report = am.Program(model).check(X)
    assert not report.ok and error.__name__ in str(report)


def test_train_mode_batch_norm_is_put_in_eval_mode_and_back():
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z).squeeze(-1), 1.0), obs=x)

    program = am.Program(model)
    am.evidence(program, X, method=am.AIS(num_chains=2, num_temperatures=2))
    assert net.training


def test_condition_turns_a_global_latent_into_a_given():
    program = am.Program(global_latent, condition={"w": 0.7})
    data = program.prepare(X)
    value = program.log_joint(data).terms(data, u=torch.zeros(10, 1)).joint
    expected = dist.Normal(0.7, 1.0).log_prob(torch.tensor(0.0)) + dist.Normal(0.0, 1.0).log_prob(X)
    torch.testing.assert_close(value, expected)


def test_two_plates_of_the_size_of_the_data_need_a_name():
    def model(x):
        n = x.shape[0]
        with pyro.plate("rows", n, dim=-1), pyro.plate("columns", n, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(n, n))

    with pytest.raises(NoDataPlateError, match="'rows', 'columns' all have size"):
        am.Program(model).dim(X)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN or infinite values in 1 rows"),
        (torch.zeros(0), "at least one datapoint"),
        ("text", "tensor or array"),
        (torch.tensor(1.0), "tensor or array"),
    ],
)
def test_data_that_cannot_be_used_is_refused(x, message):
    with pytest.raises(DataError, match=message):
        am.Program(good).describe(x)


def test_nan_passes_where_the_model_says_so():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=~torch.isnan(x)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.nan_to_num(x))

    x = torch.tensor([0.0, float("nan"), 1.0])
    assert am.Program(model, allow_nan=True).check(x).ok


def unobserved(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))


def nowhere_finite(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * float("nan"), 1.0), obs=x)


def test_a_model_without_observations_or_finite_densities_is_refused():
    with pytest.raises(ContractError, match="observes nothing"):
        am.evidence(am.Program(unobserved), X)
    report = am.Program(nowhere_finite).check(X)
    assert not report.ok


def test_check_tells_data_that_are_wrong_from_a_program_that_fails():
    def wants_two_columns(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ torch.ones(2, 2), 1.0).to_event(1), obs=x @ torch.ones(2, 2))

    rows = {row.clause: row.verdict for row in am.Program(wants_two_columns).check(torch.zeros(5, 3)).rows}
    assert rows["data are finite numbers"] == "ok" and rows["the model runs on the data"] == "fails"


def test_a_dict_inside_a_tuple_and_a_device_that_is_not_there_are_refused():
    with pytest.raises(DataError, match="keyword arguments"):
        am.Program(good).describe((X, {"c": X}))
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match="not available"):
            am.evidence(am.Program(good), X, device="cuda")


def test_a_guide_that_draws_nan_is_told_from_one_with_a_wrong_support():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.LogNormal(x.log1p(), 1.0))

    with pytest.raises(GuideMismatchError, match="NaN or infinite values at datapoints 0"):
        am.posterior(am.Program(model, guide), torch.tensor([-3.0, 1.0, 2.0]))
