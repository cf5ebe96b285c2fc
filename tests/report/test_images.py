from __future__ import annotations

import base64
import struct
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest

from amortize.report.images import png_data_uri, vector_svg


def decode(uri: str) -> np.ndarray:
    """Read back the one kind of PNG that is written, checking every checksum."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    channels = {0: 1, 2: 3}[colour]
    assert depth == 8
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(height, 1 + width * channels)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape((height, width) if channels == 1 else (height, width, 3))


@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (4, 6, 3)])
def test_pixels_are_the_values(shape):
    values = np.random.default_rng(0).uniform(-1, 3, shape)
    expected = np.round(255 * np.clip((values + 1) / 4, 0, 1))
    np.testing.assert_array_equal(decode(png_data_uri(values, low=-1.0, high=3.0)), expected)


def test_odd_values_are_clipped_or_grey():
    values = np.array([[-9.0, 9.0], [np.nan, 0.5]])
    np.testing.assert_array_equal(decode(png_data_uri(values, low=0.0, high=1.0)), [[0, 255], [128, 128]])
    assert decode(png_data_uri(np.ones((2, 2)), low=1.0, high=1.0)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(("size", "stems"), [(20, 20), (61, 0)])
def test_vectors_are_valid_svg(size, stems):
    observed = np.linspace(-1, 1, size)
    drawing = ET.fromstring(vector_svg(observed, observed + 0.1, low=-1.0, high=1.0))
    assert len(drawing.findall("circle")) == stems
    assert len(drawing.findall("polyline")) == (1 if stems else 2)


def test_values_that_are_not_finite_are_left_out():
    drawing = vector_svg(np.array([1.0, np.nan, 2.0]), np.array([np.inf, np.nan, 1.0]), low=0.0, high=2.0)
    assert "nan" not in drawing
    assert drawing.count("<circle") == 2
