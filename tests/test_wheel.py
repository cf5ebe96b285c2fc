"""What is built is what is in the package: every module once, its templates and types, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import amortize

ROOT = Path(__file__).parents[1]
PACKAGED = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "amortize").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built offline with the tools at hand."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def wheel_names(folder: Path) -> list[str]:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    names = wheel_names(built)
    assert sorted(names) == PACKAGED
    assert max(Counter(names).values()) == 1


def test_the_wheel_holds_types_and_templates(built: Path) -> None:
    names = wheel_names(built)
    assert "amortize/py.typed" in names
    assert any(name.startswith("amortize/report/templates/") for name in names)


def test_the_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"amortize-{amortize.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "amortize = amortize.cli:app" in archive.read(scripts).decode()
        licenses = [name for name in archive.namelist() if ".dist-info/licenses/" in name]
        assert len(licenses) == 2, "amortize's own and that of plotly.js"


def test_the_source_distribution_holds_the_package_once_and_its_tests(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = ["/".join(Path(name).parts[1:]) for name in archive.getnames()]
    assert [name for name in sorted(names) if name.startswith("amortize/")] == PACKAGED
    assert "tests/test_wheel.py" in names
    assert not [name for name in names if name.startswith(("models", "inference", ".venv", "runs"))]
