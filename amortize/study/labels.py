"""Labels, or a covariate, by which a study tells the gaps of its datapoints apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amortize.errors import SpecError
from amortize.program.data import Data
from amortize.study.split import Split
from amortize.study.toml import near_matches

__all__ = ["labels_of"]


def labels_of(name: str | None, split: Split, data: Data) -> NDArray[Any] | None:
    """Of the evaluated datapoints (N,): those in the array of this name, or a data set's own where none is named.

    Raises
    ------
    SpecError
        The data have no such array, or it isn't one number a datapoint.
    """
    if name is None:
        return split.labels
    arrays = dict(zip(map(str, data.keys), data.leaves, strict=True))
    if name not in arrays:
        raise SpecError(
            f"ledger.labels: the program is given no array {name!r}{near_matches(name, list(arrays))}."
            f" It is given: {', '.join(arrays)}"
        )
    found = arrays[name]
    values = found.cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    if values.shape != (data.num_datapoints,) or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise SpecError(f"ledger.labels: expected a finite number a datapoint, got {name} of shape {values.shape}")
    return values
