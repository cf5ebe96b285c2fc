"""Dynamic binarisation while a guide is trained: each batch's ones and zeros are drawn anew.

A datapoint is in one batch of an epoch, so that a draw a batch is a draw an epoch. Programs see ones and zeros alone:
probabilities, (N, ...) in the order of the training data, are looked up by the batch's index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from amortize.program.data import Data

__all__ = ["redrawing"]


def redrawing(argument: int | str, probabilities: NDArray[Any]) -> Callable[[Data, torch.Generator], Data]:
    """What `Training(redraw=...)` takes: new ones and zeros for ``argument``, each a one with its probability."""
    table = torch.as_tensor(probabilities)

    def redraw(batch: Data, stream: torch.Generator) -> Data:
        drawn = torch.bernoulli(table[batch.index.cpu()], generator=stream)  # on the CPU, wherever the study runs
        leaves = zip(batch.keys, batch.leaves, strict=True)
        return replace(batch, leaves=tuple(_like(drawn, leaf) if key == argument else leaf for key, leaf in leaves))

    return redraw


def _like(drawn: Tensor, leaf: Tensor) -> Tensor:
    return drawn.to(leaf.device, leaf.dtype)
