"""The densities of a program: log p(x_n, u_n) and log q(u_n | x_n), both in the model's unconstrained coordinates.

With z = T(u) and J = log |dT/du|, the log joint is log p(x, z) + J and the guide's density log q(z | x) + J, where T is
``biject_to`` of the support that the *model's* site has in this very run (supports may depend on other latents).
Letters: C chains, N datapoints, D latent dimensions, B = C * N rows (chain-major).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to

from amortize.errors import (
    AmortizeWarning,
    ContractError,
    DiscreteLatentError,
    GuideMismatchError,
    UnboundedDiscreteError,
)
from amortize.program.data import Data
from amortize.program.handlers import LogTerms, Record, Substitute, unvalidated
from amortize.program.sites import Structure

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["GuideDensity", "JointTerms", "LogJoint"]


class JointTerms(NamedTuple):
    """Log densities of B rows, in nats, and the values by site.

    ``prior`` is over u (Jacobian included); ``outside`` is what stands outside the plate, a scalar.
    """

    prior: Tensor
    likelihood: Tensor
    jacobian: Tensor
    outside: Tensor
    values: dict[str, Tensor]

    @property
    def joint(self) -> Tensor:
        """Log p(x, u), (B,)."""
        return self.prior + self.likelihood


class LogJoint:
    """log p(x_n, u_n) of a program, vectorised by folding chains into the data batch.

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
    DiscreteLatentError, UnboundedDiscreteError
        If a latent site is discrete: there is no density over u then.
    """

    def __init__(self, program: Program, structure: Structure, like: Tensor) -> None:
        _refuse_discrete(structure)
        _refuse_scaled(structure)
        self.program, self.structure, self.like = program, structure, like

    @property
    def dim(self) -> int:
        """D, unconstrained latent dimensions of a datapoint."""
        return self.structure.dim

    def terms(self, data: Data, *, u: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> JointTerms:
        """Evaluate B rows at ``u`` (B, D), or at constrained ``values`` (then the Jacobian is left at 0)."""
        return self._run(data, u, values)[0]

    def __call__(self, data: Data, u: Tensor) -> Tensor:
        """Log p(x_n, u_cn) in nats, for u (C, N, D): (C, N)."""
        chains, num, dim = u.shape
        return self.terms(data.fold(chains), u=u.reshape(chains * num, dim)).joint.reshape(chains, num)

    def observed(self, data: Data, u: Tensor) -> dict[str, Any]:
        """The distributions of the observed sites at ``u`` (B, D)."""
        return self._run(data, u, None)[1].observed

    def draw_prior(self, data: Data) -> Tensor:
        """One draw of u from the prior for each row, (B, D); draws from the global generators."""
        record = Record()
        with unvalidated(), torch.no_grad(), record:
            self.program.model(*data.args, **data.kwargs)
        return self._flatten({name: record.messages[name] for name in self.structure.sites})

    def messages(self, data: Data, values: Mapping[str, Tensor], *, guide: bool = False) -> dict[str, dict[str, Any]]:
        """The message of each sample site of a run of the model (or guide) with constrained ``values`` put in."""
        function = self.program.guide if guide else self.program.model
        assert function is not None
        terms = LogTerms(data.num_datapoints, self.like)
        inner = Substitute(self.structure.sites, self.structure.plate, terms, values=values)
        record = Record()
        with unvalidated(), torch.no_grad(), record, inner:
            function(*data.args, **data.kwargs)
        return record.messages

    def unconstrain(self, data: Data, values: Mapping[str, Tensor]) -> tuple[Tensor, JointTerms]:
        """U (B, D) of constrained values, and the terms there with the Jacobian."""
        messages = self.messages(data, values)
        u = self._flatten({name: messages[name] for name in self.structure.sites})
        return u, self.terms(data, u=u)

    def _run(self, data: Data, u: Tensor | None, values: Mapping[str, Tensor] | None) -> tuple[JointTerms, Substitute]:
        terms = LogTerms(data.num_datapoints, self.like if u is None else u)
        handler = Substitute(self.structure.sites, self.structure.plate, terms, u=u, values=values)
        with unvalidated(), handler:
            self.program.model(*data.args, **data.kwargs)
        return (
            JointTerms(terms.latent + terms.jacobian, terms.observed, terms.jacobian, terms.outside, handler.values),
            handler,
        )

    def _flatten(self, messages: Mapping[str, Mapping[str, Any]]) -> Tensor:
        parts = []
        for name, site in self.structure.sites.items():
            value = biject_to(messages[name]["fn"].support).inv(messages[name]["value"])
            parts.append(value.movedim(site.front, 0).flatten(1) if value.dim() > 1 else value.unsqueeze(1))
        return torch.cat(parts, -1).to(self.like.dtype)


class GuideDensity:
    """Sampler and density of a guide, in the coordinates of the model's log joint."""

    def __init__(self, log_joint: LogJoint, plate: str) -> None:
        self.log_joint, self.plate = log_joint, plate
        self.sites = log_joint.structure.sites

    def sample(self, data: Data) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values by site and log q(z | x) (B,), without Jacobian; draws from the global generators."""
        terms = LogTerms(data.num_datapoints, self.log_joint.like)
        handler = _Collect(self.sites, self.plate, terms)
        with unvalidated(), torch.no_grad(), handler:
            self._guide(*data.args, **data.kwargs)
        return handler.values, terms.latent

    def log_density(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Log q(z | x) at constrained ``values``, (B,) nats, without Jacobian; differentiable in the values."""
        terms = LogTerms(data.num_datapoints, next(iter(values.values())).new_zeros(()))
        handler = Substitute(self.sites, self.plate, terms, values=values)
        with unvalidated(), handler:
            self._guide(*data.args, **data.kwargs)
        return terms.latent

    def rows_of(self, values: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """The values of some rows."""
        return {name: value.index_select(self.sites[name].front, index) for name, value in values.items()}

    def draw(self, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        """U (B, D), log p(x, u) (B,) and log q(u | x) (B,) of one draw a row, Jacobian included in both."""
        values, log_q = self.sample(data)
        u, terms = self.log_joint.unconstrain(data, values)
        return u, terms.joint, log_q + terms.jacobian

    @property
    def _guide(self) -> Any:
        guide = self.log_joint.program.guide
        assert guide is not None
        return guide


class _Collect(Substitute):
    """Let the guide draw, and collect its values and log density."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        """Leave the value to the guide."""

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.sites:
            self.values[msg["name"]] = msg["value"]
        super()._pyro_post_sample(msg)


def _refuse_discrete(structure: Structure) -> None:
    for name in structure.discrete:
        if not structure.sites[name].enumerable:
            raise UnboundedDiscreteError(
                f"latent site {name!r} is discrete and its support ({structure.sites[name].support}) cannot be "
                "enumerated. Truncate it to a Categorical, or marginalise it by hand"
            )
        raise DiscreteLatentError(
            f"latent site {name!r} is discrete; evidence, local posteriors and gaps need continuous ones in this "
            "version. Marginalise it by hand (for example with MixtureSameFamily); am.fit can train it"
        )


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
