"""Read the layers of the package off its source: who imports whom, and who touches Pyro's inside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["breaches"]

_BELOW_PROGRAM = frozenset({"errors", "atomic", "random", "diagnostics"})
_BELOW_INFERENCE = _BELOW_PROGRAM | {"program"}
_BELOW_MODELS = _BELOW_INFERENCE | {"inference"}
_BELOW_STUDY = _BELOW_MODELS | {"models", "data", "report"}

MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "atomic": frozenset({"errors"}),
    "random": frozenset({"errors"}),
    "diagnostics": frozenset({"errors"}),  # not random, which needs torch
    "data": frozenset({"errors"}),
    "report": frozenset({"errors", "atomic", "diagnostics"}),
    "program": _BELOW_PROGRAM,
    "inference": _BELOW_INFERENCE,
    "models": _BELOW_MODELS,
    "study": _BELOW_STUDY,
    "cli": _BELOW_STUDY | {"study"},
}
"""What each module or subpackage of amortize may import, besides itself and ``amortize.__version__``."""

TORCH_FREE = frozenset({"errors", "atomic", "diagnostics", "data", "report"})
PYRO_INSIDE = {
    "pyro.poutine": frozenset({"program"}),
    "pyro.params": frozenset({"program"}),
    "pyro.get_param_store": frozenset({"program"}),
    "pyro.infer": frozenset({"program", "inference"}),
}
"""What of Pyro is more than the language that models are written in, and the layers that may use it."""


class Use(NamedTuple):
    """A dotted name that a file imports or reaches through an import."""

    line: int
    name: str


def breaches(package: Path) -> list[str]:
    """Every breach of the layers in a package, one line each: ``file:line: what``.

    `__init__.py` of the package itself is the public face, which names every layer; it is left out.
    """
    return [
        f"{path.relative_to(package)}:{line}: {reason}"
        for path in sorted(package.rglob("*.py"))
        if path != package / "__init__.py"
        for line, reason in _breaches_of(path, package)
    ]


def _breaches_of(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    layer = path.relative_to(package).with_suffix("").parts[0]
    if layer not in MAY_IMPORT:
        yield 1, f"{layer} is in no layer; name it in {Path(__file__).name}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative import"
    for line, name in sorted(set(_uses(tree))):
        reason = _reason(layer, name)
        if reason:
            yield line, reason


def _reason(layer: str, name: str) -> str | None:
    root, _, rest = name.partition(".")
    if root == "amortize":
        target = rest.partition(".")[0]
        if target not in MAY_IMPORT[layer] | {layer, "__version__", ""}:  # a bare `import amortize` is read by its uses
            return f"{layer} imports {name}"
    if layer in TORCH_FREE and root in ("torch", "pyro"):
        return f"{layer} imports {name}"
    for inside, layers in PYRO_INSIDE.items():
        if layer not in layers and f"{name}.".startswith(f"{inside}."):
            return f"{layer} uses {name}"
    return None


def _uses(tree: ast.Module) -> Iterator[Use]:
    """Names imported anywhere in a file, and dotted names that start at one, as ``pyro.poutine.trace``."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield Use(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                bound[alias.asname or alias.name] = name
                yield Use(node.lineno, name)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield Use(node.lineno, argument.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *rest = _dotted(node)
            if root in bound:
                yield Use(node.lineno, ".".join([bound[root], *rest]))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _dotted(node: ast.expr) -> list[str]:
    """``a.b.c`` as ``["a", "b", "c"]``; ``[""]`` at the start of anything that isn't a plain dotted name."""
    if isinstance(node, ast.Attribute):
        return [*_dotted(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]
