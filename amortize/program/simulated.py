r"""Data drawn from a program, put into its arguments, together with the latents that made them.

.. math:: (x, z) \sim p(x, z) \quad\Rightarrow\quad z \sim p(z \mid x) \text{ exactly}

which is what upper bounds on log p(x) need. It holds only if the model draws x and z in the very way in which it
scores them. So a model whose later sites read earlier observations in the data is run again, with the same random
numbers, until all of its sites have seen the simulated data; and one whose sites read what they observe themselves (a
prior that depends on the observed x) is refused, as are factors and scaled likelihoods.

Letters: N datapoints, D continuous latents, M sampled discrete variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from amortize.errors import ReplayError
from amortize.program.data import Data
from amortize.program.handlers import log_density
from amortize.program.replay import (
    Messages,
    Places,
    locate,
    observed_names,
    placed,
    put,
    reads_shared,
    run_held,
    seen_entries,
)
from amortize.program.sites import Structure
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import Latents, LogJoint
    from amortize.program.program import Program

__all__ = [
    "Simulated",
    "drawn_until_settled",
    "exact_latents",
    "latents_by_row",
    "replaced",
    "shares_observations",
    "simulated",
]


class Simulated(NamedTuple):
    """Simulated ``data``, and the values of latent and observed sites behind them, as the model has them."""

    data: Data
    latents: dict[str, Tensor]
    observed: dict[str, Tensor]


def replaced(program: Program, data: Data, observed: Mapping[str, Tensor]) -> Data:
    """The data with other values of the observed sites, verified: each site then sees them.

    Parameters
    ----------
    program, data
        The program and its data.
    observed
        For each observed site a tensor in the shape that its value has in the model. What a mask hides is left as it is
        in the data.

    Raises
    ------
    ReplayError
        Where they can't be put back; the message names the site and the way out.
    """
    with program.evaluating():
        structure = program.structure(data)
        return put(program, structure, data, observed, locate(program, structure, data))


def simulated(program: Program, data: Data, *, seed: int) -> Simulated:
    """Draw latents and observations from the model, shaped like ``data``, and put the observations into the data.

    Raises
    ------
    ReplayError
        Where the model can't be simulated exactly; the message names the site and the way out.
    """
    with program.evaluating():
        structure = program.structure(data)
        _refuse_scaled(structure)
        places = _located(program, structure, data)
        drawn, settled = drawn_until_settled(program, structure, data, places, seed=seed)
        _verify_order(program, data, drawn, places)
        if not settled:
            raise ReplayError(_reads_itself(next(iter(drawn.observed))))
    return drawn


def drawn_until_settled(
    program: Program, structure: Structure, data: Data, places: Places, *, seed: int
) -> tuple[Simulated, bool]:
    """Draw, again with the same random numbers until all sites have seen the simulated data; and whether they have."""
    drawn = _draw(program, structure, data, data, places, seed)
    for _ in range(len(drawn.observed) + 1):
        before, drawn = drawn, _draw(program, structure, data, drawn.data, places, seed)
        if all(_same(value, before.observed[name]) for name, value in drawn.observed.items()):
            return drawn, True
    return drawn, False


def latents_by_row(program: Program, drawn: Simulated) -> dict[str, Tensor]:
    """The latents with an axis of datapoints, which a whole data set has too: one."""
    return {name: value.unsqueeze(0) for name, value in drawn.latents.items()} if program.whole else drawn.latents


def _draw(program: Program, structure: Structure, data: Data, given: Data, places: Places, seed: int) -> Simulated:
    """Draw given data, and put the observations into the real ones."""
    names = observed_names(program, structure)
    messages = run_held(program, given, seed=seed, draws=names)
    observed = {name: messages[name]["value"] for name in names}
    latents = {name: messages[name]["value"] for name in structure.sites}
    return Simulated(put(program, structure, data, observed, places), latents, observed)


def exact_latents(log_joint: LogJoint, drawn: Simulated, *, seed: int) -> Latents:
    """The latents of simulated data, exact draws of their posterior: u (N, D) and choices (N, M).

    What a mask hides is drawn from what stands in for it.
    """
    values = latents_by_row(log_joint.program, drawn)
    with pyro_rng(seed, "stand-in"), torch.no_grad():
        return log_joint.unconstrain(drawn.data, values, redraw=log_joint.structure.hidden)[0]


def shares_observations(program: Program, data: Data) -> bool:
    """Whether simulated data can't be folded: observations lie in arguments that all datapoints share, or may."""
    if program.whole or program.replace is not None:
        return True
    with program.evaluating():
        return reads_shared(data, _located(program, program.structure(data), data))


def _located(program: Program, structure: Structure, data: Data) -> Places:
    """Refuse what can't be drawn first: that is the better reason."""
    run_held(program, data, seed=0, draws=observed_names(program, structure))
    return locate(program, structure, data)


def _refuse_scaled(structure: Structure) -> None:
    if structure.scaled:
        raise ReplayError(
            f"poutine.scale multiplies the log likelihood of {structure.scaled[0]!r}, which is then no distribution "
            "that data could be drawn from. Take the scale off"
        )


def _verify_order(program: Program, data: Data, drawn: Simulated, places: Places) -> None:
    """Sites may read what was observed before them, never what they observe themselves or what comes later.

    Log densities of all sites at the simulated values, given the simulated data, must be those given data in which
    what a site may not read is something else: the real observations, and the simulated ones in another order.
    """
    truth = _densities(program, drawn.data, drawn)
    real = run_held(program, data, seed=0)
    others = [{name: real[name]["value"] for name in drawn.observed}]
    others += [{name: value.flatten().roll(1).reshape(value.shape) for name, value in drawn.observed.items()}]
    for other in others:
        if _difference(truth, _densities(program, placed(program, data, other, places), drawn)):
            _verify_each(program, data, drawn, places, (truth, other))


def _verify_each(
    program: Program,
    data: Data,
    drawn: Simulated,
    places: Places,
    compared: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    """Site by site: nothing up to it reads what it observes."""
    truth, other = compared
    names, sites = list(drawn.observed), list(truth)
    for place, name in enumerate(names):
        known = {earlier: drawn.observed[earlier] for earlier in names[:place]}
        seen = _densities(program, placed(program, data, other | known, places), drawn)
        upto = sites[: sites.index(name) + 1]
        differs = _difference({site: truth[site] for site in upto}, seen)
        if differs:
            raise ReplayError(_reads_itself(name, differs))


def _difference(truth: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first site whose log density differs, "" where none does."""
    return next((site for site, value in truth.items() if not _same(value, found[site])), "")


def _densities(program: Program, data: Data, drawn: Simulated) -> dict[str, Tensor]:
    """Log density of each site at the simulated values, its distribution that of the data, in the order of the run."""
    messages: Messages = run_held(program, data, seed=0, values=drawn.latents)
    result = {}
    for name, msg in messages.items():
        if name in drawn.latents:
            result[name] = _log_density(msg, drawn.latents[name])
        elif name in drawn.observed:
            value = drawn.observed[name]
            kept = seen_entries({**msg, "value": value})
            result[name] = _log_density(msg, torch.where(kept, value, msg["value"].nan_to_num()))
            result[name] = _where_seen(result[name], kept)
    return result


def _log_density(msg: Mapping[str, Any], value: Tensor) -> Tensor:
    with torch.no_grad():
        return log_density(msg["fn"], value)


def _where_seen(log_prob: Tensor, kept: Tensor) -> Tensor:
    """Zero where a mask hides all of a value."""
    event = tuple(range(log_prob.dim(), kept.dim()))
    seen = kept.any(event) if event else kept
    return torch.where(seen, log_prob, 0.0) if seen.shape == log_prob.shape else log_prob


def _same(first: Tensor, second: Tensor) -> bool:
    if not first.is_floating_point():
        return torch.equal(first, second)
    return torch.allclose(first, second, rtol=1e-5, atol=1e-5, equal_nan=True)


def _reads_itself(name: str, other: str = "") -> str:
    reader = f"site {other!r}, which comes before it," if other not in {"", name} else "its own distribution"
    return (
        f"observed site {name!r}: {reader} reads the entries of the data that {name!r} observes, so the model does not "
        "draw its data in the way in which it scores them, and no exact draw of its posterior is known. Give what is "
        "read there as an argument of its own; or, for a sequence, observe one step a site"
    )
