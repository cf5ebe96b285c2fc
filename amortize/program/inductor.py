"""Machine code for a traced graph, by PyTorch's Inductor, and when it is worth the wait.

Compiling the two graphs of a log joint takes 8 to 30 s the first time, and saves 10 to 25 % of the graph's time. The
decision rests on the graph's arithmetic and the number of calls alone, never on a clock, so that it is always the same.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import flop_registry

from amortize.program.linear import opaque

__all__ = ["estimated_seconds", "inductor", "pays"]

COMPILE_SECONDS = 30.0  # cold, for one graph, on the slow side
SAVING = 0.1  # of the time of the graph, on the low side
FLOPS = {"cpu": 1.2e11}  # a second, one core in float32; other devices are taken for a hundred times faster
NUMBERS = {"cpu": 2e9}  # numbers written a second by operations that are no matrix products
OTHER_DEVICES = 100.0


def pays(graph: fx.Graph, num_calls: int) -> bool:
    """Whether ``num_calls`` calls are estimated to gain more than compiling costs."""
    return num_calls > 0 and SAVING * num_calls * estimated_seconds(graph) > COMPILE_SECONDS


def estimated_seconds(graph: fx.Graph) -> float:
    """Seconds of one call, roughly, from the sizes in the graph."""
    return sum(_seconds(node) for node in graph.nodes if node.op == "call_function")


def inductor(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Compile a graph without captured tensors for inputs of these shapes; in this process, without helpers.

    Raises
    ------
    Exception
        Whatever keeps it from compiling: no C++ compiler, an operation that can't be lowered.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx

        own = fx.GraphModule({}, copy.deepcopy(module.graph))
        opaque(own.graph)
        own.recompile()
        with config.patch(compile_threads=1):
            made: Any = compile_fx(own, list(inputs))
            made(*inputs)
    run: Callable[..., Any] = made
    return run


def _seconds(node: fx.Node) -> float:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return 0.0
    kind = value.device.type
    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return value.numel() / NUMBERS.get(kind, NUMBERS["cpu"] * OTHER_DEVICES)
    args: Any = fx.map_arg(node.args, lambda parent: parent.meta["val"])
    kwargs: Any = fx.map_arg(node.kwargs, lambda parent: parent.meta["val"])
    return float(count(*args, **kwargs, out_val=value)) / FLOPS.get(kind, FLOPS["cpu"] * OTHER_DEVICES)
