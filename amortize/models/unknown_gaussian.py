r"""A Gaussian with unknown mean and variance: a datapoint is a whole data set, its posterior is known exactly.

.. math:: v_n \sim \mathrm{InverseGamma}(a, b), \quad \mu_n \mid v_n \sim N(m, v_n / k), \quad
          x_{nt} \sim N(\mu_n, v_n)

Conjugate: the posterior is of the same kind (Murphy 2007, "Conjugate Bayesian analysis of the Gaussian distribution",
section 6). It is the smallest posterior that no Gaussian in unconstrained coordinates fits: the tails of mu widen with
log v. Letters: N data sets, T observations in each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import check_number
from amortize.program.program import Program

__all__ = ["NormalInverseGamma", "UnknownGaussian"]


@dataclass(frozen=True)
class NormalInverseGamma:
    """v ~ InverseGamma(a, b), mu ~ N(m, v / k), for N data sets: ``m`` and ``b`` (N,), float64."""

    m: Tensor
    k: float
    a: float
    b: Tensor

    @property
    def mode(self) -> tuple[Tensor, Tensor]:
        """Where the joint density of mu and v is largest, (N,) each."""
        return self.m, self.b / (self.a + 1.5)

    @property
    def mean(self) -> tuple[Tensor, Tensor]:
        """Of mu and of log v, (N,) each."""
        return self.m, self.b.log() - torch.digamma(torch.tensor(self.a, dtype=torch.float64))

    @property
    def sd(self) -> tuple[Tensor, Tensor]:
        """Standard deviation of mu and of log v, (N,) each; that of mu is known for a > 1."""
        log_v = torch.polygamma(1, torch.tensor(self.a, dtype=torch.float64)).sqrt()
        return (self.b / ((self.a - 1) * self.k)).sqrt(), log_v.expand(self.b.shape)


@dataclass(frozen=True)
class UnknownGaussian:
    """The model, with its prior.

    Parameters
    ----------
    m, k
        Prior mean of mu, and how many observations it is worth.
    a, b
        Shape and rate of the inverse gamma prior of the variance.

    Raises
    ------
    ArgumentError
        k, a or b is not positive.

    Examples
    --------
    >>> import amortize as am
    >>> problem = am.models.UnknownGaussian()
    >>> x = problem.simulate(4, num_observations=10)
    >>> problem.log_evidence(x).shape, problem.posterior(x).mode[0].shape
    (torch.Size([4]), torch.Size([4]))
    """

    m: float = 0.0
    k: float = 0.5
    a: float = 2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        for name in ("k", "a", "b"):
            check_number(f"UnknownGaussian {name}", getattr(self, name))

    def model(self, x: Tensor) -> None:
        """Of data sets x (N, T)."""
        with pyro.plate("sets", x.shape[0]):
            prior = dist.InverseGamma(x.new_tensor(self.a), x.new_tensor(self.b))  # type: ignore[no-untyped-call]
            variance = pyro.sample("variance", prior)
            mu = pyro.sample("mu", dist.Normal(self.m, (variance / self.k).sqrt()))
            observed = dist.Normal(mu.unsqueeze(-1).expand(x.shape), variance.sqrt().unsqueeze(-1))
            pyro.sample("x", observed.to_event(1), obs=x)  # type: ignore[no-untyped-call]

    def program(self, guide: Any = None) -> Program:
        """With a guide of your own, or none."""
        return Program(self.model, guide)

    def simulate(self, num_datapoints: int, *, num_observations: int = 10, seed: int = 0) -> Tensor:
        """Draw data sets x (N, T) from the model, float32."""
        _, observed = self.program().simulate(torch.zeros(num_datapoints, num_observations), seed=seed)
        return torch.as_tensor(observed["x"])

    def posterior(self, x: Tensor) -> NormalInverseGamma:
        """The posterior of each data set, exact."""
        x = x.double()
        num, mean = x.shape[-1], x.mean(-1)
        k = self.k + num
        spread = (x - mean.unsqueeze(-1)).square().sum(-1) / 2
        b = self.b + spread + self.k * num * (mean - self.m).square() / (2 * k)
        return NormalInverseGamma((self.k * self.m + num * mean) / k, k, self.a + num / 2, b)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Log p(x_n), (N,) nats, exact."""
        after, num = self.posterior(x), x.shape[-1]
        prior = self.a * math.log(self.b) - math.lgamma(self.a) + 0.5 * math.log(self.k)
        return (
            prior
            + math.lgamma(after.a)
            - after.a * after.b.log()
            - 0.5 * (math.log(after.k) + num * math.log(2 * math.pi))
        )

    @staticmethod
    def encoder(hidden: int = 32, *, seed: int = 0) -> nn.Module:
        """A mean-field guide that reads two statistics of a data set: where it lies, and how wide."""
        return _Encoder(hidden, seed)


class _Encoder(nn.Module):
    """From mean and log variance of a data set to Gaussians of log v and mu."""

    def __init__(self, hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 4))

    def forward(self, x: Tensor) -> None:
        """Of data sets x (N, T)."""
        pyro.module("encoder", self)
        statistics = torch.stack([x.mean(-1), x.var(-1).log()], -1)
        loc, log_scale = self.network(statistics).chunk(2, -1)
        scale = log_scale.exp()
        with pyro.plate("sets", x.shape[0]):
            log_variance = dist.Normal(loc[:, 0], scale[:, 0])
            pyro.sample("variance", dist.TransformedDistribution(log_variance, [dist.transforms.ExpTransform()]))
            pyro.sample("mu", dist.Normal(loc[:, 1], scale[:, 1]))
