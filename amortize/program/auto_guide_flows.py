r"""Flows of an automatic guide: one a site, given what the encoder read and the numbers of the sites before.

.. math:: q_w(w_k \mid w_{<k}, h) = N(\epsilon; 0, 1) \, |\det dT_k / d\epsilon|^{-1}, \quad
          w_k = T_k(\epsilon; h, w_{<k})

Each begins at the identity, so that the guide begins as its Gaussian. Draws take one pass; densities of other points
one too, but for "iaf", which takes a pass a number (Kingma et al. 2016; Dinh et al. 2017; Durkan et al. 2019).
Letters: S sample shape, B rows, P numbers of a site, C context.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import zuko
from torch import Tensor, nn

from amortize.program.auto_guide_sites import Noise, StandardNormal

__all__ = ["FlowNoise", "SiteFlow"]

BINS = 16
BOUND = 3.0  # standard deviations of the frame; beyond, a spline is the identity
LAYERS = {"iaf": 2, "coupling": 4, "spline": 2}
SPLINE: dict[str, Any] = {
    "univariate": functools.partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND),
    "shapes": [(BINS,), (BINS,), (BINS - 1,)],
}


class SiteFlow(nn.Module):
    """The flow of one site.

    Parameters
    ----------
    kind
        "iaf", "coupling" or "spline".
    size
        P. Where it is 1, "spline" is a spline of that number and the others are affine maps, given the context.
    num_context
        C.
    hidden
        Sizes of the hidden layers.
    """

    def __init__(self, kind: str, size: int, num_context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        settings: dict[str, Any] = {"hidden_features": tuple(hidden)}
        univariate = SPLINE if kind == "spline" else {}
        layers: list[Any] = []
        for place in range(LAYERS[kind] if size > 1 else 0):
            if kind == "iaf":
                order = torch.arange(size) if place % 2 == 0 else torch.arange(size).flip(0)
                layers.append(zuko.flows.MaskedAutoregressiveTransform(size, num_context, order=order, **settings))
            else:
                mask = torch.arange(size) % 2 == place % 2
                layers.append(
                    zuko.flows.GeneralCouplingTransform(size, num_context, mask=mask, **univariate, **settings)
                )
        if kind == "spline" or size == 1:
            layers.append(zuko.flows.ElementWiseTransform(size, num_context, **univariate, **settings))
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            last = layer.hyper[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, context: Tensor) -> FlowNoise:
        """The density of w given a context (B, C)."""
        return FlowNoise([layer(context) for layer in self.layers])


class FlowNoise(Noise):
    """A standard normal through transforms."""

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms, self.base = list(transforms), StandardNormal()

    def draw(self, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Forwards."""
        w, _ = self.base.draw(shape, like)
        log_q = self.base.log_density(w).sum(-1)
        for transform in self.transforms:
            w, ladj = transform.call_and_ladj(w)
            log_q = log_q - ladj
        return w, log_q.unsqueeze(-1)

    def log_density(self, w: Tensor) -> Tensor:
        """Backwards; of a whole row, (S, B, 1)."""
        total = w.new_zeros(w.shape[:-1])
        for transform in reversed(self.transforms):
            w, ladj = transform.inv.call_and_ladj(w)
            total = total + ladj
        return (total + self.base.log_density(w).sum(-1)).unsqueeze(-1)
