"""Posteriors against the gold standard: moments, Wasserstein-1 and a classifier, each with its error.

Letters: C chains, S draws a chain, K draws of q, N datapoints, D latents (u), M numbers of sites in their own space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from amortize.diagnostics.chains import Moments, chain_moments
from amortize.diagnostics.distances import Distance, wasserstein
from amortize.diagnostics.two_samples import c2st
from amortize.errors import ArgumentError, shown
from amortize.inference.chunks import slices
from amortize.inference.families.registry import family_of
from amortize.inference.local import LocalPosterior
from amortize.inference.method import MAX_ROWS
from amortize.inference.posterior_draws import as_latents
from amortize.inference.refinement import Refinement
from amortize.inference.starts import GuideStart
from amortize.program.data import Data
from amortize.program.density import LogJoint
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.random import check_seed, generator, stream_seed

if TYPE_CHECKING:
    from amortize.inference.gold import GoldStandard

__all__ = ["Posterior", "against"]

Posterior = Program | LocalPosterior | Refinement | Mapping[str, Any]

FEWEST_DRAWS, MOST_DRAWS = 100, 1000
"""Of each side, that a classifier is given."""


class _Numbers(NamedTuple):
    """``values`` (..., N, M) of continuous sites in their own space, and M ``names``."""

    values: np.ndarray
    names: list[str]


def against(
    gold: GoldStandard, log_joint: LogJoint, posteriors: Mapping[str, Posterior], *, num_draws: int, seed: int
) -> pd.DataFrame:
    """The table of ``GoldStandard.compare``."""
    if not isinstance(posteriors, Mapping) or not posteriors:
        raise ArgumentError(f"posteriors: expected a dict of posteriors by name, got {shown(posteriors)}")
    assert gold.data is not None
    data, seed = gold.data, stream_seed(check_seed(seed), "against")
    truth = _numbers(gold.draws, log_joint)
    exact = chain_moments(truth.values)
    parts = []
    for name, posterior in posteriors.items():
        u = _draws(str(name), posterior, log_joint, data, (num_draws, seed))
        sites = constrained(log_joint, data, torch.from_numpy(u), seed=stream_seed(seed, "sites", str(name)))
        numbers = _numbers(sites, log_joint)
        frame = _marginals(truth, exact, numbers.values)
        frame.insert(0, "posterior", str(name))
        accuracy = _told_apart(gold, u, seed)
        frame["c2st"], frame["c2st_se"] = (np.repeat(column, len(truth.names)) for column in accuracy.T)
        frame["trusted"] = np.repeat(gold.trusted, len(truth.names))
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _draws(name: str, posterior: Posterior, log_joint: LogJoint, data: Data, how: tuple[int, int]) -> np.ndarray:
    """Draws u (K, N, D) of a posterior, float64."""
    if isinstance(posterior, Program):
        u = _from_guide(name, posterior, log_joint, data, how)
    elif isinstance(posterior, LocalPosterior):
        u = _from_local(name, posterior, log_joint, data, how)
    elif isinstance(posterior, Refinement):
        u = _from_refined(name, posterior, log_joint, data, how)
    elif isinstance(posterior, Mapping):
        try:
            given = {site: np.array(value) for site, value in posterior.items()}  # which may be read-only
            u = as_latents(log_joint, data, given, seed=how[1]).u
        except ArgumentError as error:
            raise ArgumentError(f"posteriors[{name!r}]: {str(error).removeprefix('posterior_draws: ')}") from None
    else:
        raise ArgumentError(
            f"posteriors[{name!r}]: expected a Program, a LocalPosterior, a Refinement or a dict of draws, got "
            f"{shown(posterior)}"
        )
    result: np.ndarray = u.reshape(-1, data.num_datapoints, log_joint.dim).double().cpu().numpy()
    return result


def _from_guide(name: str, program: Program, log_joint: LogJoint, data: Data, how: tuple[int, int]) -> Tensor:
    (num_draws, seed), parts = how, []
    with program.evaluating(), torch.no_grad():
        start = GuideStart(program.guide_density(program.prepare(data)))
        _require_same(name, start.log_joint, log_joint)
        for block in slices(num_draws, max(1, MAX_ROWS // (data.num_datapoints * start.log_joint.num_tiles))):
            folded = data.fold(block.stop - block.start)
            parts.append(start.draw(folded, seed, f"guide-{name}-{block.start}").u)
    return torch.cat(parts)


def _from_local(name: str, local: LocalPosterior, log_joint: LogJoint, data: Data, how: tuple[int, int]) -> Tensor:
    (num_draws, seed), shape = how, (data.num_datapoints, log_joint.dim)
    if len(local.elbo) != shape[0] or not _same_data(local.data, data):
        raise ArgumentError(f"posteriors[{name!r}]: was fitted to other data; fit it on those of the gold standard")
    if not family_of(local.family, local.family_settings).has_density:
        return as_latents(log_joint, data, local.draws(num_draws, seed=seed), seed=seed).u
    density = local.density(torch.zeros(0, dtype=torch.float64))
    if density.shape != shape:
        raise ArgumentError(f"posteriors[{name!r}]: expected (N, D) = {shape}, got posteriors of shape {density.shape}")
    with torch.no_grad():
        return density.draw(num_draws, generator(seed, f"local-{name}"))


def _from_refined(name: str, refined: Refinement, log_joint: LogJoint, data: Data, how: tuple[int, int]) -> Tensor:
    num_draws, seed = how
    if not _same_data(refined.data, data):
        raise ArgumentError(f"posteriors[{name!r}]: was refined on other data; refine it on those of the gold standard")
    with refined.program.evaluating():
        _require_same(name, refined.program.log_joint(refined.data), log_joint)
    return as_latents(log_joint, data, refined.draws(num_draws, seed=seed), seed=seed).u


def _require_same(name: str, own: LogJoint, gold: LogJoint) -> None:
    """U means the same in both."""
    layouts = [
        [(site, joint.structure.sites[site].shape) for site in joint.structure.continuous] for joint in (own, gold)
    ]
    if layouts[0] != layouts[1] or own.dim != gold.dim:
        raise ArgumentError(
            f"posteriors[{name!r}]: expected the latents of the gold standard, {layouts[1]}, got {layouts[0]}"
        )


def _same_data(ours: Data | None, theirs: Data) -> bool:
    """Whether the tensors are the same, as far as the first are known."""
    if ours is None:
        return True
    pairs = list(zip(ours.leaves, theirs.leaves, strict=False))
    tensors = [(a.cpu(), b.cpu()) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return len(ours.leaves) == len(theirs.leaves) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in tensors
    )


def _numbers(draws: Mapping[str, np.ndarray], log_joint: LogJoint) -> _Numbers:
    """Continuous sites side by side."""
    values, names = [], []
    structure = log_joint.structure
    for site in structure.continuous:
        shape = structure.sites[site].shape
        array = draws[site]
        values.append(array.reshape(*array.shape[: array.ndim - len(shape)], -1))
        names += [_label(site, index) for index in np.ndindex(*shape)]
    return _Numbers(np.concatenate(values, -1).astype(np.float64), names)


def _label(site: str, index: tuple[int, ...]) -> str:
    return f"{site}[{','.join(map(str, index))}]" if index else site


def _marginals(truth: _Numbers, exact: Moments, values: np.ndarray) -> pd.DataFrame:
    """A row a (datapoint, latent): how ``values`` (K, N, M) differ from the truth."""
    chains, draws, num, count = truth.values.shape
    q = chain_moments(values[None])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = q.sd / exact.sd
        table = {
            "bias": (q.mean - exact.mean) / exact.sd,
            "bias_se": np.hypot(q.sd / np.sqrt(len(values)), exact.mean_se) / exact.sd,
            "sd_ratio": ratio,
            "sd_ratio_se": np.hypot(_independent_sd_se(values), ratio * exact.sd_se) / exact.sd,
        }
    distance = _distances(truth.values.reshape(chains * draws, num, count), values, exact)
    table |= {
        "wasserstein": distance.distance,
        "wasserstein_se": distance.se,
        "wasserstein_noise": distance.noise,
    }
    index = {"datapoint": np.repeat(np.arange(num), count), "latent": truth.names * num}
    return pd.DataFrame(index | {name: column.flatten() for name, column in table.items()})


def _independent_sd_se(values: np.ndarray) -> np.ndarray:
    """Standard error of the sd of independent draws (K, N, M): (N, M)."""
    square = (values - values.mean(0)) ** 2
    sd = values.std(0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = square.std(0) / (2 * sd * np.sqrt(len(values)))
    return np.asarray(np.where(sd > 0, error, 0.0))


def _distances(truth: np.ndarray, values: np.ndarray, exact: Moments) -> Distance:
    """Wasserstein-1 in the posterior's sds, (N, M) each; a datapoint at a time, for the sake of memory."""
    rows = [
        wasserstein(truth[:, n] / exact.sd[n], values[:, n] / exact.sd[n], first_size=exact.ess[n])
        for n in range(truth.shape[1])
    ]
    return Distance(*(np.stack(column) for column in zip(*rows, strict=True)))


def _told_apart(gold: GoldStandard, u: np.ndarray, seed: int) -> np.ndarray:
    """Accuracy and its error, (N, 2)."""
    flat = gold.u.astype(np.float64).reshape(-1, *gold.u.shape[2:])
    ess = np.minimum(gold.ess_bulk, gold.ess_tail).min(1)
    table = np.full((len(ess), 2), np.nan)
    for n in np.flatnonzero(ess >= FEWEST_DRAWS):
        count = int(min(ess[n], MOST_DRAWS, len(u), len(flat)))
        picked = np.linspace(0, len(flat) - 1, count).round().astype(int)
        table[n] = c2st(flat[picked, n], u[:count, n], seed=stream_seed(seed, "c2st"))
    return table
