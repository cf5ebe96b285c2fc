"""Which family a guide's posteriors belong to, read off the distributions at its sites.

The families are those of local posteriors: Gaussians over u, the model's unconstrained coordinates. A guide
is in one of them if each of its sites is a Gaussian pushed through the model's own map from u to the site's
support, whose mean and scale don't depend on other sites; automatic guides say themselves. A diagonal and D - 1
directions reach every covariance of D latents, so that low rank means fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Transform,
    TransformedDistribution,
    biject_to,
)
from torch.distributions.transforms import IndependentTransform

from amortize.program.auto_guide import EncoderGuide
from amortize.program.autoguide import AutoDensity
from amortize.program.data import Data
from amortize.program.guide import TracedGuide
from amortize.program.handlers import Record, unvalidated
from amortize.program.program import Program
from amortize.random import pyro_rng

__all__ = ["GuideFamily", "guide_family", "read_guide_family"]

_HEAD = 3
_DRAWS = 2


class GuideFamily(NamedTuple):
    """The name of a guide's family, None where it is none of those of local posteriors; the rank of "low-rank"."""

    name: str | None
    rank: int | None = None


class _Gaussian(NamedTuple):
    """A site that is Gaussian in u: its base, and the tensors to compare between two draws."""

    base: Distribution
    parameters: tuple[Tensor, ...]


def guide_family(program: Program, x: Any) -> str | None:
    """Tell the guide's family over u.

    Parameters
    ----------
    program
        A program with a guide.
    x
        Data; a few datapoints are looked at.

    Returns
    -------
    str or None
        "mean-field" if every site is a diagonal Gaussian and they are independent; "low-rank" or "full-covariance" if
        one site with a multivariate Gaussian is all there is; None otherwise.

    Raises
    ------
    ContractError
        The program breaks its contract, or has no guide.

    Examples
    --------
    >>> import amortize as am
    >>> model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    >>> x = model.simulate(4)
    >>> guide_family(model.program("linear"), x), guide_family(model.program("exact"), x)
    ('mean-field', 'full-covariance')
    """
    return read_guide_family(program, x).name


def read_guide_family(program: Program, x: Any) -> GuideFamily:
    """The same, with the rank of a low-rank guide."""
    data = program.prepare(x)
    with program.evaluating():
        guide = program.guide_density(data)
        if isinstance(guide, AutoDensity):
            return _of_autoguide(guide)
        if isinstance(guide, TracedGuide) and any(site.discrete for site in guide.sites.values()):
            return GuideFamily(None)  # over u it is a mixture
        function = None if program.guide is None else program.guide.function
        if isinstance(function, EncoderGuide):
            return _of_encoder(function, guide.log_joint.dim)
        sites = {name: guide.log_joint.structure.sites[name] for name in guide.log_joint.structure.continuous}
        head = data.rows(slice(0, min(data.num_datapoints, _HEAD)))
        draws = [_gaussian_sites(program, sites, head, number) for number in range(_DRAWS)]
    if any(sites is None for sites in draws):
        return GuideFamily(None)
    first, second = (sites for sites in draws if sites is not None)
    if not all(_same(first[name], second[name]) for name in first):
        return GuideFamily(None)  # a site's mean or scale depends on another site's value
    if all(isinstance(site.base, Normal) for site in first.values()):
        return GuideFamily("mean-field")
    only, dim = next(iter(first.values())).base, guide.log_joint.dim
    if len(first) > 1 or only.event_shape.numel() != dim:
        return GuideFamily(None)
    return _of_rank(only.cov_factor.shape[-1] if isinstance(only, LowRankMultivariateNormal) else dim, dim)


def _of_rank(rank: int, dim: int) -> GuideFamily:
    """Gaussians with a diagonal and so many directions beside it."""
    return GuideFamily("low-rank", rank) if rank < dim - 1 else GuideFamily("full-covariance")


def _of_autoguide(guide: AutoDensity) -> GuideFamily:
    return GuideFamily(guide.family) if guide.rank is None else _of_rank(guide.rank, guide.log_joint.dim)


def _of_encoder(guide: EncoderGuide, dim: int) -> GuideFamily:
    """What an automatic guide was made as; flows are none of the local ones, whose networks differ."""
    if guide.encoder is None or guide.family not in ("mean-field", "low-rank", "full-covariance"):
        return GuideFamily(None)
    return _of_rank(guide.encoder.rank, dim) if guide.family == "low-rank" else GuideFamily(guide.family)


def _gaussian_sites(program: Program, sites: Mapping[str, Any], head: Data, number: int) -> dict[str, _Gaussian] | None:
    record = Record()
    assert program.guide is not None
    with pyro_rng(0, "guide family", number), unvalidated(), torch.no_grad(), record:
        program.guide(*head.args, **head.kwargs)
    drawn = {name: record.messages[name] for name in sites}
    values = {
        name: message["value"].unsqueeze(0) if program.whole else message["value"] for name, message in drawn.items()
    }
    with pyro_rng(0, "guide family", "model", number):  # it draws the discrete latents that have no value
        joint = program.log_joint(head).messages(head, values)
    found = {name: _as_gaussian(drawn[name]["fn"], joint[name]["fn"].support) for name in sites}
    gaussian = {name: site for name, site in found.items() if site is not None}
    return gaussian if len(gaussian) == len(found) else None


def _as_gaussian(fn: Distribution, support: Any) -> _Gaussian | None:
    base, transforms = _unwrap(fn)
    outer = _flatten([biject_to(support)])
    inner = transforms[: len(transforms) - len(outer)]  # acts on u, where an affine map keeps a Gaussian diagonal
    moves = [transform for transform in inner if isinstance(transform, AffineTransform)]
    if len(moves) < len(inner) or transforms[len(inner) :] != outer:
        return None
    shifts = tuple(torch.as_tensor(part) for move in moves for part in (move.loc, move.scale))
    if isinstance(base, Normal):
        return _Gaussian(base, (base.loc, base.scale, *shifts))
    if isinstance(base, MultivariateNormal | LowRankMultivariateNormal):
        return _Gaussian(base, (base.loc, base.covariance_matrix, *shifts))
    return None


def _unwrap(fn: Distribution) -> tuple[Distribution, list[Transform]]:
    """Base distribution of independent and transformed ones, and the transforms from it outwards."""
    if isinstance(fn, Independent):
        return _unwrap(fn.base_dist)
    if isinstance(fn, TransformedDistribution):
        base, inner = _unwrap(fn.base_dist)
        return base, inner + _flatten(fn.transforms)
    return fn, []


def _flatten(transforms: list[Transform]) -> list[Transform]:
    return list(chain.from_iterable(_parts(transform) for transform in transforms))


def _parts(transform: Transform) -> list[Transform]:
    if isinstance(transform, ComposeTransform):
        return _flatten(transform.parts)
    if isinstance(transform, IndependentTransform):
        return _parts(transform.base_transform)
    return [] if _is_identity(transform) else [transform]


def _is_identity(transform: Transform) -> bool:
    """Whether it does nothing: ``biject_to`` of a positive support ends by adding 0 and multiplying by 1."""
    if not isinstance(transform, AffineTransform):
        return False
    return bool((torch.as_tensor(transform.loc) == 0).all() and (torch.as_tensor(transform.scale) == 1).all())


def _same(first: _Gaussian, second: _Gaussian) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))
