"""The kernel two-sample test: its sum over pairs, its level, its power, and an estimate without bias."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from amortize.diagnostics.mmd import SCALES, mmd_test
from amortize.errors import ArgumentError
from tests.statistics import z_value


def test_it_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)) * 2
    both = np.concatenate([one, two])
    unit = np.mean([((a - b) ** 2).sum() for a, b in itertools.permutations(both, 2)])

    def kernel(a, b):
        return np.mean([s * unit / (s * unit + ((a - b) ** 2).sum()) for s in SCALES])

    within = np.mean([kernel(a, b) for a, b in itertools.permutations(one, 2)])
    between = np.mean([kernel(a, b) for a, b in itertools.permutations(two, 2)])
    across = np.mean([kernel(a, b) for a, b in itertools.product(one, two)])
    assert mmd_test(one, two, num_permutations=1).squared == pytest.approx(within + between - 2 * across, abs=1e-13)


def test_equal_distributions_pass_at_the_stated_rate_and_without_bias():
    rng = np.random.default_rng(1)
    found = [mmd_test(*rng.normal(size=(2, 40, 2)), num_permutations=99, seed=k) for k in range(200)]
    squared = np.array([each.squared for each in found])
    assert abs(squared.mean()) < z_value(3) * squared.std() / len(squared) ** 0.5
    p_values = np.array([each.p_value for each in found])
    assert abs(p_values.mean() - 0.505) < z_value(3) * (1 / 12 / len(p_values)) ** 0.5
    rejected = (p_values <= 0.1).mean()
    assert rejected - 0.1 < z_value(3) * (0.09 / len(p_values)) ** 0.5
    assert np.mean([each.noise for each in found]) == pytest.approx(squared.std(), rel=0.2)


@pytest.mark.parametrize("other", ["shifted", "wide", "curved"])
def test_other_distributions_are_told_apart(other):
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(300, 2)), rng.normal(size=(400, 2))
    if other == "shifted":
        two = two + 0.5
    elif other == "wide":
        two = two * 1.5
    else:  # standard normal marginals, but not together
        two[:, 1] = np.sign(two[:, 0]) * np.abs(two[:, 1])
    found = mmd_test(one, two)
    assert found.p_value == 1 / 501
    assert found.squared > 5 * found.noise


def test_rows_that_are_alike_and_numbers_that_are_not_finite():
    assert mmd_test(np.zeros((3, 1)), np.zeros((4, 1))) == (0.0, 0.0, 1.0)
    assert all(np.isnan(value) for value in mmd_test([[0.0], [np.inf]], [[0.0], [1.0]]))


@pytest.mark.parametrize("shapes", [((4, 2), (4, 3)), ((1, 2), (4, 2)), ((4,), (4,)), ((4, 0), (4, 0))])
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ArgumentError, match="expected samples"):
        mmd_test(np.zeros(shapes[0]), np.zeros(shapes[1]))
