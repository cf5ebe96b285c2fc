r"""The evidence of a model with one latent number, by quadrature.

.. math:: \log p(x_n) = \log \int p(x_n \mid z) \, N(z; 0, 1) \, dz

The trapezoidal rule converges faster than any power of its step where the integrand is smooth and falls off on both
sides (Trefethen and Weideman 2014, "The exponentially convergent trapezoidal rule",
https://doi.org/10.1137/130932132). Letters: N datapoints, G points of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from amortize.errors import DataError

__all__ = ["log_integral"]

WIDTH = 10.0  # standard deviations of the prior on either side, to begin with
POINTS = 256
TOLERANCE = 1e-10  # nats between two grids, beside the size of the result
NEGLIGIBLE = 45.0  # nats below the largest value: e^-45 of it
MOST_POINTS = 2**17
FARTHEST = 1e4
MOST_NUMBERS = 2**24  # of a block, points times datapoints


def log_integral(log_likelihood: Callable[[Tensor], Tensor], *, device: torch.device | str = "cpu") -> Tensor:
    """Log of the integral of a likelihood over z ~ N(0, 1), exact up to rounding where its logarithm is concave in z.

    The grid grows until its ends count for nothing, closes in on what counts, and is then refined until no value
    changes.

    Parameters
    ----------
    log_likelihood
        Of points z (G,), float64: log p(x_n | z), (N, G) nats.
    device
        Where the points should lie.

    Returns
    -------
    Tensor
        (N,) nats, float64.

    Raises
    ------
    DataError
        Some datapoint needs more than 131072 points: its likelihood is very narrow, or not smooth.

    Examples
    --------
    >>> x = torch.tensor([[0.5]], dtype=torch.float64)
    >>> normal = torch.distributions.Normal
    >>> exact = normal(0.0, 2**0.5).log_prob(x[:, 0])
    >>> torch.allclose(log_integral(lambda z: normal(z, 1.0).log_prob(x)), exact)
    True
    """
    low, high = _window(log_likelihood, device)
    points = POINTS
    before = _trapezoidal(log_likelihood, low, high, points, device=device)
    while points < MOST_POINTS:
        points *= 2
        after = _trapezoidal(log_likelihood, low, high, points, device=device)
        if bool(((after - before).abs() <= TOLERANCE * (1 + after.abs())).all()):
            return after
        before = after
    raise DataError(f"x: expected likelihoods that {MOST_POINTS} points resolve between {low:g} and {high:g}.")


@torch.no_grad()
def _window(log_likelihood: Callable[[Tensor], Tensor], device: torch.device | str) -> tuple[float, float]:
    """An interval outside which every integrand counts for nothing: widened until its ends do, then closed in."""
    low, high = -WIDTH, WIDTH
    while high < FARTHEST:
        _, counts = _counting(log_likelihood, low, high, device)
        if not bool(counts[:, [0, -1]].any()):
            return _closed_in(log_likelihood, low, high, device)
        low, high = 2 * low, 2 * high
    raise DataError(f"x: expected likelihoods that fall off within {low:g} and {high:g}.")


def _closed_in(
    log_likelihood: Callable[[Tensor], Tensor], low: float, high: float, device: torch.device | str
) -> tuple[float, float]:
    """The points that count and one on either side, again and again as long as that halves the interval."""
    while True:
        grid, counts = _counting(log_likelihood, low, high, device)
        places = counts.any(0).nonzero().flatten()
        first, last = float(grid[max(int(places[0]) - 1, 0)]), float(grid[min(int(places[-1]) + 1, POINTS)])
        if last - first > (high - low) / 2:
            return first, last
        low, high = first, last


def _counting(
    log_likelihood: Callable[[Tensor], Tensor], low: float, high: float, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """A grid, and where on it each integrand is not negligible, (N, G)."""
    grid = _grid(low, high, POINTS, device)
    log_joint = _log_joint(log_likelihood, grid)
    return grid, log_joint > log_joint.amax(1, keepdim=True) - NEGLIGIBLE


def _trapezoidal(
    log_likelihood: Callable[[Tensor], Tensor], low: float, high: float, points: int, *, device: torch.device | str
) -> Tensor:
    grid = _grid(low, high, points, device)
    size = max(1, MOST_NUMBERS // len(log_likelihood(grid[:1])))
    parts = [grid[begin : begin + size] for begin in range(0, len(grid), size)]
    sums = [_log_joint(log_likelihood, part).logsumexp(1) for part in parts]
    return torch.stack(sums).logsumexp(0) + math.log((high - low) / points)


def _log_joint(log_likelihood: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return log_likelihood(z) - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def _grid(low: float, high: float, points: int, device: torch.device | str) -> Tensor:
    return torch.linspace(low, high, points + 1, dtype=torch.float64, device=device)
