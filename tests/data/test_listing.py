"""``amortize data``: a quick table of all sets, one set in full, and its arrays in a file."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from amortize.cli import app
from amortize.data import DATASETS, load
from amortize.data.listing import listed

WIDE = {"COLUMNS": "400"}


def run(*arguments: str):
    return CliRunner().invoke(app, ["data", *arguments], env=WIDE)


def test_the_table_loads_nothing(monkeypatch, cache):
    for entry in DATASETS.values():
        for form in entry.forms:
            monkeypatch.setattr(type(form), "read", property(lambda _: pytest.fail("a set was read")), raising=False)
    result = run()
    assert result.exit_code == 0
    for name, entry in DATASETS.items():
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{name} "))
        assert f"{entry.sizes[0]:,}" in line
        assert entry.licence in line
        assert entry.description in line


def test_the_table_says_where_each_would_be_read_from(monkeypatch, tmp_path, cache):
    places = {row[0]: row[3] for row in listed()}
    assert places["digits"] == "package (scikit-learn)"
    assert places["mnist"].startswith("download (")
    assert places["pbmc10k"] == "not available"
    (tmp_path / "single_cell.npz").write_bytes(b"")
    monkeypatch.setenv("AMORTIZE_DATA_DIR", str(tmp_path))
    assert {row[0]: row[3] for row in listed()}["pbmc10k"] == "folder"
    begin = time.perf_counter()
    listed()
    assert time.perf_counter() - begin < 0.5


def test_one_set_in_full_and_in_a_file(tmp_path):
    out = tmp_path / "digits.npz"
    result = run("digits", "--binarise", "static", "--seed", "3", "--out", str(out))
    assert result.exit_code == 0
    found = load("digits", binarise="static", seed=3)
    assert found.protocol in result.stdout
    assert "float32 (1442, 64)" in result.stdout
    with np.load(out, allow_pickle=False) as archive:
        assert str(archive["protocol"]) == found.protocol
        assert np.array_equal(archive["x_test"], found.x_test)
    assert [path.name for path in tmp_path.iterdir()] == ["digits.npz"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digit"], "did you mean digits"),
        (["wine", "--binarise", "static"], "no grey values"),
        (["--binarise", "static"], "name a data set"),
        (["digits", "--out", "x.txt"], "expected the name of an .npz file"),
        (["digits", "--out", "no/such/folder/x.npz"], "cannot be written"),
        (["digits", "--seed", "-1"], "seed: expected"),
    ],
)
def test_wrong_arguments_are_one_screen(arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_the_documentation_has_a_line_for_each_set():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name, entry in DATASETS.items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert " / ".join(f"{size:,}" if size else "-" for size in entry.sizes) in line
        assert entry.description in line
        assert entry.licence in line
