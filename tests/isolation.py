"""What every test leaves as it found it: Pyro's global parameter store stays empty."""

from __future__ import annotations

import sys

import pytest

__all__ = ["require_empty_param_store"]


def require_empty_param_store() -> None:
    """Fail the running test if Pyro's global store holds a parameter; empty it, so that no other test fails for it."""
    if "pyro" not in sys.modules:
        return
    import pyro

    store = pyro.get_param_store()
    names = sorted(store.keys())
    store.clear()
    if names:
        pytest.fail(f"the test left parameters in Pyro's global store: {', '.join(names)}", pytrace=False)
