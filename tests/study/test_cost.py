"""Cost: what is read off where, the curve, and the break-even of planted fits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import amortize as am
from amortize.study.cost import COLUMNS, CURVE_COLUMNS, TrainingCost, break_even, cost, curve

N = 10
TABLE = pd.DataFrame(
    {"log_evidence": np.zeros(N), "elbo_guide": np.full(N, -1.0), "elbo_mean_field": np.linspace(-0.6, -0.4, N)}
)
TRAINING = TrainingCost(seconds=60.0, num_gradients=5000.0, pass_seconds=0.1)


def part(*elbos: float, last: float = -0.5) -> SimpleNamespace:
    """Fits that were looked at every second and every 40 gradients, with these mean ELBOs."""
    offsets = np.linspace(-0.1, 0.1, N)
    return SimpleNamespace(
        elbo=last + offsets,
        seconds=8.0,
        num_gradients=np.full(N, 400.0),
        trace_seconds=1.0 + np.arange(len(elbos)),
        trace_num_gradients=40.0 * (1 + np.arange(len(elbos))),
        trace_elbo=np.array([elbo + offsets for elbo in elbos]).reshape(len(elbos), N),
    )


EVIDENCE = SimpleNamespace(seconds=30.0, num_gradients=np.full(N, 9000.0))


def test_each_method_has_its_own_cost_and_quality():
    costs = cost(TABLE, {"mean-field": part(-3.0)}, EVIDENCE, TRAINING)
    assert list(costs.columns) == COLUMNS
    assert costs.loc["guide"].tolist() == pytest.approx([0.1, 0.01, 0.0, -1.0, 60.0, 5000.0])
    assert costs.loc["mean-field"].tolist() == pytest.approx([8.0, 0.8, 400.0, -0.5, 0.0, 0.0])
    assert costs.loc["log_evidence"].tolist() == pytest.approx([30.0, 3.0, 9000.0, 0.0, 0.0, 0.0])


def test_an_unknown_training_is_unknown_and_without_a_guide_there_is_none():
    assert cost(TABLE, {}, EVIDENCE, None).loc["guide", "training_seconds":].isna().all()
    alone = cost(TABLE[["log_evidence"]], {}, EVIDENCE, None)
    assert alone.index.tolist() == ["log_evidence"]


@pytest.mark.parametrize(
    ("fit", "each", "gradients"),
    [
        (part(-3.0, -1.5, -0.9, -0.5), 0.3, 120.0),  # at the third look
        (part(-0.2), 0.1, 40.0),
        (part(-3.0, -2.0), 0.8, 400.0),  # only at the end
        (part(), 0.8, 400.0),
    ],
)
def test_the_break_even_is_training_over_what_each_fit_takes_to_the_guide_s_elbo(fit, each, gradients):
    found = break_even(TABLE, {"mean-field": fit}, TRAINING)
    row = found.loc["mean-field"]
    assert row["reached"]
    assert row["seconds_per_datapoint"] == pytest.approx(each)
    assert row["gradients_per_datapoint"] == gradients
    assert row["num_datapoints"] == pytest.approx(60.0 / (each - 0.01))
    assert row["num_datapoints_by_gradients"] == pytest.approx(5000.0 / gradients)


def test_a_family_that_never_gets_there_has_no_break_even():
    row = break_even(TABLE, {"mean-field": part(-3.0, -2.0, last=-1.5)}, TRAINING).loc["mean-field"]
    assert not row["reached"]
    assert row[1:].isna().all()


def test_a_fit_as_cheap_as_a_pass_is_never_beaten():
    slow = TrainingCost(60.0, 5000.0, pass_seconds=1.0)
    assert break_even(TABLE, {"mean-field": part(-0.2)}, slow).loc["mean-field", "num_datapoints"] == np.inf


@pytest.mark.parametrize(
    ("table", "unaided", "training"),
    [
        (TABLE, {}, TRAINING),
        (TABLE, {"mean-field": part()}, None),
        (TABLE, {"mean-field": part()}, TrainingCost(pass_seconds=0.1)),
        (TABLE.drop(columns="elbo_guide"), {"mean-field": part()}, TRAINING),
    ],
)
def test_there_is_no_break_even_where_a_part_is_missing(table, unaided, training):
    assert break_even(table, unaided, training) is None


def test_the_curve_has_each_look_and_the_end():
    local, unaided = {"mean-field": part(-3.0, -1.0)}, {"mean-field": part(-9.0, -2.0, -0.5)}
    found = curve(TABLE, local, cost(TABLE, local, EVIDENCE, TRAINING), unaided)
    assert list(found.columns) == CURVE_COLUMNS
    counts = {"mean-field": 3, "mean-field, from the prior": 4, "guide": 1, "log_evidence": 1}
    assert found["method"].value_counts().to_dict() == counts
    fits = found[found["method"] == "mean-field"]
    assert fits["seconds"].tolist() == [1.0, 2.0, 8.0]
    assert fits["elbo"].tolist() == pytest.approx([-3.0, -1.0, -0.5])
    assert fits["se"].iloc[0] == pytest.approx(np.linspace(-0.1, 0.1, N).std(ddof=1) / N**0.5)


def test_steps_that_the_guide_took_alone_are_paid_for():
    model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    ahead = am.Aggressive(max_inner_steps=6, window=3, check_every=100)
    training = am.Training(batch_size=5, progress=False, aggressive=ahead)
    fitted = am.fit(model.program(), model.simulate(20), num_steps=4, training=training)
    taken = fitted.history["inner_steps"].sum()
    assert taken >= 3 * 4
    assert TrainingCost.of(fitted, fitted.program, fitted.program.prepare(model.simulate(4)), seed=0).num_gradients == (
        5 * (4 + taken)
    )


def test_the_cost_of_a_training_is_read_off_it():
    model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    x = model.simulate(20)
    training = am.Training(batch_size=5, progress=False)
    fitted = am.fit(model.program(), x, num_steps=4, training=training)
    found = TrainingCost.of(fitted, fitted.program, fitted.program.prepare(x), seed=0)
    assert found.seconds == fitted.seconds
    assert found.num_gradients == 20.0
    assert found.pass_seconds > 0
    particles = am.fit(model.program(), x, num_steps=4, objective=am.IWAE(num_particles=3), training=training)
    assert TrainingCost.of(particles, fitted.program, fitted.program.prepare(x), seed=0).num_gradients == 60.0
    moved = am.fit(model.program(), x, num_steps=4, objective=am.LMCVAE(num_steps=2, num_chains=3), training=training)
    assert TrainingCost.of(moved, fitted.program, fitted.program.prepare(x), seed=0).num_gradients == 20 * 3 * (1 + 2)
    refined = am.fit(model.program(), x, num_steps=4, objective=am.SemiAmortized(num_steps=2), training=training)
    assert TrainingCost.of(refined, fitted.program, fitted.program.prepare(x), seed=0).num_gradients == 20 * (1 + 4 * 2)
    assert np.isnan(TrainingCost.of(None, fitted.program, fitted.program.prepare(x), seed=0).seconds)
