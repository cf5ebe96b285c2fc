r"""Invertible maps of R^D, one a datapoint: the layers are zuko's, every datapoint has weights of its own.

.. math:: y = T(\epsilon; \theta_n), \qquad
    T = A \circ T_L \circ \dots \circ T_1, \qquad T(\cdot; \theta_\text{identity}) = \text{id}

Kinds: "iaf", each layer affine in a dimension given those before it in an order that turns round from layer to layer
(inverse autoregressive flow, Kingma et al. 2016, https://arxiv.org/abs/1606.04934); "coupling", each layer affine in
half of the dimensions given the other half (RealNVP, Dinh et al. 2016, https://arxiv.org/abs/1605.08803); "spline", as
"iaf" with a monotonic rational-quadratic spline on [-5, 5] in place of the affine map (Durkan et al. 2019,
https://arxiv.org/abs/1906.04032). A is affine in each dimension.

A single network serves as the mould of all: ``torch.func.vmap`` runs it over rows of weights. Letters: S draws,
N datapoints, D latents, P weights a datapoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from zuko.flows import ElementWiseTransform, GeneralCouplingTransform, MaskedAutoregressiveTransform
from zuko.transforms import MonotonicRQSTransform

from amortize.random import pyro_rng

__all__ = ["FlowMap", "Layers"]


@dataclass(frozen=True)
class Layers:
    """What a map is made of: the kind of its layers, how many, the widths of their networks, and bins of splines."""

    kind: str
    num_layers: int
    hidden: tuple[int, ...]
    num_bins: int

    def module(self, dim: int) -> nn.Module:
        """The layers, with weights drawn from the global generator, except that they begin at the identity."""
        layers = [self._layer(dim, index) for index in range(self.num_layers)]
        return _Chain([*layers, ElementWiseTransform(dim)])

    def _layer(self, dim: int, index: int) -> Any:  # zuko's modules, which have no types
        univariate: dict[str, Any] = {}
        if self.kind == "spline":
            bins = self.num_bins
            univariate = {"univariate": MonotonicRQSTransform, "shapes": [(bins,), (bins,), (bins - 1,)]}
        if dim == 1:
            return ElementWiseTransform(1, **univariate)
        univariate |= {"hidden_features": self.hidden, "activation": nn.ELU}
        if self.kind == "coupling":
            return GeneralCouplingTransform(dim, mask=torch.arange(dim) % 2 == index % 2, **univariate)
        order = torch.arange(dim) if index % 2 == 0 else torch.arange(dim).flip(0)
        return MaskedAutoregressiveTransform(dim, order=order, **univariate)


class _Chain(nn.Module):
    """Layers one after the other, at the identity before any training."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            last = layer.phi if isinstance(layer, ElementWiseTransform) else layer.hyper[-1]
            for weights in last.parameters():
                nn.init.zeros_(weights)

    def forward(self, value: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """T(value) or its inverse, (S, D), and log |det dT| at the point before T, (S,)."""
        total = torch.zeros_like(value[..., 0])
        for layer in reversed(self.layers) if inverse else self.layers:
            transform = layer()
            if inverse:
                value = transform.inv(value)
                _, log_det = transform.call_and_ladj(value)
            else:
                value, log_det = transform.call_and_ladj(value)
            total = total + log_det
        return value, total


class FlowMap:
    """Maps of R^D whose weights are rows of a matrix.

    Parameters
    ----------
    layers, dim
        What they are made of, and D.
    like
        A tensor of the dtype and on the device to work with.
    """

    def __init__(self, layers: Layers, dim: int, like: Tensor) -> None:
        with pyro_rng(0, "flow"):  # weights inside the layers; every fit begins with the same ones
            self._module = layers.module(dim).to(like)
        self._shapes = {name: value.shape for name, value in self._module.named_parameters()}
        self._buffers = dict(self._module.named_buffers())

    @property
    def num_weights(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self._shapes.values())

    def identity(self, num: int) -> Tensor:
        """Weights (num, P) at which every map is the identity."""
        flat = torch.cat([value.detach().flatten() for _, value in self._module.named_parameters()])
        return flat.expand(num, -1).clone()

    def push(self, weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Y = T(noise), (S, N, D), and log |det dT/dnoise|, (S, N), for ``weights`` (N, P) and noise (S, N, D)."""
        return self._run(weights, noise, inverse=False)

    def pull(self, weights: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The noise (S, N, D) with T(noise) = y, and log |det dT/dnoise| there, (S, N)."""
        return self._run(weights, y, inverse=True)

    def _run(self, weights: Tensor, value: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        def one(parameters: dict[str, Tensor], rows: Tensor) -> Any:
            return functional_call(self._module, (parameters, self._buffers), (rows,), {"inverse": inverse})

        run: Callable[..., tuple[Tensor, Tensor]] = vmap(one, in_dims=(0, 1), out_dims=(1, 1))
        return run(self._split(weights), value)

    def _split(self, weights: Tensor) -> dict[str, Tensor]:
        parts = torch.split(weights, [shape.numel() for shape in self._shapes.values()], -1)
        return {
            name: part.reshape(len(weights), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
