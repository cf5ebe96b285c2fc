"""Factor analysis and probabilistic PCA with a linear encoder: a VAE whose every gap is known in closed form.

    z ~ N(0, I_D),    x | z ~ N(W z + b, diag(psi)),    q(z | x) = N(V x + c, diag(s^2))

The model is factor analysis; with one shared noise variance it is probabilistic PCA. With the encoder it is
the linear VAE. The same object gives log p(x), the posterior, the best mean-field ELBO and the encoder's own,
hence the approximation, amortization and inference gaps, all without Monte Carlo error.

Letters: N datapoints, X features, D latents. Evidences, bounds and gaps are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError
from amortize.models.linear_gaussian import LinearGaussian
from amortize.models.networks import register
from amortize.program.program import Program
from amortize.random import generator

__all__ = ["FactorAnalysis"]


class FactorAnalysis(nn.Module):
    """Factor analysis with known or trained parameters, and a linear encoder that starts at the prior.

    Every parameter trains unless told not to, ``factor_analysis.decoder.requires_grad_(False)``; the closed
    forms always speak of the parameters as they stand.

    Parameters
    ----------
    weight
        W, (X, D).
    bias
        b, (X,).
    variance
        psi, (X,); or (1,) for the one variance of probabilistic PCA.

    Raises
    ------
    ArgumentError
        Shapes that don't fit together, or a variance that is not positive.

    Examples
    --------
    >>> import amortize as am
    >>> model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    >>> x = model.simulate(4, seed=1)
    >>> model.log_evidence(x).shape
    torch.Size([4])
    """

    def __init__(self, weight: Tensor, bias: Tensor, variance: Tensor) -> None:
        super().__init__()
        _check_parameters(weight, bias, variance)
        self.data_dim, self.latent_dim = weight.shape
        self.decoder = _LinearDecoder(weight, bias, variance)
        self.encoder = _LinearEncoder(weight)

    @classmethod
    def random(
        cls,
        latent_dim: int = 5,
        data_dim: int = 20,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> FactorAnalysis:
        """Parameters drawn from a seed: W and b standard normal, psi uniform on [0.25, 1]."""
        stream = generator(seed, "factor analysis")
        weight = torch.randn(data_dim, latent_dim, generator=stream, dtype=torch.float64)
        bias = torch.randn(data_dim, generator=stream, dtype=torch.float64)
        variance = 0.25 + 0.75 * torch.rand(data_dim, generator=stream, dtype=torch.float64)
        return cls(weight.to(dtype), bias.to(dtype), variance.to(dtype))

    @classmethod
    def probabilistic_pca(cls, x: Any, latent_dim: int = 5, *, dtype: torch.dtype = torch.float32) -> FactorAnalysis:
        """Maximum-likelihood probabilistic PCA of x (N, X), in closed form (Tipping and Bishop, 1999).

        Its latents are the principal axes, so that the posterior is uncorrelated and the approximation gap of a
        mean-field guide is zero.

        Raises
        ------
        DataError
            x is not a finite matrix, or it has no variance left outside the first ``latent_dim`` directions.
        ArgumentError
            ``latent_dim`` is not between 1 and X - 1.
        """
        data = torch.as_tensor(x).double()
        if data.ndim != 2 or not bool(data.isfinite().all()):
            raise DataError(f"x: expected a matrix of finite numbers, got shape {tuple(data.shape)}.")
        if not 1 <= latent_dim < data.shape[1]:
            raise ArgumentError(f"latent_dim: expected 1 to {data.shape[1] - 1} (X - 1), got {latent_dim}.")
        values, vectors = torch.linalg.eigh(torch.cov(data.T, correction=0))
        variance = values[:-latent_dim].mean()
        if not bool(variance > 1e-12 * values[-1]):
            raise DataError(f"x: no variance is left beyond {latent_dim} directions; use a smaller latent_dim.")
        weight = vectors[:, -latent_dim:] * (values[-latent_dim:] - variance).sqrt()
        return cls(weight.to(dtype), data.mean(0).to(dtype), variance.reshape(1).to(dtype))

    @classmethod
    def from_data(cls, x: Any, *, latent_dim: int = 5) -> FactorAnalysis:
        """`probabilistic_pca` of x."""
        return cls.probabilistic_pca(x, latent_dim)

    @property
    def objective(self) -> str:
        """The ELBO."""
        return "elbo"

    def model(self, x: Tensor) -> None:
        """The generative model: site ``z`` (N, D), observed site ``x`` (N, X)."""
        register("decoder", self.decoder)
        zero = self.decoder.bias.new_zeros(self.latent_dim)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Independent(dist.Normal(zero, torch.ones_like(zero)), 1))
            loc, scale = self.decoder(z)
            pyro.sample("x", dist.Independent(dist.Normal(loc, scale), 1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The linear encoder: site ``z`` (N, D), a diagonal Gaussian."""
        register("encoder", self.encoder)
        loc, scale = self.encoder(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Independent(dist.Normal(loc, scale), 1))

    def exact_guide(self, x: Tensor) -> None:
        """The exact posterior as a guide: site ``z`` (N, D), a Gaussian with a full covariance."""
        register("decoder", self.decoder)
        exact = self.closed_form()
        loc = exact.posterior_mean(x.double()).to(x.dtype)
        scale_tril = torch.linalg.cholesky(exact.covariance).to(x.dtype)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    def program(self, guide: Literal["linear", "exact"] | None = "linear") -> Program:
        """The model with its linear encoder, its exact posterior, or no guide, as an `amortize.Program`."""
        guides: dict[str | None, Callable[[Tensor], None] | None] = {
            "linear": self.guide,
            "exact": self.exact_guide,
            None: None,
        }
        if guide not in guides:
            raise ArgumentError(f"guide: expected 'linear', 'exact' or None, got {guide!r}.")
        return Program(self.model, guides[guide])

    def simulate(self, num_datapoints: int, *, seed: int = 0) -> Tensor:
        """Data drawn from the model, (num_datapoints, X), in the parameters' dtype."""
        stream = generator(seed, "factor analysis data")  # on the CPU: one seed gives one data set on every device
        exact = self.closed_form()
        z = torch.randn(num_datapoints, self.latent_dim, generator=stream, dtype=torch.float64).to(exact.bias)
        noise = torch.randn(num_datapoints, self.data_dim, generator=stream, dtype=torch.float64).to(exact.bias)
        x = z @ exact.weight.T + exact.bias + exact.variance.sqrt() * noise
        return x.detach().to(self.decoder.weight.dtype)

    def closed_form(self) -> LinearGaussian:
        """The model's parameters in float64, as the closed forms take them; gradients pass."""
        decoder = self.decoder
        variance = decoder.log_variance.double().exp().expand(self.data_dim)
        return LinearGaussian(decoder.weight.double(), decoder.bias.double(), variance)

    @torch.no_grad()
    def log_evidence(self, x: Any) -> Tensor:
        """Log p(x), (N,) float64, for x of shape (N, X)."""
        return self.closed_form().log_evidence(self._rows(x))

    @torch.no_grad()
    def posterior(self, x: Any) -> tuple[Tensor, Tensor]:
        """Posterior mean (N, D) and covariance (D, D), float64; all datapoints share the covariance."""
        exact = self.closed_form()
        return exact.posterior_mean(self._rows(x)), exact.covariance

    @torch.no_grad()
    def best_mean_field_elbo(self, x: Any) -> Tensor:
        """Highest ELBO that a Gaussian with diagonal covariance can reach, (N,) float64."""
        exact = self.closed_form()
        return exact.log_evidence(self._rows(x)) - exact.mean_field_gap()

    @torch.no_grad()
    def guide_elbo(self, x: Any) -> Tensor:
        """ELBO of the linear encoder as it stands, (N,) float64."""
        rows = self._rows(x)
        encoder = self.encoder
        mean = rows @ encoder.weight.double().T + encoder.bias.double()
        covariance = torch.diag((2.0 * encoder.log_scale.double()).exp())
        return self.closed_form().elbo(rows, mean, covariance)

    def approximation_gap(self, x: Any) -> Tensor:
        """Log p(x) minus the best mean-field ELBO, (N,) float64; one number for every x."""
        return self.log_evidence(x) - self.best_mean_field_elbo(x)

    def amortization_gap(self, x: Any) -> Tensor:
        """Best mean-field ELBO minus the encoder's, (N,) float64."""
        return self.best_mean_field_elbo(x) - self.guide_elbo(x)

    def inference_gap(self, x: Any) -> Tensor:
        """Log p(x) minus the encoder's ELBO, (N,) float64: approximation gap + amortization gap."""
        return self.log_evidence(x) - self.guide_elbo(x)

    @torch.no_grad()
    def set_best_encoder(self) -> None:
        """Put the encoder at its optimum: for this model, the best mean-field posterior of every x."""
        exact = self.closed_form()
        self.encoder.weight.copy_(exact.projection)
        self.encoder.bias.copy_(-exact.projection @ exact.bias)
        self.encoder.log_scale.copy_(-0.5 * exact.precision.diagonal().log())

    def _rows(self, x: Any) -> Tensor:
        data = torch.as_tensor(x, device=self.decoder.weight.device).double()
        if data.ndim != 2 or data.shape[1] != self.data_dim:
            raise DataError(f"x: expected shape (N, {self.data_dim}), got {tuple(data.shape)}.")
        return data


class _LinearDecoder(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.log_variance = nn.Parameter(variance.detach().log())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., X) and scale (X,) of x given z (..., D)."""
        return z @ self.weight.T + self.bias, (0.5 * self.log_variance).exp().expand_as(self.bias)


class _LinearEncoder(nn.Module):
    def __init__(self, decoder_weight: Tensor) -> None:
        super().__init__()
        data_dim, latent_dim = decoder_weight.shape
        self.weight = nn.Parameter(decoder_weight.new_zeros(latent_dim, data_dim))
        self.bias = nn.Parameter(decoder_weight.new_zeros(latent_dim))
        self.log_scale = nn.Parameter(decoder_weight.new_zeros(latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, D) and scale (D,) of z given x (N, X)."""
        return x @ self.weight.T + self.bias, self.log_scale.exp()


def _check_parameters(weight: Tensor, bias: Tensor, variance: Tensor) -> None:
    if weight.ndim != 2:
        raise ArgumentError(f"weight: expected shape (X, D), got {tuple(weight.shape)}.")
    if bias.shape != weight.shape[:1]:
        raise ArgumentError(f"bias: expected shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}.")
    if variance.shape not in ((1,), weight.shape[:1]):
        raise ArgumentError(f"variance: expected shape {tuple(weight.shape[:1])} or (1,), got {tuple(variance.shape)}.")
    if not bool((variance > 0).all()):
        raise ArgumentError(f"variance: expected positive numbers, got a smallest one of {variance.min().item():g}.")
