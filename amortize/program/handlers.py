"""The messengers that read or steer one run of a program.

``Substitute`` and ``Score`` evaluate it: standing outermost, the one puts given values at the latent sites, the other
adds up log densities per datapoint. Letters: B rows (datapoints, or chains x datapoints folded into the batch), M
discrete variables of a datapoint, K values of each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Bernoulli, Independent, OneHotCategorical, biject_to, constraints
from torch.nn.functional import softplus

from amortize.errors import ContractError, DynamicStructureError, UnboundedDiscreteError
from amortize.program.masks import log_stand_in, mask_of
from amortize.program.sites import Site

__all__ = [
    "LogTerms",
    "Record",
    "Score",
    "Substitute",
    "atoms",
    "base_of",
    "choices_of",
    "chosen",
    "data_dim",
    "is_auxiliary",
    "is_deterministic",
    "is_subsample",
    "log_density",
    "log_factor",
    "per_row",
    "unmasked",
    "unvalidated",
    "user_scale",
]


@contextmanager
def unvalidated() -> Iterator[None]:
    """Pyro's and torch's validation off: a row outside its support is a value to report, not an exception."""
    with pyro.validation_enabled(False):
        yield


def log_density(fn: Any, value: Tensor) -> Tensor:
    """``fn.log_prob(value)``; Bernoulli as ``x * logits - softplus(logits)``, whose gradient needs no softplus."""
    if isinstance(fn, Independent):
        inner = log_density(fn.base_dist, value)
        dims = fn.reinterpreted_batch_ndims
        return inner.sum(tuple(range(-dims, 0))) if dims else inner
    if isinstance(fn, Bernoulli) and type(fn).log_prob is Bernoulli.log_prob:  # a user's subclass has its own
        return value * fn.logits - softplus(fn.logits)
    if isinstance(fn, OneHotCategorical) and value.requires_grad:  # torch's has no slope in a soft value
        return (value * fn.logits.clamp_min(torch.finfo(value.dtype).min)).sum(-1)
    result: Tensor = fn.log_prob(value)
    return result


class LogTerms:
    """Log densities of one run in nats: latents, observations and Jacobian (B,); ``outside`` the plate, a scalar.

    ``hidden`` (B,) by site is what stands in for the entries of latents that a mask hides, part of ``latent``, which
    ``by_site`` (B,) adds up to.
    """

    def __init__(self, num_rows: int, like: Tensor) -> None:
        zero = like.new_zeros(num_rows)
        self.latent, self.observed, self.jacobian = zero, zero, zero
        self.outside = like.new_zeros(())
        self.hidden: dict[str, Tensor] = {}
        self.by_site: dict[str, Tensor] = {}


class Score(Messenger):
    """Add up log densities per datapoint as the program runs; ``values`` and ``observed`` keep what was seen.

    Parameters
    ----------
    sites
        Latent sites by name, as discovered in the model.
    plate
        Name of the data plate.
    terms
        Where the log densities are added.
    hides
        Names of latents whose mask hides them.
    stands_in
        Whether a normal density over u stands in for what is hidden, or nothing.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        plate: str,
        terms: LogTerms,
        *,
        hides: Collection[str] = (),
        stands_in: bool = True,
    ) -> None:
        super().__init__()
        self.sites, self.plate, self.terms = sites, plate, terms
        self.hides, self.stands_in = hides, stands_in
        self.values: dict[str, Tensor] = {}
        self.observed: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg) or is_deterministic(msg):
            return
        log_prob, latent = log_factor(msg, self.sites, self.plate)
        dim = data_dim(msg, self.plate)
        if latent:
            self.values[msg["name"]] = msg["value"]
            mask = mask_of(msg) if msg["name"] in self.hides else None
            if mask is not None:
                log_prob = torch.where(mask, log_prob, 0.0) + self._stand_in(msg, mask, dim)
            self.terms.by_site[msg["name"]] = per_row(log_prob, dim)
            self.terms.latent = self.terms.latent + self.terms.by_site[msg["name"]]
            return
        self.observed[msg["name"]] = msg["fn"]
        if dim is None:
            self.terms.outside = self.terms.outside + log_prob.sum()
        else:
            self.terms.observed = self.terms.observed + per_row(log_prob, dim)

    def _stand_in(self, msg: dict[str, Any], mask: Tensor, dim: int | None) -> Tensor | float:
        if not self.stands_in:
            return 0.0
        stand_in = torch.where(mask, 0.0, log_stand_in(self.sites[msg["name"]], msg))
        self.terms.hidden[msg["name"]] = per_row(stand_in, dim)
        return stand_in


class Substitute(Messenger):
    """Put values at latent sites; what is given nowhere is left to the program.

    Parameters
    ----------
    sites
        Latent sites by name, as discovered in the model.
    terms
        Where the log-Jacobian is added.
    u
        (B, D) unconstrained latents, mapped by ``biject_to`` of the support the site has in this very run.
    values
        Constrained values by site name instead of ``u``.
    choices
        (B, M) indices into a discrete site's list of values, by site name.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        terms: LogTerms,
        *,
        u: Tensor | None = None,
        values: Mapping[str, Tensor] | None = None,
        choices: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sites, self.terms = sites, terms
        self.u, self.given, self.choices = u, values or {}, choices or {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        site = self.sites.get(msg["name"])
        if site is None or msg["done"] or msg["is_observed"] or is_subsample(msg):
            return
        if site.name in self.choices:
            msg["value"] = chosen(site, msg["fn"], self.choices[site.name])
        elif site.name in self.given:
            msg["value"] = self.given[site.name]
        elif self.u is not None and not site.discrete:
            msg["value"] = self._constrain(site, msg)
        else:
            return
        msg["done"] = True

    def _constrain(self, site: Site, msg: dict[str, Any]) -> Tensor:
        assert self.u is not None
        flat = self.u[:, site.start : site.stop].reshape((self.u.shape[0], *site.unconstrained_shape))
        raw = flat.movedim(0, site.front)
        transform = biject_to(msg["fn"].support)
        value: Tensor = transform(raw)
        jacobian = transform.log_abs_det_jacobian(raw, value)
        event = tuple(range(site.batch_ndim, jacobian.dim()))
        jacobian = jacobian.sum(event) if event else jacobian
        self.terms.jacobian = self.terms.jacobian + per_row(jacobian, site.data_dim)
        return value


def log_factor(msg: Mapping[str, Any], sites: Mapping[str, Site], plate: str) -> tuple[Tensor, bool]:
    """Log density at a site in nats, batch dimensions kept, and whether the site is a latent.

    A mask on a latent is left to the caller: what it hides enters no observation, and must be normalised.
    """
    latent = msg["name"] in sites
    if not latent and not msg["is_observed"]:
        raise DynamicStructureError(
            f"site {msg['name']!r} appeared that was not there when the program was read: its control flow depends "
            "on values. Make the set of sites fixed, for example with masks"
        )
    if latent:
        return log_density(unmasked(msg["fn"]), msg["value"]), True
    return _masked(log_density(msg["fn"], msg["value"]), msg["mask"]) * user_scale(msg, plate), False


def atoms(fn: Any) -> Tensor:
    """The values that each variable of a discrete distribution can take, (K, ...) with its event shape.

    A distribution over a vector of integers, whatever their dependence, has as many variables: (K,).

    Raises
    ------
    NotImplementedError
        If they cannot be listed.
    """
    inner = base_of(fn)
    if inner.event_shape and isinstance(inner.support, constraints.independent):
        each = inner.support.base_constraint
        if isinstance(each, constraints._IntegerInterval):
            return torch.arange(int(each.lower_bound), int(each.upper_bound) + 1)
    support: Tensor = inner.enumerate_support(expand=False)
    return support.reshape((len(support), *inner.event_shape))


def chosen(site: Site, fn: Any, choices: Tensor) -> Tensor:
    """The values of a discrete site at indices ``choices`` (B, M)."""
    index = choices.reshape((len(choices), *site.variables)).movedim(0, site.front)
    return _listed(site, fn)[index]


def _listed(site: Site, fn: Any) -> Tensor:
    try:
        table = atoms(fn)
    except NotImplementedError as error:
        raise UnboundedDiscreteError(
            f"the values of latent site {site.name!r} can be listed for the first datapoints but not for all: {error} "
            "Give every datapoint the same list of values, and those that can't be a probability of zero"
        ) from error
    if len(table) != site.cardinality:
        raise DynamicStructureError(
            f"latent site {site.name!r} takes {len(table)} values at some datapoints and {site.cardinality} at others. "
            "Give every datapoint the same list of values, and those that can't be a probability of zero"
        )
    return table


def choices_of(site: Site, fn: Any, value: Tensor) -> Tensor:
    """The indices (B, M) of a discrete site's values: the inverse of ``chosen``."""
    table = atoms(fn)
    event = table.dim() - 1
    same = value.unsqueeze(value.dim() - event) == table
    index = (same.flatten(-event).all(-1) if event else same).long().argmax(-1)
    return index.movedim(site.front, 0).reshape(index.shape[site.front], -1)


_KEPT = ("name", "fn", "value", "is_observed", "cond_indep_stack", "infer", "scale", "mask")


class Record(Messenger):
    """Keep each sample site's message as the program runs, latents and observations alike."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[str, dict[str, Any]] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if is_subsample(msg) or is_deterministic(msg):
            return
        if msg["name"] in self.messages:
            raise ContractError(
                f"two pyro.sample (or pyro.factor) statements of one run are named {msg['name']!r}; only one of them "
                "would count. Give each site a name of its own, in a loop for example f'z_{t}'"
            )
        self.messages[msg["name"]] = {key: msg[key] for key in _KEPT}


def is_subsample(msg: Mapping[str, Any]) -> bool:
    """Whether a site is a plate's choice of a subsample, which is no random variable of the model."""
    return isinstance(msg["fn"], _Subsample)


def is_deterministic(msg: Mapping[str, Any]) -> bool:
    """Whether a site is a ``pyro.deterministic`` statement: a name for a value, with no density of its own."""
    return bool(msg["infer"] and msg["infer"].get("_deterministic"))


def is_auxiliary(msg: Mapping[str, Any]) -> bool:
    """Whether a guide's observation is one that Pyro has marked as a term of the loss alone.

    Such are sites with ``infer={"is_auxiliary": True}``, and factors that say ``has_rsample=``, as those of guides
    must. They are trained with the guide and left out of its density.
    """
    fn = msg["fn"]
    if isinstance(fn, Unit):  # pyro.factor marks every factor as auxiliary, those of models too
        return "has_rsample" in vars(fn)
    return bool(msg["infer"] and msg["infer"].get("is_auxiliary"))


def base_of(fn: Any) -> Any:
    """The distribution under ``to_event`` and masks."""
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def unmasked(fn: Any) -> Any:
    """The distribution without its masks, under ``to_event`` too."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, Independent):
        return Independent(unmasked(fn.base_dist), fn.reinterpreted_batch_ndims)
    return fn


def data_dim(msg: Mapping[str, Any], plate: str) -> int | None:
    """Batch dimension (negative) of the data plate at a site, None outside it."""
    return next((frame.dim for frame in msg["cond_indep_stack"] if frame.name == plate), None)


def per_row(log_prob: Tensor, dim: int | None) -> Tensor:
    """Sum every batch dimension but the data plate's: (B,)."""
    axis = log_prob.dim() + dim if dim is not None else -1
    if axis < 0:
        return log_prob.sum()
    others = tuple(i for i in range(log_prob.dim()) if i != axis)
    return log_prob.sum(others) if others else log_prob


def _masked(log_prob: Tensor, mask: Any) -> Tensor:
    if mask is None:
        return log_prob
    result: Tensor = scale_and_mask(log_prob, 1.0, mask)  # type: ignore[no-untyped-call]
    return result


def user_scale(msg: Mapping[str, Any], plate: str) -> Any:
    """The user's own ``poutine.scale``: what is left when the data plate's subsampling is divided out."""
    scale = msg["scale"]
    for frame in msg["cond_indep_stack"]:
        if frame.name == plate and frame.full_size not in (None, frame.size) and frame.size:
            scale = scale / (frame.full_size / frame.size)
    if isinstance(scale, float) and abs(scale - 1.0) < 1e-12:
        return 1.0
    return scale
