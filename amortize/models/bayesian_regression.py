r"""Bayesian linear regression on one data set: its weights are one latent, and the data set is one datapoint.

.. math:: w \sim N(0, \tau^2 I_P), \qquad y_t \mid w \sim N(m + w^\top \phi(x_t), s^2), \qquad
          \log p(y \mid X) = \log N(y; m, s^2 I_T + \tau^2 \Phi \Phi^\top)

with phi the columns standardised and m the mean response, both as in the training data. The guide is a Gaussian by the
equations of the posterior, or the best one without correlations; so training, of tau and s alone, maximises the
evidence (type-II maximum likelihood) or its best mean-field bound. Letters: T observations, P columns and weights.
Sources: MacKay (1992), "Bayesian interpolation"; Bishop (2006), "Pattern recognition and machine learning", sections
3.3 and 3.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError, shown
from amortize.models.networks import register
from amortize.models.vae import matrix_of
from amortize.program.program import Program

__all__ = ["BayesianRegression"]

GUIDES = ("full-covariance", "mean-field")


class BayesianRegression(nn.Module):
    """Site ``w`` (P,), the weights; observed site ``y`` (T,). Data are x (T, P) and y (T,).

    Parameters
    ----------
    loc, scale
        Of the columns, (P,) each; a column of no spread has scale 1.
    offset
        m, about which the responses lie.
    noise, prior_scale
        s and tau at the start, positive.
    guide
        "full-covariance", the exact posterior, or "mean-field".

    Raises
    ------
    ArgumentError
        An unknown guide, or scales that are not positive.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.1, 0.9, 2.1])
    >>> regression = am.models.BayesianRegression.from_data({"x": x, "y": y})
    >>> regression.log_evidence({"x": x, "y": y}).shape
    torch.Size([1])
    """

    loc: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        offset: float,
        *,
        noise: float,
        prior_scale: float,
        guide: Literal["full-covariance", "mean-field"] = "full-covariance",
    ) -> None:
        super().__init__()
        if guide not in GUIDES:
            raise ArgumentError(f"guide: expected one of {GUIDES}, got {guide!r}")
        if not bool((scale > 0).all()) or noise <= 0 or prior_scale <= 0:
            raise ArgumentError("BayesianRegression: expected a positive scale, noise and prior_scale")
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("offset", loc.new_tensor(offset))
        self.scales = _Scales(loc.new_tensor(noise), loc.new_tensor(prior_scale))
        self.kind = guide

    @classmethod
    def from_data(cls, x: Any, *, guide: Literal["full-covariance", "mean-field"] = "full-covariance") -> Self:
        """Begun with the noise and the prior's scale at half the spread of the responses.

        Parameters
        ----------
        x
            Training data, {"x": (T, P), "y": (T,)} or a pair of them.
        guide
            "full-covariance" or "mean-field".

        Raises
        ------
        DataError
            ``x`` is anything else, or the responses are all the same.
        """
        columns, y = _read(x)
        spread = float(y.double().std(correction=0))
        if not spread > 0:
            raise DataError("y: expected responses that differ, got one value alone.")
        scale = columns.std(0, correction=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return cls(
            columns.mean(0), scale, float(y.double().mean()), noise=spread / 2, prior_scale=spread / 2, guide=guide
        )

    @property
    def objective(self) -> str:
        """The ELBO."""
        return "elbo"

    @property
    def noise(self) -> Tensor:
        """s, a scalar."""
        return self.scales.log_noise.exp()

    @property
    def prior_scale(self) -> Tensor:
        """tau, a scalar."""
        return self.scales.log_prior_scale.exp()

    def model(self, x: Tensor, y: Tensor) -> None:
        """Site ``w`` (P,), observed site ``y`` (T,)."""
        register("scales", self.scales)
        design = self.design(x)
        zero = design.new_zeros(design.shape[1])
        w = pyro.sample("w", dist.Independent(dist.Normal(zero, self.prior_scale), 1))
        with pyro.plate("observations", x.shape[0]):
            pyro.sample("y", dist.Normal(self.offset + design @ w, self.noise), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Site ``w`` (P,): a Gaussian that the data and the scales determine."""
        register("scales", self.scales)
        mean, precision = self._posterior(self.design(x), y)
        if self.kind == "mean-field":
            pyro.sample("w", dist.Independent(dist.Normal(mean, precision.diagonal().rsqrt()), 1))
        else:
            pyro.sample("w", dist.MultivariateNormal(mean, precision_matrix=precision))

    def program(self) -> Program:
        """Model and guide, the data set as one datapoint."""
        return Program(self.model, self.guide, whole=True)

    def design(self, x: Tensor) -> Tensor:
        """Phi, (T, P): the columns as they were standardised in training."""
        return (x.to(self.loc) - self.loc) / self.scale

    @torch.no_grad()
    def log_evidence(self, x: Any, y: Any = None) -> Tensor:
        """Log p(y | X) of the data set as a whole, (1,) nats, float64, exact; from both in one, or x and y.

        Raises
        ------
        DataError
            ``x`` is not {"x": (T, P), "y": (T,)}.
        """
        design, away = self._in_double(x if y is None else (x, y))
        noise, prior = self.noise.double(), self.prior_scale.double()
        covariance = noise**2 * torch.eye(len(away), dtype=torch.float64) + prior**2 * design @ design.T
        density = torch.distributions.MultivariateNormal(torch.zeros_like(away), covariance)
        result: Tensor = density.log_prob(away)  # type: ignore[no-untyped-call]
        return result.reshape(1)

    @torch.no_grad()
    def posterior(self, x: Any) -> tuple[Tensor, Tensor]:
        """Mean (P,) and covariance (P, P) of the weights, float64, exact."""
        design, away = self._in_double(x)
        precision = design.T @ design / self.noise.double() ** 2
        precision = precision + torch.eye(len(precision), dtype=torch.float64) / self.prior_scale.double() ** 2
        covariance = torch.linalg.inv(precision)
        return covariance @ design.T @ away / self.noise.double() ** 2, covariance

    @torch.no_grad()
    def best_mean_field_elbo(self, x: Any) -> Tensor:
        """ELBO of the best factorised Gaussian, (1,) nats: it keeps the diagonal of the precision."""
        _, covariance = self.posterior(x)
        precision = torch.linalg.inv(covariance)
        lost: Tensor = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        return self.log_evidence(x) - lost

    def _posterior(self, design: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (P,) and precision (P, P), with gradients."""
        told = self.noise**-2
        precision = told * design.T @ design + torch.eye(design.shape[1]).to(design) * self.prior_scale**-2
        return torch.linalg.solve(precision, told * design.T @ (y - self.offset)), precision

    def _in_double(self, x: Any) -> tuple[Tensor, Tensor]:
        columns, y = _read(x)
        if columns.shape[1] != len(self.loc):
            raise DataError(f"x: expected shape (T, {len(self.loc)}), got {tuple(columns.shape)}.")
        design = (columns.double() - self.loc.double()) / self.scale.double()
        return design, y.double() - self.offset.double()


class _Scales(nn.Module):
    def __init__(self, noise: Tensor, prior_scale: Tensor) -> None:
        super().__init__()
        self.log_noise, self.log_prior_scale = nn.Parameter(noise.log()), nn.Parameter(prior_scale.log())


def _read(x: Any) -> tuple[Tensor, Tensor]:
    """Columns (T, P) and responses (T,), in one floating type."""
    named = x if isinstance(x, Mapping) else dict(zip("xy", x, strict=True)) if _is_pair(x) else {}
    if set(named) != {"x", "y"}:
        raise DataError(f"x: expected {{'x': (T, P), 'y': (T,)}} or a pair, got {', '.join(named) or shown(x)}.")
    columns, y = matrix_of(named["x"]), torch.as_tensor(named["y"])
    if y.shape != columns.shape[:1] or not bool(y.isfinite().all()):
        raise DataError(f"y: expected {len(columns)} finite responses, got shape {tuple(y.shape)}.")
    kind = columns.dtype if columns.is_floating_point() else torch.get_default_dtype()
    return columns.to(kind), y.to(kind)


def _is_pair(x: Any) -> bool:
    return isinstance(x, (tuple, list)) and len(x) == 2
