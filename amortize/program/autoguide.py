r"""Pyro's AutoGuides as guides: densities over u, read off their parameters.

An AutoGuide has a mean and a scale for every latent number of the data it was made on. Where it factorises over
datapoints it is a posterior of each of them,

.. math:: q(u_n) = N(u_n; \mu_n, \mathrm{diag}\, \sigma_n^2),

found by ``Data.index``; a joint one (multivariate, low rank, flow) is a posterior of a single datapoint only.
Letters: N datapoints that the guide was made on, B rows, D latents, P latents of a part of a list of guides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoGuide, AutoLaplaceApproximation, AutoLowRankMultivariateNormal
from torch import Tensor
from torch.distributions import biject_to

from amortize.errors import GuideDataError, GuideMismatchError
from amortize.program.autoguide_parts import (
    BY_DATAPOINT,
    FACTORISED,
    GAUSSIAN,
    laplace_tril,
    loc_scale,
    refuse,
    rows_of,
    shapes,
    single_guides,
)
from amortize.program.bound import Bound
from amortize.program.data import Data
from amortize.program.density import JointTerms, LogJoint
from amortize.program.guide import GuideDensity
from amortize.program.handlers import unvalidated
from amortize.program.sites import Site
from amortize.program.whole import WholeLogJoint
from amortize.random import pyro_rng

__all__ = ["AutoDensity", "bound_density"]


def bound_density(bound: Bound, log_joint: LogJoint, data: Data) -> AutoDensity:
    """The density of a program's AutoGuide, made on ``data`` if it has not run yet.

    Raises
    ------
    GuideDataError, GuideMismatchError
        If it belongs to other data, or is no density over the model's u.
    """
    fresh = bound.fingerprint is None
    log_joint.program.bind(data)
    assert bound.fingerprint is not None
    try:
        return AutoDensity(log_joint, data, bound.guide, len(bound.fingerprint))
    except GuideDataError:  # it was trained elsewhere, on data that these are not
        if fresh:
            bound.forget()
        raise


class _Part(NamedTuple):
    """An AutoGuide over some of the latents: u's ``columns`` (P,), and their ``places`` (N, P) in its flat vector."""

    guide: Any
    columns: Tensor
    places: Tensor


class AutoDensity(GuideDensity):
    """Sampler and density of an AutoGuide.

    Parameters
    ----------
    log_joint
        The model's.
    data
        Datapoints that the guide was made on, all or some of them.
    guide
        The AutoGuide, after its first run.
    num_datapoints
        N, datapoints that it was made on.

    Attributes
    ----------
    family
        "mean-field", "full-covariance", or None where it is neither.

    Raises
    ------
    GuideMismatchError
        Where the guide is no density over the model's u; the message says why and what to do.
    """

    def __init__(self, log_joint: LogJoint, data: Data, guide: AutoGuide, num_datapoints: int) -> None:
        self.log_joint, self.num_datapoints = log_joint, num_datapoints
        self.parts = [self._part(one) for one in single_guides(guide)]
        self._verify_sites()
        if data.num_datapoints == num_datapoints:
            self._verify_supports(data)
        self._laplace: tuple[tuple[int, int], Any] | None = None
        self._data = data

    @property
    def family(self) -> str | None:
        """Which of the families of local posteriors it is, None where it is neither."""
        if all(isinstance(part.guide, FACTORISED) for part in self.parts):
            return "mean-field"
        only = self.parts[0].guide if len(self.parts) == 1 else None
        return "full-covariance" if isinstance(only, GAUSSIAN) else None

    @property
    def rank(self) -> int | None:
        """Directions beside the diagonal of a low-rank guide; None of others."""
        only = self.parts[0].guide
        return only.rank if len(self.parts) == 1 and isinstance(only, AutoLowRankMultivariateNormal) else None

    def sample(self, data: Data) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values by site and log q(z | x) (B,), without Jacobian; draws from the global generators."""
        with torch.no_grad(), unvalidated():
            u = self.draw_u(data)
            terms = self.log_joint.terms(data, u=u)
            values = {name: terms.values[name] for name in self.log_joint.structure.continuous}
            return values, self.log_q(data, u, terms) - terms.jacobian

    def draw_u(self, data: Data) -> Tensor:
        """U (B, D), differentiable in the guide's parameters; draws from the global generators."""
        u = self.log_joint.like.new_zeros(data.num_datapoints, self.log_joint.dim)
        for part in self.parts:
            u[:, part.columns] = self._draw(part, data).to(u)
        return u

    def density_of_u(self, data: Data, u: Tensor) -> Tensor:
        """Log q(u | x) (B,) at ``u`` (B, D), differentiable in it and in the guide's parameters."""
        with unvalidated():
            return torch.stack([self._log_prob(part, data, u[:, part.columns]) for part in self.parts]).sum(0)

    def log_density(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Log q(z | x) at constrained ``values``, (B,) nats, without Jacobian."""
        latents, terms = self.log_joint.unconstrain(data, values)
        return self.log_q(data, latents.u, terms) - terms.jacobian

    def log_q(self, data: Data, u: Tensor, terms: JointTerms) -> Tensor:  # noqa: ARG002 (it needs no model)
        """Log q(u | x) (B,) at ``u`` (B, D), differentiable in it."""
        return self.density_of_u(data, u)

    def _draw(self, part: _Part, data: Data) -> Tensor:
        if isinstance(part.guide, BY_DATAPOINT):
            drawn: Tensor = self._of_rows(part, data).rsample()
            return drawn
        latent: Tensor = part.guide.get_posterior().rsample((data.num_datapoints,))
        return latent[:, part.places[0]]

    def _log_prob(self, part: _Part, data: Data, u: Tensor) -> Tensor:
        if isinstance(part.guide, BY_DATAPOINT):
            log_prob: Tensor = self._of_rows(part, data).log_prob(u)
            return log_prob
        joint: Tensor = part.guide.get_posterior().log_prob(u[:, part.places[0].argsort()])
        return joint

    def _of_rows(self, part: _Part, data: Data) -> Any:
        """The distribution over the part's latents of each row, batch (B,) and event (P,)."""
        if isinstance(part.guide, AutoLaplaceApproximation):
            return rows_of(self._gaussians(part), data.index)
        places = part.places[data.index]
        loc, scale = loc_scale(part.guide)
        rows: Any = Normal(loc[places], scale[places])
        return rows.to_event(1)

    def _gaussians(self, part: _Part) -> tuple[Tensor, Tensor]:
        """Loc (N, D) and scale_tril (N, D, D) of Laplace's approximation; made anew when the mode has moved."""
        loc: Tensor = part.guide.loc
        key = (id(loc), loc._version)
        if self._laplace is None or self._laplace[0] != key:
            rows = loc.detach()[part.places]
            tril = torch.eye(rows.shape[1]).to(rows).repeat(len(rows), 1, 1)
            tril[self._data.index] = laplace_tril(self.log_joint, self._data, rows[self._data.index])
            self._laplace = (key, (rows, tril))
        gaussians: tuple[Tensor, Tensor] = self._laplace[1]
        return gaussians

    def _part(self, guide: AutoGuide) -> _Part:
        refuse(guide, self.num_datapoints)
        structure = self.log_joint.structure
        columns, places, start = [], [], 0
        for name, shape in shapes(guide).items():
            flat = torch.arange(start, start + shape.numel(), device=self.log_joint.like.device).reshape(shape)
            start += shape.numel()
            site = structure.sites.get(name)
            if site is not None:
                columns.append(torch.arange(site.start, site.stop, device=flat.device))
                places.append(self._by_datapoint(site, flat))
            elif name not in self.log_joint.program.condition or not isinstance(guide, FACTORISED):
                raise GuideMismatchError(
                    f"{type(guide).__name__} samples {name!r}, which the model does not have or is conditioned on. "
                    "Make it on the model without that site: "
                    f"{type(guide).__name__}(poutine.block(model, hide=[{name!r}]))"
                )
        empty = torch.zeros(self.num_datapoints, 0, dtype=torch.long, device=self.log_joint.like.device)
        return _Part(guide, torch.cat([empty[0], *columns]), torch.cat([empty, *places], -1))

    def _by_datapoint(self, site: Site, flat: Tensor) -> Tensor:
        """What belongs to each datapoint of a site, (N, size)."""
        if isinstance(self.log_joint, WholeLogJoint):
            flat = flat.unsqueeze(0)
        if flat.dim() > site.front:
            rows = flat.movedim(site.front, 0).reshape(flat.shape[site.front], -1)
            if rows.shape == (self.num_datapoints, site.stop - site.start):
                return rows
        raise GuideDataError(
            f"the AutoGuide's parameters of site {site.name!r} have shape {tuple(flat.shape)}, which does not fit "
            f"{self.num_datapoints} datapoints: it was made on other data. Make a new one for these data"
        )

    def _verify_sites(self) -> None:
        found = [name for part in self.parts for name in shapes(part.guide)]
        structure = self.log_joint.structure
        wanted = {*structure.continuous, *structure.sampled}
        missing, twice = sorted(wanted - set(found)), sorted({name for name in found if found.count(name) > 1})
        if missing or twice:
            raise GuideMismatchError(
                f"the AutoGuide misses {', '.join(map(repr, missing)) or 'nothing'} and has "
                f"{', '.join(map(repr, twice)) or 'nothing'} twice. It must have each of the model's continuous "
                "latent sites once, and leave out discrete ones, which are summed out"
            )

    def _verify_supports(self, data: Data) -> None:
        """The guide's map from u to a site is that of its first run: the model's own must be the same everywhere."""
        with pyro_rng(0, "autoguide supports"), torch.no_grad(), unvalidated():
            u = self.log_joint.draw_prior(data).u
            values = self.log_joint.terms(data, u=u).values
        whole = isinstance(self.log_joint, WholeLogJoint)
        for name, site, support in self._supports():
            raw = u[:, site.start : site.stop].reshape((len(u), *site.unconstrained_shape))
            raw = raw.squeeze(0) if whole else raw.movedim(0, site.front)
            value = values[name].squeeze(0) if whole else values[name]
            if not torch.allclose(biject_to(support)(raw), value, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise GuideMismatchError(
                    f"the support of latent site {name!r} depends on other latents, and an AutoGuide keeps that of its "
                    "first run, so its draws may lie outside. Write the guide by hand, or use am.fit_local"
                )

    def _supports(self) -> Iterator[tuple[str, Site, Any]]:
        for part in self.parts:
            for name in shapes(part.guide):
                if name in self.log_joint.structure.sites:
                    site = self.log_joint.structure.sites[name]
                    yield name, site, part.guide.prototype_trace.nodes[name]["fn"].support
