"""Where a program and its data are put."""

from __future__ import annotations

import torch

from amortize.errors import ArgumentError

__all__ = ["checked_device"]


def checked_device(device: str | torch.device) -> torch.device:
    """The device, where this machine has it.

    Raises
    ------
    ArgumentError
        Otherwise.
    """
    kind = str(device).partition(":")[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind):
        usable = ", ".join(name for name, there in available.items() if there)
        raise ArgumentError(
            f"device: {device!r} is not available to this PyTorch ({torch.__version__}). Usable: {usable}"
        )
    return torch.device(device)
