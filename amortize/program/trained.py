r"""A program in training: draws of its guide, log p(x_n, z_kn) and log q(z_kn | x_n) of each particle, with gradients.

Modules stay in the mode that they are in (BatchNorm and dropout train), plates take every datapoint of the batch, their
scale is divided out, and discrete latents that the guide leaves out are summed out. Gradients can be cut at the draws,
so that an objective weighs each path by itself: what reaches a particle z, and what goes on from it to the guide.

Letters: K particles, N datapoints of a batch, K * N rows (particle-major).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from amortize.errors import DiscreteLatentError, GuideDataError, GuideMismatchError
from amortize.program.autoguide import AutoDensity, bound_density
from amortize.program.contract import verify_independent
from amortize.program.data import Data
from amortize.program.density import JointTerms, LogJoint, require_guide
from amortize.program.guide import GuideDensity, TracedGuide
from amortize.program.guide_contract import guide_messages, verify_guide
from amortize.program.guide_runs import Drawn, Gate, GuideRun
from amortize.program.handlers import unvalidated
from amortize.program.other_runs import AutoRun, WholeRun
from amortize.program.probes import head_of
from amortize.program.program import Program
from amortize.program.runtime import filled_plates
from amortize.program.sites import Structure
from amortize.program.traced_runs import TracedRun, captured_run, reads_no_draws
from amortize.program.whole import WholeLogJoint
from amortize.program.whole_guide import WholeGuide

__all__ = ["Particles", "TrainedProgram"]


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
    points
        Whether the guide may be a point (Delta), which has no density.

    Raises
    ------
    DiscreteLatentError
        If the guide samples discrete latents and gradients are to go through its draws.
    GuideDataError
        If the guide has parameters for single datapoints.

    Attributes
    ----------
    structure, log_joint, guide
        The sites, with those discrete ones summed out that the guide leaves out; and the densities.
    reads_no_draws
        Whether the guide is known to state its distributions before it draws from them.
    """

    def __init__(self, program: Program, data: Data, *, pathwise: bool, points: bool = False) -> None:
        require_guide(program)
        self.program, self.pathwise = program, pathwise
        _refuse_per_datapoint(program)
        self.structure = _structure(program, data, pathwise=pathwise)
        self.guide: GuideDensity
        with program.evaluating():
            self.log_joint = program.unverified_log_joint(data, self.structure)
            verify_independent(self.log_joint, data)
            self.guide = _guide(self.log_joint, data, points=points)
            self.reads_no_draws = isinstance(self.guide, TracedGuide) and reads_no_draws(self.guide, head_of(data))

    def run_guide(self, data: Data) -> GuideRun:
        """The guide on a batch, with its parameters as they are."""
        if isinstance(self.guide, WholeGuide):
            return WholeRun(self.guide, data)
        if isinstance(self.guide, AutoDensity):
            return AutoRun(self.guide, data)
        assert isinstance(self.guide, TracedGuide)
        with self.filled():
            return captured_run(self.guide, data) if self.reads_no_draws else TracedRun(self.guide, data)

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
        u = values[AutoRun.U] if isinstance(self.guide, AutoDensity) else None
        terms = self.log_joint.terms(folded, u=u, values=None if u is not None else values)
        return terms.joint - self.stand_ins(terms), terms.outside

    def stand_ins(self, terms: JointTerms) -> Tensor:
        """What stands in for latents that guide and model both hide by a mask, (B,)."""
        return self.guide.stand_ins(terms)

    def filled(self) -> AbstractContextManager[None]:
        """Plates that subsample take every datapoint of the batch inside: guide and model run on the same ones."""
        return filled_plates(self.program)


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
            "guide's draws. Leave it out of the guide, so that it is summed out, or train by "
            "objective='leave-one-out', 'vimco' or 'wake-sleep', which need no such gradient"
        )
    if left and structure.summation == "none":
        raise DiscreteLatentError(
            f"the guide leaves out the discrete latent {left[0]!r}, which the program samples ({structure.reason}). "
            "Sample it in the guide too and train by objective='wake-sleep', or have it summed out, "
            "am.Program(model, guide, discrete='enumerate')"
        )
    return replace(structure, sampled=drawn, summation=structure.summation if left else "none")


def _guide(log_joint: LogJoint, data: Data, *, points: bool) -> GuideDensity:
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
    plate, drawn = verify_guide(log_joint, data, points=points)
    return TracedGuide(log_joint, plate, data, drawn)
