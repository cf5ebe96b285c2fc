from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from amortize.errors import ArgumentError
from amortize.report.attrs import decode_attrs
from amortize.report.files import read_tree, write_tree
from amortize.report.measured import MAX_TEMPERATURES
from amortize.report.tree import to_datatree
from tests.report import examples

LENGTHS = {"short": 20, "long": 1000}


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return examples.digits_tree(12, failed=(3,))


def test_groups_and_dims(tree):
    dims = {name: dict(child.sizes) for name, child in tree.children.items()}
    assert dims["posterior"] == {"chain": 1, "draw": 100, "datapoint": 12, "z_dim_0": 4}
    assert dims["sample_stats"] == {"chain": 1, "draw": 100, "datapoint": 12}
    assert dims["evidence"] == {"method": 1, "datapoint": 12}
    assert dims["annealing"] == {"method": 1, "temperature": 101, "datapoint": 12}
    assert dims["gaps"] == {"datapoint": 12, "quantity": 9, "statistic": 4}
    assert dims["local"] == {"family": 2, "datapoint": 12}
    assert dims["training"] == {"step": 3000}
    assert dims["observed_data"] == dims["reconstruction"] == {"datapoint": 12, "x_dim_0": 64}
    assert dims["prior_predictive"] == {"chain": 1, "draw": 2, "datapoint": 12, "x_dim_0": 64}


def test_numbers_are_those_given():
    made = examples.ledger(7, failed=(2,))
    tree = to_datatree(ledger=made, history=examples.history(50))
    for name, column in made.table.items():
        np.testing.assert_array_equal(tree["gaps"][name], column)
    np.testing.assert_array_equal(tree["gaps"]["summary"], made.summary)
    assert list(tree["gaps"]["quantity"].values) == list(made.summary.index)
    np.testing.assert_array_equal(tree["evidence"]["log_evidence"].loc[{"method": "AIS"}], made.evidence.log_evidence)
    np.testing.assert_array_equal(tree["evidence"]["num_weights"], [16])
    assert "upper" not in tree["evidence"].data_vars  # a side that no method gives
    assert decode_attrs(tree["gaps"].attrs)["families"] == ["mean-field", "full-covariance"]
    assert decode_attrs(tree["evidence"].attrs)["runs"]["AIS"]["settings"]["num_temperatures"] == 100


def test_the_path_of_each_method_is_kept_in_its_own_length():
    made = examples.ledger(5)
    runs = {name: replace(made.evidence, path=examples.path(5, steps=length)) for name, length in LENGTHS.items()}
    runs["no path"] = replace(made.evidence, path=None)
    tree = to_datatree(evidence=runs)["annealing"]
    assert tree["method"].values.tolist() == list(LENGTHS)
    assert tree.sizes["temperature"] == MAX_TEMPERATURES
    assert (tree["temperature"].values[[0, -1]] == [0, 1000]).all()
    for name, steps in LENGTHS.items():
        one, path = tree.to_dataset().loc[{"method": name}], runs[name].path
        there = tree["temperature"].values <= steps
        at = tree["temperature"].values[there]
        np.testing.assert_allclose(one["beta"][there], path.betas[at], rtol=1e-6)
        np.testing.assert_allclose(one["spread"][there], path.spread[at], rtol=1e-6)
        np.testing.assert_allclose(one["acceptance"][there][1:], path.acceptance[at[1:] - 1], rtol=1e-6)
        assert np.isnan(one["beta"][~there]).all()


def test_what_was_used_and_whether_to_trust_it_survive_the_file(tmp_path):
    made = examples.auto_evidence()
    tree = read_tree(write_tree(to_datatree(evidence=made), tmp_path / "tree.nc"))["evidence"]
    assert tree["used"].values[0].tolist() == made.used.tolist()
    assert tree["trusted"].values[0].tolist() == made.trusted.tolist()
    np.testing.assert_array_equal(tree["num_gradients"][0], made.num_gradients)
    assert decode_attrs(tree.attrs)["runs"]["auto"]["warnings"] == list(made.warnings)


def test_log_weight_is_the_difference(tree):
    stats = tree["sample_stats"]
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"])


def test_labels_and_index_name_the_datapoints(tree):
    assert list(tree["gaps"]["label"].values[:3]) == [0, 1, 2]
    made = examples.ledger(4)
    named = examples.FakeLedger(
        made.table.set_axis(pd.Index([5, 9, 12, 13], name="datapoint")),
        made.summary,
        made.evidence,
        made.local,
    )
    tree = to_datatree({"z": np.zeros((2, 4))}, ledger=named)
    assert list(tree["posterior"]["datapoint"].values) == [5, 9, 12, 13]


def test_absent_groups_are_left_out():
    assert list(to_datatree(history=examples.history(5)).children) == ["training"]
    assert list(to_datatree().children) == []


def test_a_site_with_a_slash_can_be_written(tmp_path):
    tree = to_datatree({"block/z": np.zeros((2, 3, 1))})
    assert list(read_tree(write_tree(tree, tmp_path / "tree.nc"))["posterior"].data_vars) == ["block.z"]


WRONG = {
    "sizes of evidence": (
        lambda: to_datatree({"z": np.zeros((2, 3))}, ledger=examples.ledger(4)),
        "posterior: expected 4",
    ),
    "sizes in a group": (
        lambda: to_datatree(groups={"observed_data": {"x": np.zeros((3, 2)), "y": np.zeros(4)}}),
        "observed_data: arrays whose sizes disagree",
    ),
    "sizes of methods": (
        lambda: to_datatree(evidence={"a": examples.ledger(4).evidence, "b": examples.ledger(3).evidence}),
        "expected methods of the same datapoints, got {'a': 4, 'b': 3}",
    ),
    "no draws": (lambda: to_datatree({"z": np.zeros(3)}), "z: expected an array .draw, datapoint"),
    "group taken": (
        lambda: to_datatree({"z": np.zeros((2, 3))}, groups={"posterior": {"z": np.zeros((2, 3))}}),
        "'posterior' is taken",
    ),
    "no steps": (
        lambda: to_datatree(history=pd.DataFrame({"elbo": [0.0]})),
        'history: expected a column "step"',
    ),
    "no ledger": (lambda: to_datatree(ledger="x"), r"ledger: expected the Ledger that am.gaps\(...\) returns, got 'x'"),
    "a table": (lambda: to_datatree(ledger=examples.ledger(3).table), "ledger: .* got an object of class DataFrame"),
    "labels": (lambda: to_datatree({"z": np.zeros((2, 3))}, attrs={"labels": [1]}), "labels"),
    "attrs": (lambda: to_datatree(attrs={"settings": {1, 2}}), r"attrs\['settings'\]"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_arviz_reads_the_tree(tree):
    stats = pytest.importorskip("arviz_stats")
    summary = stats.summary(tree, var_names=["z"], coords={"datapoint": [0, 1]}, kind="stats")
    mean = tree["posterior"]["z"].mean(["chain", "draw"]).sel(datapoint=1, z_dim_0=2)
    assert len(summary) == 8
    assert float(summary["mean"].iloc[6]) == pytest.approx(float(mean), abs=0.01)


def test_inference_data_reads_the_tree(tree):
    arviz = pytest.importorskip("arviz")
    if int(arviz.__version__.split(".")[0]) >= 1:
        pytest.skip("ArviZ 1 reads a DataTree as it is")
    data = arviz.InferenceData(**{name: child.to_dataset() for name, child in tree.children.items()})
    assert data.posterior.sizes["datapoint"] == 12
    assert set(data.groups()) == set(tree.children)


def test_the_subpackage_needs_no_torch():
    code = (
        "import sys, amortize.report, amortize.report.tree, amortize.report.files, amortize.diagnostics\n"
        "assert not {'torch', 'pyro'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
