"""The clauses of the contract that a model can be tried on: each function measures one and raises where it fails.

A function returns what it measured, in words. The verbs call ``verify_independent`` before they compute anything;
``Program.check`` calls each by itself. Letters: N datapoints, B rows, D continuous latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from amortize.errors import AmortizeError, DynamicStructureError, NotIndependentError
from amortize.program.blame import broadcast_sites, modes_of, named, site_terms, terms_that_differ, with_line
from amortize.program.data import Data
from amortize.program.discover import run_recorded
from amortize.program.finite import verify_gradient
from amortize.program.handlers import data_dim
from amortize.program.probes import drawn_values, head_of, in_terms, joint_at, take
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import Latents, LogJoint
    from amortize.program.program import Program

__all__ = ["verify_deterministic", "verify_independent", "verify_outside", "verify_rows", "verify_static"]

STATIC_RUNS = 5
GUILTY_DRAWS = 3


def verify_independent(log_joint: LogJoint, data: Data) -> None:
    """Every clause that the verbs rely on: structure, randomness, rows, terms outside the plate, gradient.

    Raises
    ------
    NotIndependentError, DynamicStructureError, ContractError
        Naming the site and the way out.
    """
    verify_static(log_joint, data)
    verify_deterministic(log_joint, data)
    verify_rows(log_joint, data)
    verify_outside(log_joint, data)
    verify_gradient(log_joint, data)


# Sites and shapes


def verify_static(log_joint: LogJoint, data: Data, *, num_runs: int = STATIC_RUNS) -> str:
    """Run the model on the same few datapoints with other random numbers: the same sites, in the same shapes."""
    head, structure = head_of(data), log_joint.structure
    first: dict[str, Any] | None = None
    for number in range(num_runs):
        now = _shapes(run_recorded(log_joint.program.model, head, number, "check"), structure.plate)
        first = now if first is None else first
        _same_sites(first, now, f"in one run and not in another of {num_runs} runs on the same datapoints")
    return f"{num_runs} runs on {head.num_datapoints} datapoints: the same sites and shapes"


def _shapes(messages: Mapping[str, Mapping[str, Any]], plate: str) -> dict[str, tuple[int, ...] | None]:
    """Shape of each latent per datapoint, None for observed sites."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name, msg in messages.items():
        dim = data_dim(msg, plate)
        axis = None if dim is None else msg["value"].dim() - len(msg["fn"].event_shape) + dim
        size = tuple(int(n) for i, n in enumerate(getattr(msg["value"], "shape", ())) if i != axis)
        shapes[name] = None if msg["is_observed"] else size
    return shapes


def _same_sites(first: Mapping[str, Any], now: Mapping[str, Any], when: str) -> None:
    changed = [name for name in {**first, **now} if (name in first) != (name in now)]
    if changed:
        raise DynamicStructureError(
            f"site {named(changed)} appears {when}: the model's control flow depends on random values. Make the set of "
            "sites fixed: sample it always, and where it should not count, put it under pyro.poutine.mask(mask=...)"
        )
    for name, shape in first.items():
        if shape != now[name]:
            raise DynamicStructureError(
                f"site {name!r} has shape {shape} per datapoint in one run and {now[name]} in another. Make shapes "
                "fixed: give it its largest size, and hide what should not count with pyro.poutine.mask(mask=...)"
            )


# Randomness and rows


def verify_deterministic(log_joint: LogJoint, data: Data) -> str:
    """Evaluate twice at the same latents: the same log joint."""
    many = head_of(data, 3).fold(2)
    with pyro_rng(0, "verify"), torch.no_grad():
        latents = log_joint.draw_prior(many)
        first, again = joint_at(log_joint, many, latents), joint_at(log_joint, many, latents)
    if _equal(first, again):
        return f"two runs on {many.num_datapoints} rows: equal"
    changed: list[str] = []
    if not log_joint.program.whole:
        values = drawn_values(log_joint, many, 0)
        with pyro_rng(1, "verify"):
            changed = terms_that_differ(*(_terms(log_joint, many, values) for _ in range(2)))
    raise DynamicStructureError(
        f"log p(x, z) of a datapoint changes by up to {_worst(first, again):.3g} nats between two runs on the same "
        f"latents{in_terms(changed)}. Random numbers are drawn outside pyro.sample: make torch.rand or randn a "
        "pyro.sample site, and write functional dropout with training=self.training, so that eval mode turns it off"
        + _modules_said(log_joint.program)
    )


def verify_rows(log_joint: LogJoint, data: Data, *, num_draws: int = 1) -> str:
    """Compare rows with themselves in a permuted batch, in a batch of copies, and alone."""
    head = head_of(data, 3)
    num, worst = head.num_datapoints, 0.0
    for number in range(num_draws):
        with pyro_rng(number, "verify"), torch.no_grad():
            many = head.fold(2)
            latents = log_joint.draw_prior(many)
            joint = joint_at(log_joint, many, latents)
            order = torch.arange(2 * num, device=joint.device).flip(0)
            turned = joint_at(log_joint, many.rows(order), take(latents, order))
            worst = max(worst, _same_rows(log_joint, head, joint[order], turned, "when the batch is permuted"))
            single = take(latents, slice(0, num))
            once = joint_at(log_joint, head, single)
            worst = max(worst, _same_rows(log_joint, head, joint[:num], once, "when datapoints are repeated"))
            worst = max(worst, _alone(log_joint, head, single, once))
    return f"alone, permuted, repeated, folded: at most {worst:.1g} nats apart"


def _alone(log_joint: LogJoint, head: Data, latents: Latents, together: Tensor) -> float:
    worst = 0.0
    for row in range(head.num_datapoints):
        one = slice(row, row + 1)
        try:
            alone = joint_at(log_joint, head.rows(one), take(latents, one))
        except AmortizeError:
            raise
        except Exception as error:  # the user's own code, on a batch of one
            raise NotIndependentError(
                f"the model runs on a batch but not on a single datapoint ({with_line(error)}). A squeeze takes away "
                "the batch where it has size 1: write x.squeeze(-1), not x.squeeze(); batch statistics need .eval()"
                + _modules_said(log_joint.program)
                + head.hint()
            ) from error
        worst = max(worst, _same_rows(log_joint, head, together[one], alone, "when a datapoint is taken alone"))
    return worst


def _same_rows(log_joint: LogJoint, head: Data, first: Tensor, second: Tensor, when: str) -> float:
    if _equal(first, second):
        return _worst(first, second)
    changed, broadcast = ([], {}) if log_joint.program.whole else _guilty(log_joint, head)
    raise NotIndependentError(
        f"log p(x, z) of a datapoint changes by up to {_worst(first, second):.3g} nats {when}{in_terms(changed)}. "
        + (_broadcast_said(broadcast) or ROWS_ADVICE)
        + _modules_said(log_joint.program)
        + head.hint()
    )


ROWS_ADVICE = (
    "Rows must be independent: no statistics of the batch (z - z.mean(0), softmax(0), BatchNorm in training), no `if` "
    "on values of the batch (write torch.where), no shape that depends on the batch"
)


def _guilty(log_joint: LogJoint, head: Data) -> tuple[list[str], dict[str, Any]]:
    """Sites whose term changes when a row is taken alone, and observed ones that are broadcast."""
    structure, changed = log_joint.structure, dict[str, None]()
    for number in range(GUILTY_DRAWS):
        values = drawn_values(log_joint, head, number)
        together = _terms(log_joint, head, values)
        for row in range(head.num_datapoints):
            index = torch.tensor([row], device=log_joint.like.device)
            one = {name: value.index_select(structure.sites[name].front, index) for name, value in values.items()}
            try:
                alone = _terms(log_joint, head.rows(index), one)
            except Exception:  # it does not run alone: that is another error, with a name of its own
                continue
            inside = {name: term[row : row + 1] for name, term in together.items() if name not in structure.outside}
            changed |= dict.fromkeys(terms_that_differ(inside, alone))
    return list(changed), broadcast_sites(log_joint.program.model, structure, head, values)


def _terms(log_joint: LogJoint, data: Data, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return site_terms(log_joint.program.model, log_joint.structure, data, values)


def _broadcast_said(broadcast: Mapping[str, tuple[Any, Any]]) -> str:
    return "".join(
        f"What is observed at {name!r} has shape {value}, its distribution {fn}, and one is broadcast against the "
        "other: give both the same shape, for example obs=x.squeeze(-1) or loc.unsqueeze(-1)"
        for name, (value, fn) in list(broadcast.items())[:1]
    )


def _modules_said(program: Program) -> str:
    found = modes_of(program).training
    if not found:
        return ""
    return (
        f". In training mode while the model runs: {', '.join(found)}: take out the .train() call, and build BatchNorm "
        "with track_running_stats=True"
    )


def verify_outside(log_joint: LogJoint, data: Data) -> str:
    """What stands outside the plate must not change with the latents inside."""
    names = log_joint.structure.outside
    if not names:
        return "nothing stands outside the plate"
    head, structure = head_of(data, 3), log_joint.structure
    terms = [_terms(log_joint, head, drawn_values(log_joint, head, number)) for number in range(2)]
    first, second = ({name: term[name] for name in names if name in term} for term in terms)
    changed = terms_that_differ(first, second)
    if changed:
        raise NotIndependentError(
            f"{named(changed)} stands outside the data plate {structure.plate!r} but depends on latents inside it. "
            "Move it into the plate, so that each datapoint has its own term"
        )
    return f"{named(names)}: the same for all latents, left out of the evidence"


def _equal(first: Tensor, second: Tensor) -> bool:
    tolerance = 1e-4 if first.dtype == torch.float32 else 1e-8
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)


def _worst(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().nan_to_num().max())
