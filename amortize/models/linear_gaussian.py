"""Closed forms of the linear-Gaussian latent model, by way of matrices of the latents' size only.

    z ~ N(0, I_D),    x | z ~ N(W z + b, diag(psi))
    posterior precision   L = I + W' diag(1/psi) W              (D, D), the same for all datapoints
    posterior mean        m(x) = L^-1 W' diag(1/psi) (x - b)
    evidence              log N(x; b, W W' + diag(psi)), by the determinant lemma and Woodbury's identity

Letters: N datapoints, X features, D latents. Evidences and bounds are in nats. Source: Tipping and Bishop
(1999), "Probabilistic principal component analysis"; Rubin and Thayer (1982), "EM algorithms for ML factor
analysis".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["LinearGaussian"]

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """A linear-Gaussian latent model with known parameters; use float64 for reference values.

    Parameters
    ----------
    weight
        W, (X, D).
    bias
        b, (X,).
    variance
        psi, (X,), positive.
    """

    weight: Tensor
    bias: Tensor
    variance: Tensor

    @cached_property
    def precision(self) -> Tensor:
        """Posterior precision L, (D, D)."""
        identity = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        return identity + self.weight.T @ (self.weight / self.variance[:, None])

    @cached_property
    def covariance(self) -> Tensor:
        """Posterior covariance L^-1, (D, D)."""
        return torch.cholesky_inverse(self._factor)

    @property
    def projection(self) -> Tensor:
        """L^-1 W' diag(1/psi), (D, X): takes x - b to the posterior mean."""
        return torch.cholesky_solve((self.weight / self.variance[:, None]).T, self._factor)

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z | x], (N, D), for x of shape (N, X)."""
        return (x - self.bias) @ self.projection.T

    def log_evidence(self, x: Tensor) -> Tensor:
        """Log p(x), (N,), for x of shape (N, X)."""
        residual = x - self.bias
        mean = self.posterior_mean(x)
        # r' C^-1 r = |r - W m|^2_psi + |m|^2: a sum of squares, where Woodbury's difference would cancel
        fitted = residual - mean @ self.weight.T
        square = (fitted.square() / self.variance).sum(-1) + mean.square().sum(-1)
        log_det = self._log_det_precision + self.variance.log().sum()
        return -0.5 * (square + log_det + self.bias.numel() * _LOG_2PI)

    def elbo(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """E_q[log p(x, z) - log q(z)], (N,), of q = N(mean, covariance): (N, D) and (D, D) or (N, D, D)."""
        residual = x - self.bias - mean @ self.weight.T
        # what z's spread adds to the two expected squares is trace(L S), as L = I + W' diag(1/psi) W
        square = (residual.square() / self.variance).sum(-1) + mean.square().sum(-1)
        spread = (self.precision * covariance).sum((-2, -1))
        constants = self.variance.log().sum() + self.bias.numel() * _LOG_2PI - self.weight.shape[1]
        log_det: Tensor = torch.linalg.slogdet(covariance).logabsdet
        return -0.5 * (square + spread + constants - log_det)

    def mean_field_gap(self) -> Tensor:
        """KL from the best diagonal Gaussian to the posterior, a scalar and the same for every x.

        The best one has the posterior's mean and the variances 1 / diag(L), so that the trace term equals D
        and KL = (sum log diag(L) - log det L) / 2, which is Hadamard's inequality.
        """
        log_diagonal: Tensor = self.precision.diagonal().log().sum()
        gap: Tensor = 0.5 * (log_diagonal - self._log_det_precision)
        return gap

    @cached_property
    def _factor(self) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(self.precision)
        return factor

    @property
    def _log_det_precision(self) -> Tensor:
        log_det: Tensor = 2.0 * self._factor.diagonal().log().sum()
        return log_det
