r"""A program in training: draws of its guide, log p(x_n, z_kn) and log q(z_kn | x_n) of each particle, with gradients.

Modules stay in the mode that they are in (BatchNorm and dropout train), plates take every datapoint of the batch, their
scale is divided out, and discrete latents that the guide leaves out are summed out. Gradients can be cut at the draws,
so that an objective weighs each path by itself: what reaches a particle z, and what goes on from it to the guide.

Letters: K particles, N datapoints of a batch, K * N rows (particle-major).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor
from torch.distributions import biject_to

from amortize.errors import DiscreteLatentError, GuideDataError, GuideMismatchError
from amortize.program.autoguide import bound_density
from amortize.program.contract import verify_independent
from amortize.program.data import Data
from amortize.program.density import JointTerms, LogJoint, require_guide
from amortize.program.guide import TracedGuide
from amortize.program.guide_contract import guide_messages, verify_guide
from amortize.program.guide_runs import (
    AutoRun,
    Drawn,
    Gate,
    GuideRun,
    TracedRun,
    WholeRun,
    captured_run,
    frozen_statistics,
    reads_no_draws,
)
from amortize.program.handlers import LogTerms, Record, Substitute, unvalidated
from amortize.program.masks import redrawn
from amortize.program.probes import head_of
from amortize.program.program import Program
from amortize.program.replay import locate, observed_names, put, run_held
from amortize.program.sites import Structure
from amortize.program.whole import WholeLogJoint
from amortize.program.whole_guide import WholeGuide

__all__ = ["Particles", "Reach", "TrainedProgram"]

SCALE_DRAWS = 16


class Particles(NamedTuple):
    """K draws of the guide for each datapoint: log p(x, z) and log q(z | x), (K, N) nats, without Jacobian.

    ``outside`` is what stands outside the plate, and ``auxiliary`` what the guide marks as a term of the loss alone:
    scalars, of the batch as a whole.
    """

    drawn: Drawn
    log_joint: Tensor
    log_q: Tensor
    outside: Tensor
    auxiliary: Tensor


class Reach:
    """From the guide to the posterior on one batch: C draws of the guide for each datapoint, and log terms anywhere.

    Attributes
    ----------
    u
        (B, D) draws, differentiable in the guide's parameters.
    loc, scale
        (N, D) where the guide lies and how wide it is.
    outside, auxiliary
        As for ``Particles``; known once ``terms`` has run.
    """

    def __init__(self, trained: TrainedProgram, run: GuideRun, batch: Data, num_chains: int) -> None:
        self.trained, self.run, self.folded = trained, run, batch.fold(num_chains)
        drawn = run.draw(num_chains, cut=False, pathwise=True)
        self.u = trained.unconstrained(self.folded, drawn.values)
        self.loc, self.scale = trained.moments(run, batch)
        self.auxiliary, self.outside = drawn.auxiliary, drawn.auxiliary.new_zeros(())
        self.has_run = False

    def terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log q(u | x) and log p(x, u) - log q(u | x) at u (B, D), each (B,) nats, Jacobian included in both.

        Differentiable in u and in all parameters. Running statistics follow the first call alone.
        """
        model = self.trained.program.model
        with frozen_statistics(model) if self.has_run else nullcontext():
            terms = self.trained.log_joint.terms(self.folded, u=u)
        if not self.has_run:
            self.has_run, self.outside = True, terms.outside
        if isinstance(self.run, AutoRun):
            log_q = self.run.log_q(self.folded, {AutoRun.U: u})
        else:
            log_q = self.run.log_q(self.folded, terms.values) + terms.jacobian + self.trained.stand_ins(terms)
        return log_q, terms.joint - log_q


class TrainedProgram:
    """A program as objectives see it that weigh particles.

    Parameters
    ----------
    program
        With a guide.
    data
        Datapoints on which the contract is tried once; of an AutoGuide, all of them.
    pathwise
        Whether gradients go through the draws, so that the guide may sample nothing discrete.

    Raises
    ------
    DiscreteLatentError
        If the guide samples discrete latents and gradients are to go through its draws.
    GuideDataError
        If the guide has parameters for single datapoints.
    """

    def __init__(self, program: Program, data: Data, *, pathwise: bool) -> None:
        require_guide(program)
        self.program, self.pathwise = program, pathwise
        _refuse_per_datapoint(program)
        self.structure = _structure(program, data, pathwise=pathwise)
        with program.evaluating():
            self.log_joint = program.unverified_log_joint(data, self.structure)
            verify_independent(self.log_joint, data)
            self._guide = _guide(self.log_joint, data)
            self._fixed = isinstance(self._guide, TracedGuide) and reads_no_draws(self._guide, head_of(data))

    def run_guide(self, data: Data) -> GuideRun:
        """The guide on a batch, with its parameters as they are."""
        if isinstance(self._guide, WholeGuide):
            return WholeRun(self._guide, data)
        if not isinstance(self._guide, TracedGuide):
            return AutoRun(self._guide, data)
        with self.filled():
            return captured_run(self._guide, data) if self._fixed else TracedRun(self._guide, data)

    def particles(self, data: Data, num_particles: int, *, cut: bool, gate: Gate | None = None) -> Particles:
        """K draws for each datapoint; where ``cut``, gradients stop at the draws (`Drawn.through`).

        Where draws are not chained, the model's pass through a ``gate`` instead.
        """
        with self.filled(), unvalidated():
            drawn = self.run_guide(data).draw(num_particles, cut=cut, pathwise=self.pathwise)
            values = drawn.values
            if gate is not None and not drawn.chained:
                sites = self.structure.sites
                fronts = {name: sites[name].front if name in sites else 0 for name in values}
                values = {name: gate.behind(drawn.sources[name], front) for name, front in fronts.items()}
            log_joint, outside = self.log_joint_at(data.fold(num_particles), values)
        shape = (num_particles, data.num_datapoints)
        return Particles(drawn, log_joint.reshape(shape), drawn.log_q.reshape(shape), outside, drawn.auxiliary)

    def log_joint_at(self, folded: Data, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log p(x, z) of each row (B,) at what a run of the guide drew, and what stands outside the plate.

        Latents that both hide are left out, as they are of the guide's density.
        """
        u = values.get(AutoRun.U)
        terms = self.log_joint.terms(folded, u=u, values=None if u is not None else values)
        return terms.joint - self.stand_ins(terms), terms.outside

    @contextmanager
    def reaching(self, batch: Data, num_chains: int) -> Iterator[Reach]:
        """From the guide to the posterior, on a batch; to be used inside."""
        with self.filled(), unvalidated():
            yield Reach(self, self.run_guide(batch), batch, num_chains)

    def stand_ins(self, terms: JointTerms) -> Tensor:
        """What stands in for latents that guide and model both hide by a mask, (B,)."""
        result: Tensor = self._guide.stand_ins(terms)
        return result

    def unconstrained(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """U (B, D) of what a run of the guide drew, differentiable in it."""
        if AutoRun.U in values:
            return values[AutoRun.U]
        if isinstance(self.log_joint, WholeLogJoint):
            return self.log_joint.whole.flatten(folded, values)
        sites = [self.structure.sites[name] for name in self.structure.continuous]
        hides = self._guide.hides
        free = values
        if hides or any(site.support != "Real" for site in sites):
            messages = self._messages(folded, values)
            free = {site.name: biject_to(messages[site.name]["fn"].support).inv(values[site.name]) for site in sites}
            free |= {name: redrawn(self.structure.sites[name], messages[name], free[name]) for name in hides}
        rows = [free[site.name].movedim(site.front, 0).reshape(folded.num_datapoints, -1) for site in sites]
        return torch.cat([self.log_joint.like.new_zeros(folded.num_datapoints, 0), *rows], -1)

    def moments(self, run: GuideRun, batch: Data) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (N, D) of the guide over u: its own where it states them, else of a few draws.

        Its own are differentiable in its parameters, as they must be for the gradient of what depends on them; those of
        draws are plain numbers, independent of any other draw.
        """
        real = all(site.support == "Real" for site in self.structure.sites.values()) and not self._guide.hides
        stated = run.moments() if real else None
        if stated is not None:
            pairs = ({name: pair[i] for name, pair in stated.items()} for i in range(2))
            loc, scale = (self.unconstrained(batch, values) for values in pairs)
        else:
            with torch.no_grad():
                drawn = run.draw(SCALE_DRAWS, cut=True, pathwise=False)
                u = self.unconstrained(batch.fold(SCALE_DRAWS), drawn.values)
            u = u.reshape(SCALE_DRAWS, batch.num_datapoints, -1)
            loc, scale = u.mean(0), u.std(0)
        return loc, torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))

    def _messages(self, folded: Data, values: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        put = Substitute(self.structure.sites, LogTerms(folded.num_datapoints, self.log_joint.like), values=values)
        record = Record()
        with frozen_statistics(self.program.model), record, put:
            self.program.model(*folded.args, **folded.kwargs)
        return record.messages

    def require_dreams(self, data: Data) -> None:
        """Try on a few datapoints that the model can be simulated and its data replaced.

        Raises
        ------
        ReplayError, GuideDataError
            Naming the site and the way out.
        """
        if self.program.bound is not None:
            raise GuideDataError(
                "the guide has parameters of its own for each datapoint, and can't be run on simulated ones. Write a "
                "guide that reads the data (an encoder), or leave the sleep phase out, am.WakeSleep(sleep=0)"
            )
        self.program.simulated(head_of(data), seed=0)

    def dream(self, batch: Data, *, seed: int) -> tuple[Data, dict[str, Tensor]]:
        """Data simulated by the model, shaped like a batch, and the latents behind them as a run of the guide has them.

        A model whose later sites read earlier observations runs again, with the same random numbers, until all of its
        sites have seen the simulated data.
        """
        program, names = self.program, observed_names(self.program, self.structure)
        with program.evaluating():
            places = {} if program.replace is not None else locate(program, self.structure, batch)
            simulated, before = batch, None
            for _ in range(len(names) + 2):
                messages = run_held(program, simulated, seed=seed, draws=names)
                observed = {name: messages[name]["value"] for name in names}
                simulated = put(program, self.structure, batch, observed, places)
                if before is not None and all(torch.equal(observed[name], before[name]) for name in names):
                    break
                before = observed
        values = {name: messages[name]["value"] for name in self.structure.sites}
        return simulated, {name: v.unsqueeze(0) for name, v in values.items()} if program.whole else values

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Plates that subsample take every datapoint of the batch inside: guide and model run on the same ones."""
        parts: list[Any] = [self.program.model, self.program.guide]
        before = [part.fills_plates for part in parts]
        for part in parts:
            part.fills_plates = True
        try:
            yield
        finally:
            for part, value in zip(parts, before, strict=True):
                part.fills_plates = value


def _refuse_per_datapoint(program: Program) -> None:
    guide = program.guide
    if guide is not None and guide.per_datapoint:
        raise GuideDataError(
            f"parameter {guide.per_datapoint[0]!r} of the guide has an entry a datapoint, so that the guide can't be "
            "run on several particles of each at once. Train it by objective='elbo', or take "
            "pyro.infer.autoguide.AutoNormal, which has such parameters too"
        )


def _structure(program: Program, data: Data, *, pathwise: bool) -> Structure:
    """The structure in which a discrete site is sampled where the guide samples it, and summed out elsewhere."""
    structure = program.structure(data)
    if not structure.discrete or program.bound is not None:
        return structure
    with program.evaluating():
        messages = guide_messages(program, head_of(data))
    drawn = tuple(name for name in structure.discrete if name in messages)
    left = [name for name in structure.discrete if name not in messages]
    if drawn and pathwise:
        raise DiscreteLatentError(
            f"the guide samples the discrete latent {drawn[0]!r}, and this objective differentiates through the "
            "guide's draws. Leave it out of the guide, so that it is summed out, or train by objective='wake-sleep' or "
            "'graph-elbo', which need no such gradient"
        )
    if left and structure.summation == "none":
        raise DiscreteLatentError(
            f"the guide leaves out the discrete latent {left[0]!r}, which the program samples ({structure.reason}). "
            "Sample it in the guide too and train by objective='wake-sleep', or have it summed out, "
            "am.Program(model, guide, discrete='enumerate')"
        )
    return replace(structure, sampled=drawn, summation=structure.summation if left else "none")


def _guide(log_joint: LogJoint, data: Data) -> Any:
    program = log_joint.program
    if program.bound is not None:
        density = bound_density(program.bound, log_joint, data)
        if any(isinstance(part.guide, AutoLaplaceApproximation) for part in density.parts):
            raise GuideMismatchError(
                "AutoLaplaceApproximation is trained as a point, the mode, and has no spread to draw from in training. "
                "Train it by objective='elbo', or take AutoNormal"
            )
        return density
    if isinstance(log_joint, WholeLogJoint):
        return WholeGuide(log_joint, data)
    plate, drawn = verify_guide(log_joint, data)
    return TracedGuide(log_joint, plate, data, drawn)
