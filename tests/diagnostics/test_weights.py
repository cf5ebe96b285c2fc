from __future__ import annotations

import numpy as np
import pytest

from amortize.diagnostics import effective_sample_size, log_evidence_se, log_mean_exp
from amortize.errors import ArgumentError

SUMMARIES = {"log_mean_exp": log_mean_exp, "log_evidence_se": log_evidence_se, "ess": effective_sample_size}


@pytest.fixture
def log_weights() -> np.ndarray:
    return np.random.default_rng(0).normal(-700.0, 2.0, size=(50, 6))  # exp underflows unless shifted


@pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES.keys())
class TestContract:
    def test_one_float64_a_datapoint(self, summary, log_weights):
        for dtype in (np.float64, np.float32):
            value = summary(log_weights.astype(dtype))
            assert (value.shape, value.dtype) == ((6,), np.float64)
            assert np.isfinite(value).all()

    def test_datapoints_are_independent(self, summary, log_weights):
        alone = np.concatenate([summary(log_weights[:, [n]]) for n in range(6)])
        np.testing.assert_array_equal(summary(log_weights), alone)

    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_a_failed_datapoint_is_marked_and_spoils_no_other(self, summary, log_weights, poison):
        clean = summary(log_weights)
        log_weights[3, 2] = poison
        value = summary(log_weights)
        assert np.isnan(value[2])
        np.testing.assert_array_equal(np.delete(value, 2), np.delete(clean, 2))

    @pytest.mark.parametrize("shape", [(5,), (0, 3), (2, 3, 4), ()])
    def test_wrong_shape_is_named(self, summary, shape):
        with pytest.raises(ArgumentError, match="log_weights: expected shape"):
            summary(np.zeros(shape))

    def test_no_datapoints(self, summary):
        assert summary(np.zeros((4, 0))).shape == (0,)


def test_closed_forms():
    log_weights = np.log([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    np.testing.assert_allclose(log_mean_exp(log_weights), np.log([3.0, 5.0]))
    np.testing.assert_allclose(log_evidence_se(log_weights), [np.sqrt(7.0 / 3.0) / 3.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(effective_sample_size(log_weights), [81.0 / 41.0, 3.0])


def test_zero_weights_are_weights():
    log_weights = np.array([[-np.inf, -np.inf], [np.log(4.0), -np.inf]])
    np.testing.assert_allclose(log_mean_exp(log_weights), [np.log(2.0), -np.inf])
    np.testing.assert_allclose(effective_sample_size(log_weights), [1.0, 0.0])
    np.testing.assert_allclose(log_evidence_se(log_weights), [1.0, np.nan])


def test_one_draw_has_no_standard_error():
    assert np.isnan(log_evidence_se([[0.3]])).all()
    np.testing.assert_allclose(log_mean_exp([[0.3]]), [0.3])


def test_estimate_and_standard_error_are_calibrated():
    """For w = exp(N(-s^2/2, s^2)) the truth is log 1 = 0; z-scores must have unit variance."""
    sd, repeats = 0.5, 4000
    log_weights = np.random.default_rng(1).normal(-(sd**2) / 2, sd, size=(400, repeats))
    z = log_mean_exp(log_weights) / log_evidence_se(log_weights)
    assert abs(z.mean()) < 4 / np.sqrt(repeats) + 0.02  # 0.02: the log's bias of second order, se / 2
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * repeats) + 0.02
