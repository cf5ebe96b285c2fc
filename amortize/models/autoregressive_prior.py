r"""A prior that is learned: an autoregressive flow, from the code back to a standard normal.

.. math:: p(z) = N(\epsilon; 0, I) \prod_{l, d} e^{-s_{l d}(h_{l, <d})}, \qquad
          \epsilon = f_L \circ \dots \circ f_1(z), \qquad f_l(h)_d = (h_d - m_{l d}(h_{l, <d})) e^{-s_{l d}(h_{l, <d})}

Densities take one pass, draws one pass a latent. Under such a prior a guide may be plain: a Gaussian encoder with it is
as good as an inverse autoregressive flow with N(0, I), and the generative model is deeper (Chen et al. 2017, section
3.2). It begins as N(0, I). Letters: D latents. Source: Papamakarios et al. (2017), "Masked autoregressive flow for
density estimation", https://arxiv.org/abs/1705.07057.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import zuko
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from amortize.errors import check_count
from amortize.random import pyro_rng

__all__ = ["AutoregressiveFlow", "FlowDistribution"]


class AutoregressiveFlow(nn.Module):
    """A prior over D latents with a masked autoregressive flow; with D = 1 it is N(0, 1), for nothing comes before.

    Parameters
    ----------
    latent_dim
        D.
    num_layers
        L; their orders alternate.
    hidden
        Widths of each layer's network.
    seed
        Of the initial weights.

    Examples
    --------
    >>> prior = AutoregressiveFlow(3)
    >>> prior().log_prob(torch.zeros(3)).exp() * (2 * torch.pi) ** 1.5
    tensor(1.0000, grad_fn=<MulBackward0>)
    """

    zero: Tensor

    def __init__(self, latent_dim: int, *, num_layers: int = 2, hidden: Sequence[int] = (32,), seed: int = 0) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        check_count("num_layers", num_layers)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        ascending = torch.arange(latent_dim)
        orders = [ascending.flip(0) if place % 2 else ascending for place in range(num_layers if latent_dim > 1 else 0)]
        with pyro_rng(seed, "autoregressive-prior"):  # zuko draws its weights from the global generator
            self.layers = nn.ModuleList(_layer(order, hidden) for order in orders)

    def forward(self) -> FlowDistribution:
        """The distribution, event shape (D,)."""
        return FlowDistribution([layer() for layer in self.layers], self.zero)


class FlowDistribution(TorchDistribution):
    """A standard normal through the inverse of transforms that go from z to it."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch has it)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transforms: Sequence[Any], like: Tensor, batch_shape: Any = ()) -> None:
        self.transforms, self.like = list(transforms), like
        super().__init__(torch.Size(batch_shape), like.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same for a larger batch."""
        return FlowDistribution(self.transforms, self.like, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))  # type: ignore[no-untyped-call]
        total = value.new_zeros(value.shape[:-1])
        for transform in self.transforms:
            value, slope = transform.call_and_ladj(value)
            total = total + slope
        density: Tensor = Normal(torch.zeros_like(value), 1.0).log_prob(value)  # type: ignore[no-untyped-call]
        return total + density.sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws from the global generator of torch, with gradients."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        value = torch.randn(shape, dtype=self.like.dtype, device=self.like.device)
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        return value


def _layer(order: Tensor, hidden: Sequence[int]) -> Any:
    """One layer, smooth, which begins as the identity."""
    layer = zuko.flows.MaskedAutoregressiveTransform(
        len(order), order=order, hidden_features=tuple(hidden), activation=nn.Tanh
    )
    nn.init.zeros_(layer.hyper[-1].weight)
    nn.init.zeros_(layer.hyper[-1].bias)
    return layer
