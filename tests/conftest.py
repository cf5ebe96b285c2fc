"""Suite-wide settings: one thread a process, and nothing left in Pyro's global store."""

from __future__ import annotations

import importlib.util
import os

import pytest

from tests import isolation


def pytest_configure(config: pytest.Config) -> None:
    """Pin one thread a process, with xdist and without, and watch the doctests of the package too.

    Seeded numbers are then the same in both, and two workers on two cores don't fight. The variables also
    reach the command-line processes that some tests start.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if importlib.util.find_spec("torch") is not None:  # the page's tests also run where torch isn't installed
        import torch

        torch.set_num_threads(1)
    config.pluginmanager.register(isolation)  # a conftest's fixtures reach only the tests beside it
