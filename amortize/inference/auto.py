r"""Evidence to a target error: each datapoint is measured by the cheapest means that reaches it.

1. Importance sampling from the start, for all datapoints (none from the prior, which is hopeless in more than a few
   dimensions). Enough where k-hat is below its threshold and the standard error meets the target, and a second look
   agrees (``drawing``); where k-hat is fine and the error isn't, more draws.
2. AIS from the start with few temperatures, for the others.
3. For those that are left, the cheaper of two by forecast. Either longer AIS, of more temperatures or chains: the
   variance measured says how much is needed (``forecast``). Or a Gaussian fitted to the datapoint alone, as a nearer
   start, provided that the chains of step 2 lie under it (``refine``); then steps 1 and 2 from there.
4. Longer AIS until the target, or ``max_gradients``, is met.

**What keeps this honest.** A run's size is settled by earlier runs with other random numbers, so that given its size
:math:`E[w] = p(x)`. A run of other temperatures, or from another start, *replaces* what was there. Chains and draws
that differ from those there in nothing but their random numbers *join* them, each with the same weight: choosing the
better of two runs, or weighting them by their own measured variances, would favour the one that happened to miss the
large weights. That a datapoint stops when its own error looks small biases it downward, like the log of a mean itself
by some share of the squared error; runs are therefore sized with headroom, so that few are decided by a second look,
and a small error is believed only with a k-hat, an effective sample size and a spread of log weights that agree.
What is left: where weights have a heavy tail, estimates are low by up to half their standard error on average (measured
in docs/benchmarks.md), which does not average out over datapoints.
Pareto-smoothed draws are not unbiased; ``lower`` holds the bound of the raw ones.

Letters: C chains, N datapoints, S draws, T temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from amortize.errors import ArgumentError, check_count, shown
from amortize.inference.ais import AIS
from amortize.inference.annealer import Annealer
from amortize.inference.drawing import Drawer
from amortize.inference.forecast import Now, Size, best_size
from amortize.inference.hmc import HMC
from amortize.inference.kernels import Kernel
from amortize.inference.method import Estimate, Method, most_rows
from amortize.inference.refine import FIT_COST, covers, fitted_start, refinable
from amortize.inference.standing import Origin, Standing
from amortize.inference.starts import PriorStart, Start
from amortize.program.compile import check_backend
from amortize.program.data import Data
from amortize.program.options import check_flag
from amortize.random import stream_seed

__all__ = ["Auto", "shortfall"]

LARGEST_CHUNK = 256
FEWEST_DRAWS = 100
MOST_ROUNDS = 8
LOCAL = "local posterior"
SETUP = 50_000
"""Gradients that take as long as making the graphs of a run."""
DISAGREEMENT = 4.0  # standard errors


@dataclass(frozen=True)
class Auto(Method):
    """Settings of evidence to a target error.

    Parameters
    ----------
    target_se
        Standard error to reach, nats a datapoint.
    max_gradients
        Gradients that a datapoint may take, all stages and pilots included (a value counts as a third).
    num_draws
        Draws of the first stage, importance sampling.
    num_chains, num_temperatures
        Of the first annealing; longer runs follow from what it measures.
    kernel
        The transition kernel.
    refine
        Fit a Gaussian to datapoints for which that is forecast to cost less than annealing from the start.
    backend
        As for ``am.AIS``.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(__import__("torch").zeros(8, 4))[1]["x"]
    >>> result = am.evidence(analysis.program(), x, method=am.Auto(target_se=0.1))
    >>> bool((result.se <= 0.1).all())
    True
    """

    target_se: float = 0.05
    max_gradients: int = 200_000
    num_draws: int = 1000
    num_chains: int = 16
    num_temperatures: int = 25
    kernel: Kernel = field(default_factory=lambda: HMC(num_leapfrog=4))
    refine: bool = True
    backend: str = "auto"

    def __post_init__(self) -> None:
        _check_target(self.target_se)
        check_count("Auto max_gradients", self.max_gradients)
        check_count("Auto num_draws", self.num_draws, FEWEST_DRAWS)
        for name in ("num_chains", "num_temperatures"):
            check_count(f"Auto {name}", getattr(self, name), 5)
        if not isinstance(self.kernel, Kernel):
            raise ArgumentError(f"Auto kernel: expected am.HMC(...), am.MALA() or am.ULA(), got {shown(self.kernel)}")
        check_flag("Auto refine", self.refine)
        check_backend(self.backend)

    def chunk_size(self, start: Start) -> int:
        """As many as the first annealing has room for: later stages take fewer, or split them."""
        rows = most_rows(self.num_temperatures * self.kernel.num_gradients) // self.num_chains
        return max(1, min(LARGEST_CHUNK, rows // start.log_joint.num_tiles))

    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """Go through the stages, each with the datapoints that still need it."""
        search = _Search(self, start, data, seed)
        search.first()
        if self.refine and refinable(start):
            search.refine()
        search.lengthen()
        return search.standing.estimate("auto")


def _check_target(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
        raise ArgumentError(f"Auto target_se: expected a positive number of nats, got {value!r}")


def shortfall(se: np.ndarray, target_se: float) -> str:
    """In plain words how many datapoints miss the target; empty where none does."""
    missed = ~(np.asarray(se) <= target_se)
    if not missed.any():
        return ""
    known = np.asarray(se)[missed & np.isfinite(se)]
    unknown = int(missed.sum()) - len(known)
    parts = [f"their standard errors reach from {known.min():.2g} to {known.max():.2g} nats"] if len(known) else []
    parts += [f"that of {unknown} is unknown"] if unknown else []
    return (
        f"{int(missed.sum())} of {len(missed)} datapoints did not reach a standard error of {target_se:g} nats within "
        f"max_gradients ({'; '.join(parts)}). Allow more gradients, or start nearer to the posterior (a better guide)"
    )


class _Search:
    """The datapoints of one chunk on their way: what is known of them, and the two places that runs start from."""

    def __init__(self, settings: Auto, start: Start, data: Data, seed: int) -> None:
        self.settings, self.start, self.data, self.seed = settings, start, data, seed
        self.standing = Standing(data.num_datapoints, settings.max_gradients)
        origin = Origin(start, data, np.arange(data.num_datapoints), "", stream_seed(seed, "start"))
        self.near, self.local = self._annealer(origin), self._annealer(origin)
        self.moved = np.zeros(data.num_datapoints, dtype=bool)  # to a start of their own

    def first(self) -> None:
        """Importance sampling, then a short annealed run."""
        if not isinstance(self.start, PriorStart):
            self._drawer(self.near.origin).run()
        self.near.begin()

    def refine(self) -> None:
        """Give those for which it is cheaper a start of their own."""
        open_ = self.standing.open(self.near.origin.places)
        index = np.array([n for n in open_ if self._worth_refining(n)], dtype=int)
        if not len(index):
            return
        start, data = self.near.origin.rows(index)
        local, cost = fitted_start(start, data, seed=self.seed)
        self.standing.spend(index, cost)
        good = covers(local, *self.near.ends(index))
        if not good.any():
            return
        kept = torch.from_numpy(np.flatnonzero(good)).to(data.index.device)
        origin = Origin(local.rows(kept), data.rows(kept), index[good], LOCAL, stream_seed(self.seed, LOCAL))
        self.local = self._annealer(origin)
        self._measure_locally(origin)

    def lengthen(self) -> None:
        """Longer annealing, sized by what the last run measured, until the target or the budget is met."""
        for _ in range(MOST_ROUNDS):
            plans: dict[tuple[bool, Size], list[int]] = {}
            for n in self.standing.open(self.near.origin.places):
                size = self._size(n)
                if size is not None:
                    plans.setdefault((bool(self.moved[n]), size), []).append(n)
            if not plans:
                return
            for (moved, size), members in self._merged(plans):
                (self.local if moved else self.near).extend(np.array(members), size)

    def _merged(self, plans: dict[tuple[bool, Size], list[int]]) -> list[tuple[tuple[bool, Size], list[int]]]:
        """Runs that differ in their chains alone, made as one of the larger size where that saves time."""
        merged: list[tuple[tuple[bool, Size], list[int]]] = []
        for (moved, size), members in sorted(plans.items(), key=lambda item: _order(item[0])):
            if merged and _order(merged[-1][0])[:3] == _order((moved, size))[:3]:
                large = merged[-1][0][1]
                cost = large.num_chains * large.num_temperatures * self.near.move_cost
                extra = cost - size.num_chains * size.num_temperatures * self.near.move_cost
                if extra * len(members) < SETUP and (self.standing.left(np.array(members)) >= cost).all():
                    merged[-1][1].extend(members)
                    continue
            merged.append(((moved, size), members))
        return [(key, sorted(members)) for key, members in merged]

    def _measure_locally(self, origin: Origin) -> None:
        """As ``first``, then back to where runs from the original start found significantly more."""
        index, columns = origin.places, self.standing.columns
        before, before_se = columns["log_evidence"][index], columns["se"][index]
        self._drawer(origin).run()
        self.local.begin()
        now, se = columns["log_evidence"][index], columns["se"][index]
        with np.errstate(invalid="ignore"):
            lost = before - now > DISAGREEMENT * np.hypot(before_se, np.nan_to_num(se))
        lost |= ~np.isfinite(now)
        self.moved[index[~lost]] = True
        self.near.restore(index[lost])

    def _annealer(self, origin: Origin) -> Annealer:
        settings = self.settings
        first = AIS(
            num_chains=settings.num_chains,
            num_temperatures=settings.num_temperatures,
            kernel=settings.kernel,
            backend=settings.backend,
        )
        return Annealer(origin, self.standing, first=first, target_se=settings.target_se)

    def _drawer(self, origin: Origin) -> Drawer:
        settings = self.settings
        return Drawer(origin, self.standing, num_draws=settings.num_draws, target_se=settings.target_se)

    def _now(self, n: int) -> Now | None:
        return (self.local if self.moved[n] else self.near).now(n)

    def _size(self, n: int) -> Size | None:
        now, left = self._now(n), float(self.standing.left(np.array([n]))[0])
        if now is None:
            return None
        return best_size(now, target_se=self.settings.target_se, move_cost=self.near.move_cost, budget=left)

    def _worth_refining(self, n: int) -> bool:
        """Whether a fit and a short run from it are forecast to cost less than annealing from the start."""
        now, left = self._now(n), float(self.standing.left(np.array([n]))[0])
        if now is None:
            return False
        local = FIT_COST + self.near.first_cost
        return local < now.cost(self.settings.target_se, self.near.move_cost) and local <= left


def _order(plan: tuple[bool, Size]) -> tuple[bool, int, bool, int]:
    """By start, temperatures and whether chains join, the largest runs first."""
    moved, size = plan
    return moved, size.num_temperatures, size.joins, -size.num_chains
