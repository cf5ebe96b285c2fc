"""Products with a fixed matrix through oneDNN, on a CPU in float32.

A decoder's layers multiply by weights that no input of the graph changes. PyTorch's ``addmm`` calls MKL for them, which
on some processors runs at half the speed of oneDNN, also part of PyTorch; and oneDNN takes tanh along. Precision is the
same. Small products stay, because the call costs more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from amortize.program.freeze import fixed_nodes

__all__ = ["LINEAR", "opaque", "use_onednn"]

aten = torch.ops.aten

SMALLEST = 1e7  # multiplications
AFTER = {aten.tanh.default: "tanh", aten.relu.default: "relu"}
LINEAR: Any = torch.ops.mkldnn._linear_pointwise.default if torch._C._has_mkldnn else None

_library: Any = torch.library.Library("amortize", "DEF")  # type: ignore[no-untyped-call]
_library.define("linear(Tensor x, Tensor w, Tensor? b, str after) -> Tensor")


def _linear(x: Tensor, w: Tensor, b: Tensor | None, after: str) -> Tensor:
    result: Tensor = LINEAR(x, w, b, after, [], "")
    return result


def _shape_of_linear(x: Tensor, w: Tensor, b: Tensor | None, after: str) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], w.shape[0])


_library.impl("linear", _linear, "CPU")
torch.library.register_fake("amortize::linear", _shape_of_linear, lib=_library)


def use_onednn(graph: fx.Graph) -> None:
    """Rewrite large products with fixed matrices, in place."""
    if LINEAR is None or not torch._C._get_mkldnn_enabled():
        return
    fixed = fixed_nodes(graph)
    for node in list(graph.nodes):
        parts = _parts(node, fixed)
        if parts is not None:
            _rewrite(node, *parts)
    graph.eliminate_dead_code()


def opaque(graph: fx.Graph) -> None:
    """The same products as an operation that a compiler takes as it is."""
    for node in graph.nodes:
        if LINEAR is not None and node.target == LINEAR:
            node.target, node.args = torch.ops.amortize.linear.default, node.args[:4]


def _parts(node: fx.Node, fixed: set[fx.Node]) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """The left factor, the fixed right factor and the bias of a product that is worth it."""
    if node.op != "call_function" or node.kwargs or node.target not in (aten.mm.default, aten.addmm.default):
        return None
    left, right = node.args[-2:]
    bias = node.args[0] if node.target == aten.addmm.default else None
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or left in fixed or right not in fixed:
        return None
    value, first = node.meta["val"], left.meta["val"]
    suits = value.device.type == "cpu" and value.dtype == torch.float32 and value.numel() * first.shape[1] >= SMALLEST
    if isinstance(bias, fx.Node):
        return (left, right, bias) if suits and bias.meta["val"].dim() == 1 and _same(bias, value.shape[1]) else None
    return (left, right, None) if suits else None


def _same(bias: fx.Node, width: int) -> bool:
    return bool(bias.meta["val"].shape[0] == width)


def _rewrite(node: fx.Node, left: fx.Node, right: fx.Node, bias: fx.Node | None) -> None:
    graph = node.graph
    only = next(iter(node.users)) if len(node.users) == 1 else node
    last, after = (only, AFTER[only.target]) if only.target in AFTER else (node, "none")
    with graph.inserting_before(node):
        turned = graph.call_function(aten.t.default, (right,))
        weight = graph.call_method("contiguous", (turned,))
        product = graph.call_function(LINEAR, (left, weight, bias, after, [], ""))
    turned.meta["val"] = right.meta["val"].t()
    weight.meta["val"] = turned.meta["val"].contiguous()
    product.meta["val"] = node.meta["val"]
    last.replace_all_uses_with(product)
