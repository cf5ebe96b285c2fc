"""What is known of a program after it has been read: its data plate and its latent sites."""

from __future__ import annotations

import math
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

    A discrete site holds ``num_variables`` variables a datapoint, laid out as ``variables``, each of which takes one of
    ``cardinality`` values (0 where they cannot be listed); ``annotation`` is the user's ``infer={"enumerate": ...}``.
    """

    name: str
    support: str
    discrete: bool
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    start: int
    stop: int
    front: int
    data_dim: int
    batch_ndim: int
    variables: tuple[int, ...] = ()
    cardinality: int = 0
    annotation: str | None = None

    @property
    def num_variables(self) -> int:
        """M, discrete variables a datapoint; 0 for a continuous site."""
        return math.prod(self.variables) if self.discrete else 0


@dataclass(frozen=True)
class Structure:
    """The data plate, the latent sites in order, and the names of observed sites inside and outside the plate.

    ``scaled`` names the sites under a ``poutine.scale`` of the user's; ``dtype`` is the floating type of the latents;
    ``full_size`` is the size that a subsampling plate declares, None where the plate follows the batch;
    ``batch_ndim`` is the largest number of batch dimensions of a site. Discrete sites
    are summed out by ``summation`` ("none", "tiling" or "contraction"), except those ``sampled``; ``reason`` says why.
    ``hidden`` names continuous latents under a mask whose masked entries nothing depends on.
    ``common_scale`` is a ``poutine.scale`` of the user's over every site of the plate.
    """

    plate: str
    sites: Mapping[str, Site]
    observed: tuple[str, ...]
    outside: tuple[str, ...]
    scaled: tuple[str, ...]
    dtype: torch.dtype
    full_size: int | None = None
    batch_ndim: int = 1
    sampled: tuple[str, ...] = ()
    summation: str = "none"
    reason: str = ""
    hidden: tuple[str, ...] = ()
    common_scale: float = 1.0

    @property
    def dim(self) -> int:
        """D, the number of unconstrained latent dimensions of a datapoint."""
        return sum(site.stop - site.start for site in self.sites.values())

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the discrete latent sites."""
        return tuple(name for name, site in self.sites.items() if site.discrete)

    @property
    def continuous(self) -> tuple[str, ...]:
        """Names of the continuous latent sites, in the order of u."""
        return tuple(name for name, site in self.sites.items() if not site.discrete)

    @property
    def enumerated(self) -> tuple[str, ...]:
        """Names of the discrete latent sites that are summed out."""
        return tuple(name for name in self.discrete if name not in self.sampled)

    @property
    def has_families(self) -> bool:
        """Whether densities over u can be fitted: there is a u, and no discrete latent is drawn beside it."""
        return self.dim > 0 and not self.sampled

    @property
    def num_choices(self) -> int:
        """M, the number of sampled discrete variables of a datapoint."""
        return sum(self.sites[name].num_variables for name in self.sampled)

    @property
    def num_configurations(self) -> int:
        """How many values the enumerated variables of a datapoint can take together."""
        return math.prod(self.sites[name].cardinality ** self.sites[name].num_variables for name in self.enumerated)
