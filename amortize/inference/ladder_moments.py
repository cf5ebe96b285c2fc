r"""What many draws of a gradient say of its estimator: bias against the exact gradient, and variance.

.. math:: \mathrm{bias} = \frac{|\bar g - g|}{|g|}, \qquad
          V = N \, \mathrm{tr}\, \mathrm{Cov}(\hat g), \qquad
          T^2 = R \, d^\top S^{-1} d \;\sim\; \chi^2_J

where d (J,) is :math:`\bar g - g` along J directions and S the draws' covariance there (Hotelling's test). Directions
are g itself, and random signs over the coordinates, each coordinate in one of them. Letters: R draws, N datapoints
of a batch, P parameters, J directions. Source: Mardia, Kent and Bibby (1979), "Multivariate analysis", sections 5.2
and 3.7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from amortize.random import generator

__all__ = ["Bias", "Moments", "two_sided"]

NUM_DIRECTIONS = 8
FEWEST_DRAWS = 20  # more than twice the directions, or their covariance is no estimate
SMALLEST = 1e-5  # of the exact gradient: what two ways to sum it in float32 may differ by


@dataclass(frozen=True)
class Bias:
    """How far the mean of R draws is from the exact gradient.

    Attributes
    ----------
    bias, bias_se
        Its distance as a share of the exact gradient's length, and the same of what noise alone would give.
    z
        The joint test over all directions, as the normal deviate of the same two-sided probability.
    largest_z
        Of the directions one by one, in standard errors.
    """

    bias: float
    bias_se: float
    z: float
    largest_z: float


class Moments:
    """Running sums over draws of a gradient; those that aren't finite are counted and left out.

    Parameters
    ----------
    num_parameters
        P.
    exact
        (P,) the gradient to compare with; None where it is not known.
    seed
        Of the directions.
    """

    def __init__(self, num_parameters: int, exact: Tensor | None, *, seed: int) -> None:
        self.exact = exact
        self.count, self.num_nonfinite = 0, 0
        self._mean = torch.zeros(num_parameters, dtype=torch.float64)
        self._squares = 0.0  # of distances from the running mean (Welford)
        self._along: list[Tensor] = []
        stream = generator(seed, "ladder", "directions")
        self._signs = torch.randint(2, (num_parameters,), generator=stream, dtype=torch.float64) * 2 - 1
        self._group = torch.randint(NUM_DIRECTIONS - 1, (num_parameters,), generator=stream)

    def add(self, gradient: Tensor) -> None:
        """Take in one draw, (P,)."""
        if not bool(torch.isfinite(gradient).all()):
            self.num_nonfinite += 1
            return
        self.count += 1
        away = gradient.to(self._mean) - self._mean
        self._mean += away / self.count
        self._squares += float(away @ (gradient.to(self._mean) - self._mean))
        if self.exact is not None:
            self._along.append(self._project(gradient.to(self._mean) - self.exact))

    @property
    def mean(self) -> Tensor:
        """(P,)."""
        return self._mean

    @property
    def trace(self) -> float:
        """Of the draws' covariance; NaN from fewer than two."""
        return self._squares / (self.count - 1) if self.count > 1 else math.nan

    def bias(self) -> Bias:
        """Against the exact gradient; NaN where it is not known, or too few draws are finite."""
        if self.exact is None or self.count < 2:
            return Bias(math.nan, math.nan, math.nan, math.nan)
        length = float(self.exact.norm())
        distance = float((self._mean - self.exact).norm())
        noise = math.sqrt(self.trace / self.count)
        along = torch.stack(self._along)
        means, sds = along.mean(0), along.std(0)
        floor = SMALLEST * length  # rounding is no bias: an estimator without noise differs by no more
        errors = (sds / math.sqrt(self.count)).clamp(min=floor)
        largest = float((means / errors).abs().max())
        z = two_sided(*self._hotelling(along, floor)) if self.count > NUM_DIRECTIONS + 1 else math.nan
        return Bias(distance / length, noise / length, largest if float(sds.max()) == 0 else z, largest)

    def _project(self, away: Tensor) -> Tensor:
        """Along the directions, (J,)."""
        assert self.exact is not None
        own = (self.exact @ away) / self.exact.norm()
        zero = torch.zeros(NUM_DIRECTIONS - 1, dtype=torch.float64)
        return torch.cat([own.reshape(1), zero.index_add(0, self._group, self._signs * away)])

    def _hotelling(self, along: Tensor, floor: float) -> tuple[float, int]:
        """T^2 by Bartlett's approximation for this number of draws, near a chi-squared variable, and its degrees."""
        num, size = along.shape
        covariance = along.mT.cov() if num > 1 else torch.zeros(size, size, dtype=along.dtype)
        covariance = covariance / num + floor**2 * torch.eye(size, dtype=along.dtype)
        mean = along.mean(0)
        statistic = float(mean @ torch.linalg.solve(covariance, mean))
        return max(num - 1 - size / 2, 1.0) * math.log1p(statistic / (num - 1)), size


def two_sided(chi_squared: float, degrees: int) -> float:
    """The normal deviate that is as improbable, on both sides together, as a chi-squared value or a larger one.

    Examples
    --------
    >>> round(two_sided(9.0, 1), 6), round(two_sided(8.0, 8), 1)
    (3.0, 0.8)
    """
    values = torch.tensor([degrees / 2, chi_squared / 2], dtype=torch.float64)
    probability = float(torch.special.gammaincc(values[0], values[1]))
    if probability > 1e-300:
        return abs(NormalDist().inv_cdf(probability / 2))
    return math.sqrt(chi_squared)  # as near as it matters, that far out
