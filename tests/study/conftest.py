"""What the tests of studies share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.tiny import write_inputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the inputs of the tiny studies."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    return tmp_path
