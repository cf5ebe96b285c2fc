"""The rules by which one node of a traced graph is replaced by something cheaper that equals it up to rounding.

A rule takes a node and the numbers known, and gives a replacement or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from amortize.program.known import VIEWS, Known, value_of

__all__ = ["alike", "replacement"]

aten = torch.ops.aten

COPIES = frozenset({aten.clone.default, aten.lift_fresh_copy.default, aten._to_copy.default})


def replacement(node: fx.Node, known: Known) -> fx.Node | None:
    """What the first rule that fits puts in place of a node."""
    found = _same_view(node)
    if found is not None or not node.meta["val"].is_floating_point():
        return found
    return next((by for rule in RULES if (by := rule(node, known)) is not None), None)


def alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes have one shape, layout and type, so that one can stand for the other."""
    first, second = a.meta.get("val"), b.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    return (first.shape, first.stride(), first.dtype, first.device) == (
        second.shape, second.stride(), second.dtype, second.device,
    )  # fmt: skip


def _same_view(node: fx.Node) -> fx.Node | None:
    if node.target in VIEWS or node.target in COPIES:
        parent = node.args[0]
        if isinstance(parent, fx.Node) and alike(node, parent):
            return parent
    return None


NEUTRAL: dict[Any, tuple[float, bool]] = {
    aten.add.Tensor: (0.0, True),
    aten.sub.Tensor: (0.0, False),
    aten.mul.Tensor: (1.0, True),
    aten.mul.Scalar: (1.0, False),
    aten.div.Tensor: (1.0, False),
    aten.pow.Tensor_Scalar: (1.0, False),
}
"""The operand that changes nothing, and whether it may stand first as well."""


def _neutral(node: fx.Node, known: Known) -> fx.Node | None:
    if node.target not in NEUTRAL or len(node.args) != 2 or node.kwargs:
        return None
    number, either = NEUTRAL[node.target]
    first, second = node.args
    if value_of(second, known) == number and isinstance(first, fx.Node) and alike(node, first):
        return first
    if either and value_of(first, known) == number and isinstance(second, fx.Node) and alike(node, second):
        return second
    return None


def _scaled(node: fx.Node, known: Known) -> fx.Node | None:
    """X * c for a tensor of one number c, two such in a row as one; by -1 it is a sign."""
    factor, rest = _factor(node, known)
    if factor is None or not isinstance(rest, fx.Node) or not alike(node, rest):
        return None
    inner = rest.args[0] if rest.args else None
    if isinstance(inner, fx.Node) and alike(rest, inner):
        if rest.target == aten.mul.Tensor and isinstance(rest.args[1], float):
            factor, rest = factor * rest.args[1], inner
        elif rest.target == aten.neg.default:
            factor, rest = -factor, inner
    if node.target == aten.neg.default and rest is node.args[0]:
        return None  # a sign and nothing else
    if factor == 1.0:
        return rest
    with node.graph.inserting_before(node):
        if factor == -1.0:
            return node.graph.call_function(aten.neg.default, (rest,))
        return node.graph.call_function(aten.mul.Tensor, (rest, float(factor)))


def _factor(node: fx.Node, known: Known) -> tuple[float | None, Any]:
    """The number and the rest of a product; -1 and the rest of a sign."""
    if node.target == aten.neg.default:
        return -1.0, node.args[0]
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar) or len(node.args) != 2:
        return None, None
    first, second = node.args
    number = value_of(second, known)
    return (value_of(first, known), second) if number is None else (number, first)


def _divided(node: fx.Node, known: Known) -> fx.Node | None:
    """X / c for a tensor of one number c, without reading it."""
    if node.target != aten.div.Tensor or len(node.args) != 2 or node.kwargs:
        return None
    rest, number = node.args[0], value_of(node.args[1], known)
    if number is None or not isinstance(node.args[1], fx.Node) or not isinstance(rest, fx.Node):
        return None
    if not alike(node, rest):
        return None
    with node.graph.inserting_before(node):
        return node.graph.call_function(aten.div.Tensor, (rest, number))


def _softplus_slope(node: fx.Node, known: Known) -> fx.Node | None:
    """The derivative of softplus is a sigmoid, times what comes from above: g where all of it is one number."""
    if node.target != aten.softplus_backward.default or node.args[2:3] not in ((), (1,), (1.0,)):
        return None
    number = value_of(node.args[0], known)
    if number is None or not isinstance(node.args[1], fx.Node) or not alike(node, node.args[1]):
        return None
    with node.graph.inserting_before(node):
        slope = node.graph.call_function(aten.sigmoid.default, (node.args[1],))
        slope.meta["val"] = node.meta["val"]
        if number == 1.0:
            return slope
        if number == -1.0:
            return node.graph.call_function(aten.neg.default, (slope,))
        return node.graph.call_function(aten.mul.Tensor, (slope, number))


def _difference(node: fx.Node, known: Known) -> fx.Node | None:  # noqa: ARG001
    """A + (-b) as a - b, one pass over memory in place of two."""
    if node.target != aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return None
    for this, other in (node.args, reversed(node.args)):
        if isinstance(this, fx.Node) and this.target == aten.neg.default and isinstance(other, fx.Node):
            with node.graph.inserting_before(node):
                return node.graph.call_function(aten.sub.Tensor, (other, this.args[0]))
    return None


def _sum_of_difference(node: fx.Node, known: Known) -> fx.Node | None:  # noqa: ARG001
    """Sum(a * b - c) as -sum(c - a * b), which needs one array in place of three."""
    parts = node.args[0] if node.target == aten.sum.dim_IntList else None
    if not isinstance(parts, fx.Node) or parts.target != aten.sub.Tensor or parts.kwargs or len(parts.users) > 1:
        return None
    product, rest = parts.args
    if not isinstance(product, fx.Node) or not isinstance(rest, fx.Node) or not alike(product, rest):
        return None
    if product.target != aten.mul.Tensor or len(product.users) > 1 or not isinstance(product.args[1], fx.Node):
        return None
    with node.graph.inserting_before(node):
        turned = node.graph.call_function(aten.addcmul.default, (rest, *product.args), {"value": -1})
        total = node.graph.call_function(aten.sum.dim_IntList, (turned, *node.args[1:]), dict(node.kwargs))
        turned.meta["val"], total.meta["val"] = parts.meta["val"], node.meta["val"]
        return node.graph.call_function(aten.neg.default, (total,))


RULES: tuple[Callable[[fx.Node, Known], fx.Node | None], ...] = (
    _neutral, _scaled, _divided, _softplus_slope, _difference, _sum_of_difference,
)  # fmt: skip
