r"""A program in training as distortion and rate: what an observation costs given its code, and what the code costs.

.. math:: D_n = -\log p(x_n | z_n), \qquad R_n = \mathrm{KL}(q(z | x_n) \,\|\, p(z)),
          \qquad \mathrm{ELBO}_n = -E_q[D_n] - R_n

The rate of a site is in closed form where torch knows the divergence of guide and model there and the guide draws after
all that the model's conditional may depend on, and is log q - log p of the draw elsewhere. A guide that is a point
(Delta) has no density: its rate is -log p(z), so that the ELBO becomes log p(x, z) at the point. Where discrete latents
are relaxed (`amortize.program.relaxing`), a rate is that of the discrete distributions, in closed form or at the
relaxed value, or that of the relaxations. Modules stay in the mode they are in. Letters: K particles, N datapoints, B =
K * N rows (particle-major), V variables of a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Bernoulli, Independent, OneHotCategorical, kl_divergence
from torch.nn.functional import softplus

from amortize.errors import ArgumentError, DiscreteLatentError
from amortize.program.data import Data
from amortize.program.guide_runs import require_path
from amortize.program.handlers import (
    LogTerms,
    Record,
    Substitute,
    base_of,
    data_dim,
    log_density,
    log_factor,
    per_row,
    unmasked,
    unvalidated,
)
from amortize.program.masks import log_stand_in, mask_of
from amortize.program.program import Program
from amortize.program.relaxing import Relax
from amortize.program.runtime import filled_plates
from amortize.program.sites import Site, Structure

__all__ = ["RatedRun", "require_rates"]

Message = Mapping[str, Any]


class RatedRun(NamedTuple):
    """One draw of the guide for each row, with gradients; densities in nats.

    ``values`` (B, ...) by latent site (data axis where the site has it), ``distortion`` (B,), ``rates`` (B, V) by site,
    V = 1 where the divergence does not fall apart into variables; ``outside`` the plate and ``auxiliary`` terms of the
    guide's loss alone are scalars, of the batch as a whole.
    """

    values: dict[str, Tensor]
    distortion: Tensor
    rates: dict[str, Tensor]
    outside: Tensor
    auxiliary: Tensor

    @property
    def rate(self) -> Tensor:
        """Of all sites together, (B,)."""
        total = torch.zeros_like(self.distortion)
        for rate in self.rates.values():
            total = total + rate.sum(-1)
        return total

    @classmethod
    def of(
        cls,
        program: Program,
        structure: Structure,
        data: Data,
        num_particles: int = 1,
        *,
        relax: Relax | None = None,
    ) -> RatedRun:
        """Run guide and model on a batch; draws from the global generators.

        ``relax`` draws the guide's discrete sites.
        """
        folded = data.fold(num_particles)
        drawn, recorded = Record(), Record()
        assert program.guide is not None
        relaxing = nullcontext() if relax is None else program.relaxing(relax)
        soft = {} if relax is None else relax.drawn
        with unvalidated(), filled_plates(program):
            with drawn, relaxing:
                program.guide(*folded.args, **folded.kwargs)
            messages = {name: msg for name, msg in drawn.messages.items() if name in structure.sites}
            for name, msg in messages.items():
                require_path(name, msg["fn"], pathwise=name not in soft)
            values = {name: msg["value"] for name, msg in messages.items()}
            like = next(iter(values.values()), data.index.new_zeros((), dtype=structure.dtype)).new_zeros(())
            put = Substitute(structure.sites, LogTerms(folded.num_datapoints, like), values=values)
            with recorded, put:
                program.trained_model(*folded.args, **folded.kwargs)
        closed = _drawn_in_order(list(messages), [name for name in recorded.messages if name in messages])
        rates = {}
        for name, msg in messages.items():
            model = recorded.messages[name]
            if relax is not None and relax.relaxed_rates and name in soft:
                each = soft[name].log_ratio(name, unmasked(model["fn"]), relax.prior_temperature)
                rates[name] = _rows(each, structure.sites[name])
            else:
                rates[name] = _rate(msg, model, structure, closed=name in closed)
        log_likelihood, outside = _observed(recorded.messages, structure, folded.num_datapoints, like)
        aside = [log_density(m["fn"], m["value"]).sum() for m in drawn.messages.values() if m["is_observed"]]
        auxiliary = torch.stack(aside).sum() / num_particles if aside else like
        return cls(values, -log_likelihood, rates, outside, auxiliary)


def require_rates(program: Program, structure: Structure, *, relaxed: bool = False) -> None:
    """What the split into distortion and rate needs of a program, whose discrete latents may be ``relaxed``.

    Raises
    ------
    ArgumentError
        Of AutoGuides, guides with parameters per datapoint, and programs taken as a whole.
    DiscreteLatentError
        If latents are discrete and summed out.
    """
    guide = program.guide
    if program.bound is not None or program.whole or (guide is not None and guide.per_datapoint):
        raise ArgumentError(
            "objective: distortion and rate are those of an amortized guide; for AutoGuides, parameters per datapoint "
            "and whole=True train by objective='elbo'"
        )
    if structure.discrete and not relaxed:
        raise DiscreteLatentError(
            f"the model has the discrete latent {structure.discrete[0]!r}, and this objective differentiates through "
            "draws of every latent. Relax it, objective='concrete-elbo', or train by objective='enum-elbo', "
            "'wake-sleep' or 'graph-elbo'"
        )


def _observed(
    messages: Mapping[str, Message], structure: Structure, num_rows: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Log likelihood (B,) inside the plate, and what stands outside of it."""
    inside, outside = like.new_zeros(num_rows), like
    for name, msg in messages.items():
        if name in structure.sites:
            continue
        log_prob, _ = log_factor(msg, structure.sites, structure.plate)
        dim = data_dim(msg, structure.plate)
        if dim is None:
            outside = outside + log_prob.sum()
        else:
            inside = inside + per_row(log_prob, dim)
    return inside, outside


def _drawn_in_order(guide: list[str], model: list[str]) -> set[str]:
    """Latents for which the model's conditional is fixed when the guide draws them.

    Elsewhere - a guide that goes from the data up, a model from the top down - it hangs on what the guide draws from
    the latent itself, and the mean over that draw is no mean of divergences.
    """
    return {name for place, name in enumerate(model) if set(model[:place]) <= set(guide[: guide.index(name)])}


def _rate(guide: Message, model: Message, structure: Structure, *, closed: bool) -> Tensor:
    """Of one site, (B, V)."""
    site = structure.sites[model["name"]]
    q, p = unmasked(guide["fn"]), unmasked(model["fn"])
    if isinstance(base_of(q), Delta):
        each = -_elementwise(p, guide["value"])
    else:
        known = _divergence(q, p) if closed else None
        each = _sampled(q, p, guide["value"]) if known is None else known
    mask = mask_of(model) if site.name in structure.hidden else None
    if mask is not None and mask_of(guide) is None:  # the guide pays for what the model hides: see masks.py
        stand_in = log_density(q, guide["value"]) - log_stand_in(site, model)
        each = torch.where(mask, _summed(each, site.batch_ndim), stand_in)
    elif mask is not None:
        each = torch.where(mask.reshape(*mask.shape, *[1] * (each.dim() - mask.dim())), each, 0.0)
    return _rows(each, site)


def _rows(each: Tensor, site: Site) -> Tensor:
    """Rates with the data axis first, variables behind it: (B, V)."""
    return each.movedim(site.front, 0).reshape(each.shape[site.front], -1)


def _divergence(q: Any, p: Any) -> Tensor | None:
    """In closed form, variable by variable where both fall apart; None where it is not known."""
    if _fall_apart(q, p):
        q, p = q.base_dist, p.base_dist
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        return q.probs * (q.logits - p.logits) - softplus(q.logits) + softplus(p.logits)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _sampled(q: Any, p: Any, value: Tensor) -> Tensor:
    """Log q - log p at a value, variable by variable where both fall apart."""
    if _fall_apart(q, p):
        return _elementwise(q, value) - _elementwise(p, value)
    return _log_mass(q, value) - _log_mass(p, value)


def _fall_apart(q: Any, p: Any) -> bool:
    """Whether both are independent over the same event dimensions."""
    both = isinstance(q, Independent) and isinstance(p, Independent)
    return both and bool(q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims)


def _elementwise(fn: Any, value: Tensor) -> Tensor:
    """Log density at a value, event dimensions that are independent kept."""
    return _log_mass(fn.base_dist if isinstance(fn, Independent) else fn, value)


def _log_mass(fn: Any, value: Tensor) -> Tensor:
    """Log density at a value; a soft one-hot value takes its share of each category, as a soft bit does."""
    if isinstance(fn, Independent):
        inner = _log_mass(fn.base_dist, value)
        dims = fn.reinterpreted_batch_ndims
        return inner.sum(tuple(range(-dims, 0))) if dims else inner
    if isinstance(fn, OneHotCategorical):
        return (value * fn.logits.clamp_min(torch.finfo(value.dtype).min)).sum(-1)
    return log_density(fn, value)


def _summed(value: Tensor, batch_ndim: int) -> Tensor:
    """Over what comes after the batch dimensions."""
    return value.flatten(batch_ndim).sum(-1) if value.dim() > batch_ndim else value
