from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amortize.inference.evidence import Evidence
from amortize.inference.method import AnnealingPath
from amortize.inference.sandwich import Sandwich
from amortize.inference.simulated_error import SimulatedError
from amortize.study.pipeline import NESTED, SIMULATED
from amortize.study.stages import dataclass_codec

CODEC = dataclass_codec(Evidence, nested=NESTED, live={"simulated.sandwich.data": SIMULATED})


def measured() -> Evidence:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=4) for name in ("log_evidence", "se", "ess", "khat", "acceptance")}
    return Evidence(
        **columns,
        num_nonfinite=np.arange(4),
        lower=rng.normal(size=4),
        upper=None,
        log_weights=np.array([[1.0, -np.inf, 2.0, np.nan]]),
        used=np.array(["AIS", "importance sampling (PSIS)", "AIS", "none"], dtype=object),
        num_gradients=np.full(4, 1000 / 3),
        path=AnnealingPath(rng.normal(size=(3, 4)), rng.normal(size=(2, 4)), np.full((3, 4), np.inf)),
        interrupted=False,
        method="auto",
        settings={"kernel": {"name": "HMC", "jitter": 0.1}, "schedule": None},
        seed=2**62,
        start="guide",
        seconds=0.1,
    )


def simulated() -> SimulatedError:
    sides = {name: np.arange(3.0) for name in ("lower", "lower_se", "upper", "upper_se")}
    sandwich = Sandwich(
        **sides,
        exact=True,
        log_weights=np.ones((2, 3)),
        reverse_log_weights=np.ones((2, 3)),
        acceptance=np.full((2, 3), np.nan),
        data=SIMULATED,
        interrupted=False,
        method="AIS",
        settings={},
        start="guide",
        draws="exact",
        seed=1,
        seconds=0.5,
    )
    return SimulatedError(np.zeros(3), np.ones(3), 0.25, 1.5, sandwich, ("harder",))


def assert_same(ours: Any, theirs: Any) -> None:
    if is_dataclass(theirs):
        assert type(ours) is type(theirs)
        for field in fields(theirs):
            assert_same(getattr(ours, field.name), getattr(theirs, field.name))
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    "changes",
    [{}, {"path": None}, {"lower": None}, {"simulated": simulated()}],
    ids=["all", "no path", "no bound", "simulated error"],
)
def test_evidence_comes_back_as_it_was(changes: dict[str, Any], tmp_path: Path) -> None:
    result = replace(measured(), **changes)
    CODEC.write(result, tmp_path / "evidence.npz")
    assert_same(CODEC.read(tmp_path / "evidence.npz"), result)
