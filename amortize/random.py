"""Seeds, streams and generators: every draw in amortize can be traced to one integer.

A *stream* is a named, independent sequence below a user's seed, so that, for example, the pilot run and the reported
run never share noise, nor chains and simulated data. Torch distributions take no generator; ``pyro_rng`` is the one
adapter that forks the global generators, seeds them from a stream and restores them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from amortize.errors import check_count

__all__ = ["check_seed", "generator", "pyro_rng", "stream_seed"]


def check_seed(seed: int) -> int:
    """Return ``seed`` as an int, or say what a seed must be.

    Raises
    ------
    ArgumentError
        If it is not a non-negative integer.
    """
    return check_count("seed", seed, 0)


def stream_seed(seed: int, *names: str | int) -> int:
    """Seed of the stream ``names`` below ``seed``, a 63-bit integer.

    Examples
    --------
    >>> stream_seed(0, "chains") == stream_seed(0, "chains")
    True
    >>> stream_seed(0, "chains") == stream_seed(0, "pilot")
    False
    """
    text = "/".join([str(check_seed(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at the start of a stream."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, *names))


@contextmanager
def pyro_rng(seed: int, *names: str | int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python from a stream, and restore them at the end."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (Pyro and users draw from it)
    value = stream_seed(seed, *names)
    with torch.random.fork_rng():
        torch.manual_seed(value)
        np.random.seed(value % 2**32)  # noqa: NPY002
        random.seed(value)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
