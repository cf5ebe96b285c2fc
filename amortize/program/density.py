"""The log joint of a program, in unconstrained coordinates: log p(x_n, u_n) of each datapoint.

With z = T(u) and J = log |dT/du|, the log joint is log p(x, z) + J, where T is ``biject_to`` of the support that the
site has in this very run (supports may depend on other latents). Discrete latents are summed out of it, or given.
Letters: C chains, N datapoints, D continuous latents, M sampled discrete variables, B = C * N rows (chain-major).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to

from amortize.errors import AmortizeWarning, ContractError, GuideMismatchError
from amortize.program.data import Data
from amortize.program.enumerate import JointTerms, Placement, Runner, draw_enumerated, split_choices, summed
from amortize.program.handlers import LogTerms, Record, Substitute, choices_of, unvalidated
from amortize.program.masks import redrawn
from amortize.program.sites import Structure

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["FoldedLogJoint", "JointTerms", "Latents", "LogJoint", "require_guide"]


class Latents(NamedTuple):
    """What is inferred of B rows: ``u`` (B, D), and ``choices`` (B, M), the values of sampled discrete variables."""

    u: Tensor
    choices: Tensor


class LogJoint(ABC):
    """log p(x_n, u_n) of a program.

    Parameters
    ----------
    program
        The adopted program.
    structure
        What discovery read.
    like
        A tensor whose dtype and device u has.

    Raises
    ------
    ContractError
        If a latent site is scaled.
    """

    def __init__(self, program: Program, structure: Structure, like: Tensor) -> None:
        _refuse_scaled(structure)
        self.program, self.structure, self.like = program, structure, like

    @property
    def dim(self) -> int:
        """D, unconstrained latent dimensions of a datapoint."""
        return self.structure.dim

    @property
    def num_tiles(self) -> int:
        """How many rows' worth of memory one row of u takes: its configurations, or the pairs of two variables."""
        structure = self.structure
        if structure.summation == "contraction":
            largest: int = max(structure.sites[name].cardinality for name in structure.enumerated)
            return largest**2
        return structure.num_configurations if structure.summation == "tiling" else 1

    def __call__(self, data: Data, u: Tensor) -> Tensor:
        """Log p(x_n, u_cn) in nats, for u (C, N, D): (C, N)."""
        chains, num, dim = u.shape
        return self.terms(data.fold(chains), u=u.reshape(chains * num, dim)).joint.reshape(chains, num)

    @abstractmethod
    def terms(
        self,
        data: Data,
        *,
        u: Tensor | None = None,
        choices: Tensor | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> JointTerms:
        """Evaluate B rows at ``u`` (B, D) and ``choices`` (B, M), or at constrained ``values`` (no Jacobian then)."""

    @abstractmethod
    def draw_prior(self, data: Data) -> Latents:
        """One draw from the prior for each row; draws from the global generators."""

    @abstractmethod
    def draw_enumerated(self, data: Data, latents: Latents) -> dict[str, Tensor]:
        """Values of the summed-out sites given u, from their exact conditional; draws from the global generators."""

    @abstractmethod
    def messages(self, data: Data, values: Mapping[str, Tensor], *, guide: bool = False) -> dict[str, dict[str, Any]]:
        """The message of each sample site of a run of the model (or guide) with constrained ``values`` put in.

        Sites without a value are drawn from the global generators.
        """

    @abstractmethod
    def unconstrain(
        self, data: Data, values: Mapping[str, Tensor], *, redraw: Collection[str] = ()
    ) -> tuple[Latents, JointTerms]:
        """The latents of constrained values, and the terms there with the Jacobian.

        What a mask hides at the sites ``redraw`` is drawn from its stand-in, from the global generators.
        """


class FoldedLogJoint(LogJoint):
    """The log joint of a program with a data plate, vectorised by folding chains into the data batch."""

    def __init__(self, program: Program, structure: Structure, like: Tensor) -> None:
        super().__init__(program, structure, like)
        self.runner = Runner(
            program.model, structure.sites, structure.plate, like, structure.batch_ndim, structure.hidden
        )

    def terms(
        self,
        data: Data,
        *,
        u: Tensor | None = None,
        choices: Tensor | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> JointTerms:
        """Fold, run, and sum discrete sites out."""
        structure = self.structure
        place = self._placement(u, choices, values)
        return summed(self.runner, data, place, structure.enumerated, structure.summation)

    def draw_prior(self, data: Data) -> Latents:
        """Run the model."""
        record = Record()
        with unvalidated(), torch.no_grad(), record:
            self.program.model(*data.args, **data.kwargs)
        return self._flatten(record.messages, data.num_datapoints, self.structure.hidden)

    def draw_enumerated(self, data: Data, latents: Latents) -> dict[str, Tensor]:
        """Backwards through the sum that eliminated them, or one of the tiles."""
        place = self._placement(latents.u, latents.choices, None)
        structure = self.structure
        with torch.no_grad():
            return draw_enumerated(self.runner, data, place, structure.enumerated, structure.summation)

    def messages(self, data: Data, values: Mapping[str, Tensor], *, guide: bool = False) -> dict[str, dict[str, Any]]:
        """Run it once."""
        function = self.program.guide if guide else self.program.model
        assert function is not None
        put = Substitute(self.structure.sites, LogTerms(data.num_datapoints, self.like), values=values)
        record = Record()
        with unvalidated(), torch.no_grad(), record, put:
            function(*data.args, **data.kwargs)
        return record.messages

    def unconstrain(
        self, data: Data, values: Mapping[str, Tensor], *, redraw: Collection[str] = ()
    ) -> tuple[Latents, JointTerms]:
        """By the bijections of the supports in a run with these values."""
        latents = self._flatten(self.messages(data, values), data.num_datapoints, redraw)
        return latents, self.terms(data, u=latents.u, choices=latents.choices)

    def _placement(self, u: Tensor | None, choices: Tensor | None, values: Mapping[str, Tensor] | None) -> Placement:
        sampled = self.structure.sampled
        if choices is None or not sampled:
            assert not sampled or values is not None, "sampled discrete sites need choices"
            return Placement(u, values)
        return Placement(u, values, split_choices(self.structure.sites, sampled, choices))

    def _flatten(self, messages: Mapping[str, Mapping[str, Any]], num_rows: int, redraw: Collection[str]) -> Latents:
        u, choices = [self.like.new_zeros(num_rows, 0)], [self.like.new_zeros(num_rows, 0, dtype=torch.long)]
        for name in self.structure.continuous:
            value = biject_to(messages[name]["fn"].support).inv(messages[name]["value"])
            site = self.structure.sites[name]
            if name in redraw:
                value = redrawn(site, messages[name], value)
            front = site.front
            u.append((value.movedim(front, 0).flatten(1) if value.dim() > 1 else value.unsqueeze(1)).to(self.like))
        for name in self.structure.sampled:
            msg = messages[name]
            choices.append(choices_of(self.structure.sites[name], msg["fn"], msg["value"]))
        return Latents(torch.cat(u, -1), torch.cat(choices, -1))


def _refuse_scaled(structure: Structure) -> None:
    """A scaled latent has no normalised prior; a scaled observation is another likelihood, and is said to be."""
    latent = [name for name in structure.scaled if name in structure.sites]
    if latent:
        raise ContractError(
            f"latent site {latent[0]!r} is under poutine.scale, so its prior is not normalised and the evidence has no "
            "meaning. Take the scale off; to weigh the KL term in training, scale in the objective"
        )
    if structure.scaled:
        warnings.warn(
            f"poutine.scale multiplies the log likelihood of {', '.join(map(repr, structure.scaled))}: the evidence is "
            "that of the scaled likelihood",
            AmortizeWarning,
            stacklevel=4,
        )


def require_guide(program: Program) -> None:
    """Say so where a program has no guide and an algorithm needs one."""
    if program.guide is None:
        raise GuideMismatchError(
            "this program has no guide, and this needs one. Give it one, am.Program(model, guide), or start from the "
            "prior where that is offered (start='prior', init='prior')"
        )
