"""What a program looks like to amortize, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amortize.program.data import Data
from amortize.program.sites import Structure

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["describe"]


def describe(program: Program, structure: Structure, data: Data) -> str:
    """Plate, sizes, latent sites with supports, observed sites, parameters."""
    guide = program.guide.name if program.guide is not None else "none (start from the prior)"
    lines = [
        f"program     model {program.model.name}, guide {guide}",
        f"data plate  {structure.plate!r}, {data.num_datapoints} datapoints",
        f"latents     D = {structure.dim} unconstrained dimensions a datapoint",
    ]
    for site in structure.sites.values():
        kind = "discrete" if site.discrete else f"u[{site.start}:{site.stop}]"
        lines.append(f"  {site.name:<16} shape {site.shape!s:<12} support {site.support:<24} {kind}")
    lines.append(f"observed    {', '.join(structure.observed) or 'nothing inside the plate'}")
    if structure.outside:
        lines.append(f"outside     {', '.join(structure.outside)} (left out of the evidence: no latent enters)")
    if structure.scaled:
        lines.append(f"scaled      {', '.join(structure.scaled)} (poutine.scale of your own is kept)")
    count = sum(parameter.numel() for parameter in program.parameters())
    lines.append(f"parameters  {count}")
    return "\n".join(lines)
