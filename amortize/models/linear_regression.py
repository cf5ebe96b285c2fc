r"""Linear regression with a known noise: a datapoint is a whole data set, its posterior is known exactly.

.. math:: w_n \sim N(0, I_P), \qquad y_n \mid w_n \sim N(X w_n, s^2 I_T)

Columns of X that resemble each other make weights that the data tell apart badly: a posterior that mean field narrows.
Letters: N data sets, T observations in each, P weights. Source: Bishop (2006), section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_number, shown
from amortize.program.program import Program
from amortize.random import generator

__all__ = ["LinearRegression"]


@dataclass(frozen=True, eq=False)
class LinearRegression:
    """The model, with a design that all data sets share.

    Parameters
    ----------
    design
        X, (T, P).
    noise
        s, the standard deviation of the observations.

    Raises
    ------
    ArgumentError
        The design is no matrix, or the noise is not positive.

    Examples
    --------
    >>> import amortize as am
    >>> problem = am.models.LinearRegression.random(num_weights=3, num_observations=20)
    >>> y = problem.simulate(4)
    >>> problem.log_evidence(y).shape
    torch.Size([4])
    """

    design: Tensor
    noise: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.design, Tensor) or self.design.ndim != 2:
            raise ArgumentError(f"LinearRegression design: expected a tensor (T, P), got {shown(self.design)}")
        check_number("LinearRegression noise", self.noise)

    @classmethod
    def random(cls, num_weights: int = 3, num_observations: int = 20, *, seed: int = 0) -> LinearRegression:
        """A standard normal design whose second column is close to its first."""
        stream = generator(seed, "linear regression")
        design = torch.randn(num_observations, num_weights, generator=stream)
        if num_weights > 1:
            design[:, 1] = 0.9 * design[:, 0] + math.sqrt(1 - 0.9**2) * design[:, 1]
        return cls(design)

    def model(self, y: Tensor) -> None:
        """Of data sets y (N, T)."""
        design = self.design.to(y)
        with pyro.plate("sets", y.shape[0]):
            prior = dist.Normal(y.new_zeros(design.shape[1]), 1.0).to_event(1)  # type: ignore[no-untyped-call]
            w = pyro.sample("w", prior)
            observed = dist.Normal(w @ design.T, self.noise).to_event(1)  # type: ignore[no-untyped-call]
            pyro.sample("y", observed, obs=y)

    def program(self, guide: Any = None) -> Program:
        """With a guide of your own, or none."""
        return Program(self.model, guide)

    def simulate(self, num_datapoints: int, *, seed: int = 0) -> Tensor:
        """Draw data sets y (N, T) from the model, float32."""
        _, observed = self.program().simulate(torch.zeros(num_datapoints, len(self.design)), seed=seed)
        return torch.as_tensor(observed["y"])

    def least_squares(self, y: Tensor) -> Tensor:
        """The weights of maximum likelihood, (N, P)."""
        weights: Tensor = torch.linalg.lstsq(self.design.double(), y.double().T).solution.T
        return weights

    def posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, P) of the weights, and the covariance (P, P) that all data sets share; exact."""
        design = self.design.double()
        identity = torch.eye(design.shape[1], dtype=torch.float64)
        covariance = torch.linalg.inv(identity + design.T @ design / self.noise**2)
        return y.double() @ design @ covariance / self.noise**2, covariance

    def log_evidence(self, y: Tensor) -> Tensor:
        """Log p(y_n), (N,) nats, exact."""
        design = self.design.double()
        covariance = design @ design.T + self.noise**2 * torch.eye(len(design), dtype=torch.float64)
        origin = torch.zeros(len(design), dtype=torch.float64)
        density = torch.distributions.MultivariateNormal(origin, covariance)
        result: Tensor = density.log_prob(y.double())  # type: ignore[no-untyped-call]
        return result

    def best_mean_field_elbo(self, y: Tensor) -> Tensor:
        """ELBO of the best factorised Gaussian, (N,) nats: it keeps the diagonal of the precision."""
        _, covariance = self.posterior(y)
        precision = torch.linalg.inv(covariance)
        lost: Tensor = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        return self.log_evidence(y) - lost
