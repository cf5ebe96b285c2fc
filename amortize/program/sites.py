"""What is known of a program after it has been read: its data plate and its latent sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["Site", "Structure"]


@dataclass(frozen=True)
class Site:
    """A latent site inside the data plate.

    ``shape`` and ``unconstrained_shape`` are per datapoint; ``start:stop`` is its slice of u (empty where discrete);
    ``front`` is the position of the data axis in the site's value, ``data_dim`` the plate's negative batch dimension,
    ``batch_ndim`` the number of batch dimensions of its distribution.
    """

    name: str
    support: str
    discrete: bool
    enumerable: bool
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    start: int
    stop: int
    front: int
    data_dim: int
    batch_ndim: int


@dataclass(frozen=True)
class Structure:
    """The data plate, the latent sites in order, and the names of observed sites inside and outside the plate.

    ``scaled`` names the sites under a ``poutine.scale`` of the user's; ``dtype`` is the floating type of the latents;
    ``full_size`` is the size that a subsampling plate declares, None where the plate follows the batch.
    """

    plate: str
    sites: Mapping[str, Site]
    observed: tuple[str, ...]
    outside: tuple[str, ...]
    scaled: tuple[str, ...]
    dtype: torch.dtype
    full_size: int | None = None

    @property
    def dim(self) -> int:
        """D, the number of unconstrained latent dimensions of a datapoint."""
        return max((site.stop for site in self.sites.values()), default=0)

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the discrete latent sites."""
        return tuple(name for name, site in self.sites.items() if site.discrete)
