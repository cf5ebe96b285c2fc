"""Annealing gone wrong on purpose, on a model whose evidence is known: what evidence says of itself."""

from __future__ import annotations

import numpy as np
import pytest

import amortize as am

JUMPY = (0.0, *np.geomspace(1e-4, 0.02, 20), *np.linspace(0.6, 1.0, 20))
RUNS = {
    "": am.AIS(num_temperatures=200),
    "short": am.AIS(num_temperatures=5),
    "frozen": am.AIS(num_temperatures=50, pilot=False, step_size=8.0),
    "slow": am.AIS(num_temperatures=50, pilot=False, step_size=0.002),
    "jump": am.AIS(num_temperatures=40, schedule=JUMPY),
    "heavy": am.ImportanceSampling(1000),
}


@pytest.mark.filterwarnings("ignore:for .* datapoints one of:amortize.errors.AmortizeWarning")
@pytest.mark.parametrize("cause", RUNS)
def test_what_is_wrong_with_a_run_is_named(cause):
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    x = analysis.simulate(30, seed=1)
    result = am.evidence(analysis.program(), x, method=RUNS[cause], start="prior")
    error = result.log_evidence - analysis.log_evidence(x).numpy()
    causes = result.trust.causes
    named = np.isin(causes, ("short", "collapsed") if cause == "short" else (cause,))
    assert named.mean() > 0.6  # a few datapoints of a slow run look collapsed, and the like
    if cause:
        assert error.mean() < -1
        assert result.trusted.mean() < 0.1
        assert "not to be trusted (.warnings says why)" in str(result)
    else:
        assert abs(error.mean()) < 0.1
