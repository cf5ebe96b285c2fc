"""Suite-wide settings: one thread a process, and nothing left in Pyro's global store."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

# One thread a process, whether xdist runs or not: seeded numbers are then the same in both, and two workers on two
# cores don't fight. The variables reach the command-line subprocesses that some tests start.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

if importlib.util.find_spec("torch") is not None:  # the tests of `report` also run where torch isn't installed
    import torch

    torch.set_num_threads(1)

from tests.isolation import require_empty_param_store


@pytest.fixture(autouse=True)
def _empty_param_store() -> Iterator[None]:
    yield
    require_empty_param_store()
