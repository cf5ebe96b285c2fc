"""What single precision costs: the log joint in float32 against float64, at the same latents.

Parameters and buffers are lent to float64 and put back bit for bit; nothing is copied, because a function of the user's
may reach its networks from outside. Letters: B rows, D continuous latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from amortize.program.blame import site_terms
from amortize.program.data import Data
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import LogJoint

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


def measure_precision(log_joint: LogJoint, data: Data, latents: Any) -> Precision:
    """Evaluate at ``latents`` in float32 and in float64."""
    with torch.no_grad(), pyro_rng(0, "precision"):
        single = log_joint.terms(data, u=latents.u, choices=latents.choices)
        sites = site_terms(log_joint.program.model, log_joint.structure, data, _values(log_joint, data, single.values))
        with in_double(log_joint.program):
            exact_data = _in_double(data)
            exact = log_joint.terms(exact_data, u=latents.u.double(), choices=latents.choices)
            values = {name: exact.values.get(name, value) for name, value in sites_values(single.values).items()}
            exact_sites = site_terms(
                log_joint.program.model, log_joint.structure, exact_data, _values(log_joint, exact_data, values)
            )
    apart = (single.joint.double() - exact.joint.double()).abs()
    apart = torch.where(exact.joint.isfinite(), apart, torch.zeros_like(apart)).nan_to_num(nan=float("inf"))
    row = int(apart.argmax())
    by_site = {
        name: float((term.double() - exact_sites[name].double()).abs().nan_to_num(nan=0.0, posinf=0.0).max())
        for name, term in sites.items()
        if name in exact_sites
    }
    return Precision(float(apart[row]), max(by_site, key=lambda name: by_site[name]), float(exact.joint[row]))


def sites_values(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values as doubles where they are floats."""
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}


def _values(log_joint: LogJoint, data: Data, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of all latents: those that are summed out take one of theirs."""
    missing = [name for name in log_joint.structure.sites if name not in values]
    if not missing:
        return values
    with pyro_rng(0, "precision"):
        messages = log_joint.messages(data, values)
    return values | {name: messages[name]["value"] for name in missing}


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
