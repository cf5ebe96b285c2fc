"""How a point guide's code moves with its data: the Jacobian, with gradients of its own.

Letters: N datapoints, D numbers of a code, X numbers of a datapoint.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.program.data import Data
from amortize.program.handlers import Record, unvalidated
from amortize.program.program import Program
from amortize.program.sites import Structure

__all__ = ["code_jacobian", "moving_leaves"]


def code_jacobian(program: Program, structure: Structure, data: Data) -> Tensor:
    """Derivative of all codes of a datapoint by all its floating-point data, (N, D, X), in the mode modules are in.

    Rows must be independent, as the contract asks: one backward pass an entry of the code serves all datapoints.

    Raises
    ------
    ArgumentError
        If no floating-point data move the codes.
    """
    moved, leaves = _with_slopes(data)
    record = Record()
    assert program.guide is not None
    with unvalidated(), torch.enable_grad(), record:
        program.guide(*moved.args, **moved.kwargs)
        values = [record.messages[name]["value"].movedim(site.front, 0) for name, site in structure.sites.items()]
        codes = torch.cat([value.reshape(data.num_datapoints, -1) for value in values], 1)
    if not leaves or not codes.requires_grad:
        raise ArgumentError("program: expected a guide whose codes move with floating-point data; no code does.")
    directions = torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
    directions = directions[:, None, :].expand(-1, len(codes), -1)
    slopes = torch.autograd.grad(
        codes, leaves, directions, is_grads_batched=True, create_graph=True, allow_unused=True, materialize_grads=True
    )
    shape = (data.num_datapoints, codes.shape[1], -1)
    return torch.cat([slope.movedim(0, 1).reshape(shape) for slope in slopes], 2)


def moving_leaves(data: Data) -> dict[int, Tensor]:
    """Floating-point data with an entry a datapoint, by their place among the leaves."""
    return {
        place: leaf
        for place, (leaf, take) in enumerate(zip(data.leaves, data.takes, strict=True))
        if take is not None and isinstance(leaf, Tensor) and leaf.is_floating_point()
    }


def _with_slopes(data: Data) -> tuple[Data, list[Tensor]]:
    """The same data, those leaves ready to be differentiated by."""
    sloped = {place: leaf.detach().clone().requires_grad_() for place, leaf in moving_leaves(data).items()}
    leaves = tuple(sloped.get(place, leaf) for place, leaf in enumerate(data.leaves))
    return replace(data, leaves=leaves), list(sloped.values())
