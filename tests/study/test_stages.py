from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from amortize.inference.evidence import Evidence
from amortize.inference.method import AnnealingPath
from amortize.study.stages import dataclass_codec

CODEC = dataclass_codec(Evidence, nested={"path": AnnealingPath})


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


@pytest.mark.parametrize("changes", [{}, {"path": None}, {"lower": None}], ids=["all", "no path", "no bound"])
def test_evidence_comes_back_as_it_was(changes: dict[str, None], tmp_path: Path) -> None:
    result = replace(measured(), **changes)
    CODEC.write(result, tmp_path / "evidence.npz")
    back = CODEC.read(tmp_path / "evidence.npz")
    for field in fields(Evidence):
        ours, theirs = getattr(back, field.name), getattr(result, field.name)
        if isinstance(theirs, AnnealingPath):
            assert isinstance(ours, AnnealingPath)
            for name in vars(theirs):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        elif isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs
