r"""What a trained bridge consists of: its steps, its score, and where it starts when the start is trained too.

Letters: N datapoints, D latents, B rows (draw-major), K steps, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amortize.inference.bridge import SCORED, UNDERDAMPED, Bridged, Evaluate, bridge
from amortize.inference.chart import Chart
from amortize.inference.learned_steps import LearnedSteps
from amortize.inference.score_network import Features, ScoreNetwork
from amortize.program.data import Data

__all__ = ["BridgeModel", "GaussianBase", "Launch"]


class Launch(NamedTuple):
    """Where B rows start: ``z`` (B, D) exact draws, their log terms in z, and features (N, F) of their datapoints."""

    z: Tensor
    evaluate: Evaluate
    features: Tensor | None


class GaussianBase(nn.Module):
    """A Gaussian start of each of N datapoints, with parameters in units of where it began.

    Parameters
    ----------
    loc, scale_tril
        (N, D) and (N, D, D).
    full
        Whether to train the entries below the diagonal; they are dropped otherwise.
    """

    unit: Tensor
    begun: Tensor

    def __init__(self, loc: Tensor, scale_tril: Tensor, *, full: bool) -> None:
        super().__init__()
        unit = scale_tril.diagonal(dim1=-2, dim2=-1)
        self.register_buffer("unit", unit.clone())
        self.register_buffer("begun", loc.clone())
        self.shift = nn.Parameter(torch.zeros_like(loc))
        self.log_stretch = nn.Parameter(torch.zeros_like(loc))
        self.lower = nn.Parameter((scale_tril / unit.unsqueeze(-1)).tril(-1)) if full else None

    def chart(self, index: Tensor) -> Chart:
        """The Gaussians of some datapoints."""
        unit = self.unit[index]
        loc, stretch = self.begun[index] + unit * self.shift[index], self.log_stretch[index].exp()
        if self.lower is None:
            return Chart(loc, unit * stretch)
        return Chart(loc, unit.unsqueeze(-1) * (torch.diag_embed(stretch) + self.lower[index].tril(-1)))


class BridgeModel(nn.Module):
    """A bridge of one kind with all that is trained in it.

    Parameters
    ----------
    kind, num_steps
        As for ``LearnedSteps``.
    dim
        D.
    features
        How data become inputs of the score; None where there is nothing to be amortized over.
    base
        A trained start; None keeps the start as it is.
    hidden
        Sizes of the score's hidden layers.
    """

    def __init__(
        self,
        kind: str,
        num_steps: int,
        dim: int,
        *,
        features: Features | None = None,
        base: GaussianBase | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.kind, self.dim, self.features, self.base = kind, dim, features, base
        self.steps = LearnedSteps(kind, num_steps, dim=dim)
        self.score: ScoreNetwork | None = None
        if kind in SCORED:
            count = 0 if features is None else features.dim
            self.score = ScoreNetwork(dim, num_steps, momentum=kind in UNDERDAMPED, num_features=count, hidden=hidden)

    def read(self, data: Data) -> Tensor | None:
        """Features (N, F) of datapoints, where the score has a use for them."""
        if self.features is None or self.score is None:
            return None
        return self.features(data).to(self.steps.log_step_sizes)

    def forward(self, launch: Launch, generator: torch.Generator) -> Bridged:
        """Log weights (B,) in nats."""
        network = self.score
        if network is None:
            return bridge(self.kind, launch.evaluate, launch.z, self.steps(), generator)

        def score(z: Tensor, v: Tensor | None, t: int) -> Tensor:
            value: Tensor = network(z, v, t, launch.features)
            return value

        return bridge(self.kind, launch.evaluate, launch.z, self.steps(), generator, score=score)
