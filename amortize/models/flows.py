r"""Normalizing flows as parts of models: densities of z that a guide or a prior can have.

.. math:: z = \mu + L \, T(\epsilon), \qquad \epsilon \sim N(0, I_D), \qquad
          \log q(z) = \log N(\epsilon; 0, I) - \log |\det \partial z / \partial \epsilon|

T is a chain of layers by zuko that begins at the identity; given a context, as an encoder's output, they depend on it.

- "coupling": half of the dimensions scaled and shifted given the other half, in turn; draws and densities take one pass
  (RealNVP, Dinh et al. 2017, https://arxiv.org/abs/1605.08803).
- "iaf": each dimension scaled and shifted given those before it, in orders that turn round; draws take one pass, the
  density at other points D (inverse autoregressive flow, Kingma et al. 2016, https://arxiv.org/abs/1606.04934).
- "spline": as "coupling" with monotonic rational-quadratic splines on [-5, 5], the identity beyond
  (Durkan et al. 2019, https://arxiv.org/abs/1906.04032).

Letters: N datapoints, D latents, H context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from amortize.errors import ArgumentError, check_count, shown
from amortize.random import pyro_rng

__all__ = ["Flow", "FlowKind", "Triangular", "flowing"]

FlowKind = Literal["iaf", "coupling", "spline"]
KINDS = ("iaf", "coupling", "spline")
BINS = 8
SPLINE: dict[str, Any] = {
    "univariate": zuko.transforms.MonotonicRQSTransform,
    "shapes": [(BINS,), (BINS,), (BINS - 1,)],
}


class Flow(nn.Module):
    """The layers T of a flow.

    Parameters
    ----------
    kind
        "iaf", "coupling" or "spline".
    dim
        D. One dimension alone is scaled and shifted by "iaf" and "coupling", given the context.
    num_context
        H; 0 where there is none.
    hidden
        Widths of each layer's network.
    num_layers
        At least 2 are needed for every dimension to be moved given another.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        An unknown kind, or a size that is not positive.

    Examples
    --------
    >>> flow = Flow("coupling", 3, hidden=(8,))
    >>> flowing(flow.transforms(None), torch.zeros(3)).log_prob(torch.zeros(2, 3)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        kind: FlowKind,
        dim: int,
        num_context: int = 0,
        *,
        hidden: Sequence[int] = (64,),
        num_layers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ArgumentError(f"flow: expected one of {KINDS}, got {shown(kind)}.")
        for name, size in (("dim", dim), ("num_layers", num_layers)):
            check_count(name, size)
        check_count("num_context", num_context, 0)
        with pyro_rng(seed, "flow"):  # zuko draws weights from the global generator
            layers = [_layer(kind, dim, num_context, tuple(hidden), place) for place in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            alone = isinstance(layer, zuko.flows.ElementWiseTransform) and not num_context
            for weights in (layer.phi if alone else layer.hyper[-1]).parameters():
                nn.init.zeros_(weights)

    def transforms(self, context: Tensor | None) -> list[Transform]:
        """T as a list of one transform, given a context (N, H) or None."""
        return [_Chained([layer(context) for layer in self.layers])]


def flowing(transforms: Sequence[Transform], like: Tensor) -> dist.Distribution:
    """The density of standard normal noise after transforms.

    ``like`` (..., D) gives batch and event shape, dtype and device of the noise.
    """
    noise = dist.Independent(dist.Normal(torch.zeros_like(like), torch.ones_like(like)), 1)
    flow: dist.Distribution = dist.TransformedDistribution(noise, list(transforms))
    return flow


class Triangular(Transform):
    """The affine map y = loc + L x, with loc (..., D) and a lower triangular L (..., D, D), its diagonal positive."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__(cache_size=1)
        self.loc, self.scale_tril = loc, scale_tril

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + (self.scale_tril @ x.unsqueeze(-1)).squeeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        column = (y - self.loc).unsqueeze(-1)
        white: Tensor = torch.linalg.solve_triangular(self.scale_tril, column, upper=False)
        return white.squeeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 (the same everywhere)
        """Log |det L|, (...)."""
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det.expand(x.shape[:-1])


class _Chained(Transform):
    """Layers one after the other; the log Jacobian of the last point is kept, for its density is asked for next."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__(cache_size=1)
        self.layers = list(layers)
        self._last: tuple[Tensor, Tensor] | None = None

    def _call(self, noise: Tensor) -> Tensor:
        value, log_det = self._forwards(noise)
        self._last = (value, log_det)
        return value

    def _inverse(self, value: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            value = layer.inv(value)
        return value

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """At the noise ``x`` that became ``y``, (...)."""
        if self._last is not None and self._last[0] is y:
            return self._last[1]
        return self._forwards(x)[1]

    def _forwards(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(noise[..., 0])
        for layer in self.layers:
            noise, log_det = layer.call_and_ladj(noise)
            total = total + log_det
        return noise, total


def _layer(kind: str, dim: int, num_context: int, hidden: tuple[int, ...], place: int) -> Any:
    univariate = SPLINE if kind == "spline" else {}
    if dim == 1:
        settings = {"hidden_features": hidden, "activation": nn.ELU} if num_context else {}
        return zuko.flows.ElementWiseTransform(1, num_context, **univariate, **settings)
    settings = {"hidden_features": hidden, "activation": nn.ELU, **univariate}
    if kind == "iaf":
        order = torch.arange(dim) if place % 2 == 0 else torch.arange(dim).flip(0)
        return zuko.flows.MaskedAutoregressiveTransform(dim, num_context, order=order, **settings)
    mask = torch.arange(dim) % 2 == place % 2
    return zuko.flows.GeneralCouplingTransform(dim, num_context, mask=mask, **settings)
