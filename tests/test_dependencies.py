"""Each declared dependency is used by the package, each import is declared, and each version is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED_AS = {"pillow": "PIL", "pyro-ppl": "pyro", "scikit-learn": "sklearn"}
NOT_IMPORTED = {
    "arviz": "opens a study's tree",
    "arviz-base": "opens a study's tree; its extra h5netcdf writes the file",
    "arviz-plots": "opens a study's tree",
    "arviz-stats": "opens a study's tree",
    "matplotlib": "a bound for arviz-plots",
}
COMES_WITH = {"markupsafe": "jinja2", "pydantic_core": "pydantic"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name.strip(), maxsplit=1)[0]).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {normal(requirement) for requirement in project["dependencies"]}


def imported() -> set[str]:
    names: set[str] = set()
    for path in (ROOT / "amortize").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"amortize"}


def module(name: str) -> str:
    return IMPORTED_AS.get(name, name.replace("-", "_"))


def test_each_import_is_declared() -> None:
    modules = {module(name) for name in declared()}
    assert imported() - modules - {name for name, owner in COMES_WITH.items() if owner in modules} == set()


def test_each_dependency_is_used() -> None:
    assert {name for name in declared() - set(NOT_IMPORTED) if module(name) not in imported()} == set()


def pins(python: str) -> list[str]:
    """Names that constraints.txt pins on every Python (``python=""``) or under a marker."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.partition(";") for line in lines if "==" in line]
    return [normal(name) for name, _, marker in pinned if marker.strip() == python]


def test_each_dependency_is_pinned_once_for_each_python() -> None:
    old, new = pins('python_version < "3.12"'), pins('python_version >= "3.12"')
    for names in (pins("") + old, pins("") + new):
        assert declared() <= set(names)
        assert len(names) == len(set(names))
