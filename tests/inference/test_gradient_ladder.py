"""The gradient ladder: unbiased rows are, biased ones are said to be, and nothing is left out in silence."""

from __future__ import annotations

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from typer.testing import CliRunner

import amortize as am
from amortize.cli import app
from amortize.errors import ArgumentError, DiscreteLatentError, GuideMismatchError
from amortize.inference import ladder_standing, leave_one_out
from amortize.inference.ladder_estimators import default_estimators
from amortize.study.ladder import save_ladder
from tests.discrete_toys import Categories, OneHots, OneLayer, TwoLayers, gradients, largest_z
from tests.statistics import z_value

UNBIASED = ("reinforce", "nvil", "leave-one-out", "disarm", "relax", "vimco")


class Bits(torch.nn.Module):
    """A sigmoid belief network of some bits over binary pixels, weights far enough from zero that bits matter."""

    def __init__(self, num_bits: int, data_dim: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.decoder = torch.nn.Linear(num_bits, data_dim, dtype=dtype)
        self.encoder = torch.nn.Linear(data_dim, num_bits, dtype=dtype)
        self.num_bits = num_bits
        gen = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=gen, dtype=dtype))
        self.x = (torch.rand(8, data_dim, generator=gen, dtype=dtype) < 0.5).to(dtype)

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((self.num_bits,), 0.4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))

    def program(self):
        return am.Program(self.model, self.guide)


@pytest.fixture(scope="module")
def ladder():
    toy = Bits(5)
    return am.gradient_ladder(toy.program(), toy.x.repeat(12, 1), num_draws=50, num_steps=10)


def test_every_estimator_has_its_row(ladder):
    assert list(ladder.table.index) == list(default_estimators()) and not ladder.left_out and not ladder.notes
    assert ladder.table[["bias", "variance", "elbo", "log_evidence", "seconds"]].notna().all(axis=None)


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_are(ladder, name):
    row = ladder.table.loc[name]
    assert row["unbiased"] == "yes" and row["z"] < z_value(len(UNBIASED)) and row["bias"] < 3 * row["bias_se"]


def test_biased_estimators_are_and_the_words_say_so(ladder):
    table = ladder.table
    assert table.loc["concrete T=1", "z"] > 4 and table.loc["wake-sleep", "z"] > 4
    assert table.loc["concrete T=1", "bias"] > 4 * table.loc["concrete T=1", "bias_se"]
    assert (table.loc[["concrete T=1", "straight-through", "wake-sleep"], "unbiased"] == "no").all()
    assert re.search(r"Biased, as a share .*concrete T=1 \d", ladder.describe())
    assert table.loc["concrete T=0.1", "variance"] > table.loc["concrete T=1", "variance"]


def test_normalised_nvil_is_right_in_direction_alone(ladder):
    row = ladder.table.loc["nvil, normalised"]
    assert row["unbiased"] == "to scale" and row["variance"] < ladder.table.loc["nvil", "variance"]


def test_the_exact_row_has_no_noise_and_the_scores_are_exact(ladder):
    row = ladder.table.loc["exact"]
    assert row["bias"] == 0 and row["z"] == 0 and row["variance"] == 0
    assert (ladder.table[["elbo_se", "log_evidence_se"]] == 0).all(axis=None)
    assert (ladder.table["elbo"] <= ladder.table["log_evidence"]).all()
    assert row["elbo"] > ladder.start.elbo and "32 configurations" in ladder.exact


def test_targets_are_named_for_what_they_are(ladder):
    assert ladder.table.loc["vimco", "target"] == "bound of 5 draws" and ladder.table.loc["relax", "target"] == "ELBO"


def test_text_and_markdown_have_a_row_each(ladder):
    for label in ladder.table.index:
        assert f"\n{label}" in str(ladder) and f"| {label} |" in ladder.to_markdown()
    assert len(ladder.to_markdown().splitlines()) == len(ladder.table) + 2


@pytest.mark.parametrize("kind", [OneLayer, TwoLayers, Categories, OneHots])
def test_reinforce_by_pyro_is_unbiased(kind):
    toy = kind()
    found, allowed = largest_z(gradients(toy, am.Reinforce()), toy.exact_gradient())
    assert found < allowed


def test_the_running_average_takes_variance_off_and_leaves_pyros_store_alone():
    toy = OneLayer()
    pyro.param("mine", torch.tensor(3.0))
    try:
        plain, averaged = (
            gradients(toy, am.Reinforce(decay=decay), copies=5).var(0).sum() for decay in (1 - 1e-9, 0.9)
        )
        assert averaged < 0.8 * plain
        assert list(pyro.get_param_store()) == ["mine"]
    finally:
        pyro.clear_param_store()


def test_reinforce_refuses_what_it_would_draw_from_the_prior():
    toy = TwoLayers()

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(logits=x @ toy.first).to_event(1))

    with pytest.raises(DiscreteLatentError, match=r"leaves out the discrete latent 'top'.*enum-elbo"):
        am.fit(am.Program(toy.model, guide), toy.x, objective="reinforce", num_steps=1)


def test_a_broken_estimator_is_found_out(monkeypatch):
    """Half of the guide's gradient: unbiased by what it claims, and flagged."""

    def shares(self, batch, log_weights):
        right = whole(self, batch, log_weights)
        return right._replace(guide=0.5 * right.guide)

    whole = leave_one_out._Loss.shares
    monkeypatch.setattr(leave_one_out._Loss, "shares", shares)
    toy = Bits(4)
    found = am.gradient_ladder(toy.program(), toy.x, estimators=["leave-one-out"], num_draws=200, num_steps=0)
    assert found.table.loc["leave-one-out", "z"] > 4
    assert "Unbiased by theory, and not on this program (z above 4): leave-one-out." in found.describe()


def test_who_can_not_treat_a_program_is_left_out_with_the_reason():
    toy = Categories()
    found = am.gradient_ladder(toy.program(), toy.x, num_draws=20, num_steps=0)
    assert set(found.left_out) >= {"disarm", "relax", "concrete T=1", "straight-through"}
    assert {"exact", "reinforce", "nvil", "vimco", "leave-one-out", "wake-sleep"} == set(found.table.index) - {
        "nvil, normalised"
    }
    for label, reason in found.left_out.items():
        assert f"Left out: {label}, {reason}" in found.describe() and "'k'" in reason


class Hard(Bits):
    """A decoder that soft values break."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((self.num_bits,), 0.4)).to_event(1))
            if not bool(((z == 0) | (z == 1)).all()):
                raise KeyError("soft bits")
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def test_a_model_that_soft_values_break_loses_the_relaxed_rows_alone():
    toy = Hard(3)
    found = am.gradient_ladder(
        toy.program(), toy.x, estimators=["concrete T=1", "leave-one-out"], num_draws=20, num_steps=0
    )
    assert list(found.table.index) == ["leave-one-out"] and "KeyError: 'soft bits'" in found.left_out["concrete T=1"]


def test_the_error_of_an_elbo_from_draws_is_how_far_it_is_from_the_exact_one():
    toy = Bits(4)
    program = toy.program()
    data = program.prepare(toy.x)
    exact, _ = ladder_standing._exact_elbo(program, data)
    found = [ladder_standing._sampled_elbo(program, data, seed) for seed in range(30)]
    off = np.array([(elbo - exact) / error for elbo, error in found])
    assert 0.6 < np.sqrt(np.square(off).mean()) < 1.5


def test_too_many_configurations_leave_the_variance_and_the_training():
    toy = Bits(13)
    found = am.gradient_ladder(
        toy.program(),
        toy.x,
        estimators=["exact", "leave-one-out", "concrete T=0.5"],
        num_draws=30,
        num_steps=5,
        method=am.ImportanceSampling(num_draws=2000),
    )
    assert "8192 configurations" in found.left_out["exact"] and "No exact gradient" in found.describe()
    assert found.table["bias"].isna().all() and (found.table["variance"] > 0).all()
    assert (found.table["elbo_se"] > 0).all() and (found.table["method"] == "importance sampling (PSIS)").all()
    assert (found.table["elbo"] < found.table["log_evidence"]).all()


def test_the_program_is_left_as_it_was_and_seeds_decide():
    toy = Bits(3)
    program = toy.program()
    program.prepare(toy.x)
    before, names = program.state(), ["nvil"]
    runs = [
        am.gradient_ladder(program, toy.x, estimators=names, num_draws=20, num_steps=2, seed=seed) for seed in (0, 0, 1)
    ]
    assert all(torch.equal(before[name], value) for name, value in program.state().items())
    assert all(parameter.grad is None for parameter in program.parameters())
    first, again, other = (run.table.drop(columns="seconds") for run in runs)
    assert first.equals(again) and not first.equals(other)


def test_datapoints_beyond_a_hundred_are_looked_at_evenly():
    toy = Bits(3)
    x = toy.x.repeat(40, 1)
    found = am.gradient_ladder(toy.program(), x, estimators=["exact"], num_draws=20, num_steps=0)
    assert found.num_datapoints == 100 and np.isnan(found.table["elbo"]).all() and "nothing was trained" in str(found)


def test_the_evidence_of_twelve_bits_by_three_means():
    """Exactly, by annealing with Gibbs moves, and from the trained guide."""
    toy = Bits(12, data_dim=8)
    program = toy.program()
    am.fit(program, toy.x, objective="exact-elbo", num_steps=40, training=am.Training(learning_rate=0.1))
    exact = am.evidence(program, toy.x)
    assert (exact.se == 0).all() and exact.used[0] == "exact enumeration"
    annealed = am.evidence(program, toy.x, method=am.AIS(num_chains=200, num_temperatures=30), discrete="sample")
    drawn = am.evidence(program, toy.x, method=am.ImportanceSampling(num_draws=16000), discrete="sample")
    for found in (annealed, drawn):
        off = np.abs(found.log_evidence - exact.log_evidence)
        assert off.mean() <= 0.02 and (off < z_value(16) * found.se + 1e-3).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"estimators": ["leave-one-out", "leaf"]}, "estimators: 'leaf' is none of 'exact'"),
        ({"estimators": []}, "estimators: expected a list of 'exact'"),
        ({"estimators": [am.VIMCO(2), am.VIMCO(3)]}, "two of them are called 'vimco'"),
        ({"num_draws": 5}, "num_draws: expected an integer of at least 20"),
        ({"num_steps": -1}, "num_steps"),
        ({"training": 0.1}, "training: expected am.Training"),
        ({"method": "ais"}, "method: expected am.AIS"),
        ({"estimators": {"it": am.IWAE()}}, "none of them can treat this program. it: .*'z'"),
    ],
)
def test_wrong_arguments_are_refused(given, words):
    toy = Bits(3)
    with pytest.raises(ArgumentError, match=words):
        am.gradient_ladder(toy.program(), toy.x, **{"num_draws": 20, "num_steps": 0, **given})


def test_a_program_without_a_guide_is_refused():
    toy = Bits(3)
    with pytest.raises(GuideMismatchError, match="no guide"):
        am.gradient_ladder(am.Program(toy.model), toy.x)


def test_objectives_of_ones_own_and_of_pyro_are_rows_too():
    toy = Bits(3)
    found = am.gradient_ladder(
        toy.program(),
        toy.x,
        estimators={"two": am.LeaveOneOut(num_particles=2), "pyro": pyro.infer.Trace_ELBO(), "graph": "graph-elbo"},
        num_draws=60,
        num_steps=2,
    )
    assert list(found.table.index) == ["two", "pyro", "graph"] and (found.table["z"] < z_value(3)).all()


FILE = """
import torch, pyro, pyro.distributions as dist, amortize as am

def program():
    decoder, encoder = torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    return am.Program(model, guide)
"""


def test_from_the_command_line(tmp_path):
    (tmp_path / "bits.py").write_text(FILE)
    np.save(tmp_path / "x.npy", (np.random.default_rng(0).random((20, 4)) < 0.5).astype("float32"))
    out = tmp_path / "table.md"
    words = ["ladder", f"{tmp_path}/bits.py:program", "--data", f"{tmp_path}/x.npy", "--draws", "20", "--steps", "2"]
    done = CliRunner().invoke(app, [*words, "--estimator", "exact", "--estimator", "disarm", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "8 configurations a datapoint summed" in done.output and "disarm" in out.read_text()


@pytest.mark.parametrize("ending", ["md", "csv", "json"])
def test_tables_are_kept_as_files(ladder, tmp_path, ending):
    text = save_ladder(ladder, tmp_path / f"table.{ending}").read_text()
    assert "straight-through" in text and "variance" in text


def test_the_command_line_refuses_another_ending_first(tmp_path):
    done = CliRunner().invoke(app, ["ladder", "nowhere.py:program", "--data", "x.npy", "--out", f"{tmp_path}/t.txt"])
    assert done.exit_code == 2 and ".csv, .md, .json" in done.output
