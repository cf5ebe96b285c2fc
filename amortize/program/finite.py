"""Values and gradients of the log joint: which datapoints have finite ones, and what makes the others not so.

Letters: N datapoints, B rows, D continuous latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from amortize.errors import ContractError
from amortize.program.blame import named, site_terms
from amortize.program.data import Data
from amortize.program.discover import HEAD
from amortize.program.probes import drawn_values, head_of, in_terms, joint_at, rows_in_words
from amortize.random import pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import LogJoint
    from amortize.program.program import Program

__all__ = [
    "FINITE_ADVICE",
    "NonFinite",
    "nonfinite_rows",
    "verify_finite",
    "verify_gradient",
    "verify_somewhere_finite",
]

FINITE_DRAWS = 4
FINITE_ROWS = 64


class NonFinite(NamedTuple):
    """Rows whose log joint is NaN, or -inf (or inf), at every draw from the prior, and the sites that make it so."""

    nan: list[int]
    infinite: list[int]
    sites: list[str]

    def in_words(self) -> str:
        """Which rows, and where."""
        parts = [
            f"{word} at datapoint{'s' if len(rows) > 1 else ''} {rows_in_words(rows)}"
            for word, rows in (("NaN", self.nan), ("-inf", self.infinite))
            if rows
        ]
        return f"log p(x, z) is {' and '.join(parts)}{in_terms(self.sites)}"


FINITE_ADVICE = (
    "Look for data outside the distribution's support (negative counts, pixels beyond 0 and 1), and for a logarithm or "
    "square root of a negative number"
)


def nonfinite_rows(log_joint: LogJoint, data: Data, *, num_draws: int = FINITE_DRAWS) -> NonFinite:
    """The datapoints whose log joint is finite at no draw from the prior."""
    nan = infinite = torch.ones(data.num_datapoints, dtype=torch.bool, device=log_joint.like.device)
    for number in range(num_draws):
        with pyro_rng(number, "check"), torch.no_grad():
            value = joint_at(log_joint, data, log_joint.draw_prior(data))
        nan, infinite = nan & value.isnan(), infinite & ~value.isfinite()
    rows = torch.nonzero(infinite).flatten()
    sites: list[str] = []
    if len(rows) and not log_joint.program.whole:
        few = data.rows(rows[:HEAD])
        terms = site_terms(log_joint.program.model, log_joint.structure, few, drawn_values(log_joint, few, 0))
        sites = [name for name, term in terms.items() if not bool(term.isfinite().all())]
    infinite = infinite & ~nan
    return NonFinite(torch.nonzero(nan).flatten().tolist(), torch.nonzero(infinite).flatten().tolist(), sites)


def verify_finite(program: Program, data: Data) -> None:
    """Draw from the prior on up to 64 datapoints and look at the log joint.

    Raises
    ------
    ContractError
        If it is finite nowhere.
    """
    head = head_of(data, FINITE_ROWS)
    log_joint = program.log_joint(data)
    verify_somewhere_finite(head, nonfinite_rows(log_joint, head))


def verify_somewhere_finite(data: Data, bad: NonFinite) -> None:
    """Refuse a program whose log joint is finite for no datapoint."""
    if len(bad.nan) + len(bad.infinite) == data.num_datapoints:
        raise ContractError(
            f"log p(x, z) is not finite at prior draws for any datapoint: {bad.in_words()}. {FINITE_ADVICE}"
        )


def verify_gradient(log_joint: LogJoint, data: Data) -> str:
    """The gradient of the log joint with respect to u is finite wherever the log joint is."""
    if log_joint.dim == 0:
        return "no continuous latents"
    head = head_of(data, 3).fold(2)
    with pyro_rng(0, "verify"):
        latents = log_joint.draw_prior(head)
    u = latents.u.detach().requires_grad_(True)
    joint = log_joint.terms(head, u=u, choices=latents.choices).joint
    finite = joint.isfinite()
    if bool(joint.isnan().all()):
        raise ContractError(
            f"log p(x, z) is NaN at prior draws{in_terms(nonfinite_rows(log_joint, head_of(data, 3)).sites)}. "
            + FINITE_ADVICE
        )
    if not joint.requires_grad or not bool(finite.any()):
        return "no finite value to differentiate"
    (slope,) = torch.autograd.grad(joint[finite].sum(), u, allow_unused=True)
    if slope is None or bool(slope[finite].isfinite().all()):
        return f"finite on {int(finite.sum())} rows"
    structure = log_joint.structure
    bad = [n for n in structure.continuous if not _finite(slope[finite], structure.sites[n])]
    if bool(slope[finite].isfinite().all(-1).any()):
        return f"not finite for {named(bad)} on some of {int(finite.sum())} rows"
    raise ContractError(
        f"the gradient of log p(x, z) with respect to latent site {named(bad)} is NaN or infinite where the value is "
        "finite. Look for sqrt, norm or a division at 0, and for torch.where over a branch that overflows: keep the "
        "argument away from 0, as in (r2 + 1e-12).sqrt()"
    )


def _finite(slope: Tensor, site: Any) -> bool:
    return bool(slope[:, site.start : site.stop].isfinite().all())
