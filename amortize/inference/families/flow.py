r"""Normalizing flows as local posteriors: a flow of its own for each datapoint, in the frame of its Gaussian fit.

.. math:: u = \mu_n + L_n T(\epsilon; \theta_n), \qquad \epsilon \sim N(0, I)

Two flows are fitted to each datapoint, and the better is kept (Rezende and Mohamed 2015,
https://arxiv.org/abs/1505.05770). One begins at the identity in the frame of the Gaussian fit, so that it never ends
below that. The other begins at the identity in the wide frame of the start - the prior's or the guide's moments - and
is led to the posterior along :math:`q_0^{1-\beta} p^\beta`, so that it can find modes that the Gaussian fit left out.

Letters: S draws, N datapoints, D latents, P weights a datapoint.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_count, shown
from amortize.inference.chunks import slices
from amortize.inference.families.family import Family, Fit, Parameters, Problem
from amortize.inference.families.flow_density import FlowDensity, Frame
from amortize.inference.families.flow_fit import FlowFit
from amortize.inference.families.flow_map import FlowMap, Layers
from amortize.inference.families.gaussian import FullCovariance, MeanField
from amortize.random import stream_seed

__all__ = ["IAF", "Coupling", "Flow", "FlowFamily", "Spline"]

FRAMES = ("auto", "mean-field", "full-covariance")
FULL_DIM = 64
"""Up to how many dimensions the frame is that of a full-covariance fit, unless told."""
MAX_WEIGHTS, MAX_ROWS = 2**23, 2**15
"""Weights of all datapoints that are fitted at once, and rows of a call of the model."""


@dataclass(frozen=True, kw_only=True)
class FlowFamily(Family):
    """What all flows share; parameters ``weights`` (N, P), ``loc`` (N, D), and ``scale`` or ``scale_tril``: the frame.

    Attributes
    ----------
    num_layers, hidden
        Layers of a flow, and the widths of each layer's network.
    num_draws
        Draws a step; those that ``am.fit_local`` was told count for the Gaussian fit, and here where they are more.
    frame
        The Gaussian family that a fit begins with: "mean-field", "full-covariance", or "auto", which takes
        "full-covariance" up to 64 dimensions.
    """

    num_layers: int = 3
    hidden: tuple[int, ...] = (32,)
    num_draws: int = 64
    frame: str = "auto"

    def __post_init__(self) -> None:
        check_count("num_layers", self.num_layers)
        check_count("num_draws", self.num_draws, 2)
        if not isinstance(self.hidden, tuple):
            raise ArgumentError(f"hidden: expected a tuple of widths, as (32,), got {shown(self.hidden)}")
        for width in self.hidden:
            check_count("hidden", width)
        if self.frame not in FRAMES:
            raise ArgumentError(f"frame: expected one of {FRAMES}, got {self.frame!r}")

    @abstractmethod
    def layers(self) -> Layers:
        """What the maps are made of."""

    def fit(self, problem: Problem) -> Fit:
        """The best one for each datapoint; as many at once as memory allows."""
        flow = _map(self.layers(), problem.dim, *_kind(problem.log_joint.like))
        rows = 2 * max(self.num_draws, problem.num_draws) * problem.log_joint.num_tiles
        at_once = max(1, min(MAX_WEIGHTS // (2 * flow.num_weights), MAX_ROWS // rows))
        gaussian = self.gaussian(problem.dim)
        parts = _parts(problem, at_once)
        return _joined([FlowFit(part, self.num_draws, flow, gaussian, self.name).run() for part in parts])

    def density(self, parameters: Parameters) -> FlowDensity:
        """Flows in their frames."""
        loc = parameters["loc"]
        scale = parameters["scale_tril"] if "scale_tril" in parameters else parameters["scale"]
        flow = _map(self.layers(), loc.shape[-1], *_kind(loc))
        return FlowDensity(flow, parameters["weights"], Frame(loc, scale))

    def gaussian(self, dim: int) -> Family:
        """The family whose fit is the frame in D dimensions."""
        full = self.frame == "full-covariance" or (self.frame == "auto" and dim <= FULL_DIM)
        return FullCovariance() if full else MeanField()


@dataclass(frozen=True, kw_only=True)
class IAF(FlowFamily):
    """Inverse autoregressive flows: each dimension scaled and shifted by what came before it.

    One latent alone is scaled and shifted only: a Gaussian. Draws take one pass, the density at given u takes D.
    """

    name: ClassVar[str] = "iaf"

    def layers(self) -> Layers:
        """Affine, autoregressive."""
        return Layers("iaf", self.num_layers, self.hidden, 0)


@dataclass(frozen=True, kw_only=True)
class Coupling(FlowFamily):
    """Affine couplings (RealNVP): half of the dimensions scaled and shifted by the other half, in turn.

    One latent alone is scaled and shifted only: a Gaussian. Both draws and the density at given u take one pass, so
    that these are the flows to start long chains from.
    """

    name: ClassVar[str] = "coupling"

    def layers(self) -> Layers:
        """Affine, coupled."""
        return Layers("coupling", self.num_layers, self.hidden, 0)


@dataclass(frozen=True, kw_only=True)
class _Splined(FlowFamily):
    """Flows of splines with ``num_bins`` pieces each."""

    num_bins: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_bins", self.num_bins, 2)

    def layers(self) -> Layers:
        """Splines, autoregressive."""
        return Layers("spline", self.num_layers, self.hidden, self.num_bins)


@dataclass(frozen=True, kw_only=True)
class Spline(_Splined):
    """Neural spline flows, autoregressive: the kind that can part one mode into two, also of one latent alone.

    Draws take one pass, the density at given u takes D.

    Examples
    --------
    >>> import pyro, torch, amortize as am, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z**2, 0.2), obs=x)
    >>> x = torch.tensor([0.5, 0.6])
    >>> local = am.fit_local(am.Program(model), x, family=am.Spline(num_layers=2), num_steps=300)
    >>> (local.elbo > am.fit_local(am.Program(model), x, family="full-covariance").elbo + 0.3).all()
    np.True_
    """

    name: ClassVar[str] = "spline"


@dataclass(frozen=True, kw_only=True)
class Flow(_Splined):
    """The flow to take where no kind is asked for: that of ``Spline``."""

    name: ClassVar[str] = "flow"


@lru_cache(maxsize=16)
def _map(layers: Layers, dim: int, dtype: torch.dtype, device: torch.device) -> FlowMap:
    return FlowMap(layers, dim, torch.zeros(0, dtype=dtype, device=device))


def _kind(like: Tensor) -> tuple[torch.dtype, torch.device]:
    return like.dtype, like.device


def _parts(problem: Problem, at_once: int) -> list[Problem]:
    num = problem.data.num_datapoints
    if num <= at_once:
        return [problem]
    index = torch.arange(num, device=problem.data.index.device)
    return [
        replace(problem.rows(index[part]), seed=stream_seed(problem.seed, "part", part.start))
        for part in slices(num, at_once)
    ]


def _joined(fits: list[Fit]) -> Fit:
    """The fits of some datapoints after those of others, without a common trace: they ran one after the other."""
    if len(fits) == 1:
        return fits[0]
    return Fit(
        {name: torch.cat([fit.parameters[name] for fit in fits]) for name in fits[0].parameters},
        stopped=torch.cat([fit.stopped for fit in fits]),
        num_steps=torch.cat([fit.num_steps for fit in fits]),
        num_gradients=torch.cat([fit.num_gradients for fit in fits]),
    )
