"""Made-up data in the formats that sets are published in, and a server on this machine that gives them away."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

DATA_FOLDER = os.environ.get("AMORTIZE_DATA_DIR", "")
needs_folder = pytest.mark.skipif(
    not (DATA_FOLDER and (Path(DATA_FOLDER) / "mnist.npz").is_file()),
    reason="AMORTIZE_DATA_DIR names no folder of data sets",
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def idx(array: NDArray[np.uint8]) -> bytes:
    """The bytes of an IDX file, not yet gzipped."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return head + array.tobytes()


def idx_gz(array: NDArray[np.uint8]) -> bytes:
    return gzip.compress(idx(array), mtime=0)


def amat(rows: NDArray[np.uint8]) -> bytes:
    """A row a line, digits with one space between them."""
    text = np.full((len(rows), 2 * rows.shape[1]), ord(" "), dtype=np.uint8)
    text[:, ::2] = rows + ord("0")
    text[:, -1] = ord("\n")
    return text.tobytes()


def german(x: NDArray[np.int16], y: NDArray[np.uint8]) -> bytes:
    rows = zip(x.tolist(), y.tolist(), strict=True)
    return "".join("".join(f"{v:4d}" for v in (*row, 1 + bad)) + " \n" for row, bad in rows).encode()


def drawing(ink: NDArray[np.bool_]) -> bytes:
    """A PNG of one bit a pixel, black on white, as OMNIGLOT's."""
    buffer = io.BytesIO()
    Image.fromarray(~ink).save(buffer, format="PNG")
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def npz(**arrays: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Server:
    """Gives ``files`` away under ``base``; ``asked`` are the paths that were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.base = ""
        self.cut = False  # whether a connection ends half-way through a file


@contextmanager
def serving() -> Iterator[Server]:
    given = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            given.asked.append(path)
            content = given.files.get(path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write((content or b"")[: len(content or b"") // 2 if given.cut else None])

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        given.base = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield given
        finally:
            server.shutdown()
            thread.join()
