"""Which masked latents are truly hidden: nothing that counts may depend on what the mask hides."""

from __future__ import annotations

import torch

from amortize.program.data import Data
from amortize.program.discover import run_recorded
from amortize.program.enumerate import Placement, Runner
from amortize.program.masks import kept_entries
from amortize.program.sites import Structure

__all__ = ["hidden_sites"]

TRIED = 64  # datapoints: the first few may hide nothing


def hidden_sites(runner: Runner, structure: Structure, data: Data) -> tuple[str, ...]:
    """Those of ``structure.hidden``, latents under a mask, whose masked entries can be drawn anew with no other change.

    The others' mask is dropped, and they follow their prior.
    """
    head = data.rows(slice(0, min(data.num_datapoints, TRIED)))
    first, second = (run_recorded(runner.function, head, number, "hidden") for number in range(2))
    hidden = structure.hidden
    values = {name: first[name]["value"] for name in structure.sites}
    changed = values | {
        name: torch.where(kept_entries(structure.sites[name], first[name], values[name]), values[name], msg["value"])
        for name, msg in second.items()
        if name in hidden
    }
    blind = Runner(runner.function, runner.sites, runner.plate, runner.like, runner.batch_ndim, hidden, stands_in=False)
    with torch.no_grad():
        before, after = (blind.rows(head, Placement(values=place)) for place in (values, changed))
    tolerance = 1e-4 if before.joint.dtype == torch.float32 else 1e-8
    same = torch.allclose(before.joint, after.joint, rtol=tolerance, atol=tolerance, equal_nan=True)
    return hidden if same else ()
