"""Data of a study: which datapoints, of which types, under which protocol; and dynamic binarisation in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amortize as am
from amortize.data import data_hash, load
from amortize.errors import AmortizeError, DataError, SpecError
from amortize.program.data import Data
from amortize.study.dynamic import redrawing
from amortize.study.spec import DataSpec, Study
from amortize.study.split import as_floats, load_split
from tests.data.published import needs_folder
from tests.statistics import z_value
from tests.study.tiny import mine, same_numbers, tiny

LABELLED = """
import torch, pyro, pyro.distributions as dist
import amortize as am

def program():
    net, decoder = torch.nn.Linear(64 + 10, 4), torch.nn.Linear(2 + 10, 64)

    def model(xs, ys):
        pyro.module("decoder", decoder)
        with pyro.plate("data", xs.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            known = torch.nn.functional.one_hot(ys, 10).float()
            logits = decoder(torch.cat([z, known.expand(*z.shape[:-1], 10)], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=True).to_event(1), obs=xs)

    def guide(xs, ys):
        pyro.module("net", net)
        with pyro.plate("data", xs.shape[0]):
            known = torch.nn.functional.one_hot(ys, 10).float()
            loc, log_scale = net(torch.cat([xs, known], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return am.Program(model, guide)
"""


def test_the_digits_are_taken_from_the_front_as_ever() -> None:
    found, digits = (
        load_split(DataSpec(source="digits", num_train=100, num_evaluated=6), validation=0.1),
        load("digits"),
    )
    assert np.array_equal(found.train, digits.x_train[:90])
    assert np.array_equal(found.validation, digits.x_train[90:100])
    assert np.array_equal(found.evaluated, digits.x_test[:6])
    assert found.labels is not None
    assert np.array_equal(found.labels, digits.y_test[:6])
    assert found.dynamic is None
    assert "trained on 90 datapoints, validated on 10, evaluated on 6" in found.protocol


@needs_folder
def test_a_set_in_its_published_order_is_sampled_with_each_class_in_its_share() -> None:
    spec = DataSpec(source="mnist", binarise="threshold", num_train=5000, num_evaluated=500)
    found, mnist = load_split(spec, validation=0.1), load("mnist", binarise="threshold")
    assert len(found.train) == 4500
    assert np.array_equal(found.evaluated, mnist.x_test[found.rows])
    assert mnist.y_test is not None
    assert np.abs(np.bincount(mnist.y_test[found.rows]) - np.bincount(mnist.y_test) / 20).max() <= 2
    assert found.rows.max() > 9000, "the first half of MNIST's test part is the easier one"
    other = load_split(spec.model_copy(update={"seed": 1}), validation=0.1)
    assert not np.array_equal(other.rows, found.rows)
    assert data_hash(load_split(spec, validation=0.1).train) == data_hash(found.train)


@needs_folder
def test_a_published_validation_part_is_used() -> None:
    found = load_split(DataSpec(source="binarized-mnist", num_train=1000, num_evaluated=10), validation=0.1)
    valid = load("binarized-mnist").x_valid
    assert valid is not None
    assert (len(found.train), len(found.validation)) == (1000, 100)
    assert {row.tobytes() for row in found.validation} <= {row.tobytes() for row in valid}


@needs_folder
@pytest.mark.parametrize("source", ["eight-schools", "pines"])
def test_a_set_without_a_held_out_part_is_refused(source: str) -> None:
    with pytest.raises(DataError, match=rf"{source}: is used as a whole"):
        load_split(DataSpec(source=source))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint16, bool])
def test_lone_integers_become_floats_that_hold_them(dtype: Any) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    assert as_floats(array).dtype == np.float32
    assert np.array_equal(as_floats(array), array)


def test_large_integers_keep_every_digit() -> None:
    array = np.array([2**24 + 1, -3])
    assert as_floats(array).dtype == np.float64
    assert np.array_equal(as_floats(array), array)
    assert as_floats(np.array([-(2**24), 3])).dtype == np.float32


def test_floats_stay_as_they_are() -> None:
    array = np.zeros((2, 2), dtype=np.float64)
    assert as_floats(array) is array


def test_labels_and_masks_beside_other_arrays_stay() -> None:
    arrays = {
        "y": np.arange(3, dtype=np.uint8),
        "x": np.ones((3, 4), dtype=np.uint16),
        "mask": np.ones((3, 4), dtype=bool),
    }
    kinds = {name: array.dtype for name, array in as_floats(arrays).items()}
    assert kinds == {"y": np.int64, "x": np.float32, "mask": np.bool_}
    kinds = {name: array.dtype for name, array in as_floats(arrays, ("x",)).items()}
    assert kinds == {"y": np.float32, "x": np.int64, "mask": np.float32}
    assert as_floats(arrays["x"], ("data",)).dtype == np.int64
    with pytest.raises(SpecError, match=r"has no array 'z'\. It has: y, x, mask"):
        as_floats(arrays, ("z",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "x.npy", "binarise": "static"}, "data.binarise: x.npy is a file of your own"),
        ({"source": "x.npy", "arrays": {"xs": "x"}}, "data.arrays: the arrays of x.npy"),
        ({"source": "digits", "integer_arrays": ("x",)}, "data.integer_arrays: digits is a data set"),
        ({"source": "digits", "arrays": {"xs": "yy"}}, r"digits has no array 'yy' \(did you mean y\?\). It has: x, y"),
        ({"source": "wine", "binarise": "static"}, "no grey values"),
        ({"source": "digit"}, r"unknown data set 'digit' \(did you mean digits\?\)"),
    ],
)
def test_wrong_specs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AmortizeError, match=message):
        load_split(DataSpec(**values))


def test_a_file_s_split_depends_on_its_seed_alone(folder: Path) -> None:
    one, same, other = (load_split(DataSpec(source="x.npy", seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one.rows, same.rows)
    assert not np.array_equal(one.rows, other.rows)
    assert one.protocol.startswith("a file of 50 datapoints, split at random by seed 0; its values as they are.")


def test_the_keys_are_written_and_read_back() -> None:
    study = tiny(
        **{"data.binarise": "static", "data.seed": 3, "data.arrays": {"xs": "x"}, "data.integer_arrays": ("a", "b")}
    )
    assert Study.from_text(study.to_toml()) == study
    with pytest.raises(SpecError, match=r"data\.binarise: expected .*'static'.*got 'statik'"):
        tiny(**{"data.binarise": "statik"})


def test_a_study_of_an_integer_file_gives_the_program_floats(folder: Path) -> None:
    np.save("x.npy", np.random.RandomState(0).poisson(2.0, (50, 3)))
    result = am.run(mine())
    assert result.tree["observed_data"]["x"].dtype.kind == "f"
    assert "integers as floats" in result.tree.attrs["protocol"]


def test_the_page_says_the_protocol(folder: Path) -> None:
    study = tiny(**{"data.binarise": "static", "data.seed": 2})
    am.run(study, out="run")
    protocol = load_split(study.data, validation=0.1).protocol
    assert "drawn by seed 2" in protocol
    assert json.loads(Path("run/report.json").read_text(encoding="utf-8"))["protocol"] == protocol
    assert "drawn by seed 2" in Path("run/report.html").read_text(encoding="utf-8")


def test_redrawing_draws_the_named_argument_with_its_probabilities() -> None:
    p = torch.linspace(0, 1, 6).expand(5000, 6)
    data = Data.of({"mask": torch.full((5000,), 0.5), "x": torch.zeros(5000, 6, dtype=torch.float64)})
    stream = torch.Generator().manual_seed(0)
    redraw = redrawing("x", p.numpy())
    first, second = redraw(data, stream), redraw(data, stream)
    assert torch.equal(first.kwargs["mask"], data.kwargs["mask"])
    assert first.kwargs["x"].dtype == torch.float64
    mean = first.kwargs["x"].mean(0)
    assert torch.all((mean - p[0]).abs() <= z_value(6) * (p[0] * (1 - p[0]) / 5000).sqrt())
    assert not torch.equal(first.kwargs["x"], second.kwargs["x"])


def test_redrawing_a_batch_looks_its_rows_up() -> None:
    certain = np.eye(5, dtype=np.float32)
    rows = torch.tensor([4, 1, 1])
    batch = Data.of(torch.zeros(5, 5)).rows(rows)
    drawn = redrawing(0, certain)(batch, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.args[0], torch.eye(5)[rows])


def test_a_study_under_dynamic_binarisation_trains_on_new_draws_and_evaluates_fixed_ones(folder: Path) -> None:
    dynamic = tiny(**{"data.binarise": "dynamic"})
    one, again = am.run(dynamic), am.run(dynamic)
    static = am.run(tiny(**{"data.binarise": "static"}))
    same_numbers(one.tree, again.tree)
    np.testing.assert_array_equal(one.tree["observed_data"]["x"], static.tree["observed_data"]["x"])
    elbo = one.tree["training"]["elbo"].to_numpy()
    assert np.isfinite(elbo).all()
    assert not np.array_equal(elbo, static.tree["training"]["elbo"].to_numpy())
    assert one.fitted is not None
    assert one.fitted.settings["redraw"] is True
    assert "drawn anew in each epoch" in one.tree.attrs["protocol"]


def test_a_program_of_images_and_labels_is_given_both_and_never_sees_a_probability(folder: Path) -> None:
    Path("labelled.py").write_text(LABELLED)
    study = mine(
        program={"target": "labelled.py:program"},
        **{
            "data.source": "digits",
            "data.arrays": {"xs": "x", "ys": "y"},
            "data.binarise": "dynamic",
            "data.num_evaluated": 5,
        },
    )
    result = am.run(study)
    np.testing.assert_array_equal(result.tree["observed_data"]["x"], load("digits", binarise="static").x_test[:5])
    assert np.isfinite(result.ledger.table.log_evidence).all()
