"""Exact simplifications of a traced graph, so that only work that reaches an output is left.

Autograd starts each gradient from ones *like* the value, so that the value, softplus and sums and all, seems needed by
a gradient that doesn't use a number of it. Tensors of one known number are therefore followed through the graph:
``ones_like(value)`` depends on nothing, x * 1 and x + 0 are x, and what is then dead goes. Nothing changes a result by
more than rounding, and what multiplies by 0 stays, because 0 * inf is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from amortize.program.known import VIEWS, Known, filled, known_number
from amortize.program.rules import replacement

__all__ = ["simplify", "writes"]


def simplify(graph: fx.Graph) -> None:
    """Rewrite ``graph``, traced with shapes, in place; a graph whose writes can't be undone is left as it is."""
    _undo_writes(graph)
    if any(writes(node) for node in graph.nodes):
        return
    known: Known = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        number = known_number(node, known)
        by = replacement(node, known) if number is None else filled(node, number)
        if by is None:
            continue
        by.meta.setdefault("val", node.meta["val"])
        if number is not None:
            known[node] = known[by] = number
        node.replace_all_uses_with(by)
    _share(graph)
    graph.eliminate_dead_code()


def writes(node: fx.Node) -> bool:
    """Whether a node writes into one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _undo_writes(graph: fx.Graph) -> None:
    """Put a new result where one is written over memory that nothing else looks at: x.add_(y) as x + y."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not writes(node) or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        operand, function = node.args[0], _without_write(node.target)
        alone = _makes_memory(operand) and all(user.op == "output" or _makes_memory(user) for user in operand.users)
        if function is None or not alone or len({_dtype(parent) for parent in node.all_input_nodes}) > 1:
            continue
        node.target = function
        for user in [user for user in operand.users if order[user] > order[node]]:
            user.replace_input_with(operand, node)


def _without_write(target: Any) -> Any:
    """The operation that gives what an in-place one writes."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, overload, None)


def _makes_memory(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target in VIEWS:
        return False
    return all(result.alias_info is None or writes(node) for result in schema.returns)


def _dtype(node: fx.Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def _share(graph: fx.Graph) -> None:
    """Compute what is computed twice once."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or torch.Tag.nondeterministic_seeded in _tags(node):
            continue
        key = (node.op, node.target, *_frozen(node.args), *_frozen(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
        else:
            seen[key] = node


def _tags(node: fx.Node) -> Any:
    return getattr(node.target, "tags", ())


def _frozen(value: Any) -> Iterator[Any]:
    """A hashable rendering of a node's arguments: types too, because 1, 1.0 and True are not the same argument."""
    if isinstance(value, (list, tuple)):
        yield type(value).__name__
        for item in value:
            yield tuple(_frozen(item))
    elif isinstance(value, (dict, slice)):
        items = value.items() if isinstance(value, dict) else ((0, value.start), (1, value.stop), (2, value.step))
        yield tuple((key, tuple(_frozen(item))) for key, item in items)
    else:
        yield type(value), value
