"""Codes of a batch beside draws of the model's prior: what penalties on the aggregate posterior compare.

Letters: K particles, N datapoints of a batch, B = K * N rows, D numbers of a code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.program.data import Data
from amortize.program.handlers import Record, unvalidated
from amortize.program.program import Program
from amortize.program.rates import RatedRun
from amortize.program.runtime import filled_plates
from amortize.program.sites import Structure

__all__ = ["PriorCodes"]


class PriorCodes:
    """Reads both off a program, all latent sites side by side, as the model sees them.

    Parameters
    ----------
    program, data
        The program and the data on which its sites are found.

    Raises
    ------
    ArgumentError
        If the program has no latents.
    """

    def __init__(self, program: Program, data: Data) -> None:
        self._program, self.structure = program, program.structure(data)
        if not self.structure.sites:
            raise ArgumentError("objective: a penalty on codes needs a model with latents, and this one has none")

    @property
    def dim(self) -> int:
        """D."""
        return sum(math.prod(site.shape) for site in self.structure.sites.values())

    def of(self, run: RatedRun) -> Tensor:
        """The guide's draws, (B, D), with gradients."""
        return _flat(run.values, self.structure)

    def drawn(self, batch: Data, run: RatedRun) -> Tensor:
        """As many draws of the prior, (B, D), without gradients; from the global generators."""
        folded = batch.fold(len(run.distortion) // batch.num_datapoints)
        record = Record()
        with torch.no_grad(), unvalidated(), filled_plates(self._program), record:
            self._program.trained_model(*folded.args, **folded.kwargs)
        return _flat({name: record.messages[name]["value"] for name in self.structure.sites}, self.structure)


def _flat(values: dict[str, Tensor], structure: Structure) -> Tensor:
    parts = [values[name].movedim(site.front, 0) for name, site in structure.sites.items()]
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)
