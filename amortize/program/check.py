"""The contract of a program, tried on a few datapoints: quick refusals for the verbs, a report for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import TransformedDistribution, biject_to

from amortize.errors import AmortizeError, ContractError, DynamicStructureError, GuideMismatchError, NotIndependentError
from amortize.program.data import Data
from amortize.program.guide import TracedGuide
from amortize.program.density import Latents
from amortize.program.discover import HEAD, has_user_scale, run_recorded
from amortize.program.handlers import atoms, base_of, data_dim
from amortize.random import generator, pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import LogJoint
    from amortize.program.program import Program

__all__ = ["CheckReport", "CheckRow", "check_program", "verify_finite", "verify_guide", "verify_independent"]

PROBES = 16
PROBE_SPREAD = 2.0


@dataclass(frozen=True)
class CheckRow:
    """One clause of the contract: ``verdict`` is "ok", "fails" or "not tried"; ``remedy`` says why and what to do."""

    clause: str
    verdict: str
    remedy: str = ""


@dataclass(frozen=True)
class CheckReport:
    """Verdicts on the clauses of the contract, in the order in which they were tried."""

    rows: tuple[CheckRow, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing fails."""
        return all(row.verdict != "fails" for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.clause) for row in self.rows)
        lines = [f"{row.clause:<{width}}  {row.verdict:<9}  {row.remedy}".rstrip() for row in self.rows]
        return "\n".join(lines)


def check_program(program: Program, x: Any) -> CheckReport:
    """Try each clause in turn; a clause that fails leaves those behind it untried."""
    found: dict[str, Any] = {}
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("data are finite numbers", lambda: program.read(x)),
        ("model and guide run on the data", lambda: found.update(data=program.prepare(x))),
        ("values inside supports (Pyro's validation)", lambda: _run_validated(program, found["data"])),
        (
            "one data plate; latents inside it",
            lambda: found.update(structure=program.structure(found["data"])),
        ),
        ("rows independent, deterministic in eval mode", lambda: program.log_joint(found["data"])),
        ("log joint finite at prior draws", lambda: verify_finite(program, found["data"])),
    ]
    if program.guide is not None:
        steps.append(("guide matches the model's sites", lambda: program.guide_density(found["data"])))
    rows: list[CheckRow] = []
    with program.evaluating():
        for clause, step in steps:
            if rows and rows[-1].verdict != "ok":
                rows.append(CheckRow(clause, "not tried"))
                continue
            rows.append(_try(clause, step))
    if "structure" in found and found["structure"].scaled:
        rows.append(CheckRow("no scale of one's own", "ok", _scale_note(found["structure"].scaled)))
    return CheckReport(tuple(rows))


def _try(clause: str, step: Callable[[], Any]) -> CheckRow:
    try:
        step()
    except Exception as error:  # the user's own code runs here; whatever it raises is the verdict
        return CheckRow(clause, "fails", " ".join(f"{type(error).__name__}: {error}".split()))
    return CheckRow(clause, "ok")


def _run_validated(program: Program, data: Data) -> None:
    with pyro_rng(0, "check"), pyro.validation_enabled(True), torch.no_grad():
        for function in (program.model, program.guide):
            if function is not None:
                function(*data.args, **data.kwargs)


def _scale_note(names: tuple[str, ...]) -> str:
    return f"poutine.scale multiplies {', '.join(names)}: the evidence is that of the scaled (not normalised) density"


def verify_finite(program: Program, data: Data) -> None:
    """Draw from the prior on up to 64 datapoints and look at the log joint.

    Raises
    ------
    ContractError
        If it is finite nowhere.
    """
    log_joint = program.log_joint(data)
    head = data.rows(slice(0, min(data.num_datapoints, 64)))
    with pyro_rng(0, "check"), torch.no_grad():
        u, choices = log_joint.draw_prior(head)
        value = log_joint.terms(head, u=u, choices=choices).joint
    bad = torch.nonzero(~torch.isfinite(value)).flatten().tolist()
    if len(bad) == head.num_datapoints:
        raise ContractError(
            f"log p(x, z) is not finite at prior draws for any of {head.num_datapoints} datapoints; look for data "
            "outside a distribution's support"
        )


def verify_independent(log_joint: LogJoint, data: Data) -> None:
    """Compare rows alone with the batch, folded and permuted, and look for terms outside the plate.

    Raises
    ------
    NotIndependentError, DynamicStructureError
        If the log joint of a row depends on other rows, or differs between two runs.
    """
    head = data.rows(slice(0, min(data.num_datapoints, 3)))
    num = head.num_datapoints
    with pyro_rng(0, "verify"), torch.no_grad():
        u, choices = log_joint.draw_prior(head.fold(2))
        terms = log_joint.terms(head.fold(2), u=u, choices=choices)
        again = log_joint.terms(head.fold(2), u=u, choices=choices)
        order = torch.arange(2 * num, device=u.device).flip(0)
        other = log_joint.terms(head.fold(2).rows(order), u=u[order], choices=choices[order])
        _same(terms.joint, again.joint, "between two runs on the same latents", DynamicStructureError)
        _same(terms.joint[order], other.joint, "when the batch is permuted", NotIndependentError)
        _verify_alone(log_joint, head, Latents(u[:num], choices[:num]), terms.joint[:num])
        _verify_outside(log_joint, head, terms.outside)


def _verify_alone(log_joint: LogJoint, head: Data, latents: Latents, together: Tensor) -> None:
    for row in range(head.num_datapoints):
        one = slice(row, row + 1)
        try:
            alone = log_joint.terms(head.rows(one), u=latents.u[one], choices=latents.choices[one]).joint
        except (ValueError, RuntimeError) as error:
            raise NotIndependentError(
                f"the model runs on a batch but not on a single datapoint ({error}). Is BatchNorm in training mode, or "
                "does the model squeeze away a dimension of size 1?"
            ) from error
        _same(together[row : row + 1], alone, "when a datapoint is taken alone", NotIndependentError)


def _verify_outside(log_joint: LogJoint, head: Data, outside: Tensor) -> None:
    if not log_joint.structure.outside:
        return
    u, choices = log_joint.draw_prior(head.fold(2))
    other = log_joint.terms(head.fold(2), u=u, choices=choices).outside
    if not torch.allclose(outside, other, rtol=1e-5, atol=1e-6, equal_nan=True):
        names = ", ".join(repr(name) for name in log_joint.structure.outside)
        raise NotIndependentError(
            f"{names} stands outside the data plate {log_joint.structure.plate!r} but depends on latents inside it. "
            "Move it into the plate, so that each datapoint has its own term"
        )


def _same(first: Tensor, second: Tensor, when: str, error: type[AmortizeError], what: str = "log p(x, z)") -> None:
    tolerance = 1e-4 if first.dtype == torch.float32 else 1e-8
    if not torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True):
        worst = float((first - second).abs().nan_to_num().max())
        raise error(
            f"{what} of a datapoint changes by up to {worst:.3g} nats {when}. Rows must be independent and the "
            "program deterministic: no batch statistics (BatchNorm or dropout in training mode: call .eval()), no "
            "z - z.mean(0), no shape that depends on the batch"
        )


def verify_guide(log_joint: LogJoint, data: Data) -> tuple[str, set[str]]:
    """Compare the guide's sites, shapes and supports with the model's latents.

    Returns the guide's data plate and the latent sites it samples: those that the model sums out may be missing.

    Raises
    ------
    GuideMismatchError
        Naming the site and the way out.
    """
    program, structure = log_joint.program, log_joint.structure
    assert program.guide is not None
    head = data.rows(slice(0, min(data.num_datapoints, HEAD)))
    messages = {name: msg for name, msg in run_recorded(program.guide, head).items() if name not in program.condition}
    _compare_names(set(structure.sites), messages, set(structure.enumerated))
    plate = _guide_plate(structure.plate, messages, head.num_datapoints)
    drawn = {name for name in structure.sites if name in messages}
    for name in drawn:
        site, msg = structure.sites[name], messages[name]
        if has_user_scale(msg, plate):
            raise GuideMismatchError(
                f"guide site {name!r} is under poutine.scale, so its density is not normalised. Take the scale off"
            )
        if data_dim(msg, plate) != site.data_dim:
            raise GuideMismatchError(
                f"guide site {name!r} has its data plate at dimension {data_dim(msg, plate)}, the model at "
                f"{site.data_dim}. Give both the same plates"
            )
        shape = tuple(size for i, size in enumerate(msg["value"].shape) if i != site.front)
        if shape != site.shape:
            raise GuideMismatchError(
                f"guide site {name!r} has shape {shape} per datapoint, the model's has {site.shape}"
            )
        _refuse_point(name, msg["fn"])
    _verify_guide_rows(TracedGuide(log_joint, plate, head, drawn), head)
    many = head.fold(PROBES)
    _compare_supports(log_joint, many, run_recorded(program.guide, many))
    return plate, drawn


def _verify_guide_rows(guide: TracedGuide, head: Data) -> None:
    """The guide's density at fixed values: the same twice, permuted, and alone."""
    order = torch.arange(head.num_datapoints, device=guide.log_joint.like.device).flip(0)
    with pyro_rng(0, "verify-guide"), torch.no_grad():
        values, _ = guide.sample(head)
        together = guide.log_density(head, values)
        _same(together, guide.log_density(head, values), "between two runs", DynamicStructureError, "log q(z | x)")
        turned = guide.log_density(head.rows(order), guide.rows_of(values, order))
        _same(together[order], turned, "when the batch is permuted", NotIndependentError, "log q(z | x)")
        for row in range(head.num_datapoints):
            index = order.new_tensor([row])
            alone = guide.log_density(head.rows(index), guide.rows_of(values, index))
            _same(together[index], alone, "when a datapoint is taken alone", NotIndependentError, "log q(z | x)")


def _compare_names(expected: set[str], messages: Mapping[str, Mapping[str, Any]], optional: set[str]) -> None:
    drawn = {name for name, msg in messages.items() if not msg["is_observed"]}
    missing, extra = sorted(expected - drawn - optional), sorted(drawn - expected)
    if missing or extra:
        parts = [f"misses {', '.join(map(repr, missing))}"] if missing else []
        parts += [f"samples {', '.join(map(repr, extra))}, which the model does not have"] if extra else []
        raise GuideMismatchError(
            f"the guide {' and '.join(parts)}. It must sample exactly the model's latent sites: "
            f"{', '.join(map(repr, sorted(expected)))}"
        )
    factors = sorted(name for name, msg in messages.items() if msg["is_observed"])
    if factors:
        raise GuideMismatchError(
            f"the guide observes {', '.join(map(repr, factors))}; its density must be normalised, so it may only "
            "sample. Move factors and observations to the model"
        )


def _guide_plate(plate: str, messages: Mapping[str, Mapping[str, Any]], size: int) -> str:
    frames: dict[str, int] = {frame.name: frame.size for msg in messages.values() for frame in msg["cond_indep_stack"]}
    if plate in frames:
        return plate
    following = [name for name, now in frames.items() if now == size]
    if len(following) != 1:
        raise GuideMismatchError(
            f"the guide has no plate {plate!r} around its sites (plates: {sorted(frames) or 'none'}). Put them inside "
            f"`with pyro.plate({plate!r}, x.shape[0]):`, as in the model"
        )
    return following[0]


def _refuse_point(name: str, fn: Any) -> None:
    if isinstance(base_of(fn), Delta):
        raise GuideMismatchError(
            f"guide site {name!r} is a point (Delta), which has no density over u. Start from the prior "
            "(start='prior'), or give the site a distribution with spread"
        )


def _compare_atoms(name: str, model: Any, guide: Any) -> None:
    try:
        theirs = atoms(guide)
    except NotImplementedError:
        theirs = None
    ours = atoms(model)
    if theirs is None or theirs.shape != ours.shape or not bool((theirs == ours).all()):
        raise GuideMismatchError(
            f"guide site {name!r} is {type(base_of(guide)).__name__}, the model's is {type(base_of(model)).__name__}: "
            "they must take the same values. A relaxed guide is scored as the discrete one that it stands for: give "
            "that one to am.Program"
        )


def _refuse_non_finite(name: str, value: Tensor, front: int, num_datapoints: int) -> None:
    bad = ~torch.isfinite(value.movedim(front, 0)).flatten(1).all(1) if value.dim() > 1 else ~torch.isfinite(value)
    if bad.any():
        rows = sorted({int(row) % num_datapoints for row in torch.nonzero(bad).flatten()})
        raise GuideMismatchError(
            f"guide site {name!r} draws NaN or infinite values at datapoints {', '.join(map(str, rows))}. Look at "
            "what the guide computes from these rows (a logarithm of a negative number, say)"
        )


def _compare_supports(log_joint: LogJoint, head: Data, messages: Mapping[str, Mapping[str, Any]]) -> None:
    """Probe each support with points spread over the other: the guide must cover the model's support and no more."""
    gen = generator(0, "supports", device=log_joint.like.device)
    like = log_joint.like
    u = PROBE_SPREAD * torch.randn(head.num_datapoints, log_joint.dim, generator=gen, device=gen.device).to(like)
    structure = log_joint.structure
    values = {name: messages[name]["value"] for name in structure.sites if name in messages}
    with pyro_rng(0, "supports"):
        model = log_joint.messages(head, values)
        with torch.no_grad():
            probes = log_joint.terms(head, u=u, choices=log_joint.draw_prior(head).choices).values
        replayed = log_joint.messages(head, probes, guide=True)
    for name in structure.discrete:
        if name in messages:
            _compare_atoms(name, model[name]["fn"], messages[name]["fn"])
    for name in structure.continuous:
        _refuse_non_finite(name, values[name], log_joint.structure.sites[name].front, head.num_datapoints // PROBES)
        ours, theirs = model[name]["fn"].support, messages[name]["fn"].support
        drawn = [values[name]]
        if not isinstance(base_of(messages[name]["fn"]), TransformedDistribution):  # it may claim more than it covers
            free = biject_to(theirs).inv(values[name])
            noise = PROBE_SPREAD * torch.randn(free.shape, generator=gen, device=gen.device).to(free)
            drawn.append(biject_to(theirs)(free + noise))
        if not all(bool(ours.check(value).all()) for value in drawn):
            raise GuideMismatchError(
                f"guide site {name!r} can draw values outside the model's support: model {ours}, guide {theirs}"
            )
        if not bool(replayed[name]["fn"].support.check(probes[name]).all()):
            raise GuideMismatchError(
                f"guide site {name!r} covers only a part of the model's support: model {ours}, guide {theirs}"
            )
