"""Adoption: a program's parameters live in modules that own them, never in Pyro's global parameter store.

A function that says ``pyro.param`` or ``pyro.module`` writes to a process-wide store, where a second network under a
known name is never trained and two models that share a name share its value. Here each call runs inside a store of the
program's own; what the call creates there is registered as ``torch.nn.Parameter`` of a module, and the user's global
store is put back as it was, also when the call raises.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import CodeType, FunctionType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Transform

from amortize.errors import ArgumentError, ParameterNameError
from amortize.program.plates import plates

__all__ = ["LOCK", "Adopted", "ParameterScope", "find_modules"]

LOCK = threading.RLock()
"""Held while a program runs: Pyro's parameter store and handlers are the process's, not the thread's."""


class ParameterScope(nn.Module):
    """A parameter store of a program's own, whose entries are parameters of this module."""

    def __init__(self) -> None:
        super().__init__()
        self.params = nn.ParameterDict()
        self._state: Any = {"params": {}, "constraints": {}}
        self._lenders: list[nn.Module] = []
        self._pending: dict[str, Tensor] = {}
        self._settled: dict[str, Tensor] = {}  # what was registered at the last look, by name
        self._names: dict[Tensor, str] = {}
        self._told: dict[str, nn.Module] = {}  # networks by the name under which they were stated since then

    def __getstate__(self) -> dict[str, Any]:
        """Without what is remembered of the last look: it has Pyro's weak references, and a copy has other tensors."""
        return self.__dict__ | {"_settled": {}, "_names": {}, "_told": {}}

    def borrow(self, networks: nn.Module) -> None:
        """Leave the parameters of ``networks`` with them: they have an owner already."""
        self._lenders.append(networks)
        self._settled = {}

    def lend_again(self, old: nn.Module, new: nn.Module) -> None:
        """Take other networks for the ones lent, forgetting the old parameters."""
        gone = {id(parameter) for parameter in old.parameters()}
        self._lenders = [lender for lender in self._lenders if lender is not old] + [new]
        self._state["params"] = {name: p for name, p in self._state["params"].items() if id(p) not in gone}
        self._settled = {}

    @property
    def settled(self) -> bool:
        """Whether the last run made nothing new."""
        return bool(self._settled)

    @contextmanager
    def brief(self) -> Iterator[None]:
        """Inside, ``pyro.module`` walks no network of this scope that it has walked under the same name."""
        tell = pyro.module

        def module(name: str, nn_module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
            if self._told.get(name) is not nn_module:
                tell(name, nn_module, *args, **kwargs)
                self._told[name] = nn_module
            return nn_module

        pyro.module = module
        try:
            yield
        finally:
            pyro.module = tell

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swap this store for Pyro's global one, and back at the end whatever happens.

        The store's own tables are swapped, at every step of training twice: to copy them costs more than to run.
        """
        with LOCK:
            store = pyro.get_param_store()
            outer = store._params, store._param_to_name, store._constraints
            store._params, store._constraints = self._state["params"], self._state["constraints"]
            if not self._settled:
                self._told = {}
                self._names = {tensor: name for name, tensor in self._state["params"].items()}
            store._param_to_name = self._names
            try:
                with _NameGuard():
                    yield
            finally:
                self._state = {"params": store._params, "constraints": store._constraints}
                self._names = store._param_to_name
                store._params, store._param_to_name, store._constraints = outer
                self._register()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters in this store."""
        return tuple(self._state["params"])

    def value(self, name: str) -> Tensor:
        """A parameter in its constrained space."""
        with self.active(), torch.no_grad():
            value: Tensor = pyro.get_param_store()[name].detach().clone()
        return value

    def restore_later(self, key: str, value: Tensor) -> None:
        """Keep a value for a parameter that the program has not created yet (``key`` as in ``params``)."""
        self._pending[key] = value

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the parameters that live here, as the program states them."""
        return tuple(name for name in self._state["params"] if _escape(name) in self.params)

    def forget(self, names: Iterable[str]) -> None:
        """Drop parameters, so that the next run makes them anew."""
        for name in names:
            del self._state["params"][name], self._state["constraints"][name], self.params[_escape(name)]
        self._settled = {}

    def require_settled(self) -> None:
        """Say so where restored values belong to parameters that the program never made.

        Raises
        ------
        ArgumentError
            Naming them.
        """
        if self._pending:
            names = ", ".join(sorted(self._pending)[:5])
            raise ArgumentError(
                f"state: the program has no parameters named {names}; load it into one made in the same way"
            )

    def _register(self) -> None:
        params = self._state["params"]
        for tensor in params.values():
            vars(tensor).pop("unconstrained", None)  # Pyro's weak references can't be pickled
        if len(params) == len(self._settled) and all(self._settled.get(name) is t for name, t in params.items()):
            return
        borrowed = {id(parameter) for lender in self._lenders for parameter in lender.parameters()}
        for name, tensor in params.items():
            key = _escape(name)
            if id(tensor) in borrowed or key in self.params:
                continue
            parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach())
            if key in self._pending:
                _copy(key, self._pending.pop(key), parameter)
            params[name] = parameter
            self.params[key] = parameter
        self._settled, self._told = dict(params), {}


class Adopted(nn.Module):
    """A model or guide whose calls run in a parameter scope.

    Parameters
    ----------
    function
        A function, bound method, ``nn.Module`` or ``PyroModule``.
    scope
        The store its ``pyro.param`` and ``pyro.module`` statements read and write.
    """

    def __init__(self, function: Callable[..., Any], scope: ParameterScope) -> None:
        super().__init__()
        self.scope = scope
        self.networks = nn.ModuleList(find_modules(function))
        for parameter in self.networks.parameters():
            lazy = isinstance(parameter, nn.UninitializedParameter)  # gets its shape from the data
            if not lazy and not parameter.is_contiguous():  # the store would copy it, and train the copy
                parameter.data = parameter.data.contiguous()
        scope.borrow(self.networks)
        self.condition: dict[str, Tensor] = {}
        self.hides_condition = False  # a guide's density leaves out what is given
        self.fills_plates = False  # plates that subsample take everything in training too
        self.per_datapoint: tuple[str, ...] = ()  # names of parameters with an entry a datapoint
        self.scale = 1.0  # that the user put over the whole program: divided out
        self.twins: Messenger | None = None  # what stands in for a guide's relaxed distributions
        self._transforms: list[Transform] | None = None
        self._function = (function,)  # in a tuple, so that a module is registered once, among the networks

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After unpickling, write to the networks that the function itself reaches: those pickled may be others.

        A function that can be imported is pickled by reference, its networks by value.
        """
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        found = nn.ModuleList(find_modules(self.function))
        if [id(module) for module in found] == [id(module) for module in self.networks]:
            return
        self._transforms = None
        found.load_state_dict(self.networks.state_dict())
        self.scope.lend_again(self.networks, found)
        self.networks = found

    def __deepcopy__(self, memo: dict[int, Any]) -> Adopted:
        """Copy modules and methods of modules; a function's networks can't be taken from it."""
        if len(self.networks) and not isinstance(getattr(self.function, "__self__", self.function), nn.Module):
            raise ArgumentError(
                f"{self.name} is a function that reaches its networks from outside, and a copy would share them. Make "
                "the program anew, or write it as an nn.Module (or methods of one), which can be copied"
            )
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def function(self) -> Callable[..., Any]:
        """What the user wrote."""
        return self._function[0]

    @property
    def name(self) -> str:
        """Name for messages."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the user's function; the global store is untouched."""
        return self._call(self.function, args, kwargs)

    def briefly(self, *args: Any, **kwargs: Any) -> Any:
        """The same, where no handler outside of it looks at parameters (`ParameterScope.brief`)."""
        with self.scope.brief():
            return self._call(self.function, args, kwargs)

    def unobserved(self, *args: Any, **kwargs: Any) -> Any:
        """Call it with every observation drawn anew; conditioned latents keep their value."""
        return self._call(poutine.uncondition(self.function), args, kwargs)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.condition:
            function = poutine.condition(function, data=self.condition)
            if self.hides_condition:
                function = poutine.block(function, hide=list(self.condition))
        if self.scale != 1.0:
            function = poutine.scale(function, scale=1 / self.scale)
        self._forget_transforms()
        twins = nullcontext() if self.twins is None else self.twins
        with self.scope.active(), plates(whole=self.fills_plates or not self.training), twins:
            return function(*args, **kwargs)

    def _forget_transforms(self) -> None:
        """Drop what flows keep of their last inverse: the same data come again, the parameters of then may not."""
        if self._transforms is None or not self.scope.settled:
            self._transforms = [module for module in self.networks.modules() if isinstance(module, Transform)]
        for module in self._transforms:
            module._cached_x_y = None, None


class _NameGuard(Messenger):
    """Refuses a second network under a name that is taken: Pyro would use it untrained, without an error."""

    def _process_message(self, msg: Any) -> None:
        """There is nothing to do before."""

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        offered = msg["args"][1] if len(msg["args"]) > 1 else None
        if not isinstance(offered, nn.Parameter) or msg["value"] is None:
            return
        stored = msg["value"].unconstrained() if hasattr(msg["value"], "unconstrained") else msg["value"]
        if stored is not offered and stored.data_ptr() != offered.data_ptr():
            raise ParameterNameError(
                f"parameter {msg['name']!r} belongs to two different networks of this program; only the first would "
                "be trained. Give each pyro.module (or pyro.param) a name of its own"
            )


def _copy(key: str, value: Tensor, parameter: nn.Parameter) -> None:
    if value.shape != parameter.shape:
        raise ArgumentError(
            f"state: parameter {key} has shape {tuple(value.shape)}, but {tuple(parameter.shape)} in this program"
        )
    with torch.no_grad():
        parameter.copy_(value)


def find_modules(function: Any) -> list[nn.Module]:
    """The ``nn.Module`` objects that a callable can reach.

    Looks at the callable itself, the object it is bound to, its closure, defaults, the globals it names, and the
    attributes and containers of plain objects found there. What it misses still trains through ``pyro.module``; found
    modules also get ``.eval()``, ``.to()`` and a place in ``state_dict`` (running statistics of BatchNorm, say).
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    queue: list[tuple[Any, int]] = [(function, 0)]
    while queue:
        item, depth = queue.pop(0)
        if id(item) in seen or depth > 4:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found[id(item)] = item
        else:
            queue.extend((child, depth + 1) for child in _children(item))
    inner = {id(child) for module in found.values() for child in module.modules() if child is not module}
    return [module for key, module in found.items() if key not in inner]


def _children(item: Any) -> list[Any]:
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if inspect.ismethod(item):
        return [item.__self__] if isinstance(item.__self__, nn.Module) else [item.__self__, item.__func__]
    if inspect.isfunction(item):
        return _reached_by(item)
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, (list, tuple)):
        return list(item)
    if _is_plain_object(item):
        return [*vars(item).values(), *([type(item).__call__] if callable(item) else [])]
    return []


def _reached_by(function: FunctionType) -> list[Any]:
    """Closure, defaults, and the globals that a function (or a function inside it) names."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    names = _names(function.__code__)
    named = [value for name, value in function.__globals__.items() if name in names]
    wrapped = [function.__wrapped__] if hasattr(function, "__wrapped__") else []
    return [*cells, *named, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *wrapped]


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (an empty cell raises)
    except ValueError:
        return False
    return True


def _is_plain_object(item: Any) -> bool:
    if inspect.ismodule(item) or inspect.isclass(item) or not hasattr(item, "__dict__"):
        return False
    home = type(item).__module__.split(".")[0]
    return home not in {"torch", "numpy", "builtins"}


def _escape(name: str) -> str:
    return name.replace("%", "%25").replace(".", "%2E")
