"""Taking Python and Pyro out of the inner loop: a function of tensors, traced once into an FX graph.

``make_fx`` records the tensor operations of a function and of its gradient; what does not depend on the inputs (an
encoder's pass over the data, say) is evaluated once and kept. The graph is compared with the eager function on fresh
inputs and dropped, with the reason, where they differ or where tracing fails: then the eager function runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from amortize.program.handlers import unvalidated

__all__ = ["Compiled", "freeze"]

Outputs = Tensor | tuple[Tensor, ...]


class Compiled:
    """A function of tensors, run as an FX graph where that works and eagerly where it does not.

    Parameters
    ----------
    function
        Takes tensors, returns a tensor or a tuple of them.
    examples
        Inputs with the shapes to come; the graph is for these shapes.
    probe
        Other inputs of the same shapes, on which the graph must agree with the function.
    """

    def __init__(
        self, function: Callable[..., Outputs], examples: tuple[Tensor, ...], probe: tuple[Tensor, ...]
    ) -> None:
        self._eager = function
        self._graph: fx.GraphModule | None = None
        self.reason = ""
        try:
            with unvalidated():
                # fake tensors have no values, so a branch on one (through numpy, say) can't be baked in unseen
                graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
                graph.graph.eliminate_dead_code()
                graph = freeze(graph)
                self.reason = _difference(graph(*probe), function(*probe))
        except Exception as error:  # tracing may fail in any way the user's code can; the eager path is exact
            self.reason = f"tracing failed: {type(error).__name__}: {error}".splitlines()[0]
        if not self.reason:
            self._graph = graph

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the graph, or the function itself."""
        if self._graph is not None:
            return self._graph(*inputs)
        with unvalidated():
            return self._eager(*inputs)

    def describe(self) -> str:
        """Which of the two runs, and why."""
        return "FX graph, equal to eager" if self._graph is not None else f"eager ({self.reason})"


def freeze(graph: fx.GraphModule) -> fx.GraphModule:
    """Evaluate once what does not depend on the graph's inputs, and keep the results as buffers.

    Graphs that write in place are returned as they are.
    """
    if any(_writes(node) for node in graph.graph.nodes):
        return graph
    interpreter = fx.Interpreter(graph)
    varying: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op in {"placeholder", "output"} or any(parent in varying for parent in node.all_input_nodes):
            varying.add(node)
        else:
            interpreter.env[node] = interpreter.run_node(node)
    for count, node in enumerate([n for n in graph.graph.nodes if n not in varying and n.op != "get_attr"]):
        users = [user for user in node.users if user in varying]
        value = interpreter.env[node]
        if users and isinstance(value, Tensor):
            _replace_by_buffer(graph, node, users, f"frozen_{count}", value.detach())
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _replace_by_buffer(graph: fx.GraphModule, node: fx.Node, users: list[fx.Node], name: str, value: Tensor) -> None:
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(node):
        buffer = graph.graph.get_attr(name)
    for user in users:
        user.replace_input_with(node, buffer)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _difference(ours: Outputs, truth: Outputs) -> str:
    first = ours if isinstance(ours, tuple) else (ours,)
    second = truth if isinstance(truth, tuple) else (truth,)
    for a, b in zip(first, second, strict=True):
        tolerance = 1e-4 if b.dtype == torch.float32 else 1e-9
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
            worst = float((a - b).abs().nan_to_num().max())
            return f"the graph differs from eager by up to {worst:.3g}"
    return ""
