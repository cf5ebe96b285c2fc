r"""From a guide to the posterior, on a batch in training: draws of the guide over u, and log terms anywhere.

.. math:: u_0 \sim q(u | x), \qquad \log q(u | x), \quad r(u) = \log p(x, u) - \log q(u | x),

all differentiable in u and in the parameters of model and guide. Letters: C chains, N datapoints, B = C * N rows
(chain-major), D continuous latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from amortize.program.autoguide import AutoDensity
from amortize.program.data import Data
from amortize.program.density import JointTerms
from amortize.program.guide_runs import GuideRun, frozen_statistics
from amortize.program.handlers import LogTerms, Record, Substitute
from amortize.program.masks import redrawn
from amortize.program.other_runs import AutoRun
from amortize.program.trained import TrainedProgram
from amortize.program.whole import WholeLogJoint

__all__ = ["Reach", "moments", "unconstrained"]

SCALE_DRAWS = 16


class Reach:
    """C draws of the guide for each datapoint of a batch, and what it takes to move them on.

    To be made and used with plates filled and validation off (``TrainedProgram.filled``, ``unvalidated``).

    Parameters
    ----------
    trained, batch, num_chains
        The program, N datapoints, and C.
    scale_draws
        Of the guide, for its moments where it does not state them.

    Attributes
    ----------
    u
        (B, D) draws, differentiable in the guide's parameters.
    loc, scale
        (N, D) where the guide lies and how wide it is.
    outside, auxiliary
        As for ``Particles``; ``outside`` is known once ``terms`` has run.
    """

    def __init__(
        self, trained: TrainedProgram, batch: Data, num_chains: int, *, scale_draws: int = SCALE_DRAWS
    ) -> None:
        self.trained, self.folded = trained, batch.fold(num_chains)
        self.run = trained.run_guide(batch)
        drawn = self.run.draw(num_chains, cut=False, pathwise=True)
        self.u = unconstrained(trained, self.folded, drawn.values)
        self.loc, self.scale = moments(trained, self.run, batch, scale_draws)
        self.auxiliary, self.outside = drawn.auxiliary, drawn.auxiliary.new_zeros(())
        self.has_run = False

    def terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log q(u | x) and log p(x, u) - log q(u | x) at u (B, D), each (B,) nats, Jacobian included in both.

        Running statistics follow the first call alone.
        """
        trained = self.trained
        with frozen_statistics(trained.program.model) if self.has_run else nullcontext():
            terms = trained.log_joint.terms(self.folded, u=u)
        if not self.has_run:
            self.has_run, self.outside = True, terms.outside
        log_q = self.log_q(self.folded, u, terms)
        return log_q, terms.joint - log_q

    def log_q(self, folded: Data, u: Tensor, terms: JointTerms) -> Tensor:
        """Log q(u | x) (B,) of the batch folded any number of times, where the log joint at u (B, D) has ``terms``."""
        if isinstance(self.run, AutoRun):
            return self.run.log_q(folded, {AutoRun.U: u})
        return self.run.log_q(folded, terms.values) + terms.jacobian + self.trained.stand_ins(terms)


def unconstrained(trained: TrainedProgram, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
    """U (B, D) of what a run of the guide drew, differentiable in it."""
    if isinstance(trained.guide, AutoDensity):
        return values[AutoRun.U]
    if isinstance(trained.log_joint, WholeLogJoint):
        return trained.log_joint.whole.flatten(folded, values)
    sites = [trained.structure.sites[name] for name in trained.structure.continuous]
    hides, free = trained.guide.hides, dict(values)
    if hides or any(site.support != "Real" for site in sites):
        messages = _messages(trained, folded, values)
        for site in sites:
            free[site.name] = biject_to(messages[site.name]["fn"].support).inv(values[site.name])
            if site.name in hides:
                free[site.name] = redrawn(site, messages[site.name], free[site.name])
    rows = [free[site.name].movedim(site.front, 0).reshape(folded.num_datapoints, -1) for site in sites]
    return torch.cat([trained.log_joint.like.new_zeros(folded.num_datapoints, 0), *rows], -1)


def moments(trained: TrainedProgram, run: GuideRun, batch: Data, num_draws: int = SCALE_DRAWS) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, D) of the guide over u: its own where it states them, else of a few draws.

    Both are differentiable in its parameters, as they must be for the gradient of what depends on them: a guide that
    widens lengthens the steps. The draws are independent of any other draw.
    """
    real = all(site.support == "Real" for site in trained.structure.sites.values()) and not trained.guide.hides
    stated = run.moments() if real else None
    if stated is not None:
        pairs = ({name: pair[i] for name, pair in stated.items()} for i in range(2))
        loc, scale = (unconstrained(trained, batch, values) for values in pairs)
        return loc, torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
    with frozen_statistics(trained.program):
        drawn = run.draw(num_draws, cut=False, pathwise=True)
        u = unconstrained(trained, batch.fold(num_draws), drawn.values)
    u = u.reshape(num_draws, batch.num_datapoints, -1)
    variance = u.var(0)  # the root of 0 has no gradient
    usable = torch.isfinite(variance) & (variance > 0)
    return u.mean(0), torch.where(usable, variance, torch.ones_like(variance)).sqrt()


def _messages(trained: TrainedProgram, folded: Data, values: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    put = Substitute(trained.structure.sites, LogTerms(folded.num_datapoints, trained.log_joint.like), values=values)
    record, model = Record(), trained.program.model
    with frozen_statistics(model), record, put:
        model(*folded.args, **folded.kwargs)
    return record.messages
