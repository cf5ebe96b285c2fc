r"""The guide's latents one dimension at a time: what each one costs, and whether it says anything of the datapoint.

.. math:: \mathrm{kl}_d = \frac1N \sum_n E_{q(\cdot | x_n)}[\log q(z_d | \cdot) - \log p(z_d | \cdot)], \qquad
          \mathrm{activity}_d = \frac{\mathrm{Var}_n\, E_q[u_{nd}]}{\mathrm{Var}\, p(u_d)}

A dimension is active if its posterior mean moves with the data (Burda, Grosse and Salakhutdinov 2016, who take a prior
of variance one). Letters: S draws, N datapoints, D latents, B = S * N rows (draw-major).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Independent

from amortize.errors import check_count
from amortize.inference.method import MAX_ROWS
from amortize.inference.starts import GuideStart, PriorStart
from amortize.program.data import Data
from amortize.program.guide import GuideDensity, TracedGuide
from amortize.program.handlers import Record, unvalidated
from amortize.program.operands import require_program
from amortize.program.points import has_density
from amortize.program.program import Program
from amortize.program.sites import Site, Structure
from amortize.random import check_seed, pyro_rng, stream_seed

__all__ = ["ACTIVE", "COLUMNS", "latents"]

ACTIVE = 0.01
"""Activity above which a dimension is active."""
COLUMNS = ["site", "index", "kl", "kl_se", "kind", "activity", "active"]

Vector = NDArray[np.float64]


def latents(program: Program, x: Any, *, num_draws: int = 200, seed: int = 0) -> pd.DataFrame | None:
    """What each latent dimension costs, and whether it is active.

    Parameters
    ----------
    program, x
        The program and N datapoints.
    num_draws
        S, draws of the guide a datapoint.
    seed
        Of all draws.

    Returns
    -------
    pandas.DataFrame or None
        A row a dimension of u: ``site`` and ``index`` in it, ``kl`` (nats, mean over datapoints) with ``kl_se`` (over
        datapoints), ``kind``, ``activity`` (the variance over datapoints of the posterior mean in u, less Monte Carlo
        noise, as a share of the prior's variance) and ``active`` (activity above `ACTIVE`). None without a guide, with
        one that is a point, or without continuous latents. ``kind`` is "density" where guide and prior have a density
        for each element: then ``kl`` is exact but for noise, and those of a site add up to its KL divergence.
        It is "moments" elsewhere: the KL divergence between Gaussians with the moments of u under guide and prior.

    Examples
    --------
    >>> import amortize as am
    >>> model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    >>> model.set_best_encoder()
    >>> latents(model.program(), model.simulate(50))["active"].tolist()
    [True, True]
    """
    require_program(program)
    num_draws = check_count("num_draws", num_draws, 2)
    seed = stream_seed(check_seed(seed), "latents")
    data = program.prepare(x)
    structure = program.structure(data)
    if not structure.dim or not has_density(program, data):
        return None
    with program.evaluating():
        guide = program.guide_density(data)
        u = _draws(GuideStart(guide), data, num_draws, seed, "guide")
        prior = _draws(PriorStart(guide.log_joint), data, num_draws, seed, "prior").reshape(-1, structure.dim)
        terms = _terms_by_site(program, guide, data, num_draws, seed)
    kl = _kl_of_moments(u, prior)
    kind = np.full(structure.dim, "moments", dtype=object)
    for name, values in terms.items():
        own = slice(structure.sites[name].start, structure.sites[name].stop)
        kl[:, own], kind[own] = values, "density"
    activity = _activity(u, prior)
    places = [(name, index) for name in structure.continuous for index in range(_size(structure.sites[name]))]
    columns = {
        "site": [name for name, _ in places],
        "index": [index for _, index in places],
        "kl": kl.mean(0),
        "kl_se": kl.std(0, ddof=1) / np.sqrt(len(kl)) if len(kl) > 1 else np.full(structure.dim, np.nan),
        "kind": kind,
        "activity": activity,
        "active": activity > ACTIVE,
    }
    return pd.DataFrame(columns, columns=COLUMNS).rename_axis("dimension")


def _draws(start: GuideStart | PriorStart, data: Data, num_draws: int, seed: int, stream: str) -> Vector:
    """Draws of u, (S, N, D) float64."""
    parts = []
    size = max(1, MAX_ROWS // data.num_datapoints)
    for first in range(0, num_draws, size):
        count = min(size, num_draws - first)
        u = start.draw(data.fold(count), seed, f"{stream}-{first}").u
        parts.append(u.reshape(count, data.num_datapoints, -1).double().cpu().numpy())
    return np.concatenate(parts)


def _kl_of_moments(u: Vector, prior: Vector) -> Vector:
    """KL divergence between Gaussians with the moments of the draws, (N, D) nats."""
    loc, variance = u.mean(0), u.var(0, ddof=1)
    prior_loc, prior_variance = prior.mean(0), prior.var(0, ddof=1)
    ratio = variance / prior_variance
    with np.errstate(divide="ignore"):  # draws that are all the same have no density
        return np.asarray(0.5 * (ratio + (loc - prior_loc) ** 2 / prior_variance - 1 - np.log(ratio)))


def _activity(u: Vector, prior: Vector) -> Vector:
    """Variance of the posterior means over that of the prior, (D,); NaN for one datapoint."""
    if u.shape[1] < 2:
        return np.full(u.shape[2], np.nan)
    noise = u.var(0, ddof=1).mean(0) / len(u)
    return np.asarray((u.mean(0).var(0, ddof=1) - noise) / prior.var(0, ddof=1))


@torch.no_grad()
def _terms_by_site(program: Program, guide: GuideDensity, data: Data, num_draws: int, seed: int) -> dict[str, Vector]:
    """Mean of log q - log p of each element, (N, elements) nats, of the sites where both have one."""
    structure = guide.log_joint.structure
    if not isinstance(guide, TracedGuide) or structure.discrete:  # a discrete latent would have to be summed out
        return {}
    size = max(1, MAX_ROWS // (data.num_datapoints * guide.log_joint.num_tiles))
    totals: dict[str, Vector] = {}
    names = [name for name in structure.continuous if name not in (*structure.hidden, *structure.scaled)]
    for first in range(0, num_draws, size):
        count = min(size, num_draws - first)
        found = _elements(program, guide, data.fold(count), names, stream_seed(seed, "terms", first))
        for name, values in found.items():
            summed = values.reshape(count, data.num_datapoints, -1).double().sum(0).cpu().numpy() / num_draws
            totals[name] = totals.get(name, 0.0) + summed
    return totals


def _elements(program: Program, guide: TracedGuide, rows: Data, names: list[str], seed: int) -> dict[str, Tensor]:
    """Log q - log p of each element, (B, elements), at one draw of the guide a row."""
    structure: Structure = guide.log_joint.structure
    assert program.guide is not None
    record = Record()
    with pyro_rng(seed, "guide"), unvalidated(), record:
        program.guide(*rows.args, **rows.kwargs)
    values = {name: record.messages[name]["value"] for name in structure.continuous}
    with pyro_rng(seed, "model"):
        joint = guide.log_joint.messages(rows, values)
    found = {}
    for name in names:
        site, value = structure.sites[name], values[name]
        own, prior = _element_log_prob(record.messages[name]["fn"], value), _element_log_prob(joint[name]["fn"], value)
        if own is None or prior is None or site.shape != site.unconstrained_shape:
            continue
        found[name] = (own - prior).expand(value.shape).movedim(site.front, 0).reshape(rows.num_datapoints, -1)
    return found


def _element_log_prob(fn: Distribution, value: Tensor) -> Tensor | None:
    """The log density of each element of a value, None where the distribution has none."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return None if fn.event_shape else fn.log_prob(value)


def _size(site: Site) -> int:
    return site.stop - site.start
