"""OMNIGLOT from its published zip archives of drawings, 105 x 105 black on white, brought to 28 x 28 grey values.

A drawing is ``images_background/Greek/character01/0395_07.png``: character 395 of 1623, by person 7 of 20. Reduced by
averaging over boxes of 3 or 4 pixels (those with their middle in 3.75 x 3.75), ink bright.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amortize.data.dataset import Arrays
from amortize.data.formats import parsing

__all__ = ["read_omniglot"]

_NAME = re.compile(r"[^/]+/(?P<alphabet>[^/]+)/character\d+/(?P<character>\d{4})_(?P<drawer>\d{2})\.png")
_SIZE = 28


def read_omniglot(*archives: Path) -> Arrays:
    """The drawings of the archives, ordered by character, then person.

    Returns
    -------
    dict
        ``x`` (N, 28, 28) uint8, ``character``, ``drawer`` and ``alphabet`` (N,), ``alphabet_names`` in the order of
        their first characters.
    """
    drawings = sorted(drawing for path in archives for drawing in parsing(_read_archive, path))
    names = list(dict.fromkeys(alphabet for _, _, alphabet, _ in drawings))
    return {
        "x": np.stack([np.frombuffer(pixels, dtype=np.uint8).reshape(_SIZE, _SIZE) for *_, pixels in drawings]),
        "character": np.array([character for character, *_ in drawings], dtype=np.int16),
        "drawer": np.array([drawer for _, drawer, *_ in drawings], dtype=np.uint8),
        "alphabet": np.array([names.index(alphabet) for _, _, alphabet, _ in drawings], dtype=np.uint8),
        "alphabet_names": np.array([name.encode() for name in names]),
    }


def _read_archive(path: Path) -> list[tuple[int, int, str, bytes]]:
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if match := _NAME.fullmatch(name):
                pixels = _reduced(archive.read(name)).tobytes()
                alphabet = match["alphabet"].replace("_", " ")
                found.append((int(match["character"]), int(match["drawer"]), alphabet, pixels))
    if not found:
        raise ValueError("the archive holds no drawing like images_background/Greek/character01/0395_01.png")
    return found


def _reduced(png: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        ink = np.where(np.asarray(image.convert("L")) < 128, 255, 0).astype(np.uint8)
    return np.asarray(Image.fromarray(ink).resize((_SIZE, _SIZE), Image.Resampling.BOX))
