"""Where mixtures begin: Gaussians far apart, each fitted alone, joined by weights.

Letters: S draws, N datapoints, D latents, K components, M Gaussians to choose them from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from amortize.inference.families.density import GaussianDensity
from amortize.inference.families.family import NARROW, Fit, Parameters, Problem, Trace
from amortize.inference.families.gaussian import FullCovariance
from amortize.inference.families.values import values
from amortize.inference.families.watch import chained
from amortize.inference.starts import GaussianStart, PriorStart, Start
from amortize.random import generator, stream_seed

__all__ = ["Mixed", "begun"]

TRIES = 2
"""Gaussians that are fitted for each that a mixture has, beyond the first: modes are missed by chance."""
PLACES = 256
PLAUSIBLE = 0.25
"""Share of the draws, the best of them, that components may begin at."""
SAME = 0.5  # nats
HOPELESS = 10.0  # nats
APART = 0.5  # standard deviations


@dataclass(frozen=True)
class Mixed:
    """Mixtures: ``log_weights`` (N, K), ``loc`` (N, K, D), ``scale_tril`` (N, K, D, D)."""

    log_weights: Tensor
    loc: Tensor
    scale_tril: Tensor

    def alone(self, single: Fit) -> Parameters:
        """One Gaussian, as a mixture of as many components as here."""
        loc, tril = (single.parameters[name].unsqueeze(1) for name in ("loc", "scale_tril"))
        even = torch.full_like(self.log_weights, -math.log(self.log_weights.shape[1]))
        return {
            "log_weights": even,
            "loc": loc.expand_as(self.loc),
            "scale_tril": tril.expand_as(self.scale_tril),
        }


def begun(problem: Problem, single: Fit, num_components: int) -> tuple[Mixed, Fit]:
    """K Gaussians joined, chosen among ``single`` and others, and what all cost so far, ``single`` included."""
    others = TRIES * (num_components - 1)
    loc, scale = _places(problem, single.parameters["loc"], others)
    fits = FullCovariance().fit(_beginning_at(problem, loc, scale))
    parts = {
        name: torch.cat([value.unsqueeze(1), fits.parameters[name].reshape(others, *value.shape).movedim(0, 1)], 1)
        for name, value in single.parameters.items()
    }
    return _joined(problem, parts["loc"], parts["scale_tril"], num_components), _added(single, fits, others)


def _beginning_at(problem: Problem, loc: Tensor, scale: Tensor) -> Problem:
    """Every datapoint several times, beginning at each of its places ``loc`` (K, N, D)."""
    start = GaussianStart(problem.log_joint, loc.flatten(0, 1), torch.diag_embed(scale).repeat(len(loc), 1, 1))
    seed = stream_seed(problem.seed, "components")
    return replace(problem, start=start, data=problem.data.fold(len(loc)), seed=seed, attempt=0)


@torch.no_grad()
def _places(problem: Problem, taken: Tensor, num_places: int) -> tuple[Tensor, Tensor]:
    """Far from ``taken`` (N, D) and from each other, (K, N, D); and a narrow scale (N, D).

    They are plausible draws of the start and of the prior, as a guide may know one mode only.
    """
    _, scale = problem.moments()
    starts = [problem.start]
    if not isinstance(problem.start, PriorStart):
        starts.append(PriorStart(problem.log_joint))
    u = torch.cat([_plausible(problem, start) for start in starts])
    every = torch.arange(u.shape[1], device=u.device)
    distance = torch.full(u.shape[:2], torch.inf, dtype=u.dtype, device=u.device)
    places = [taken]
    for _ in range(num_places):
        distance = torch.minimum(distance, ((u - places[-1]) / scale).square().sum(-1)).nan_to_num(-1.0)
        places.append(u[distance.argmax(0), every])
    return torch.stack(places[1:]), NARROW * scale


def _plausible(problem: Problem, start: Start) -> Tensor:
    """The best draws of a start, (S, N, D)."""
    num = problem.data.num_datapoints
    folded = problem.data.fold(PLACES)
    u = start.draw(folded, problem.seed, "places").u
    worth = problem.log_joint.terms(folded, u=u).joint.reshape(PLACES, num)
    _, best = worth.nan_to_num(-torch.inf, -torch.inf, -torch.inf).topk(int(PLAUSIBLE * PLACES), 0)
    u = u.reshape(PLACES, num, -1)
    return u.gather(0, best.unsqueeze(-1).expand(-1, -1, u.shape[-1]))


def _joined(problem: Problem, loc: Tensor, scale_tril: Tensor, num_components: int) -> Mixed:
    """The K best Gaussians of M that differ, weighted by ELBO; where fewer do, spares beside them.

    Spares share the weight of the one that they stand beside.
    """
    elbo = torch.stack([
        values(GaussianDensity(loc[:, k], scale_tril[:, k]), problem, "component", num_draws=128).mean(0)
        for k in range(loc.shape[1])
    ], 1)  # fmt: skip
    elbo = elbo.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    host = _hosts(loc, scale_tril, elbo)
    every = torch.arange(len(loc), device=loc.device)[:, None]
    spare = host != torch.arange(loc.shape[1], device=loc.device)
    kept = torch.where(spare, -torch.inf, elbo).argsort(dim=1, descending=True, stable=True)
    kept = kept[:, :num_components]
    spare, host = spare[every, kept], host[every, kept]
    size = torch.zeros_like(elbo).scatter_add_(1, host, torch.ones_like(elbo[:, :num_components]))
    logits = elbo[every, host] - size[every, host].log()
    return Mixed(
        logits.nan_to_num(0.0, neginf=0.0).log_softmax(-1),
        loc[every, host] + torch.where(spare.unsqueeze(-1), _away(problem, scale_tril[every, host]), 0),
        scale_tril[every, host],
    )


def _away(problem: Problem, scale_tril: Tensor) -> Tensor:
    """A step (N, K, D) to beside a Gaussian, by as many nats in any number of dimensions."""
    gen = generator(problem.seed, "spares", device=scale_tril.device)
    shape = scale_tril.shape[:-1]
    noise = torch.randn(shape, generator=gen, device=scale_tril.device, dtype=scale_tril.dtype)
    result: Tensor = APART * torch.einsum("nkij,nkj->nki", scale_tril, noise) / math.sqrt(shape[-1])
    return result


def _hosts(loc: Tensor, scale_tril: Tensor, elbo: Tensor) -> Tensor:
    """For each component the best one that it is the same as, itself where there is none: (N, M).

    One that is hopeless goes to the best of all.
    """
    apart = _kl(loc, scale_tril)
    same = torch.minimum(apart, apart.mT) < SAME
    hopeless = elbo < elbo.max(1, keepdim=True).values - HOPELESS
    same = same | hopeless.unsqueeze(-1) | torch.eye(elbo.shape[1], dtype=torch.bool, device=elbo.device)
    # a host is nobody's guest: follow the way to the end
    host = torch.where(same, elbo.unsqueeze(1), -torch.inf).argmax(-1)
    for _ in range(elbo.shape[1]):
        host = host.gather(1, host)
    return host


def _kl(loc: Tensor, scale_tril: Tensor) -> Tensor:
    """KL(N_j || N_k) of all pairs of a datapoint's Gaussians, (N, M, M) nats."""
    first = torch.linalg.solve_triangular(scale_tril.unsqueeze(1), scale_tril.unsqueeze(2), upper=False)
    gap = (loc.unsqueeze(2) - loc.unsqueeze(1)).unsqueeze(-1)
    second = torch.linalg.solve_triangular(scale_tril.unsqueeze(1), gap, upper=False)
    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    square = first.square().sum((-2, -1)) + second.square().sum((-2, -1)) - loc.shape[-1]
    result: Tensor = 0.5 * square + log_det.unsqueeze(1) - log_det.unsqueeze(2)
    return result


def _added(single: Fit, fits: Fit, others: int) -> Fit:
    """The cost of all Gaussians: steps that ran beside each other count once, gradients each."""
    num = len(single.stopped)
    steps = fits.num_steps.reshape(others, num).max(0).values
    gradients = fits.num_gradients.reshape(others, num).sum(0)
    trace = None
    if single.trace is not None and fits.trace is not None and len(single.trace.seconds):
        so_far = single.trace.elbo[-1]
        best = np.fmax(np.fmax.reduce(fits.trace.elbo.reshape(-1, others, num), axis=1), so_far)
        trace = chained(single.trace, Trace(fits.trace.seconds, fits.trace.num_gradients * others, best))
    return Fit({}, single.stopped, single.num_steps + steps, single.num_gradients + gradients, trace=trace)
