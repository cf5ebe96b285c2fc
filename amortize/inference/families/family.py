r"""What a family of local posteriors is: settings, how it is fitted to datapoints, and the density that comes out.

Letters: N datapoints, D latents, K looks at a fit on its way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.inference.families.density import Density
from amortize.inference.starts import Start
from amortize.program.compile import Compiled
from amortize.program.data import Data
from amortize.program.density import LogJoint
from amortize.random import stream_seed

__all__ = ["Family", "Fit", "Implicit", "Parameters", "Problem", "Trace"]

INIT_DRAWS = 256
NARROW = 0.1
"""Share of the start's scale at which a fit that failed begins anew."""

Parameters = dict[str, Tensor]
"""What a family fits, by name: each tensor (N, ...)."""


class Trace(NamedTuple):
    """A fit on its way: ``seconds`` (K,) since it began, ``num_gradients`` (K,) a datapoint, ``elbo`` (K, N) nats."""

    seconds: np.ndarray
    num_gradients: np.ndarray
    elbo: np.ndarray


@dataclass(frozen=True)
class Fit:
    """What a fit ends with.

    Attributes
    ----------
    parameters
        By name, (N, ...) each.
    stopped
        (N,) bool: it ended by itself, because nothing was left to gain, and not for want of steps.
    num_steps, num_gradients
        (N,) optimiser steps, and gradients of the log joint.
    elbo, elbo_se
        (N,) nats, of families whose value does not follow from a density (``Family.has_density`` is false).
    trace
        The way there.
    """

    parameters: Parameters
    stopped: Tensor
    num_steps: Tensor
    num_gradients: Tensor
    elbo: Tensor | None = None
    elbo_se: Tensor | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Problem:
    """Datapoints to fit posteriors to.

    Attributes
    ----------
    log_joint, data
        The density and its N datapoints.
    start
        Where fits begin: the guide or the prior.
    num_draws, num_steps
        Draws a step, and the most steps that a datapoint may take.
    seed
        Of all that is drawn.
    attempt
        0 at first; a fit that failed begins anew elsewhere.
    """

    log_joint: LogJoint
    start: Start
    data: Data
    num_draws: int
    num_steps: int
    seed: int
    attempt: int = field(default=0)

    @property
    def dim(self) -> int:
        """D."""
        return self.log_joint.dim

    def rows(self, index: Tensor) -> Problem:
        """The problem of some datapoints."""
        return replace(self, start=self.start.rows(index), data=self.data.rows(index))

    def again(self) -> Problem:
        """The same datapoints, to be begun elsewhere with other random numbers."""
        return replace(self, attempt=self.attempt + 1, seed=stream_seed(self.seed, "again"))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Where each datapoint begins, (N, D) each: mean and standard deviation of draws from the start.

        A fit that failed begins anew at the best of the draws, and narrow.
        """
        return self._moments

    @cached_property
    def compiled(self) -> Compiled:
        """Log p (S * N,) and its gradient at u (S * N, D), S = ``num_draws``, draw-major: traced once for all uses."""
        loc, scale = (value.repeat(self.num_draws, 1) for value in self.moments())
        folded = self.data.fold(self.num_draws)

        def value_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                value = self.log_joint.terms(folded, u=u).joint
                (slope,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), slope.detach()

        return Compiled(value_and_gradient, (loc,), (loc + 0.5 * scale,))

    @cached_property
    def compiled_value(self) -> Compiled:
        """Log p alone, a tuple of one, by the same trace."""
        return self.compiled.part((0,))

    @cached_property
    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        num = self.data.num_datapoints
        folded = self.data.fold(INIT_DRAWS)
        flat = self.start.draw(folded, self.seed, "init").u
        draws = flat.reshape(INIT_DRAWS, num, -1)
        loc, scale = draws.mean(0).nan_to_num(0.0), draws.std(0)
        usable = torch.isfinite(scale) & (scale > 0)
        scale = torch.where(usable, scale, torch.ones_like(scale))
        if not self.attempt:
            return loc, scale
        value = self.log_joint.terms(folded, u=flat).joint.reshape(INIT_DRAWS, num)
        best = value.nan_to_num(-torch.inf, -torch.inf, -torch.inf).argmax(0)
        return draws[best, torch.arange(num, device=draws.device)], NARROW * scale


@dataclass(frozen=True)
class Family(ABC):
    """Settings of a family of densities over u."""

    name: ClassVar[str]
    has_density: ClassVar[bool] = True
    """Whether members have a density over u, so that chains can start from them; see ``Implicit``."""
    is_bound: ClassVar[bool] = True
    """Whether the ``elbo`` is one, a lower bound on log p(x)."""
    raises_elbo: ClassVar[bool] = True
    """Whether the ELBO is what is raised, so that one below where the fit began is a failure."""
    doubtful: ClassVar[bool] = False
    """Whether fits begin in one place alone, so that one whose log weights spread widely is worth another."""

    @abstractmethod
    def fit(self, problem: Problem) -> Fit:
        """The best member for each datapoint by itself."""

    @abstractmethod
    def density(self, parameters: Parameters) -> Density:
        """The members with these parameters."""

    def settings(self) -> dict[str, Any]:
        """What to write down."""
        return asdict(self)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Family:
        """The family with these settings, as ``settings`` wrote them."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


@dataclass(frozen=True)
class Implicit(Family):
    """A family whose members can be drawn from, but have no density over u."""

    has_density: ClassVar[bool] = False

    @abstractmethod
    def draw(self, parameters: Parameters, problem: Problem) -> Tensor:
        """Draws u (S, N, D): as many as the problem says, of the members with these parameters."""

    def density(self, parameters: Parameters) -> Density:  # noqa: ARG002 (there is none)
        """There is none.

        Raises
        ------
        ArgumentError
            Always.
        """
        raise ArgumentError(f"{self.name} posteriors have no density over u; they have .draws() and .parameters")
