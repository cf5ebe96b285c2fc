r"""Differentiable bridges from a start to a posterior: log weights with gradients in whatever made them.

.. math::
    \log w = \log \gamma(u_K) - \log q_0(u_0) + \sum_{t=1}^K \log \frac{B_t(u_{t-1} | u_t)}{F_t(u_t | u_{t-1})},
    \qquad E[w] = p(x), \quad E[\log w] \le \log p(x)

for any forward kernels F and backward kernels B. No move is accepted or rejected, so log w is a smooth function of
the start, the temperatures, the step sizes and the kernels' parameters, and the bound can be trained. With h the step
size, g_t the gradient of log pi_t in whitened coordinates, and xi standard normal noise:

====== ===========================================================================================================
"ula"  u' = u + h^2/2 g_t(u) + h xi, backward the same kernel (Wu et al. 2020, "Stochastic normalizing flows"; Heng et
       al. 2020; Thin et al. 2021, "Monte Carlo variational auto-encoders")
"mcd"  the same forward; the backward drift is g_t(u') + c, with c learned to be that of the time reversal (Doucet et
       al. 2022, "Score-based diffusion meets annealed importance sampling"). With c = 0 it is "ula"
"uha"  momentum refreshed in part, v' = eta v + sqrt(1 - eta^2) xi, then a leapfrog step, kick-drift-kick (Geffner and
       Domke 2021, "MCMC variational inference via uncorrected Hamiltonian annealing")
"ldvi" the same forward; the backward refreshment has the mean eta v' + (1 - eta^2) c, with c learned (Geffner and
       Domke 2022, "Langevin diffusion variational inference"). With c = 0 it is "uha"
"dais" as "uha", the leapfrog step drift-kick-drift (Zhang et al. 2021, "Differentiable annealed importance sampling")
====== ===========================================================================================================

Nothing is clamped, unless the steps are ``tamed`` (Brosse et al. 2019, "The tamed unadjusted Langevin algorithm"): a
path that leaves the range of numbers has a weight that is not finite, and keeps it.

Letters: B rows (draws x datapoints, draw-major), N datapoints, D latents, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.inference.path import LogTerms, Point
from amortize.inference.whitening import pull, push

__all__ = ["KINDS", "SCORED", "UNDERDAMPED", "Bridged", "Evaluate", "Score", "Steps", "bridge", "differentiable"]

KINDS = ("ula", "mcd", "uha", "ldvi", "dais")
SCORED = ("mcd", "ldvi")
"""Kinds whose backward kernels have a learned part."""
UNDERDAMPED = ("uha", "ldvi", "dais")
"""Kinds that carry a momentum."""

Evaluate = Callable[[Tensor], Point]
Score = Callable[[Tensor, Tensor | None, int], Tensor]
"""c(u, v, t): the learned part in whitened coordinates (B, D), from u (B, D), the momentum (B, D) or None, and the step
t from 1 to K. A backward kernel sees what it starts from: u_t without momentum, else u_{t-1} and the refreshed v'."""


class Steps(NamedTuple):
    """What the K steps are made of; any of it may require a gradient.

    ``betas`` (K + 1,) from 0 to 1; ``step_sizes`` (K,), or (K, D) or (K, B, 1) for one a dimension or row;
    ``persistence`` eta in [0, 1), a scalar; ``scale`` (N, D) or (N, D, D), the whitening, None for none.
    ``tamed`` (of "ula" and "mcd") shortens every drift to the typical length of the noise, where it is longer: chains
    in tails that are lighter than a Gaussian's don't run off, and the weights stay right, for it is done both ways.
    """

    betas: Tensor
    step_sizes: Tensor
    persistence: Tensor | None = None
    scale: Tensor | None = None
    tamed: bool = False


class Bridged(NamedTuple):
    """Log weights (B,) in nats, and where the rows ended, (B, D)."""

    log_weights: Tensor
    u: Tensor


def differentiable(terms: LogTerms) -> Evaluate:
    """Evaluate log terms and their gradients in u, all differentiable once more where gradients are recorded.

    Parameters
    ----------
    terms
        Maps u (B, D) to log q0(u) and log p(x, u) - log q0(u), each (B,) in nats; rows independent of one another. It
        may depend on parameters that require gradients.

    Examples
    --------
    >>> evaluate = differentiable(lambda u: (-0.5 * u.square().sum(-1), u.sum(-1)))
    >>> evaluate(torch.ones(1, 2)).base_gradient
    tensor([[-1., -1.]], grad_fn=...)
    """

    def evaluate(u: Tensor) -> Point:
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            u = u if recording and u.requires_grad else u.detach().requires_grad_()
            base, ratio = terms(u)
            slopes = [_slope(value, u, recording) for value in (base, ratio)]
        values = (u, base, ratio, *slopes)
        return Point(*(values if recording else [value.detach() for value in values]))

    return evaluate


def _slope(value: Tensor, u: Tensor, recording: bool) -> Tensor:
    """Gradient of each row's value in its own u; zero where it depends on none."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    (slope,) = torch.autograd.grad(
        value.sum(), u, create_graph=recording, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return slope


def bridge(
    kind: str,
    evaluate: Evaluate,
    u: Tensor,
    steps: Steps,
    generator: torch.Generator,
    *,
    score: Score | None = None,
) -> Bridged:
    """Move B rows from the start to the posterior by K unadjusted steps, and weigh them.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    evaluate
        Log terms and their gradients at (B, D): ``differentiable(terms)``; for numbers without gradients, under
        ``torch.no_grad()``, also ``GeometricPath.evaluate``, which is compiled.
    u
        (B, D) exact draws from the start, reparametrised where its parameters are trained.
    steps
        Temperatures, step sizes, persistence of the momentum, whitening.
    generator
        Of the noise of the K steps.
    score
        The learned part of the backward kernels, for "mcd" and "ldvi"; None is zero.

    Returns
    -------
    Bridged
        Log weights (B,) in nats: the mean of their exponentials is p(x), their mean a lower bound on log p(x).

    Raises
    ------
    ArgumentError
        For an unknown kind, a score where the kind has none, or no persistence where it needs one.

    Examples
    --------
    >>> evaluate = differentiable(lambda u: (-0.5 * u.square().sum(-1), 0.1 * u.sum(-1)))
    >>> steps = Steps(torch.linspace(0, 1, 5), torch.full((4,), 0.5))
    >>> bridge("ula", evaluate, torch.zeros(3, 2), steps, torch.Generator().manual_seed(0)).log_weights.shape
    torch.Size([3])
    """
    _check(kind, steps, score)
    if kind not in UNDERDAMPED:
        return _overdamped(evaluate, u, steps, generator, score)
    step = _drift_kick_drift if kind == "dais" else _kick_drift_kick
    return _underdamped(step, evaluate, u, steps, generator, score)


def _check(kind: str, steps: Steps, score: Score | None) -> None:
    if kind not in KINDS:
        raise ArgumentError(f"kind: expected one of {KINDS}, got {kind!r}")
    if score is not None and kind not in SCORED:
        raise ArgumentError(f"score: expected None for kind {kind!r}, whose backward kernels have no learned part")
    if kind in UNDERDAMPED and steps.persistence is None:
        raise ArgumentError(f"steps: expected a persistence for kind {kind!r}, which carries a momentum, got None")
    if len(steps.betas) != len(steps.step_sizes) + 1:
        raise ArgumentError(
            f"steps: expected one beta more than step sizes, got {len(steps.betas)} and {len(steps.step_sizes)}"
        )


def _overdamped(
    evaluate: Evaluate, u: Tensor, steps: Steps, generator: torch.Generator, score: Score | None
) -> Bridged:
    here = evaluate(u)
    log_weights = -here.base
    for t, h in enumerate(steps.step_sizes, 1):
        beta = steps.betas[t]
        noise = _normal(u, generator)
        slope = _drifting(here, beta, h, steps)
        u = u + _push(steps, h * (0.5 * h * slope + noise))
        here = evaluate(u)
        back = slope + _drifting(here, beta, h, steps)
        if score is not None:
            back = back + score(u, None, t)
        log_weights = log_weights + _log_ratio(noise, noise + 0.5 * h * back)
    return Bridged(log_weights + here.base + here.ratio, u)


def _drifting(here: Point, beta: Tensor, h: Tensor, steps: Steps) -> Tensor:
    """The slope (B, D) that a drift follows: the path's or, tamed, one with h/2 |slope| of sqrt(D) at most."""
    slope = _slope_at(here, beta, steps)
    if not steps.tamed:
        return slope
    longest = math.sqrt(slope.shape[-1])
    length: Tensor = torch.linalg.vector_norm(0.5 * h * slope, dim=-1, keepdim=True)
    return slope * (longest / length.clamp(min=longest))


Move = Callable[..., tuple[Point | None, Tensor, Tensor]]


def _underdamped(
    move: Move, evaluate: Evaluate, u: Tensor, steps: Steps, generator: torch.Generator, score: Score | None
) -> Bridged:
    assert steps.persistence is not None
    keep, renew = steps.persistence, (1 - steps.persistence**2).sqrt()
    velocity = _normal(u, generator)
    start = evaluate(u)
    here: Point | None = start
    log_weights = -start.base + 0.5 * velocity.square().sum(-1)
    for t, h in enumerate(steps.step_sizes, 1):
        noise = _normal(u, generator)
        fresh = keep * velocity + renew * noise
        back = renew * velocity - keep * noise
        if score is not None:
            back = back - renew * score(u, fresh, t)
        log_weights = log_weights + _log_ratio(noise, back)
        here, u, velocity = move(evaluate, (here, u, fresh), (steps.betas[t], h), steps)
    end = evaluate(u) if here is None else here
    return Bridged(log_weights + end.base + end.ratio - 0.5 * velocity.square().sum(-1), u)


def _kick_drift_kick(
    evaluate: Evaluate, state: tuple[Point, Tensor, Tensor], setting: tuple[Tensor, Tensor], steps: Steps
) -> tuple[Point, Tensor, Tensor]:
    (here, u, velocity), (beta, h) = state, setting
    velocity = velocity + 0.5 * h * _slope_at(here, beta, steps)
    u = u + _push(steps, h * velocity)
    there = evaluate(u)
    return there, u, velocity + 0.5 * h * _slope_at(there, beta, steps)


def _drift_kick_drift(
    evaluate: Evaluate, state: tuple[Point | None, Tensor, Tensor], setting: tuple[Tensor, Tensor], steps: Steps
) -> tuple[None, Tensor, Tensor]:
    (_, u, velocity), (beta, h) = state, setting
    u = u + _push(steps, 0.5 * h * velocity)
    velocity = velocity + h * _slope_at(evaluate(u), beta, steps)
    return None, u + _push(steps, 0.5 * h * velocity), velocity


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _slope_at(point: Point, beta: Tensor, steps: Steps) -> Tensor:
    gradient = point.gradient(beta)
    return gradient if steps.scale is None else pull(steps.scale, gradient)


def _push(steps: Steps, step: Tensor) -> Tensor:
    return step if steps.scale is None else push(steps.scale, step)


def _log_ratio(forward: Tensor, backward: Tensor) -> Tensor:
    """Log density of the backward noise over that of the forward noise, (B,)."""
    return 0.5 * (forward.square() - backward.square()).sum(-1)
