"""Samplers and densities of guides, in the coordinates of the model's log joint.

Discrete sites that the model sums out are summed out of the guide too, where it samples them: the weight of a draw is
p(x, u) / q(u), with both sums exact. Letters: B rows, D continuous latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amortize.errors import DiscreteLatentError, GuideMismatchError
from amortize.program.data import Data
from amortize.program.density import JointTerms, Latents, LogJoint
from amortize.program.discrete import MANY, way_to_sum
from amortize.program.enumerate import Placement, Runner, summed
from amortize.program.handlers import LogTerms, Record, Score, unvalidated
from amortize.program.masks import mask_of, same_mask
from amortize.random import pyro_rng

__all__ = ["Draw", "GuideDensity", "TracedGuide"]


class Draw(NamedTuple):
    """One draw a row: latents, log p(x, u) and log q(u | x), (B,) nats, Jacobian included in both."""

    latents: Latents
    log_joint: Tensor
    log_q: Tensor


class GuideDensity(ABC):
    """Sampler and density of a guide."""

    log_joint: LogJoint
    hides: tuple[str, ...] = ()
    """Latents that the guide hides by the model's own mask: their hidden entries are in no density of ``sample``."""

    @abstractmethod
    def sample(self, data: Data) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values by site and log q(z | x) (B,), without Jacobian; draws from the global generators."""

    @abstractmethod
    def log_density(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Log q(z | x) at constrained ``values``, (B,) nats, without Jacobian."""

    @abstractmethod
    def log_q(self, data: Data, u: Tensor, terms: JointTerms) -> Tensor:
        """Log q(u | x), (B,) nats, where the log joint at ``u`` (B, D) has ``terms``; differentiable in u."""

    def draw(self, data: Data) -> Draw:
        """One draw a row; draws from the global generators."""
        values, log_q = self.sample(data)
        latents, terms = self.log_joint.unconstrain(data, values, redraw=self.hides)
        return Draw(latents, terms.joint, log_q + self.stand_ins(terms) + terms.jacobian)

    def stand_ins(self, terms: JointTerms) -> Tensor:
        """What stands in for the latents that guide and model both hide by a mask, (B,), without Jacobian."""
        return sum((terms.hidden[name] for name in self.hides), self.log_joint.like.new_zeros(()))

    def rows_of(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The values of some rows."""
        sites = self.log_joint.structure.sites
        return {name: value.index_select(sites[name].front, index) for name, value in values.items()}


class TracedGuide(GuideDensity):
    """A guide that is run as a Pyro program.

    Parameters
    ----------
    log_joint
        The model's.
    plate
        Name of the guide's data plate.
    data
        A few datapoints to try on how the guide's discrete sites can be summed out.
    drawn
        Names of the sites that the guide samples.
    """

    def __init__(self, log_joint: LogJoint, plate: str, data: Data, drawn: set[str]) -> None:
        self.log_joint, self.plate = log_joint, plate
        structure = log_joint.structure
        self.sites = {name: site for name, site in structure.sites.items() if name in drawn}
        self.summed_out = tuple(name for name in structure.enumerated if name in drawn)
        guide = log_joint.program.guide
        assert guide is not None
        self.hides = _hidden_by_both(log_joint, data)
        self.runner = Runner(
            guide, self.sites, plate, log_joint.like, structure.batch_ndim, self.hides, stands_in=False
        )
        self.method, reason = way_to_sum(self.runner, data, self.summed_out, MANY)
        if not self.method:
            raise DiscreteLatentError(
                f"the guide samples {', '.join(map(repr, self.summed_out))}, which the model sums out, but in the "
                f"guide {reason}. Leave them out of the guide, or sample them: am.Program(..., discrete='sample')"
            )

    def sample(self, data: Data) -> tuple[dict[str, Tensor], Tensor]:
        """Run the guide."""
        terms = LogTerms(data.num_datapoints, self.log_joint.like)
        score = Score(self.sites, self.plate, terms, hides=self.hides, stands_in=False)
        with unvalidated(), torch.no_grad(), score:
            self._guide(*data.args, **data.kwargs)
        values = {name: value for name, value in score.values.items() if name not in self.summed_out}
        if not self.summed_out:
            return values, terms.latent
        with torch.no_grad():
            return values, self.log_density(data, values)

    def log_density(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Run the guide with values put in."""
        return summed(self.runner, data, Placement(values=values), self.summed_out, self.method).prior

    def log_q(self, data: Data, u: Tensor, terms: JointTerms) -> Tensor:  # noqa: ARG002 (its values are in terms)
        """Run the guide with the model's values put in."""
        return self.log_density(data, terms.values) + self.stand_ins(terms) + terms.jacobian

    @property
    def _guide(self) -> Any:
        return self.runner.function


def _hidden_by_both(log_joint: LogJoint, data: Data) -> tuple[str, ...]:
    """The hidden latents of the model that the guide masks too; one that it does not mask pays for its density."""
    hidden, guide = log_joint.structure.hidden, log_joint.program.guide
    if not hidden or guide is None:
        return ()
    record = Record()
    with pyro_rng(0, "hidden"), unvalidated(), torch.no_grad():
        with record:
            guide(*data.args, **data.kwargs)
        model = log_joint.messages(data, {name: record.messages[name]["value"] for name in hidden})
    both = []
    for name in hidden:
        theirs = mask_of(record.messages[name])
        if theirs is None:
            continue
        if not same_mask(theirs, mask_of(model[name])):
            raise GuideMismatchError(
                f"guide site {name!r} is under another mask than the model's, so that it has no density where only one "
                "of them hides it. Give both the same pyro.poutine.mask(mask=...)"
            )
        both.append(name)
    return tuple(both)
