"""Which tensors of a traced graph hold one number that is known without the graph's inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["VIEWS", "Known", "filled", "known_number", "value_of"]

aten = torch.ops.aten

VIEWS = frozenset(
    {
        aten.alias.default, aten.detach.default, aten.expand.default, aten.permute.default, aten.select.int,
        aten.slice.Tensor, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.t.default,
        aten.transpose.int, aten.unsqueeze.default, aten.view.default, aten._unsafe_view.default,
    }
)  # fmt: skip
"""Operations that only look at their first argument in another way."""

POINTWISE = frozenset(
    {
        aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.neg.default,
        aten.pow.Tensor_Scalar, aten.exp.default, aten.log.default, aten.sqrt.default, aten.rsqrt.default,
        aten.reciprocal.default, aten.add.Scalar, aten.sub.Scalar, aten.div.Scalar, aten.rsub.Scalar,
    }
)  # fmt: skip
"""Operations that make one number of one number where their operands are of one number."""

FILLED: dict[Any, int | float] = {
    aten.zeros.default: 0.0, aten.zeros_like.default: 0.0, aten.new_zeros.default: 0.0,
    aten.ones.default: 1.0, aten.ones_like.default: 1.0, aten.new_ones.default: 1.0,
    aten.scalar_tensor.default: 0, aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2,
}  # fmt: skip
"""Operations that fill a tensor with one number: the number (a float), or which argument it is (an int)."""

OF_NOTHING = frozenset({aten.sum.dim_IntList, aten.slice_backward.default})
"""Operations that give zeros where there is nothing in their operand."""

Known = dict[fx.Node, float]


def known_number(node: fx.Node, known: Known) -> float | None:
    """The one number that every entry of a node is, if that is known without its inputs."""
    value = node.meta["val"]
    if not value.is_floating_point():
        return None
    if node.target in FILLED:
        number: Any = FILLED[node.target]
        number = node.args[number] if isinstance(number, int) else number
        return float(number) if isinstance(number, (int, float)) else None
    parents = node.all_input_nodes
    if node.target in OF_NOTHING and parents[0].meta["val"].numel() == 0:
        return 0.0
    if node.target == aten.lift_fresh_copy.default and value.numel() == 1:
        return _literal(parents[0])
    if not parents or any(parent not in known for parent in parents):
        return None
    if node.target in VIEWS:
        return known[parents[0]]
    if node.target == aten.sum.dim_IntList and known[parents[0]] == 0.0:
        return 0.0
    return _calculated(node, known) if node.target in POINTWISE else None


def _literal(node: fx.Node) -> float | None:
    """The value of a number that the function wrote as a tensor, ``torch.tensor(0.5)``: a literal can't change."""
    owner = node.graph.owning_module
    if node.op != "get_attr" or owner is None:
        return None
    value = getattr(owner, str(node.target), None)
    return float(value) if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter) else None


def _calculated(node: fx.Node, known: Known) -> float:
    def single(parent: fx.Node) -> Tensor:
        return torch.full((), known[parent], dtype=parent.meta["val"].dtype)

    args = fx.map_arg(node.args, single)
    kwargs = fx.map_arg(node.kwargs, single)
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return float(result)


def filled(node: fx.Node, number: float) -> fx.Node:
    """A node that stands for ``node``: its shape, filled with ``number``, and no memory to speak of."""
    value = node.meta["val"]
    with node.graph.inserting_before(node):
        options = {"dtype": value.dtype, "device": value.device}
        single = node.graph.call_function(aten.full.default, ([], number), options)
        made = node.graph.call_function(aten.expand.default, (single, list(value.shape)))
    made.meta["val"] = value
    return made


def value_of(argument: Any, known: Known) -> float | None:
    """The number that an argument is, as a tensor of one number or as itself."""
    if isinstance(argument, fx.Node):
        return known.get(argument)
    return float(argument) if isinstance(argument, (int, float)) and not isinstance(argument, bool) else None
