"""What a program looks like to amortize, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amortize.program.data import Data
from amortize.program.sites import Site, Structure

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["describe"]


def describe(program: Program, structure: Structure, data: Data) -> str:
    """Plate, sizes, latent sites with supports, observed sites, parameters."""
    guide = program.guide.name if program.guide is not None else "none (start from the prior)"
    lines = [f"program     model {program.model.name}, guide {guide}", _plate(program, structure, data)]
    lines.append(f"latents     D = {structure.dim} unconstrained dimensions a datapoint{_discrete(structure)}")
    lines += [_site(structure, site) for site in structure.sites.values()]
    lines.append(f"observed    {', '.join(structure.observed) or 'nothing inside the plate'}")
    if program.condition:
        lines.append(f"given       {', '.join(sorted(program.condition))}")
    outside = [name for name in structure.outside if name not in program.condition]
    if outside:
        lines.append(f"outside     {', '.join(outside)} (left out of the evidence: no latent enters)")
    if structure.scaled:
        lines.append(f"scaled      {', '.join(structure.scaled)} (poutine.scale of your own is kept)")
    if structure.common_scale != 1.0:
        lines.append(f"scale       {structure.common_scale:.4g} over everything, divided out")
    count = sum(parameter.numel() for parameter in program.parameters())
    lines.append(f"parameters  {count}")
    return "\n".join(lines)


def _plate(program: Program, structure: Structure, data: Data) -> str:
    if program.whole:
        return "datapoint   the whole data set is one (whole=True)"
    declared = f" of {structure.full_size} declared" if structure.full_size else ""
    return f"data plate  {structure.plate!r}, {data.num_datapoints} datapoints{declared}"


def _discrete(structure: Structure) -> str:
    """How discrete latents are treated, and why."""
    if not structure.discrete:
        return ""
    how = []
    if structure.enumerated:
        how.append(f"{len(structure.enumerated)} discrete summed out by {structure.summation}")
    if structure.sampled:
        how.append(f"{len(structure.sampled)} discrete sampled (Gibbs moves)")
    return f"; {', '.join(how)}" + (f" ({structure.reason})" if structure.reason else "")


def _site(structure: Structure, site: Site) -> str:
    if not site.discrete:
        kind = f"u[{site.start}:{site.stop}]"
    else:
        many = f"{site.num_variables} x " if site.num_variables > 1 else ""
        kind = f"{many}K = {site.cardinality}, {'sampled' if site.name in structure.sampled else 'summed out'}"
    support = site.support.partition("(")[0] if site.discrete else site.support
    return f"  {site.name:<16} shape {site.shape!s:<12} support {support:<24} {kind}"
