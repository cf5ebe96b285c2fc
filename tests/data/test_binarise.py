"""Binarisation: the three ways, their streams, and that a draw has the probability it should."""

from __future__ import annotations

import numpy as np
import pytest

from amortize.data import load, redraw
from amortize.data.binarise import MODES, binarised
from tests.statistics import z_value

GREY = np.random.RandomState(0).randint(0, 256, (5000, 12)).astype(np.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_float32_and_touches_no_global_stream(mode):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    got = binarised(GREY, mode, top=255)
    assert got.dtype == np.float32
    assert got.shape == GREY.shape
    assert (set(np.unique(got)) == {0.0, 1.0}) == (mode in ("threshold", "static"))
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_a_threshold_is_half_of_the_range():
    assert binarised(np.array([[0, 127, 128, 255]], dtype=np.uint8), "threshold", top=255).tolist() == [[0, 0, 1, 1]]
    assert binarised(np.array([[0, 7, 8, 16]], dtype=np.uint8), "threshold", top=16).tolist() == [[0, 0, 1, 1]]


def test_grey_values_reach_from_zero_to_one():
    assert np.array_equal(binarised(GREY, "grey", top=255), (GREY / 255).astype(np.float32))


def test_static_is_one_stream_over_all_rows():
    expected = np.random.RandomState(3).rand(*GREY.shape) < GREY / 255.0
    assert np.array_equal(binarised(GREY, "static", top=255, seed=3), expected)


def test_draws_have_their_probability():
    p = np.linspace(0, 1, 11, dtype=np.float32)
    num = 20000
    drawn = redraw(np.tile(p, (num, 1)), seed=0, epoch=0).mean(0)
    assert drawn[0] == 0.0
    assert drawn[-1] == 1.0
    assert np.all(np.abs(drawn - p) <= z_value(len(p)) * np.sqrt(p * (1 - p) / num))


def test_epochs_differ_and_each_can_be_drawn_again():
    p = binarised(GREY, "grey", top=255)
    assert np.array_equal(redraw(p, seed=1, epoch=4), redraw(p, seed=1, epoch=4))
    assert not np.array_equal(redraw(p, seed=1, epoch=4), redraw(p, seed=1, epoch=5))
    assert not np.array_equal(redraw(p, seed=1, epoch=4), redraw(p, seed=2, epoch=4))


def test_under_dynamic_binarisation_what_is_evaluated_is_drawn_once():
    dynamic = load("digits", binarise="dynamic", validation=0.1)
    static = load("digits", binarise="static", validation=0.1)
    assert dynamic.dynamic
    assert not static.dynamic
    assert np.array_equal(dynamic.x_test, static.x_test)
    assert np.array_equal(dynamic.x_valid, static.x_valid)
    assert np.array_equal(dynamic.x_train, load("digits", binarise="grey", validation=0.1).x_train)
    assert "drawn anew in each epoch to train on, and once by seed 0" in dynamic.protocol
    assert not np.array_equal(load("digits", binarise="static", seed=1).x_test, static.x_test)
