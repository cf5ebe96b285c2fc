"""Small pictures without a plotting library: PNG data URIs for images, SVG for vectors.

Both are plain text in the page, sharp at any size, and need no script.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["png_data_uri", "vector_svg"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2  # colour types of PNG
_WIDTH, _HEIGHT, _MARGIN = 240.0, 90.0, 5.0
_MAX_STEMS = 60


def png_data_uri(values: NDArray[np.float64], *, low: float, high: float) -> str:
    """Encode an image as a ``data:`` URI, ``low`` black and ``high`` white; what isn't finite is mid-grey.

    Parameters
    ----------
    values : ndarray
        (height, width) or (height, width, 3).
    low, high : float
        Range of the values; what lies outside is clipped.

    Examples
    --------
    >>> png_data_uri(np.eye(8), low=0.0, high=1.0)[:22]
    'data:image/png;base64,'
    """
    span = high - low if high > low else 1.0
    scaled = np.clip((np.asarray(values, dtype=np.float64) - low) / span, 0.0, 1.0)
    pixels = np.round(255 * np.where(np.isfinite(scaled), scaled, 0.5)).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(_png(pixels)).decode("ascii")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    height, width = pixels.shape[:2]
    colour = _GREY if pixels.ndim == 2 else _RGB
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    rows = pixels.reshape(height, -1)
    unfiltered = np.hstack([np.zeros((height, 1), dtype=np.uint8), rows]).tobytes()
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def vector_svg(
    observed: NDArray[np.float64], reconstruction: NDArray[np.float64] | None = None, *, low: float, high: float
) -> str:
    """Draw a vector as an SVG element: observed values as dots on stems, the reconstruction as a line.

    Parameters
    ----------
    observed : ndarray
        (D,) values; more than 60 are drawn as a trace.
    reconstruction : ndarray, optional
        (D,) values.
    low, high : float
        Range of the values; what lies outside is clipped, what isn't finite is left out.
    """
    x = _MARGIN + (_WIDTH - 2 * _MARGIN) * (np.arange(len(observed)) + 0.5) / max(len(observed), 1)
    zero = float(_heights(np.zeros(1), low, high)[0])
    parts = [
        f'<svg class="vector" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="values">',
        f'<line class="axis" x1="0" x2="{_WIDTH:g}" y1="{zero:.1f}" y2="{zero:.1f}"/>',
    ]
    top = _heights(observed, low, high)
    if len(observed) > _MAX_STEMS:
        parts.append(f'<polyline class="trace" points="{_points(x, top)}"/>')
    else:
        parts += [_stem(left, end, zero) for left, end in zip(x, top, strict=True) if np.isfinite(end)]
    if reconstruction is not None:
        parts.append(f'<polyline class="line" points="{_points(x, _heights(reconstruction, low, high))}"/>')
    return "".join(parts) + "</svg>"


def _heights(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Vertical positions in the drawing, downwards."""
    scaled = np.clip((values - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    return np.asarray(_HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * scaled)


def _stem(left: float, end: float, zero: float) -> str:
    line = f'<line class="stem" x1="{left:.1f}" x2="{left:.1f}" y1="{zero:.1f}" y2="{end:.1f}"/>'
    return line + f'<circle class="dot" cx="{left:.1f}" cy="{end:.1f}" r="2.4"/>'


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    return " ".join(f"{left:.1f},{top:.1f}" for left, top in zip(x, y, strict=True) if np.isfinite(top))
