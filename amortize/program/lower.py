"""A graph made fit to run as Python: results written over operands that nobody reads again, and cheap calls.

Large temporaries cost more than the arithmetic on them, and a call through the dispatcher's Python face about as much
as the arithmetic on a small tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from amortize.program.linear import LINEAR
from amortize.program.rules import alike
from amortize.program.simplify import writes

__all__ = ["lower"]

aten = torch.ops.aten

IN_PLACE: dict[Any, str] = {
    aten.add.Tensor: "add_", aten.sub.Tensor: "sub_", aten.mul.Tensor: "mul_", aten.div.Tensor: "div_",
    aten.neg.default: "neg_", aten.exp.default: "exp_", aten.tanh.default: "tanh_", aten.sigmoid.default: "sigmoid_",
    aten.addcmul.default: "addcmul_", aten.relu.default: "relu_", aten.sqrt.default: "sqrt_",
    aten.pow.Tensor_Scalar: "pow_", aten.log.default: "log_",
}  # fmt: skip
"""Pointwise operations and the method that writes the result over the first operand."""

INTO: dict[Any, tuple[Any, str]] = {
    aten.softplus.default: (aten.softplus.out, "out"),
    aten.elu.default: (aten.elu.out, "out"),
    aten.gelu.default: (aten.gelu.out, "out"),
    aten.silu.default: (aten.silu.out, "out"),
    **{
        packet.default: (packet.grad_input, "grad_input")
        for packet in (
            aten.tanh_backward, aten.sigmoid_backward, aten.softplus_backward, aten.threshold_backward,
            aten.gelu_backward, aten.silu_backward, aten.elu_backward,
        )
    },
}  # fmt: skip
"""Pointwise operations that take the tensor to write to."""

OVER_SECOND: dict[Any, Callable[..., Any]] = {aten.sub.Tensor: torch.sub, aten.div.Tensor: torch.div}
"""The same with the second operand written over; ``add`` and ``mul`` change their operands about."""

COMMUTES = frozenset({aten.add.Tensor, aten.mul.Tensor})

FRESH = frozenset(
    {
        *IN_PLACE, *INTO, LINEAR, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.convolution.default,
        aten.clamp.default, aten.log1p.default,
    }
)  # fmt: skip
"""Operations whose result is memory of its own."""

DIRECT: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add, aten.sub.Tensor: torch.sub, aten.mul.Tensor: torch.mul, aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg, aten.exp.default: torch.exp, aten.tanh.default: torch.tanh, aten.mm.default: torch.mm,
    aten.sigmoid.default: torch.sigmoid, aten.addmm.default: torch.addmm, aten.pow.Tensor_Scalar: torch.pow,
    aten.sum.dim_IntList: torch.sum, aten.log.default: torch.log, aten.sqrt.default: torch.sqrt,
    aten.softplus.default: torch.nn.functional.softplus, aten.bmm.default: torch.bmm, aten.relu.default: torch.relu,
}  # fmt: skip
"""The same operations by a shorter way."""


def lower(graph: fx.Graph) -> None:
    """Rewrite ``graph`` in place; one that already writes in place is left as it is."""
    if any(writes(node) for node in graph.nodes):
        return
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        spare = _spare_operand(node, order)
        if spare is not None:
            _write_over(node, spare)
        elif node.target in DIRECT:
            node.target = DIRECT[node.target]


def _spare_operand(node: fx.Node, order: dict[fx.Node, int]) -> fx.Node | None:
    """An operand of the result's shape and layout, memory of its own, that nobody reads after this node."""
    if node.target not in IN_PLACE and node.target not in INTO:
        return None
    either = node.target in OVER_SECOND or (node.target in COMMUTES and not node.kwargs)  # a + 2 * b does not commute
    candidates = node.args[:2] if either else node.args[:1]
    for operand in candidates:
        if isinstance(operand, fx.Node) and _owns_memory(operand) and alike(operand, node):
            once = sum(argument is operand for argument in node.args) == 1
            last = all(user is node or (order[user] < order[node] and not _keeps(user)) for user in operand.users)
            if once and last:
                return operand
    return None


def _write_over(node: fx.Node, spare: fx.Node) -> None:
    node.meta["owns"] = True
    if node.target in INTO:
        target, name = INTO[node.target]
        node.target, node.kwargs = target, {**node.kwargs, name: spare}
        return
    if node.args[0] is not spare and node.target in OVER_SECOND:
        node.target, node.kwargs = OVER_SECOND[node.target], {**node.kwargs, "out": spare}
        return
    others = node.args[1:] if node.args[0] is spare else (node.args[0], *node.args[2:])
    node.op, node.target = "call_method", IN_PLACE[node.target]
    node.args = (spare, *others)


def _owns_memory(node: fx.Node) -> bool:
    return bool(node.meta.get("owns")) or (node.op == "call_function" and node.target in FRESH | _DIRECT_FRESH)


def _keeps(user: fx.Node) -> bool:
    """Whether a user's result may share the operand's memory: anything but an operation that makes its own."""
    return not (user.op == "call_function" and user.target in FRESH | _DIRECT_FRESH | {torch.sum})


_DIRECT_FRESH = frozenset(direct for target, direct in DIRECT.items() if target in FRESH)
