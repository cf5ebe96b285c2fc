r"""A diffusion as the prior of codes: noise is taken off in T steps, each a Gaussian that a network gives.

.. math:: p(z_{0:T}) = N(z_T; 0, I) \prod_{t=1}^T N(z_{t-1}; \mu_t(z_t), \sigma_t(z_t)^2), \qquad
          q(z_t | z_{t-1}) = N(\sqrt{1 - b_t}\, z_{t-1}, b_t I)

z_0 is the code, the rest its path. The noising q has N(0, I) as its stationary law and is its own reversal there; the
denoising begins as that reversal, so that the prior of the code begins as N(0, I), exactly. The bound

.. math:: -\log p(z_0) \le \mathrm{KL}(q(z_T | z_0) \| N(0, I)) + \sum_{t=2}^T
          E_q\, \mathrm{KL}(q(z_{t-1} | z_t, z_0) \| p(z_{t-1} | z_t)) - E_q \log p(z_0 | z_1)

is trained with one draw for each step. Letters: B rows, T steps, D latents. Sources: Sohl-Dickstein et al. (2015),
"Deep unsupervised learning using nonequilibrium thermodynamics", https://arxiv.org/abs/1503.03585; Ho et al. (2020),
"Denoising diffusion probabilistic models", equations 5-7, https://arxiv.org/abs/2006.11239; Nichol and Dhariwal (2021),
"Improved denoising diffusion probabilistic models", for the schedule, https://arxiv.org/abs/2102.09672.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence

from amortize.errors import check_count
from amortize.models.networks import MLP
from amortize.random import generator

__all__ = ["DenoisedPath", "DiffusionPrior", "NoisedPath"]


class DiffusionPrior(nn.Module):
    """A prior over codes of D latents and their paths, and the noising that a guide takes.

    Parameters
    ----------
    latent_dim
        D.
    num_noisings
        T; the share of the code's variance that is left after t steps is the squared cosine of a quarter circle's
        t / (T + 1).
    hidden
        Widths of the network that takes noise off.
    seed
        Of the initial weights.

    Examples
    --------
    >>> prior = DiffusionPrior(latent_dim=2, num_noisings=4)
    >>> path = prior().sample()
    >>> path.shape, prior.code(path).sample().shape
    (torch.Size([4, 2]), torch.Size([2]))
    """

    kept: Tensor
    left: Tensor

    def __init__(
        self, latent_dim: int, num_noisings: int = 8, *, hidden: Sequence[int] = (64, 64), seed: int = 0
    ) -> None:
        super().__init__()
        self.latent_dim = check_count("latent_dim", latent_dim)
        self.num_noisings = check_count("num_noisings", num_noisings)
        angles = torch.arange(num_noisings + 1, dtype=torch.float64) / (num_noisings + 1) * math.pi / 2
        left = angles.cos().square()
        self.register_buffer("left", left.float(), persistent=False)  # of the variance of z_0, after 0 to T steps
        self.register_buffer("kept", (left[1:] / left[:-1]).float(), persistent=False)  # 1 - b_t
        sizes = (latent_dim + num_noisings, *hidden, 2 * latent_dim)
        self.network = MLP(sizes, generator=generator(seed, "diffusion-prior"))
        last = self.network.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)

    @property
    def noise(self) -> Tensor:
        """Scale of the noise of each step, (T, 1)."""
        return (1 - self.kept).sqrt().unsqueeze(-1)

    def forward(self) -> DenoisedPath:
        """Of the path z_1, ..., z_T: event shape (T, D)."""
        return DenoisedPath(self)

    def code(self, path: Tensor) -> Independent:
        """Of the code z_0 given its path (..., T, D): event shape (D,)."""
        first = self.reverse(path[..., :1, :], 1)
        return Independent(Normal(first.loc.squeeze(-2), first.scale.squeeze(-2)), 1)

    def noised(self, z: Tensor) -> NoisedPath:
        """Of the path given the code (..., D): event shape (T, D)."""
        return NoisedPath(self, z)

    def reverse(self, later: Tensor, first: int) -> Normal:
        """Of z_{t-1} given z_t (..., S, D), for the S steps t that begin with ``first``; elementwise."""
        steps = slice(first - 1, first - 1 + later.shape[-2])
        number = torch.eye(self.num_noisings, dtype=later.dtype, device=later.device)[steps]
        inputs = torch.cat([later, number.expand(*later.shape[:-1], -1)], -1)
        shift, log_scale = self.network(inputs).chunk(2, dim=-1)
        noise, kept = self.noise[steps], self.kept[steps].sqrt().unsqueeze(-1)
        return Normal(kept * later + noise * shift, noise * log_scale.exp())

    def cost(self, z: Tensor) -> Tensor:
        """The bound on -log p(z_0) of codes (B, D) at one draw from the global generator for each step, (B,) nats."""
        left = self.left.unsqueeze(-1)
        copies = z.unsqueeze(-2).expand(*z.shape[:-1], self.num_noisings, -1)
        path = left[1:].sqrt() * copies + (1 - left[1:]).sqrt() * torch.randn_like(copies)
        ends = Normal(left[-1].sqrt() * z, (1 - left[-1]).sqrt())
        total = kl_divergence(ends, Normal(torch.zeros_like(z), 1.0)).sum(-1)
        total = total - self.code(path).log_prob(z)  # type: ignore[no-untyped-call]
        if self.num_noisings > 1:
            steps = kl_divergence(self._bridge(z, path[..., 1:, :]), self.reverse(path[..., 1:, :], 2))
            total = total + steps.sum((-2, -1))
        cost: Tensor = total
        return cost

    def _bridge(self, z: Tensor, later: Tensor) -> Normal:
        """q(z_{t-1} | z_t, z_0) for t = 2, ..., T, of z_t (..., T - 1, D); elementwise."""
        before, after = self.left[1:-1].unsqueeze(-1), self.left[2:].unsqueeze(-1)
        kept = self.kept[1:].unsqueeze(-1)
        loc = before.sqrt() * (1 - kept) * z.unsqueeze(-2) + kept.sqrt() * (1 - before) * later
        scale = ((1 - before) * (1 - kept) / (1 - after)).sqrt()
        return Normal(loc / (1 - after), scale.expand_as(later))


class _Path(TorchDistribution):
    """Of T codes, each noisier than the one before; event shape (T, D)."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch has it)
    support = constraints.independent(constraints.real, 2)  # type: ignore[no-untyped-call]
    has_rsample = True

    def __init__(self, prior: DiffusionPrior, batch_shape: Any) -> None:
        self.prior = prior
        event_shape = torch.Size((prior.num_noisings, prior.latent_dim))
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)


class DenoisedPath(_Path):
    """The prior's path, drawn from its noisy end."""

    def __init__(self, prior: DiffusionPrior, batch_shape: Any = ()) -> None:
        super().__init__(prior, batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DenoisedPath:
        """The same for a larger batch."""
        return DenoisedPath(self.prior, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))  # type: ignore[no-untyped-call]
        last = value[..., -1, :]
        total: Tensor = Normal(torch.zeros_like(last), 1.0).log_prob(last).sum(-1)  # type: ignore[no-untyped-call]
        if self.prior.num_noisings > 1:
            steps = self.prior.reverse(value[..., 1:, :], 2).log_prob(value[..., :-1, :])  # type: ignore[no-untyped-call]
            total = total + steps.sum((-2, -1))
        return total

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws from the global generator of torch, with gradients."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape[-1:]
        z = torch.randn(shape, dtype=self.prior.kept.dtype, device=self.prior.kept.device)
        path = [z]
        for step in range(self.prior.num_noisings, 1, -1):
            z = self.prior.reverse(z.unsqueeze(-2), step).rsample().squeeze(-2)
            path.append(z)
        return torch.stack(path[::-1], -2)


class NoisedPath(_Path):
    """The path from a code, drawn from the code on."""

    def __init__(self, prior: DiffusionPrior, z: Tensor) -> None:
        self.z = z
        super().__init__(prior, z.shape[:-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> NoisedPath:
        """The same for a larger batch."""
        return NoisedPath(self.prior, self.z.expand(*batch_shape, self.z.shape[-1]))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)  # type: ignore[no-untyped-call]
        value = value.expand(shape)
        start = self.z.unsqueeze(-2).expand(*shape[:-2], 1, shape[-1])
        before = torch.cat([start, value[..., :-1, :]], -2)
        steps = Normal(self.prior.kept.sqrt().unsqueeze(-1) * before, self.prior.noise)
        density: Tensor = steps.log_prob(value)  # type: ignore[no-untyped-call]
        return density.sum((-2, -1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws from the global generator of torch, with gradients."""
        z, path = self.z.expand(*sample_shape, *self.z.shape), []
        for kept in self.prior.kept:
            z = kept.sqrt() * z + (1 - kept).sqrt() * torch.randn_like(z)
            path.append(z)
        return torch.stack(path, -2)
