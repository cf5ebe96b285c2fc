"""What every test leaves as it found it: Pyro's global parameter store stays empty."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

__all__ = ["require_empty_param_store"]


@pytest.fixture(autouse=True)
def _empty_param_store() -> Iterator[None]:
    yield
    require_empty_param_store()


def require_empty_param_store() -> None:
    """Fail the running test if Pyro's global store holds a parameter, and empty it for the tests to come."""
    if "pyro" not in sys.modules:
        return
    import pyro

    store = pyro.get_param_store()
    names = sorted(store.keys())
    store.clear()
    if names:
        pytest.fail(f"the test left parameters in Pyro's global store: {', '.join(names)}", pytrace=False)
