"""Bits a dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest

from amortize.diagnostics import bits_per_dim
from amortize.errors import ArgumentError


def test_a_fair_coin_costs_a_bit():
    np.testing.assert_allclose(bits_per_dim([10 * math.log(0.5), 5 * math.log(0.25)], 10), [1.0, 1.0])


def test_wrong_input():
    with pytest.raises(ArgumentError, match="num_dims"):
        bits_per_dim([-1.0], 0)
    with pytest.raises(ArgumentError, match="NaN for 1"):
        bits_per_dim([-1.0, math.nan], 4)
