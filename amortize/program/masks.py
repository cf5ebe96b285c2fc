r"""Latents that a mask hides, the padding of a ragged sequence say: what stands in for their density.

Pyro leaves a masked latent's density out, of model and guide alike: it says nothing, and nothing depends on it. A
density over u must be normalised, so a standard normal over its u stands in, in both: it cancels in every weight, and
the local families hold it exactly.

.. math:: \log s(z) = \log N(u; 0, 1) - \log \lvert dT / du \rvert, \qquad z = T(u)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import biject_to

from amortize.program.sites import Site

__all__ = ["kept_entries", "log_stand_in", "mask_of", "redrawn", "same_mask"]


def mask_of(msg: Mapping[str, Any]) -> Tensor | None:
    """The mask at a site, from ``poutine.mask`` and ``fn.mask``, or None where nothing can be hidden."""
    parts = [msg["mask"], msg["fn"]._mask if isinstance(msg["fn"], MaskedDistribution) else None]
    mask: Tensor | None = None
    for part in parts:
        if part is None or part is True:
            continue
        here = torch.as_tensor(part, dtype=torch.bool, device=msg["value"].device)
        mask = here if mask is None else mask & here
    return mask


def log_stand_in(site: Site, msg: Mapping[str, Any]) -> Tensor:
    """Log density of the stand-in at a site's value, in nats, batch dimensions kept."""
    transform = biject_to(msg["fn"].support)
    raw = transform.inv(msg["value"])
    normal = _summed(-0.5 * raw.square() - 0.5 * math.log(2 * math.pi), site.batch_ndim)
    return normal - _summed(transform.log_abs_det_jacobian(raw, msg["value"]), site.batch_ndim)


def redrawn(site: Site, msg: Mapping[str, Any], u: Tensor) -> Tensor:
    """U of a site, batch dimensions first, with what is hidden drawn from its stand-in; draws globally."""
    return torch.where(kept_entries(site, msg, u), u, torch.randn_like(u))


def kept_entries(site: Site, msg: Mapping[str, Any], value: Tensor) -> Tensor:
    """Which entries of a value (or of u in its layout) the mask leaves: to be broadcast over event dimensions."""
    mask = mask_of(msg)
    batch = value.shape[: site.batch_ndim]
    kept = torch.ones((), dtype=torch.bool, device=value.device) if mask is None else mask
    return kept.expand(batch).reshape(batch + (1,) * (value.dim() - len(batch)))


def same_mask(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two masks hide the same."""
    if first is None or second is None:
        return first is second
    return bool((first == second).all())


def _summed(value: Tensor, batch_ndim: int) -> Tensor:
    event = tuple(range(batch_ndim, value.dim()))
    return value.sum(event) if event else value
