"""What single precision costs: the log joint in float32 against float64, at the same latents.

Parameters and buffers are lent to float64 and put back bit for bit; nothing is copied, because a function of the user's
may reach its networks from outside. Letters: B rows, D continuous latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from amortize.program.blame import SiteTerms, site_terms
from amortize.program.data import Data
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import Latents, LogJoint

__all__ = ["Precision", "measure_precision"]

TOLERANCE = 0.01  # nats
RELATIVE = 1e-6  # of the log joint: what adding many float32 terms up costs anyway


class Precision(NamedTuple):
    """Largest difference between float32 and float64 over rows, in nats; the site it is in; the log joint there."""

    difference: float
    site: str
    log_joint: float

    @property
    def bad(self) -> bool:
        """Whether the difference is more than rounding of a sum."""
        return not self.difference <= max(TOLERANCE, RELATIVE * abs(self.log_joint))


def measure_precision(log_joint: LogJoint, data: Data, latents: Latents) -> Precision:
    """Evaluate at ``latents`` in float32 and in float64."""
    with torch.no_grad(), pyro_rng(0, "precision"):
        single = log_joint.terms(data, u=latents.u, choices=latents.choices)
        sites = _by_site(log_joint, data, single.values)
        with in_double(log_joint.program):
            exact_data = _in_double(data)
            exact = log_joint.terms(exact_data, u=latents.u.double(), choices=latents.choices)
            exact_sites = _by_site(log_joint, exact_data, exact.values)
    apart = (single.joint.double() - exact.joint.double()).abs()
    apart = torch.where(exact.joint.isfinite(), apart, torch.zeros_like(apart)).nan_to_num(nan=float("inf"))
    row = int(apart.argmax())
    terms = {
        name: float((term.double() - exact_sites[name].double()).abs().nan_to_num(nan=0.0, posinf=0.0).max())
        for name, term in sites.items()
        if name in exact_sites
    }
    return Precision(float(apart[row]), max(terms, key=lambda name: terms[name], default=""), float(exact.joint[row]))


def _by_site(log_joint: LogJoint, data: Data, values: Mapping[str, Tensor]) -> SiteTerms:
    """Log density of each site at ``values``; sites that are summed out take one of their values.

    Nothing for a whole data set, whose sites have no rows to compare.
    """
    if log_joint.program.whole:
        return {}
    if set(log_joint.structure.sites) - set(values):
        with pyro_rng(0, "precision"):
            messages = log_joint.messages(data, values)
        values = {name: messages[name]["value"] for name in log_joint.structure.sites}
    return site_terms(log_joint.program.model, log_joint.structure, data, values)


def _in_double(data: Data) -> Data:
    leaves = tuple(
        leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in data.leaves
    )
    return replace(data, leaves=leaves)


@contextmanager
def in_double(program: nn.Module) -> Iterator[None]:
    """Float32 parameters and buffers as float64 inside, and torch's default type with them."""
    default = torch.get_default_dtype()
    parameters = [(p, p.data) for p in program.parameters() if p.dtype == torch.float32]
    buffers = [
        (module, name, buffer)
        for module in program.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.dtype == torch.float32
    ]
    try:
        torch.set_default_dtype(torch.float64)
        for parameter, value in parameters:
            parameter.data = value.double()
        for module, name, buffer in buffers:
            module._buffers[name] = buffer.double()
        yield
    finally:
        torch.set_default_dtype(default)
        for parameter, value in parameters:
            parameter.data = value
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
