"""Where the numbers that a program observes come from: which entry of which argument each of them is.

Tensors carry *tags* as the program runs: each number of an argument has one of its own, and operations that move
numbers without changing them (views, casts, indexing, joining) move the tags along. They stand in a shadow of the
tensors' memory, so that views of one tensor see each other's writes. A number that was computed has no tag. Values are
never altered, so control flow, masks and indices are those of the data.

Only torch's own operations are followed: what passes through numpy or Python numbers loses its tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["UNTAGGED", "Provenance"]

UNTAGGED = -1
aten = torch.ops.aten

KEEPS: frozenset[Any] = frozenset(
    {aten.clone, aten._to_copy, aten.nan_to_num, aten.clamp, aten.clamp_min, aten.clamp_max, aten.lift_fresh_copy}
)
"""Operations whose result has the numbers of their first argument where they stood, or where that is checked later."""
MOVES: dict[Any, tuple[int, ...]] = {
    aten.cat: (0,),
    aten.stack: (0,),
    aten.index: (0,),
    aten.index_select: (0,),
    aten.gather: (0,),
    aten.take: (0,),
    aten.masked_select: (0,),
    aten.flip: (0,),
    aten.roll: (0,),
    aten.repeat: (0,),
    aten.where: (1, 2),
    aten.masked_fill: (0, 2),
    aten.index_put: (0, 2),
    aten.slice_scatter: (0, 1),
    aten.select_scatter: (0, 1),
    aten.constant_pad_nd: (0, 2),
    aten._pack_padded_sequence: (0,),
}
"""Operations that move numbers about, and the positions of the arguments that hold them (not masks and indices)."""
WRITES: dict[Any, tuple[int, ...]] = {aten.copy_: (0, 1), aten.index_put_: (0, 2), aten.masked_fill_: (0, 2)}
"""The same for those that write to their first argument."""

ADDING = frozenset({aten.index_put, aten.index_put_})
"""Those that may add to what is there: their fourth argument."""


class Provenance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows tags while it is active.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> with Provenance() as provenance:
    ...     provenance.tag(x, first=10)
    ...     y = x.T.reshape(-1)
    ...     z = y + 1
    >>> provenance.tags(y).tolist(), provenance.tags(z).tolist()
    ([10, 12, 11, 13], [-1, -1, -1, -1])
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shadows: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}

    def tag(self, tensor: Tensor, *, first: int) -> None:
        """Give the numbers of ``tensor``, in their order, the tags ``first``, ``first + 1``, ..."""
        tags = torch.arange(first, first + tensor.numel(), device=tensor.device)
        self._shadow(tensor).copy_(tags.reshape(tensor.shape))

    def tags(self, tensor: Tensor) -> Tensor:
        """Tags of a tensor's numbers, in its shape; ``UNTAGGED`` where they have none."""
        shadow = self._known(tensor)
        return torch.full(tensor.shape, UNTAGGED, device=tensor.device) if shadow is None else shadow.clone()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then move the tags."""
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        adds = packet in ADDING and len(args) > 3 and args[3]
        if packet in WRITES and not adds:
            self._write(func, WRITES[packet], args, kwargs or {})
        elif packet in KEEPS:
            known = self._known(args[0])
            if known is not None and known.shape == out.shape:
                self._shadow(out).copy_(known)
        elif packet in MOVES and not adds:
            self._move(func, MOVES[packet], args, kwargs or {}, out)
        elif func._schema.is_mutable:
            self._spoil(func, args)
        return out

    def _write(self, func: Any, places: tuple[int, ...], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if not any(self._has_tags(args[place]) for place in places):
            return
        target = self._shadow(args[0])
        rest = [self._stand_in(arg) if i in places else arg for i, arg in enumerate(args)][1:]
        func(target, *rest, **kwargs)

    def _move(self, func: Any, places: tuple[int, ...], args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        if not any(self._has_tags(args[place]) for place in places if place < len(args)):
            return
        moved = func(*[self._stand_in(arg) if i in places else arg for i, arg in enumerate(args)], **kwargs)
        result, tags = (value if isinstance(value, Tensor) else value[0] for value in (out, moved))
        self._shadow(result).copy_(tags)

    def _spoil(self, func: Any, args: Sequence[Any]) -> None:
        """What another operation writes in place is computed."""
        for argument, arg in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(arg, Tensor) and self._known(arg) is not None:
                self._shadow(arg).fill_(UNTAGGED)

    def _stand_in(self, arg: Any) -> Any:
        """Tags in place of an argument that holds numbers."""
        if isinstance(arg, (list, tuple)):
            return [self._stand_in(item) for item in arg]
        return self.tags(arg) if isinstance(arg, Tensor) else UNTAGGED

    def _has_tags(self, arg: Any) -> bool:
        if isinstance(arg, (list, tuple)):
            return any(self._has_tags(item) for item in arg)
        return isinstance(arg, Tensor) and self._known(arg) is not None

    def _known(self, tensor: Tensor) -> Tensor | None:
        """The shadow of a tensor, a view with its strides; None where nothing in its memory has a tag."""
        if tensor.layout != torch.strided:
            return None
        _, shadow = self._shadows.get(tensor.untyped_storage()._cdata, (None, None))
        if shadow is None or shadow.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
            return None  # no tags, or memory that is read as numbers of another size
        return shadow.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def _shadow(self, tensor: Tensor) -> Tensor:
        """The same, made where there is none; keeps the memory alive, so that its address stays its own."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._shadows or self._known(tensor) is None:
            size = storage.nbytes() // tensor.element_size()
            self._shadows[storage._cdata] = storage, torch.full((size,), UNTAGGED, device=tensor.device)
        known = self._known(tensor)
        assert known is not None
        return known
