"""Running a program on a whole data set, once for each row of latents.

Rows are vectorised by torch's ``vmap`` where that gives the same numbers as a loop; otherwise the loop runs, and
``why_loop`` says why. Letters: B rows (chains or draws), D unconstrained latents of the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.utils import _pytree as pytree

from amortize.program.data import Data
from amortize.program.density import JointTerms
from amortize.program.handlers import LogTerms, Record, Score, is_subsample, unvalidated
from amortize.program.sites import Site
from amortize.random import pyro_rng

__all__ = ["WHOLE", "WholeRunner", "vectorised_if_right"]

WHOLE = "whole data set"
"""What stands for the name of the data plate."""
PROBES = 3
MOST_NUMBERS = 2**24  # of data times rows in one vectorised run: bounds memory

Function = Callable[..., Any]


class _Put(Messenger):
    """Put the values of one run at the latent sites: from a row of u (D,), or constrained ones by name."""

    def __init__(self, sites: Mapping[str, Site], u: Tensor | None, values: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.sites, self.u, self.given = sites, u, values or {}
        self.jacobian: Tensor | float = 0.0

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        site = self.sites.get(msg["name"])
        if site is None or msg["done"] or msg["is_observed"] or is_subsample(msg):
            return
        if self.u is None:
            msg["value"] = self.given[site.name]
        else:
            raw = self.u[site.start : site.stop].reshape(site.unconstrained_shape)
            transform = biject_to(msg["fn"].support)
            msg["value"] = transform(raw)
            self.jacobian = self.jacobian + transform.log_abs_det_jacobian(raw, msg["value"]).sum()
        msg["done"] = True


@dataclass(frozen=True)
class WholeRunner:
    """Runs a model or guide on all the data, once for each of B rows, and adds up what it says of each.

    ``num_numbers`` is the size of the data, which bounds how many rows are run at once; ``why_loop`` is the reason for
    looping over rows, "" where they are vectorised. Draws are made one by one: vmap can't draw from all distributions.
    """

    function: Function
    sites: Mapping[str, Site]
    like: Tensor
    num_numbers: int
    why_loop: str = ""

    def rows(self, data: Data, *, u: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> JointTerms:
        """Densities at ``u`` (B, D), or at constrained ``values`` (B, ...) by site (no Jacobian then)."""
        if u is not None:
            prior, likelihood, jacobian, found = self._each(lambda row: self._run(data, row, None))(u)
        else:
            rows = {name: value for name, value in (values or {}).items() if name in self.sites}
            prior, likelihood, jacobian, found = self._each(lambda row: self._run(data, None, row))(rows)
        return JointTerms(prior, likelihood, jacobian, self.like.new_zeros(()), found, {})

    def draw(self, data: Data, *, pathwise: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values (B, ...) by site, and their log density (B,); draws from the global generators.

        Both have gradients in the function's parameters where ``pathwise``.
        """
        with torch.set_grad_enabled(pathwise):
            values, log_density = _looped(lambda _: self._draw(data), self.like.new_zeros(data.num_datapoints))
        return values, log_density

    def flatten(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        """U (B, D) of constrained ``values`` (B, ...); of a model."""
        u: Tensor = self._each(lambda row: self._flatten(data, row))(dict(values))
        return u

    def messages(self, data: Data, values: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """The message of each sample site of one run with constrained values (...) put in; the rest is drawn."""
        record = Record()
        given = {name: site for name, site in self.sites.items() if name in values}
        with unvalidated(), record, _Put(given, None, values):
            self.function(*data.args, **data.kwargs)
        return record.messages

    def _each(self, function: Function) -> Function:
        if self.why_loop:
            return functools.partial(_looped, function)
        size = max(1, MOST_NUMBERS // max(self.num_numbers, 1))
        vectorised: Function = torch.func.vmap(function, chunk_size=size)
        return vectorised

    def _run(self, data: Data, u: Tensor | None, values: Mapping[str, Tensor] | None) -> tuple[Any, ...]:
        terms = LogTerms(1, self.like)
        score, put = Score(self.sites, WHOLE, terms), _Put(self.sites, u, values)
        with unvalidated(), score, put:
            self.function(*data.args, **data.kwargs)
        latent = terms.latent.squeeze(0)
        jacobian = torch.zeros_like(latent) + put.jacobian
        return latent + jacobian, terms.outside + torch.zeros_like(latent), jacobian, score.values

    def _draw(self, data: Data) -> tuple[dict[str, Tensor], Tensor]:
        terms = LogTerms(1, self.like)
        score = Score(self.sites, WHOLE, terms)
        with unvalidated(), score:
            self.function(*data.args, **data.kwargs)
        return score.values, terms.latent.squeeze(0)

    def _flatten(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        messages = self.messages(data, values)
        free = [biject_to(messages[name]["fn"].support).inv(values[name]).flatten() for name in self.sites]
        return torch.cat([part.to(self.like) for part in free])


def _looped(function: Function, rows: Any) -> Any:
    """What ``vmap`` does, one row after the other."""
    leaves, tree = pytree.tree_flatten(rows)
    outcomes = [function(pytree.tree_unflatten(row, tree)) for row in zip(*leaves, strict=True)]
    _, tree = pytree.tree_flatten(outcomes[0])
    parts = zip(*(pytree.tree_leaves(outcome) for outcome in outcomes), strict=True)
    return pytree.tree_unflatten([torch.stack(part) for part in parts], tree)


def vectorised_if_right(runner: WholeRunner, data: Data) -> WholeRunner:
    """The runner with rows vectorised where that agrees with looping over them, and the reason where not."""
    few = data.fold(PROBES)
    looping, vectorised = replace(runner, why_loop="to compare with"), replace(runner, why_loop="")
    with pyro_rng(0, "vectorise"):
        drawn = looping.draw(few)[0]
    with torch.no_grad():
        truth = looping.rows(few, values=drawn)
        try:
            return replace(runner, why_loop=_difference(vectorised.rows(few, values=drawn), truth))
        except Exception as error:  # vmap may fail in any way that the user's code can; the loop is exact
            reason = f"vmap failed: {type(error).__name__}: {error}".strip().splitlines()[0]
            return replace(runner, why_loop=reason)


def _difference(ours: JointTerms, truth: JointTerms) -> str:
    tolerance = 1e-4 if truth.prior.dtype == torch.float32 else 1e-9
    for first, second in ((ours.prior, truth.prior), (ours.likelihood, truth.likelihood)):
        if not torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True):
            return f"vmap differs from a loop by up to {float((first - second).abs().nan_to_num().max()):.3g} nats"
    return ""
