"""A server on this machine, and a cache that is the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.published import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):  # a proxy can't see this machine
        monkeypatch.delenv(name, raising=False)
    with serving() as given:
        yield given


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder."""
    monkeypatch.setenv("AMORTIZE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("AMORTIZE_DATA_DIR", raising=False)
    return tmp_path / "cache"
