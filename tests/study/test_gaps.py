"""The ledger: its arithmetic on planted parts, and all of it against the closed forms of the linear VAE."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError, GuideMismatchError
from amortize.models import FactorAnalysis
from amortize.study.arguments import read_training_data, require_fit_of
from amortize.study.findings import examine
from amortize.study.gaps import ledger_from, summarise
from amortize.study.ledger import Extras
from tests.problems import CONJUGATE, PROBLEMS
from tests.statistics import z_value

N, S = 7, 50
COLUMNS = [
    "log_evidence",
    "elbo_guide",
    "elbo_mean_field",
    "elbo_full_covariance",
    "inference_gap",
    "approximation_gap",
    "amortization_gap",
    "khat",
    "ess",
]


def fit(elbo: np.ndarray, se: float) -> SimpleNamespace:
    return SimpleNamespace(
        elbo=elbo,
        elbo_se=np.full(N, se),
        converged=np.ones(N, dtype=bool),
        num_gradients=np.full(N, 100.0),
        seconds=2.0,
        trace_seconds=np.array([0.5, 1.0]),
        trace_num_gradients=np.array([20.0, 60.0]),
        trace_elbo=np.stack([elbo - 3.0, elbo]),
    )


def parts(seed: int = 0) -> tuple[SimpleNamespace, SimpleNamespace, dict[str, SimpleNamespace]]:
    rng = np.random.default_rng(seed)
    truth = -20.0 + rng.normal(size=N)
    evidence = SimpleNamespace(
        log_evidence=truth,
        se=np.full(N, 0.03),
        ess=np.full(N, 12.0),
        khat=None,
        log_weights=None,
        num_gradients=np.full(N, 700.0),
        seconds=3.0,
    )
    importance = SimpleNamespace(
        log_weights=truth - 2.0 + rng.normal(size=(S, N)), khat=rng.uniform(size=N), ess=rng.uniform(1, S, size=N)
    )
    local = {"mean-field": fit(truth - 1.0, 0.04), "full-covariance": fit(truth - 0.3, 0.01)}
    local["full-covariance"].converged = np.arange(N) > 1
    return evidence, importance, local


def test_the_table_has_the_promised_columns_and_an_error_for_each_but_two():
    table = ledger_from(*parts(), guide_family="mean-field").table
    errors = [f"{name}_se" for name in COLUMNS if name not in ("khat", "ess")]
    assert list(table.columns) == COLUMNS + errors
    assert table.index.name == "datapoint"
    assert table.index.tolist() == list(range(N))
    assert set(table.dtypes) == {np.dtype(np.float64)}


@pytest.mark.parametrize(("family", "reference"), [("mean-field", -1.0), ("full-covariance", -0.3), (None, -0.3)])
def test_each_row_is_the_definition(family, reference):
    evidence, importance, local = parts()
    ledger = ledger_from(evidence, importance, local, guide_family=family)
    table = ledger.table
    guide = importance.log_weights.mean(0)
    np.testing.assert_allclose(table["elbo_guide"], guide, atol=1e-12)
    np.testing.assert_allclose(table["elbo_guide_se"], importance.log_weights.std(0, ddof=1) / S**0.5)
    np.testing.assert_allclose(table["inference_gap"], evidence.log_evidence - guide, atol=1e-12)
    np.testing.assert_allclose(table["approximation_gap"], -reference, atol=1e-12)
    together = table["approximation_gap"] + table["amortization_gap"]
    np.testing.assert_allclose(together, table["inference_gap"], rtol=0.0, atol=1e-9)
    best_se = 0.04 if family == "mean-field" else 0.01
    np.testing.assert_allclose(table["approximation_gap_se"], np.hypot(0.03, best_se))
    np.testing.assert_allclose(table["amortization_gap_se"], np.hypot(best_se, table["elbo_guide_se"]))
    np.testing.assert_allclose(table["inference_gap_se"], np.hypot(0.03, table["elbo_guide_se"]))
    assert ledger.guide_family == (family or "other")
    assert ledger.settings["reference"] == (family or "best of mean-field, full-covariance")
    assert ledger.settings["num_unconverged"] == {"mean-field": 0, "full-covariance": 2}


def test_the_best_of_the_fitted_families_is_taken_row_by_row():
    evidence, importance, local = parts()
    local["mean-field"].elbo = np.where(np.arange(N) == 3, evidence.log_evidence - 0.1, local["mean-field"].elbo)
    local["full-covariance"].elbo = np.where(np.arange(N) == 5, np.nan, local["full-covariance"].elbo)
    table = ledger_from(evidence, importance, local, guide_family=None).table
    expected = np.full(N, 0.3)
    expected[[3, 5]] = [0.1, 1.0]
    np.testing.assert_allclose(table["approximation_gap"], expected, atol=1e-12)
    assert table["approximation_gap_se"][5] == pytest.approx(np.hypot(0.03, 0.04))


@pytest.mark.parametrize("families", [("full-covariance",), ("mean-field",), ()])
def test_any_subset_of_the_families_will_do(families):
    evidence, importance, local = parts()
    ledger = ledger_from(evidence, importance, {name: local[name] for name in families}, guide_family="mean-field")
    columns = {f"elbo_{name.replace('-', '_')}" for name in families}
    assert {name for name in ledger.table if name.startswith("elbo_")} == {
        "elbo_guide",
        "elbo_guide_se",
        *columns,
        *(f"{name}_se" for name in columns),
    }
    assert ("approximation_gap" in ledger.table) == bool(families)
    assert ledger.families == families
    expected = {("mean-field",): "mean-field", ("full-covariance",): "best of full-covariance", (): None}
    assert ledger.settings["reference"] == expected[families]
    if not families:
        assert "Fit a family" in ledger.advice


def test_the_summary_is_means_and_paired_errors():
    ledger = ledger_from(*parts(), guide_family="mean-field")
    table, summary = ledger.table, ledger.summary
    assert list(summary.index) == COLUMNS
    assert list(summary.columns) == ["mean", "se", "mc_se", "num_failed"]
    for name in COLUMNS:
        assert summary.loc[name, "mean"] == pytest.approx(table[name].mean())
        assert summary.loc[name, "se"] == pytest.approx(table[name].std() / N**0.5)
        if name not in ("khat", "ess"):
            assert summary.loc[name, "mc_se"] == pytest.approx((table[f"{name}_se"] ** 2).sum() ** 0.5 / N)
    assert (summary["num_failed"] == 0).all()
    assert summary.loc[["khat", "ess"], "mc_se"].isna().all()


def test_a_datapoint_that_failed_is_marked_counted_and_spoils_no_other():
    clean = ledger_from(*parts(), guide_family="mean-field")
    evidence, importance, local = parts()
    evidence.log_evidence[2] = np.nan
    importance.log_weights[4, 5] = -np.inf
    ledger = ledger_from(evidence, importance, local, guide_family="mean-field")
    good = [0, 1, 3, 4, 6]
    pd.testing.assert_frame_equal(ledger.table.loc[good], clean.table.loc[good])
    assert np.isnan(ledger.table.loc[2, ["log_evidence", "inference_gap", "approximation_gap"]]).all()
    assert np.isfinite(ledger.table.loc[2, "amortization_gap"])
    assert ledger.table.loc[5, "elbo_guide"] == -np.inf
    failed = {"log_evidence": 1, "elbo_guide": 1, "inference_gap": 2, "approximation_gap": 1, "amortization_gap": 1}
    assert ledger.summary["num_failed"].to_dict() == {name: failed.get(name, 0) for name in COLUMNS}
    assert ledger.summary.loc["inference_gap", "mean"] == pytest.approx(clean.table.loc[good, "inference_gap"].mean())
    assert "2 of 7 datapoints failed" in ledger.advice


def test_a_ledger_in_which_all_failed_is_still_a_ledger():
    evidence, importance, local = parts()
    evidence.log_evidence[:] = np.nan
    ledger = ledger_from(evidence, importance, local, guide_family="mean-field")
    assert ledger.summary.loc["log_evidence", "num_failed"] == N
    assert np.isnan(ledger.summary.loc["log_evidence", "mean"])
    assert "All 7 datapoints failed" in ledger.advice


def test_one_datapoint_has_no_spread():
    table = ledger_from(*parts(), guide_family="mean-field").table
    summary = summarise(table.iloc[:1])
    assert summary["se"].isna().all()
    assert summary.loc["inference_gap", "mc_se"] == pytest.approx(table.loc[0, "inference_gap_se"])


def test_parts_of_different_datapoints_are_refused():
    evidence, importance, local = parts()
    importance.log_weights = importance.log_weights[:, :-1]
    with pytest.raises(ArgumentError, match="importance: expected the 7 datapoints"):
        ledger_from(evidence, importance, local, guide_family=None)
    evidence, importance, local = parts()
    local["mean-field"].elbo = local["mean-field"].elbo[:3]
    with pytest.raises(ArgumentError, match=r"local\['mean-field'\]: expected the 7 datapoints of evidence, got 3"):
        ledger_from(evidence, importance, local, guide_family=None)


# Against the closed forms of the linear VAE


def linear_vae(miss: float, *, num: int = 64, seed: int = 0) -> tuple[FactorAnalysis, torch.Tensor]:
    """Factor analysis z 5, x 20 and an encoder that misses its optimum; ``miss`` 0 leaves no amortization gap."""
    model = FactorAnalysis.random(latent_dim=5, data_dim=20, seed=seed)
    model.set_best_encoder()
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.encoder.bias.add_(miss * torch.randn(5, generator=gen))
        model.encoder.log_scale.add_(3 * miss * torch.randn(5, generator=gen))
    return model, model.simulate(num, seed=seed + 1)


CLOSED_FORM = {
    "log_evidence": "log_evidence",
    "elbo_guide": "guide_elbo",
    "elbo_mean_field": "best_mean_field_elbo",
    "elbo_full_covariance": "log_evidence",
    "inference_gap": "inference_gap",
    "approximation_gap": "approximation_gap",
    "amortization_gap": "amortization_gap",
}


@pytest.mark.parametrize(("miss", "amortization"), [(0.0, 0.0), (0.1, 1.0)])
def test_all_terms_of_the_linear_vae_are_the_closed_forms(miss, amortization):
    model, x = linear_vae(miss)
    ledger = am.gaps(model.program(), x, seed=3)
    assert ledger.guide_family == "mean-field"
    assert (ledger.summary["num_failed"] == 0).all()
    for name, method in CLOSED_FORM.items():
        error = ledger.table[name].to_numpy() - getattr(model, method)(x).numpy()
        tolerance = 0.02 if name.startswith(("elbo_mean", "elbo_full", "log")) else 0.03
        assert abs(error.mean()) < tolerance, name
        # an optimum that is short by a hair lies outside its Monte Carlo error, which is zero at the exact posterior
        slack = 0.005
        assert abs(error.mean()) < slack + z_value(14) * ledger.summary.loc[name, "mc_se"], name
    together = ledger.table["approximation_gap"] + ledger.table["amortization_gap"]
    np.testing.assert_allclose(together, ledger.table["inference_gap"], rtol=0.0, atol=1e-6)
    assert float(model.amortization_gap(x).mean()) == pytest.approx(amortization, abs=0.5)


def test_after_training_the_closed_forms_speak_of_the_trained_parameters():
    x = FactorAnalysis.random(latent_dim=5, data_dim=20, seed=7).simulate(256, seed=8)
    model = FactorAnalysis.random(latent_dim=5, data_dim=20, seed=9)
    start = float(model.inference_gap(x).mean())
    training = am.Training(learning_rate=0.01, schedule="cosine", progress=False)
    fitted = am.fit(model.program(), x, num_steps=600, training=training)
    assert float(model.inference_gap(x).mean()) < 0.2 * start
    ledger = am.gaps(fitted.program, x[:64])
    for name in ("inference_gap", "approximation_gap", "amortization_gap"):
        error = ledger.table[name] - getattr(model, name)(x[:64]).numpy()
        assert abs(error.mean()) < max(0.03, z_value(3) * ledger.summary.loc[name, "mc_se"])


def test_the_advice_on_a_linear_vae_names_the_term_that_is_there():
    model, x = linear_vae(0.0, num=32)
    family = am.gaps(model.program(), x, seed=1)
    assert examine(family.table, reference="mean-field").verdict == "approximation"
    assert "(the mean-field family): a full covariance would win 0.2" in family.advice
    model, x = linear_vae(0.25, num=32)
    encoder = am.gaps(model.program(), x, seed=1)
    assert "are amortization: " in encoder.advice


def test_one_seed_gives_one_ledger_and_another_seed_another():
    model, x = linear_vae(0.1, num=8)
    settings = {"method": am.AIS(num_chains=16, num_temperatures=20), "num_draws": 20, "families": ("mean-field",)}
    first, again, other = (am.gaps(model.program(), x, seed=seed, **settings) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not first.table["elbo_guide"].equals(other.table["elbo_guide"])
    assert first.settings["method"]["name"] == "AIS"
    assert first.settings["num_draws"] == 20
    assert first.advice in str(first)


GAUSSIAN = ("normal-normal", "pixel-plate")


@pytest.mark.parametrize("name", CONJUGATE)
def test_an_exact_guide_loses_nothing_whatever_its_support(name):
    problem = PROBLEMS[name]()
    method = am.AIS(num_chains=4, num_temperatures=5)
    ledger = am.gaps(problem.program(guide=True), problem.data, method=method, num_draws=100)
    table = ledger.table
    assert ledger.guide_family == ("mean-field" if name in GAUSSIAN else "other")
    for column in ("elbo_guide", "log_evidence"):
        np.testing.assert_allclose(table[column], problem.log_evidence, rtol=0.0, atol=1e-6)
    assert np.abs(table["inference_gap"]).max() < 1e-6
    for family in ("mean_field", "full_covariance"):
        error = table[f"elbo_{family}"] - problem.log_evidence
        assert (error < z_value(2 * len(table)) * table[f"elbo_{family}_se"] + 1e-4).all()
        if name in GAUSSIAN:
            assert np.abs(error).max() < 1e-3
    assert "Nothing needs mending: the gap of 0.00" in ledger.advice


def test_importance_sampling_may_measure_the_evidence():
    model, x = linear_vae(0.0, num=8)
    ledger = am.gaps(model.program("exact"), x, families=(), method=am.ImportanceSampling(500), num_draws=100)
    np.testing.assert_allclose(ledger.table["log_evidence"], model.log_evidence(x), rtol=0.0, atol=1e-4)
    np.testing.assert_allclose(ledger.table["elbo_guide"], model.log_evidence(x), rtol=0.0, atol=1e-4)
    assert np.shape(ledger.evidence.log_weights) == (500, 8)
    assert "Nothing needs mending" in ledger.advice


def test_auto_may_measure_the_evidence():
    model, x = linear_vae(0.0, num=4)
    ledger = am.gaps(model.program("exact"), x, families=(), method="auto", num_draws=100)
    np.testing.assert_allclose(ledger.table["log_evidence"], model.log_evidence(x), rtol=0.0, atol=1e-4)
    assert ledger.settings["method"]["name"] == "Auto"
    assert ledger.evidence.used.tolist() == ["importance sampling"] * 4


def test_wrong_arguments_are_refused_before_anything_is_computed():
    model, x = linear_vae(0.0, num=4)
    with pytest.raises(GuideMismatchError, match="has no guide"):
        am.gaps(model.program(None), x)
    with pytest.raises(ArgumentError, match="families: expected a tuple"):
        am.gaps(model.program(), x, families="mean-field")
    with pytest.raises(ArgumentError, match="families: expected a tuple"):
        am.gaps(model.program(), x, families=("mean-field", "mean-field"))
    with pytest.raises(ArgumentError, match="num_draws: expected an integer of at least 2"):
        am.gaps(model.program(), x, num_draws=1)
    with pytest.raises(ArgumentError, match=r"^families: expected one of .*, or its settings, got 'no-such'"):
        am.gaps(model.program(), x, families=("no-such",))
    with pytest.raises(ArgumentError, match="method: expected 'auto'"):
        am.gaps(model.program(), x, method="smc")


def test_a_program_of_discrete_latents_alone_is_exact_and_its_guide_is_judged_by_its_own_draws():
    weights = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.4)).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x[:, :4]).to_event(1))

    x = torch.as_tensor(am.Program(model).simulate(torch.zeros(20, 6), seed=1)[1]["x"])
    log_q = torch.stack([dist.Bernoulli(logits=x[:, :4]).log_prob(z).sum(-1) for z in bits])
    log_p = torch.stack(
        [dist.Bernoulli(0.4).log_prob(z).sum() + dist.Normal(z @ weights, 0.5).log_prob(x).sum(-1) for z in bits]
    )
    ledger = am.gaps(am.Program(model, guide), x, num_draws=2000)
    np.testing.assert_allclose(ledger.table["log_evidence"], log_p.logsumexp(0), rtol=1e-5)
    elbo = (log_q.exp() * (log_p - log_q)).sum(0).numpy()
    assert (np.abs(ledger.table["elbo_guide"] - elbo) < z_value(20) * ledger.table["elbo_guide_se"]).all()
    assert "Discrete latents are drawn" in ledger.advice

    alone = am.gaps(am.Program(model, lambda x: None), x)
    assert (alone.table["inference_gap"].abs() < 1e-4).all() and "log p(x) is exact" in alone.advice


# What stands beside the gaps


def test_training_data_labels_and_cost_are_in_the_ledger_and_the_program_is_as_it_was():
    model, x = linear_vae(0.15, num=12)
    train = model.simulate(40, seed=9)
    program = model.program()
    fitted = am.fit(program, train, num_steps=1, training=am.Training(learning_rate=1e-9, progress=False))
    before = program.state()
    method = am.AIS(num_chains=16, num_temperatures=50)
    ledger = am.gaps(
        program, x, families=("mean-field",), x_train=train, labels=np.arange(12) % 2, fitted=fitted, method=method
    )
    assert all(torch.equal(value, before[name]) for name, value in program.state().items())
    assert ledger.train is not None and ledger.splits is not None and ledger.break_even is not None
    assert len(ledger.train.table) == 12
    for split, table in (("train", ledger.train.table), ("test", ledger.table)):
        assert ledger.splits.loc["amortization_gap", split] == pytest.approx(table["amortization_gap"].mean())
    assert ledger.clues.generalisation == ledger.splits.loc["amortization_gap", "difference"]
    assert ledger.by()["num"].tolist() == [6, 6]
    assert ledger.latents is not None and len(ledger.latents) == 5
    assert ledger.cost.loc["guide", "training_gradients"] == 40.0
    assert ledger.break_even.index.tolist() == ["mean-field"]
    assert ledger.unaided["mean-field"].settings["init"] == "prior"
    assert ledger.cause == "under-trained-guide"


def test_without_them_there_is_little_to_say():
    ledger = ledger_from(*parts(), guide_family="mean-field")
    assert ledger.splits is None and ledger.train is None and ledger.break_even is None and ledger.latents is None
    assert ledger.cause == "family-and-encoder"
    with pytest.raises(ArgumentError, match="labels: the ledger has none; pass one for each datapoint"):
        ledger.by()
    assert ledger.by(np.arange(N) > 3)["num"].tolist() == [4, 3]
    assert ledger.tower["gain"].sum() == pytest.approx(ledger.table["inference_gap"].mean(), abs=1e-12)


def test_families_without_an_elbo_are_no_rung():
    model, x = linear_vae(0.0, num=4)
    with pytest.raises(ArgumentError, match="families: 'point' posteriors have no density"):
        am.gaps(model.program(), x, families=("mean-field", "point"))
    evidence, importance, local = parts()
    with pytest.raises(ArgumentError, match="local: 'point' posteriors have no density"):
        ledger_from(evidence, importance, {"point": local["mean-field"]}, guide_family=None)


def test_training_data_that_the_program_does_not_take_are_named():
    model, x = linear_vae(0.0, num=4)
    width = x.shape[1]
    message = rf"x_train: expected datapoints as those of x, .* of shape \({width},\), got .* of shape \({width + 2},\)"
    with pytest.raises(DataError, match=message):
        am.gaps(model.program(), x, x_train=torch.zeros(6, width + 2, dtype=x.dtype))
    with pytest.raises(DataError, match=r"x_train: .*, got torch\.int64 of shape .*expected m1 and m2"):
        am.gaps(model.program(), x, x_train=x.long())
    with pytest.raises(DataError, match=r"x_train: .*, got 0: .*; 1: .* takes 2 positional arguments"):
        am.gaps(model.program(), x, x_train=(x, x))


def test_rows_of_another_length_are_no_error_where_the_program_takes_them():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None].expand(x.shape), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(1) / (1 + x.shape[1]), 0.5))

    program = am.Program(model, guide)
    data = program.prepare(torch.randn(3, 4))
    assert read_training_data(program, torch.randn(5, 7), data).num_datapoints == 5


def test_a_fit_of_another_program_is_refused_but_not_the_same_one_loaded(tmp_path):
    model, x = linear_vae(0.0, num=4)
    fitted = am.fit(model.program(), x, num_steps=2, training=am.Training(progress=False))
    other = FactorAnalysis.random(latent_dim=5, data_dim=x.shape[1], seed=1).program()
    with pytest.raises(ArgumentError, match="fitted: expected the fit of this program, got that of another"):
        am.gaps(other, x, fitted=fitted)
    loaded = am.load(fitted.save(tmp_path / "fit.pt"))
    require_fit_of(loaded.program, loaded)
    require_fit_of(fitted.program, loaded)  # another object with the same parameters
    again = am.fit(loaded.program, x, num_steps=1, training=am.Training(progress=False))
    require_fit_of(loaded.program, again)
    with pytest.raises(ArgumentError, match="fitted: expected the fit of this program"):
        require_fit_of(fitted.program, again)


def test_other_arguments_are_refused_too():
    model, x = linear_vae(0.0, num=4)
    with pytest.raises(ArgumentError, match=r"fitted: expected what am\.fit gave"):
        am.gaps(model.program(), x, fitted=model)
    with pytest.raises(ArgumentError, match=r"am\.fit gave, got an object of class Program$"):
        am.gaps(model.program(), x, fitted=model.program())
    with pytest.raises(ArgumentError, match="labels: expected one for each of 4 datapoints"):
        am.gaps(model.program(), x, labels=[1, 2])
    evidence, importance, local = parts()
    with pytest.raises(ArgumentError, match="labels: expected one for each of 7 datapoints"):
        ledger_from(evidence, importance, local, guide_family=None, extras=Extras(labels=[1, 2]))
