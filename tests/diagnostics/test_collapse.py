"""Active units: latents whose posterior mean moves with the datapoint."""

from __future__ import annotations

import numpy as np
import pytest

from amortize.diagnostics.collapse import active_units
from amortize.errors import ArgumentError


def test_latents_that_move_are_told_from_those_that_do_not():
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 0.3, 0.05, 0.0])
    means = rng.normal(size=(2000, 4)) * spread + np.array([0.0, 2.0, 5.0, 1.0])  # where they lie is no matter
    assert active_units(means).tolist() == [True, True, False, False]
    assert active_units(means, threshold=0.001).tolist() == [True, True, True, False]


def test_the_variance_is_that_over_datapoints():
    means = np.array([[0.0], [0.1]])  # variance 0.005 about the mean, with one degree of freedom left
    assert active_units(means, threshold=0.0049).all() and not active_units(means, threshold=0.0051).any()


@pytest.mark.parametrize("means", [[1.0, 2.0], [[1.0, 2.0]], [[np.nan], [0.0]], np.zeros((2, 2, 2))])
def test_other_shapes_are_refused(means):
    with pytest.raises(ArgumentError, match=r"means: expected finite posterior means \(N, D\)"):
        active_units(means)
