r"""A whole data set as a single datapoint: every latent, in or out of plates, is local to it.

.. math:: \log p(x_1, \ldots, x_N, u), \qquad u \in R^D \text{ holds all latents of the model}

That is how programs with global latents (a regression's weights, a hierarchical model) get their log evidence: N = 1
for the algorithms, and each row of u is one run of the model on all the data.

Letters: B rows (chains or draws), D unconstrained latents of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from amortize.errors import ContractError, DiscreteLatentError, DynamicStructureError, PlateSizeError
from amortize.program.data import Data
from amortize.program.density import JointTerms, Latents, LogJoint
from amortize.program.discover import has_user_scale, require_density, run_recorded, support_name
from amortize.program.sites import Site, Structure
from amortize.program.whole_runner import WHOLE, WholeRunner, vectorised_if_right

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["WholeLogJoint", "discover_whole"]

Function = Callable[..., Any]


def discover_whole(model: Function, data: Data) -> Structure:
    """Read the latent sites of ``model``, all of them local to the data set as a whole.

    Raises
    ------
    DynamicStructureError, PlateSizeError, DiscreteLatentError, ContractError
        Where the model can't be taken as one density over a flat u; the message names the site and the way out.
    """
    runs = [run_recorded(model, data, number, "discover whole") for number in range(2)]
    structure, again = (_structure(messages) for messages in runs)
    if _signature(structure) != _signature(again):
        raise DynamicStructureError(
            f"the model's latent sites or their shapes change from run to run: {_signature(structure)}, then "
            f"{_signature(again)}. Make sites and shapes fixed (masks)"
        )
    return structure


def _structure(messages: Mapping[str, Mapping[str, Any]]) -> Structure:
    sites: dict[str, Site] = {}
    start = 0
    for name, msg in messages.items():
        _refuse_subsample(name, msg)
        if not msg["is_observed"]:
            sites[name] = _site(name, msg, start)
            start = sites[name].stop
    observed = tuple(name for name, msg in messages.items() if msg["is_observed"])
    if not sites:
        raise ContractError("the model has no latent site; there is nothing to infer")
    if not observed:
        raise ContractError(
            "the model observes nothing, so there is no evidence to measure. Give a site obs=, for example "
            "pyro.sample('x', dist, obs=x)"
        )
    scaled = tuple(name for name, msg in messages.items() if has_user_scale(msg, WHOLE))
    dtypes = [messages[name]["value"].dtype for name in sites]
    dtype = functools.reduce(torch.promote_types, dtypes)
    return Structure(WHOLE, sites, observed, (), scaled, dtype)


def _site(name: str, msg: Mapping[str, Any], start: int) -> Site:
    fn, value = msg["fn"], msg["value"]
    require_density(name, fn)
    if fn.support.is_discrete:
        raise DiscreteLatentError(
            f"latent site {name!r} is discrete, and a whole data set as one datapoint (whole=True) needs continuous "
            "latents. Marginalise it by hand (for example with MixtureSameFamily), or condition on the global latents, "
            "am.Program(model, condition={...}), so that the discrete ones are local and can be summed out"
        )
    free = tuple(biject_to(fn.support).inv(value).shape)
    batch_ndim = value.dim() - fn.event_dim + 1  # the row stands in front of the model's own batch dimensions
    return Site(
        name=name,
        support=support_name(fn.support),
        discrete=False,
        shape=tuple(value.shape),
        unconstrained_shape=free,
        start=start,
        stop=start + math.prod(free),
        front=0,
        data_dim=-batch_ndim,
        batch_ndim=batch_ndim,
    )


def _refuse_subsample(name: str, msg: Mapping[str, Any]) -> None:
    for frame in msg["cond_indep_stack"]:
        if frame.vectorized and frame.full_size not in (None, frame.size):
            raise PlateSizeError(
                f"site {name!r} stands in plate {frame.name!r}, which takes {frame.size} of {frame.full_size} entries. "
                "The evidence of a whole data set needs all of it: give all the data, and leave out subsample_size"
            )


def _signature(structure: Structure) -> dict[str, tuple[int, ...]]:
    return {name: site.shape for name, site in structure.sites.items()}


class WholeLogJoint(LogJoint):
    """log p(x, u) of the whole data set, for B rows of u.

    Parameters
    ----------
    program, structure, like
        As for ``LogJoint``.
    data
        The data set, on which vectorised rows are compared with a loop.
    """

    def __init__(self, program: Program, structure: Structure, like: Tensor, data: Data) -> None:
        super().__init__(program, structure, like)
        size = sum(leaf.numel() for leaf in data.leaves if isinstance(leaf, Tensor))
        model = program.model if not program.condition else _without_givens(program, data)
        self.whole = vectorised_if_right(WholeRunner(model, structure.sites, like, size), data)

    @property
    def reason(self) -> str:
        """Why rows are looped over, "" where they are vectorised."""
        return self.whole.why_loop

    def terms(
        self,
        data: Data,
        *,
        u: Tensor | None = None,
        choices: Tensor | None = None,  # noqa: ARG002 (there are no discrete sites)
        values: Mapping[str, Tensor] | None = None,
    ) -> JointTerms:
        """Evaluate B rows at ``u`` (B, D), or at constrained ``values`` (B, ...)."""
        return self.whole.rows(data, u=u, values=values)

    def draw_prior(self, data: Data) -> Latents:
        """One draw from the prior for each row; draws from the global generators."""
        with torch.no_grad():
            return self._latents(self.whole.flatten(data, self.whole.draw(data)[0]))

    def draw_enumerated(self, data: Data, latents: Latents) -> dict[str, Tensor]:  # noqa: ARG002
        """Nothing: there are no discrete sites."""
        return {}

    def messages(self, data: Data, values: Mapping[str, Tensor], *, guide: bool = False) -> dict[str, dict[str, Any]]:
        """The message of each sample site of a run of the model (or guide), one row of ``values`` (1, ...) put in."""
        assert data.num_datapoints == 1
        function = self.program.guide if guide else self.program.model
        assert function is not None
        with torch.no_grad():
            row = {name: value.squeeze(0) for name, value in values.items()}
            return replace(self.whole, function=function).messages(data, row)

    def unconstrain(
        self,
        data: Data,
        values: Mapping[str, Tensor],
        *,
        redraw: Collection[str] = (),  # noqa: ARG002 (masks on latents are dropped)
    ) -> tuple[Latents, JointTerms]:
        """The latents of constrained values (B, ...), and the terms there with the Jacobian."""
        with torch.no_grad():
            u = self.whole.flatten(data, values)
        return self._latents(u), self.terms(data, u=u)

    def _latents(self, u: Tensor) -> Latents:
        return Latents(u, torch.zeros(len(u), 0, dtype=torch.long, device=u.device))


def _without_givens(program: Program, data: Data) -> Function:
    """The model given the values in ``condition``, whose own densities are left out.

    Raises
    ------
    ContractError
        If such a density depends on latents, so that leaving it out would be another model.
    """
    runs = [run_recorded(program.model, data, number, "discover whole") for number in range(2)]
    for name in program.condition:
        first, second = (messages[name]["fn"].log_prob(messages[name]["value"]) for messages in runs)
        if not torch.equal(first, second):
            raise ContractError(
                f"condition: the distribution of {name!r} depends on latents, so its value is an observation, not a "
                f"given. Observe it in the model, pyro.sample({name!r}, ..., obs=value)"
            )
    model: Function = poutine.block(program.model, hide=list(program.condition))
    return model
