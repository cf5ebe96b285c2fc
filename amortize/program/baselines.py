"""Decaying averages as baselines of a guide's discrete sites, for Pyro's TraceGraph_ELBO.

Pyro reads ``infer={"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": ...}}`` at a site, and keeps each
average under a name in its parameter store: here that is a store of the objective's own, not the process's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro import poutine

from amortize.program.adopt import LOCK

__all__ = ["RunningBaselines"]


class RunningBaselines:
    """An average for each site that the guide draws without a gradient.

    Parameters
    ----------
    decay
        Share of the old average that is kept at each step.
    """

    def __init__(self, decay: float) -> None:
        self._options = {"use_decaying_avg_baseline": True, "baseline_beta": decay}
        self._state: Any = {"params": {}, "constraints": {}}

    def marked(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide with a baseline at each site; a site that has one of the user's keeps it."""

        def options(site: Any) -> dict[str, Any]:
            return {} if "baseline" in site["infer"] else {"baseline": self._options}

        configured: Any = poutine.infer_config
        marked: Callable[..., Any] = functools.partial(configured(guide, options))
        return marked

    @contextmanager
    def active(self) -> Iterator[None]:
        """The averages in Pyro's store, and what stood there back at the end."""
        with LOCK, pyro.get_param_store().scope(self._state):
            yield

    def forget(self) -> None:
        """Begin anew, as where another number of datapoints comes: an average belongs to a place in the batch."""
        self._state = {"params": {}, "constraints": {}}
