from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from amortize.report.document import read_document
from amortize.report.plots import MAX_SHOWN, figures, worst_first
from amortize.report.tree import to_datatree
from tests.report import examples


@pytest.fixture(scope="module")
def document():
    return read_document(examples.digits_tree(20, failed=(3, 17)))


def test_one_figure_for_each_part(document):
    annealing = ["path-spread", "path-acceptance", "path-step"]
    assert list(figures(document)) == ["ladder", "gaps", "khat", "curve", "training", "evidence", *annealing]
    assert list(figures(read_document(to_datatree(history=examples.history(10))))) == ["training"]
    assert figures(read_document(to_datatree())) == {}


def test_nothing_is_drawn_by_webgl(document):
    kinds = {trace.type for figure in figures(document).values() for trace in figure.data}
    assert kinds == {"bar", "scatter", "histogram"}


def test_bars_are_the_gaps_worst_first(document):
    table = examples.ledger(20, failed=(3, 17)).table
    drawn = {trace.name: trace for trace in figures(document)["gaps"].data}
    total = drawn["approximation (family)"].y + drawn["amortization (network)"].y
    np.testing.assert_allclose(total, np.sort(table["inference_gap"].dropna())[::-1])
    assert list(drawn["failed: no number"].customdata) == ["3 (label 3)", "17 (label 7)"]
    np.testing.assert_allclose(
        drawn["inference gap ± one standard error"].error_y.array,
        table.sort_values("inference_gap", ascending=False)["inference_gap_se"].dropna(),
    )


def test_order_puts_failures_last(document):
    order = worst_first(document["datapoints"])
    assert order[0] == np.nanargmax(document["datapoints"]["inference_gap"])
    assert set(order[-2:]) == {3, 17}


def test_khat_tells_above_from_below_by_more_than_colour():
    made = examples.ledger(30)
    made.table.loc[7, "khat"] = np.inf
    drawn = {trace.name: trace for trace in figures(read_document(to_datatree(ledger=made)))["khat"].data}
    assert len({trace.marker.symbol for trace in drawn.values()}) == len(drawn) == 3
    assert list(drawn["infinite (drawn at the top)"].customdata) == ["7"]


def test_many_datapoints_are_thinned_with_both_ends():
    made = examples.ledger(3000)
    drawn = figures(read_document(to_datatree(ledger=made)))["gaps"].data[-1]
    assert len(drawn.x) == MAX_SHOWN
    assert drawn.y[0] == made.table["inference_gap"].max()
    assert drawn.y[-1] == made.table["inference_gap"].min()


def test_labels_are_not_read_as_markup():
    made = examples.ledger(2)
    tree = to_datatree(ledger=made, attrs={"labels": ["<b>a</b>", "b"]})
    names = figures(read_document(tree))["gaps"].data[0].customdata
    assert any("&lt;b&gt;" in name for name in names)


@pytest.mark.parametrize("num", [1, 2])
def test_few_datapoints_can_be_drawn(num):
    assert len(figures(read_document(to_datatree(ledger=examples.ledger(num), history=examples.history(1))))) == 9


def test_the_path_is_drawn_as_a_line_in_a_band(document):
    band, line = figures(document)["path-spread"].data
    np.testing.assert_allclose(line.y, document["annealing"]["AIS"]["spread"]["median"])
    np.testing.assert_allclose(line.x, document["annealing"]["AIS"]["beta"])
    assert len(band.x) == 2 * len(line.x)
    assert (np.asarray(band.y)[: len(line.y)] >= line.y).all()


def test_the_effective_share_is_of_each_datapoints_own_draws():
    made = examples.ledger(6).evidence
    made.log_weights[8:, :3] = np.nan  # eight chains in place of sixteen
    drawn = figures(read_document(to_datatree(evidence=made)))["evidence"].data
    share = next(trace.x for trace in drawn if trace.xaxis == "x2")
    np.testing.assert_allclose(np.sort(share), np.sort(made.ess / np.where(np.arange(6) < 3, 8, 16)))


def test_costs_are_drawn_for_methods_that_chose():
    drawn = figures(read_document(examples.auto_tree()))
    assert [name for name in drawn if name.startswith("cost")] == ["cost-0"]
    points = drawn["cost-0"].data
    assert [trace.name for trace in points] == ["importance sampling (PSIS)", "AIS, 100 temperatures", "SMC"]
    assert len({trace.marker.symbol for trace in points}) == 3
    assert sum(len(trace.x) for trace in points) == 120


def test_latents_are_drawn_largest_first_and_those_at_rest_apart():
    made = examples.full_ledger(30)
    drawn = {trace.name: trace for trace in figures(read_document(to_datatree(ledger=made)))["latents"].data}
    kl = made.latents["kl"].to_numpy()
    np.testing.assert_allclose(drawn["active"].y, kl[kl > 0.1])
    np.testing.assert_allclose(drawn["at rest"].y, kl[kl <= 0.1])
    assert min(drawn["at rest"].x) > max(drawn["active"].x)


def test_few_latents_have_whole_numbers_as_ticks():
    made = examples.full_ledger(30)
    few = replace(made, latents=made.latents.head(2))
    assert figures(read_document(to_datatree(ledger=few)))["latents"].layout.xaxis.dtick == 1


def test_quality_against_time_ends_where_each_fit_did():
    made = examples.full_ledger(30)
    drawn = {trace.name: trace for trace in figures(read_document(to_datatree(ledger=made)))["curve"].data}
    frame = made.curve()
    for family in examples.FAMILIES:
        own = frame[frame["method"] == family]
        np.testing.assert_allclose(drawn[family].y, own["elbo"])
        np.testing.assert_allclose(drawn[family].x, own["seconds_per_datapoint"])
