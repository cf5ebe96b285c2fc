"""Programs whose evidence is known exactly: each carries its data, its exact posterior as a guide, and log p(x_n).

Adding a problem is adding a line to ``PROBLEMS``; contract tests run over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import integrate, special, stats

import amortize as am

NUM = 6


@dataclass(frozen=True)
class Problem:
    """A model, its exact posterior as a guide (where it is conjugate), data and the exact log evidence (N,)."""

    model: Callable[..., None]
    guide: Callable[..., None] | None
    data: object
    log_evidence: np.ndarray
    dim: int

    def program(self, *, guide: bool = False) -> am.Program:
        return am.Program(self.model, self.guide if guide else None)


def _draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal_normal() -> Problem:
    x = _draws(0).normal(size=NUM) * 1.5

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.5, dtype=x.dtype), 2.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        precision = 1 / 4 + 1 / 0.25
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal((0.5 / 4 + x / 0.25) / precision, precision**-0.5))

    return Problem(model, guide, torch.tensor(x), stats.norm(0.5, np.sqrt(4.25)).logpdf(x), 1)


def gamma_poisson() -> Problem:
    x = _draws(1).poisson(3.0, size=(NUM, 4)).astype(float)
    shape, rate = 2.0, 0.7

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Gamma(torch.tensor(shape, dtype=x.dtype), rate))
            pyro.sample("x", dist.Poisson(z[:, None]).expand([x.shape[0], 4]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Gamma(shape + x.sum(-1), rate + 4.0))

    total = x.sum(1)
    exact = (
        shape * np.log(rate) - special.gammaln(shape) - special.gammaln(x + 1).sum(1)
        + special.gammaln(shape + total) - (shape + total) * np.log(rate + 4)
    )  # fmt: skip
    return Problem(model, guide, torch.tensor(x), exact, 1)


def beta_bernoulli() -> Problem:
    x = _draws(2).integers(0, 2, size=(NUM, 7)).astype(float)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Beta(torch.tensor(1.5, dtype=x.dtype), 2.5))
            pyro.sample("x", dist.Bernoulli(z[:, None]).expand([x.shape[0], 7]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Beta(1.5 + x.sum(-1), 2.5 + 7 - x.sum(-1)))

    ones = x.sum(1)
    return Problem(model, guide, torch.tensor(x), special.betaln(1.5 + ones, 9.5 - ones) - special.betaln(1.5, 2.5), 1)


def dirichlet_multinomial() -> Problem:
    x = _draws(3).multinomial(9, [0.2, 0.5, 0.3], size=NUM).astype(float)
    alpha = np.array([1.2, 0.8, 2.0])

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Dirichlet(torch.tensor(alpha, dtype=x.dtype)))
            pyro.sample("x", dist.Multinomial(9, probs=z), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Dirichlet(torch.tensor(alpha, dtype=x.dtype) + x))

    return Problem(model, guide, torch.tensor(x), stats.dirichlet_multinomial(alpha, 9).logpmf(x.astype(int)), 2)


def dependent_support() -> Problem:
    """Uniform(-s, s + 1) under an exponential s, by quadrature; two sites, the support of one set by the other."""
    x = _draws(4).normal(size=NUM)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            s = pyro.sample("s", dist.Exponential(torch.tensor(1.0, dtype=x.dtype)))
            z = pyro.sample("z", dist.Uniform(-s, s + 1))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def density(value: float) -> float:
        def over_s(s: float) -> float:
            inside = stats.norm.cdf((s + 1 - value) / 0.8) - stats.norm.cdf((-s - value) / 0.8)
            return float(np.exp(-s) * inside / (2 * s + 1))

        return float(np.log(integrate.quad(over_s, 0, 60, epsabs=1e-12, limit=200)[0]))

    return Problem(model, None, torch.tensor(x), np.array([density(value) for value in x]), 2)


def pixel_plate() -> Problem:
    """Independent normal latents on a plate of three pixels outside the data plate's dimension."""
    x = _draws(5).normal(size=(NUM, 3))

    def model(x):
        with pyro.plate("pixels", 3, dim=-2), pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x.T)

    def guide(x):
        precision = 1 + 1 / 0.49
        with pyro.plate("pixels", 3, dim=-2), pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x.T / 0.49 / precision, precision**-0.5))

    return Problem(model, guide, torch.tensor(x), stats.norm(0, np.sqrt(1.49)).logpdf(x).sum(1), 3)


def gaussian_mixture() -> Problem:
    """Two normal latents around one of three centres, the class summed out; its guide samples the class too."""
    weights, centres = np.array([0.5, 0.3, 0.2]), np.array([[-2.0, 0.0], [1.0, 1.5], [2.0, -1.0]])
    spread, noise = 0.6, 1.0
    rng = _draws(6)
    x = centres[rng.choice(3, NUM, p=weights)] + rng.normal(size=(NUM, 2)) * np.hypot(spread, noise)
    log_joint = np.log(weights) + stats.norm(centres, np.hypot(spread, noise)).logpdf(x[:, None]).sum(-1)

    def model(x):
        w, mu = (torch.tensor(value, dtype=x.dtype) for value in (weights, centres))
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(w))
            z = pyro.sample("z", dist.Normal(mu[k], spread).to_event(1))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def guide(x):
        w, mu = (torch.tensor(value, dtype=x.dtype) for value in (weights, centres))
        far = (x[:, None] - mu).square().sum(-1) / (spread**2 + noise**2)
        share = spread**2 / (spread**2 + noise**2)
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(logits=w.log() - far / 2))
            loc = mu[k] + share * (x - mu[k])
            pyro.sample("z", dist.Normal(loc, noise * share**0.5).to_event(1))

    return Problem(model, guide, torch.tensor(x), special.logsumexp(log_joint, 1), 2)


def state_space() -> Problem:
    """A linear-Gaussian state space of five steps; its guide follows the smoothing distribution step by step."""
    steps, decay, drift, noise = 5, 0.9, 0.5, 0.6
    rng = _draws(7)
    x = np.cumsum(rng.normal(size=(NUM, steps)) * drift, 1) + rng.normal(size=(NUM, steps)) * noise
    gains, offsets, scales = _smoothing(x, decay, drift, noise)

    def model(x):
        z = torch.zeros(x.shape[0], dtype=x.dtype)
        with pyro.plate("data", x.shape[0]):
            for t in range(steps):
                z = pyro.sample(f"z_{t}", dist.Normal(decay * z, drift if t else 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, noise), obs=x[:, t])

    def guide(x):
        z = torch.zeros(x.shape[0], dtype=x.dtype)
        with pyro.plate("data", x.shape[0]):
            for t in range(steps):
                weights = torch.tensor(offsets[t], dtype=x.dtype)
                z = pyro.sample(f"z_{t}", dist.Normal(gains[t] * z + x[:, t:] @ weights, scales[t]))

    return Problem(model, guide, torch.tensor(x), kalman(x, decay, drift, noise), steps)


def kalman(x: np.ndarray, decay: float, drift: float, noise: float) -> np.ndarray:
    """Log evidence (N,) of x (N, T): z_0 ~ N(0, 1), z_t ~ N(decay z, drift^2), x_t ~ N(z_t, noise^2)."""
    mean, variance, total = np.zeros(len(x)), 1.0, np.zeros(len(x))
    for column in x.T:
        forecast = variance + noise**2
        total += stats.norm(mean, np.sqrt(forecast)).logpdf(column)
        gain = variance / forecast
        mean, variance = mean + gain * (column - mean), (1 - gain) * variance
        mean, variance = decay * mean, decay**2 * variance + drift**2
    return total


def _smoothing(x: np.ndarray, decay: float, drift: float, noise: float) -> tuple[list, list, list]:
    """z_t given z_{t-1} and x_t, ..., x_T: the weight of the one, the weights of the others, the standard deviation."""
    steps = x.shape[1]
    gains, offsets, scales = [], [], []
    precision, weights = 0.0, np.zeros(0)  # what x_t, ..., x_T say of z_{t-1}: their information and its direction
    for t in reversed(range(steps)):
        own = np.concatenate([[1 / noise**2], weights])
        told = 1 / noise**2 + precision
        spread = drift if t else 1.0
        total = told + 1 / spread**2
        gains.insert(0, decay / spread**2 / total)
        offsets.insert(0, own / total)
        scales.insert(0, total**-0.5)
        seen = decay / (1 + told * spread**2)
        precision, weights = seen * decay * told, seen * own
    return gains, offsets, scales


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "normal-normal": normal_normal,
    "gamma-poisson": gamma_poisson,
    "beta-bernoulli": beta_bernoulli,
    "dirichlet-multinomial": dirichlet_multinomial,
    "dependent-support": dependent_support,
    "pixel-plate": pixel_plate,
    "gaussian-mixture": gaussian_mixture,
    "state-space": state_space,
}
CONJUGATE = [name for name in PROBLEMS if name != "dependent-support"]


def two_that_fail() -> tuple[Callable[..., None], torch.Tensor, np.ndarray]:
    """A model, four datapoints and their log evidence: one's likelihood is NaN, another's zero, at every latent."""
    x = torch.tensor([0.5, 9.0, -1.0, -9.0])

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            log_p = torch.where(x > 5, x.new_tensor(float("nan")), -0.5 * (x - z) ** 2)
            pyro.factor("likelihood", torch.where(x < -5, x.new_tensor(-float("inf")), log_p))

    exact = -0.25 * x.double().numpy() ** 2 - 0.5 * np.log(2)
    exact[1], exact[3] = np.nan, -np.inf
    return model, x, exact


def linear_vae(num: int = 60) -> tuple[am.models.FactorAnalysis, torch.Tensor]:
    """Factor analysis with the best linear encoder, whose inference gap is known, in float64, and simulated data."""
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=6, dtype=torch.float64)
    analysis.set_best_encoder()
    return analysis, analysis.simulate(num, seed=1)


@dataclass(frozen=True)
class Square:
    """x = z^2 + noise: two modes a latent where x is well above 0, of unequal mass where the prior's mean is not 0.

    Data are (N,), a latent each, or (N, D), latents that know nothing of each other.
    """

    mean: float = 0.0
    noise: float = 0.3

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            prior = dist.Normal(x.new_full(x.shape[1:], self.mean), 1.0).to_event(x.dim() - 1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z**2, self.noise).to_event(x.dim() - 1), obs=x)

    def log_evidence(self, x: torch.Tensor) -> np.ndarray:
        """(N,) nats, by a sum over a grid."""
        grid, log_joint = self._grid(x)
        each = special.logsumexp(log_joint, -1) + np.log(grid[1] - grid[0])
        return each.reshape(len(x), -1).sum(1)

    def moments(self, x: torch.Tensor) -> np.ndarray:
        """Share of z > 0, mean and standard deviation of each posterior, (3, ...) as x."""
        grid, log_joint = self._grid(x)
        weight = special.softmax(log_joint, -1)
        mean = weight @ grid
        return np.stack([weight[..., grid > 0].sum(-1), mean, np.sqrt(weight @ grid**2 - mean**2)])

    def _grid(self, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        grid = np.linspace(-7, 7, 20_000)  # none at 0, so that shares are of halves
        values = x.double().numpy()[..., None]
        return grid, stats.norm.logpdf(grid, self.mean) + stats.norm.logpdf(values, grid**2, self.noise)


class ReadsDraws(torch.nn.Module):
    """Two latents, and a guide whose second site reads the draw of the first, and states no moments over u."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.pull, self.log_scale = (
            torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.3, 0.4, -0.3)
        )

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            b = pyro.sample("b", dist.LogNormal(0.5 * a, 0.7))
            pyro.sample("x", dist.Normal(a + b, 0.6), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Normal(self.slope * x, self.log_scale.exp()))
            pyro.sample("b", dist.LogNormal(self.pull * (x - a), 0.8))


def reads_draws(num: int = 5) -> tuple[am.Program, torch.Tensor]:
    """Its program and data, in float64."""
    made = ReadsDraws()
    return am.Program(made.model, made.guide), torch.linspace(-1, 3, num, dtype=torch.float64)
