"""Images of scattered crosses, drawn by a frozen random stream: how many there are is known.

Letters: N images of H x H pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amortize.data.dataset import Arrays
from amortize.data.entry import Entry, Parts
from amortize.data.places import Form

__all__ = ["SCATTERED"]

_SIDE, _MOST, _NUM = 16, 3, 2500
_NOISE = 0.01  # chance that a pixel is flipped
_CROSS = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]], np.uint8)


def _read() -> Arrays:
    # RandomState's stream is frozen by NEP 19; that of numpy.random.Generator may change between versions
    stream = np.random.RandomState(0)
    counts = stream.randint(_MOST + 1, size=_NUM)
    images = np.stack([_scene(count, stream) for count in counts])
    flipped = stream.rand(*images.shape) < _NOISE
    return {"x": (images ^ flipped).reshape(_NUM, -1).astype(np.uint8), "y": counts.astype(np.int64)}


def _scene(count: int, stream: np.random.RandomState) -> NDArray[np.bool_]:
    """Crosses whose middles are at least four pixels apart in one direction: they may touch, and are not one."""
    middles: list[NDArray[np.int_]] = []
    while len(middles) < count:
        middle = stream.randint(2, _SIDE - 2, size=2)
        if all(np.abs(middle - other).max() >= 4 for other in middles):
            middles.append(middle)
    image = np.zeros((_SIDE, _SIDE), bool)
    for row, column in middles:
        image[row - 2 : row + 3, column - 2 : column + 3] |= _CROSS.astype(bool)
    return image


SCATTERED = Entry(
    title="scattered crosses",
    description="2,500 images of 16 x 16 pixels with 0 to 3 crosses, 1 % of the pixels flipped; the label is the count",
    source="drawn here, by NumPy's frozen RandomState(0)",
    licence="none needed",
    values="ones and zeros, a cross is 5 x 5 pixels",
    sizes=(2000, 0, 500),
    shape=(_SIDE**2,),
    forms=(Form((), _read, package="amortize"),),
    make=lambda arrays: Parts(arrays["x"], arrays["y"]),
    modes=("threshold",),
    top=1,
    image_shape=(_SIDE, _SIDE),
)
"""The line of the registry."""
