"""Taking Python and Pyro out of the inner loop: a function of tensors, traced once into a graph.

``make_fx`` records the tensor operations of a function and of its gradient. The graph is simplified (``simplify``),
what hangs on none of its inputs is evaluated only when a captured tensor changes (``freeze``), and the rest runs as
plain calls (``lower``) or, where a run is long enough to pay for it, as machine code (``inductor``). Each form is
compared with the eager function on fresh inputs and dropped, with the reason, where they differ or it can't be had.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from amortize.errors import ArgumentError
from amortize.program.freeze import Split
from amortize.program.handlers import unvalidated
from amortize.program.inductor import estimated_seconds, inductor, pays
from amortize.program.linear import use_onednn
from amortize.program.lower import lower
from amortize.program.simplify import simplify

__all__ = ["BACKENDS", "Compiled", "check_backend"]

BACKENDS = ("auto", "fx", "inductor", "eager")

Outputs = Tensor | tuple[Tensor, ...]
Inputs = tuple[Tensor, ...]


class Compiled:
    """A function of tensors, run as a graph where that works and eagerly where it does not.

    Tensors that the function captures (parameters, data) are read at each call, so that what is written into them in
    place is followed, as far as their version counters tell (see ``follow``). What the function reads as Python numbers
    is fixed.

    Parameters
    ----------
    function
        Takes tensors, returns a tensor or a tuple of them; its outputs require no gradient.
    examples
        Inputs with the shapes to come; the graph is for these shapes, and others run eagerly.
    probe
        Other inputs of the same shapes, on which the graph must agree with the function.
    backend
        "fx" runs the graph as it is, "inductor" compiles it to machine code, "eager" runs the function; "auto" takes
        Inductor where ``num_calls`` calls are estimated to gain more than compiling costs, and else "fx".
    num_calls
        How often the function is going to be called, as far as that is known.
    follow
        Evaluate at each call what hangs on captured tensors alone, rather than when their version counters move: then
        writes through ``.data``, and fused optimisers, are followed too.

    Attributes
    ----------
    reason
        Why the function runs eagerly; empty where a graph runs.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        examples: Inputs,
        probe: Inputs,
        *,
        backend: str = "auto",
        num_calls: int = 0,
        follow: bool = False,
    ) -> None:
        check_backend(backend)
        self._function, self._probe, self._backend, self._follow = function, probe, backend, follow
        self._shapes = _shapes(examples)
        self._traced: fx.GraphModule | None = None
        self.reason = "asked for" if backend == "eager" else ""
        if not self.reason:
            try:
                with unvalidated():
                    self._traced = _trace(function, examples)
            except Exception as error:  # tracing may fail in any way the user's code can; the eager path is exact
                self.reason = f"tracing failed: {_said(error)}"
        self._prepare(num_calls)

    def part(self, outputs: tuple[int, ...], *, num_calls: int = 0) -> Compiled:
        """Only some of the outputs, from the same trace, without the work that the others need."""
        new = copy.copy(self)
        whole = self._function
        new._function = lambda *inputs: tuple(whole(*inputs)[index] for index in outputs)
        new._traced = None if self._traced is None else _select(self._traced, outputs)
        new._prepare(num_calls)
        return new

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the graph, or the function itself."""
        if self._run is not None and _shapes(inputs) == self._shapes:
            with torch.no_grad():
                return self._run(*inputs, *self._split.constants(fresh=self._follow))
        with unvalidated():
            return self._function(*inputs)

    @property
    def estimated_seconds(self) -> float:
        """Of one call, roughly, by the graph's sizes and never by a clock; 0 where none was traced."""
        return 0.0 if self._traced is None else estimated_seconds(self._traced.graph)

    @property
    def code(self) -> str:
        """The graph as Python, behind its inputs the captured tensors and constants; empty where none runs."""
        return "" if self._run is None else str(self._split.main.code)

    def describe(self) -> str:
        """Which form runs, and why no faster one does."""
        if self._run is None:
            return f"eager ({self.reason})"
        return f"{self._form}, equal to eager" + (f" (no Inductor: {self._no_inductor})" if self._no_inductor else "")

    def _prepare(self, num_calls: int) -> None:
        self._run: Callable[..., Any] | None = None
        self._form, self._no_inductor = "FX graph", ""
        if self._traced is None:
            return
        try:
            with unvalidated():
                truth = self._function(*self._probe)
            ready = fx.GraphModule(self._traced, copy.deepcopy(self._traced.graph))
            use_onednn(ready.graph)
            self._split = Split(ready)
            if self._backend == "inductor" or (self._backend == "auto" and pays(self._traced.graph, num_calls)):
                self._run_inductor(truth)
            if self._run is None:
                self._run_graph(truth)
        except Exception as error:  # as above: what the graph can't do, the function can
            self._run, self.reason = None, f"the graph failed: {_said(error)}"

    def _run_graph(self, truth: Outputs) -> None:
        lower(self._split.main.graph)
        self._split.main.recompile()
        run = self._split.main.forward
        self.reason = self._verify(run, truth)
        self._run = None if self.reason else run

    def _run_inductor(self, truth: Outputs) -> None:
        try:
            run = inductor(self._split.main, (*self._probe, *self._split.constants()))
            self._no_inductor = self._verify(run, truth)
        except Exception as error:  # no compiler, or an operation it can't do
            self._no_inductor = _said(error)
        if not self._no_inductor:
            self._run, self._form = run, "Inductor"

    def _verify(self, run: Callable[..., Any], truth: Outputs) -> str:
        """Compare twice: a graph that writes over what it should keep is right the first time only."""
        differences = []
        for _ in range(2):
            with torch.no_grad():
                ours = run(*self._probe, *self._split.constants())
            differences.append(_difference(ours, truth))
        return differences[0] or differences[1]


def check_backend(backend: str) -> None:
    """Refuse an unknown backend.

    Raises
    ------
    ArgumentError
        If it is none of ``BACKENDS``.
    """
    if backend not in BACKENDS:
        raise ArgumentError(f"backend: expected one of {BACKENDS}, got {backend!r}")


def _trace(function: Callable[..., Outputs], examples: Inputs) -> fx.GraphModule:
    # fake tensors have no values, so a branch on one (through numpy, say) can't be baked in unseen
    with _OneHotByComparison():
        module = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
    module.graph.eliminate_dead_code()
    simplify(module.graph)
    return module


class _OneHotByComparison(TorchFunctionMode):
    """``one_hot`` without a look at the largest index, which no trace can take."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.one_hot:
            index, num_classes = (*args, *(kwargs or {}).values(), -1)[:2]
            if num_classes > 0:
                return (index.unsqueeze(-1) == torch.arange(num_classes, device=index.device)).to(torch.int64)
        return func(*args, **(kwargs or {}))


def _select(module: fx.GraphModule, outputs: tuple[int, ...]) -> fx.GraphModule:
    new = fx.GraphModule(module, copy.deepcopy(module.graph))
    (output,) = (node for node in new.graph.nodes if node.op == "output")
    output.args = (tuple(output.args[0][index] for index in outputs),)
    new.graph.eliminate_dead_code()
    return new


def _shapes(inputs: Inputs) -> tuple[Any, ...]:
    return tuple([(value.shape, value.dtype) for value in inputs])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _difference(ours: Outputs, truth: Outputs) -> str:
    first = ours if isinstance(ours, tuple | list) else (ours,)
    second = truth if isinstance(truth, tuple) else (truth,)
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return f"the graph gives the shape {tuple(a.shape)}, eager {tuple(b.shape)}"
        same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= _tolerance(b))
        if not bool(same.all()):
            return f"the graph differs from eager by up to {float((a - b).abs().nan_to_num().max()):.3g}"
    return ""


def _tolerance(truth: Tensor) -> Tensor:
    """What rounding may do to a value, or to an entry of a row next to larger ones."""
    size = truth.abs().nan_to_num(0.0, 0.0, 0.0)
    if truth.dim() > 1 and truth.numel():
        size = size.amax(tuple(range(1, truth.dim())), keepdim=True)
    return (1e-9 if truth.dtype == torch.float64 else 1e-4) * (1 + size)
