"""A traced graph in two: what hangs on its inputs, and what doesn't and is evaluated only when a tensor changes.

The first half takes as inputs, behind its own, the tensors that the function captured (parameters, data) and what the
second half makes of them (an encoder's pass over the data, say). Captured tensors are held, not copied: when an
optimiser steps in place their version counters move, and the second half is evaluated anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from amortize.program.simplify import writes

__all__ = ["Split", "fixed_nodes"]


class Split:
    """A graph whose captured tensors and constants are inputs.

    Parameters
    ----------
    module
        As traced; nodes that read attributes are captured tensors.

    Attributes
    ----------
    main
        Takes the graph's inputs and then the constants.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        fixed = fixed_nodes(module.graph)
        needed = [
            node
            for node in module.graph.nodes
            if node in fixed and isinstance(_value_of(node, module), Tensor) and any(u not in fixed for u in node.users)
        ]
        self.main = fx.GraphModule(module, _main(module.graph, fixed, needed))
        self._captured = tuple(_attribute(module, node) for node in module.graph.nodes if node.op == "get_attr")
        self._prologue = fx.GraphModule(module, _prologue(module.graph, fixed, needed))
        self._seen: tuple[Any, ...] | None = None
        self._constants: tuple[Tensor, ...] = ()

    def constants(self, *, fresh: bool = False) -> tuple[Tensor, ...]:
        """What ``main`` takes behind the graph's inputs, as the captured tensors are now.

        A write through ``.data`` moves no version counter, nor does a fused optimiser: ``fresh`` looks at none.
        """
        now = tuple([_state(value) for value in self._captured])
        if fresh or now != self._seen:
            with torch.no_grad():
                made: tuple[Tensor, ...] = self._prologue()
            self._constants = tuple(value.detach() for value in made)
            self._seen = now
        return self._constants


def fixed_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on no input; none but captured tensors where the graph writes in place."""
    fixed: set[fx.Node] = set()
    pure = not any(writes(node) for node in graph.nodes)
    for node in graph.nodes:
        if node.op == "get_attr" or (
            pure
            and node.op in ("call_function", "call_method")
            and all(parent in fixed for parent in node.all_input_nodes)
        ):
            fixed.add(node)
    return fixed


def _main(graph: fx.Graph, fixed: set[fx.Node], needed: list[fx.Node]) -> fx.Graph:
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            copies[node] = new.node_copy(node)
    for count, node in enumerate(needed):
        copies[node] = new.placeholder(f"constant_{count}")
        copies[node].meta = dict(node.meta)
    for node in graph.nodes:
        if node not in fixed and node.op != "placeholder":
            copies[node] = new.node_copy(node, copies.__getitem__)
    return new


def _prologue(graph: fx.Graph, fixed: set[fx.Node], needed: list[fx.Node]) -> fx.Graph:
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in fixed:
            copies[node] = new.node_copy(node, copies.__getitem__)
    new.output(tuple(copies[node] for node in needed))
    new.eliminate_dead_code()
    return new


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _value_of(node: fx.Node, module: fx.GraphModule) -> Any:
    return _attribute(module, node) if node.op == "get_attr" else node.meta.get("val")


def _state(value: Any) -> Any:
    """What changes when a tensor's numbers do: its version, or its memory where ``.data`` was put in its place."""
    if not isinstance(value, Tensor):
        return None
    return (0 if value.is_inference() else value._version, value.data_ptr())
