"""Which data an AutoGuide belongs to.

An AutoGuide makes its parameters at its first run, for the very datapoints it sees: they say nothing of others. Here
that run happens once, on all the data, and the data are remembered by a fingerprint a datapoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormalizingFlow
from torch import Tensor, nn

from amortize.errors import ArgumentError, GuideDataError
from amortize.program.adopt import Adopted
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.random import generator, pyro_rng

__all__ = ["Bound", "fingerprint"]

TOLERANCE = 1e-6  # relative; sums differ in their last digits from one machine to the next
BEFORE, REMEMBERED = "guide.networks.", "bound.fingerprint"  # in a program's state


class Bound(nn.Module):
    """The tie between an AutoGuide and the data it was made on.

    Parameters
    ----------
    adopted
        The guide.

    Attributes
    ----------
    fingerprint
        (N,) what is remembered of each datapoint, None before the first run.
    """

    fingerprint: Tensor | None

    def __init__(self, adopted: Adopted) -> None:
        super().__init__()
        guide = adopted.function
        assert isinstance(guide, AutoGuide)
        self._guide = (guide,)  # in a tuple: its parameters are registered where it was adopted
        self._models = {name: part._model for name, part in _autoguides(guide)}
        self._pending: dict[str, Tensor] = {}
        self._begun: dict[str, Tensor] = {}  # parameters as they were made, untrained
        self._made = False
        self.register_buffer("fingerprint", None)

    def __getstate__(self) -> dict[str, Any]:
        """An AutoGuide drops its model as it is pickled or copied; put it back, here and (later) in the copy."""
        self._reattach()
        return self.__dict__.copy()

    @property
    def guide(self) -> AutoGuide:
        """The AutoGuide itself."""
        return self._guide[0]

    def bind(self, adopted: Adopted, data: Data) -> None:
        """Make the guide's parameters on ``data``, or see that they were made on them. Untrained ones are made anew.

        Raises
        ------
        GuideDataError
            If they were made on other data.
        """
        self._reattach()
        ours = fingerprint(data)
        if self.fingerprint is not None and not self._knows(data, ours):
            if not self._is_untouched():
                self._refuse(data)
            self._begin_again(adopted)
        if self._made:
            return
        if not torch.equal(data.index, torch.arange(data.num_datapoints, device=data.index.device)):
            raise GuideDataError(f"{adopted.name} has made no parameters yet; train it on all the data first (am.fit)")
        fresh = all(part.prototype_trace is None for _, part in _autoguides(self.guide)) and not self._pending
        try:
            with pyro_rng(0, "adopt"), unvalidated(), torch.no_grad(), poutine.block():
                adopted(*data.args, **data.kwargs)
        except Exception as error:
            raise GuideDataError(
                f"{adopted.name} does not run on these {data.num_datapoints} datapoints ({type(error).__name__}: "
                f"{error}). An AutoGuide belongs to the data that it first ran on; make a new one"
            ) from error
        self._fill()
        self.fingerprint = ours
        self._made = True
        self._begun = {name: value.detach().clone() for name, value in self._state().items()} if fresh else {}

    def forget(self) -> None:
        """Take back that the guide belongs to the data it was last run on."""
        self.fingerprint, self._made = None, False

    def not_made(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those entries of a state that belong to parameters not made yet."""
        if self._made:
            return {}
        return {name: state[name] for name in state if name.startswith((BEFORE, REMEMBERED)) and name not in own}

    def restore_later(self, state: Mapping[str, Tensor]) -> None:
        """Keep values for parameters not made yet, and remember the data that they belong to."""
        self._pending = {name.removeprefix(BEFORE).partition(".")[2]: value for name, value in state.items()}
        remembered = self._pending.pop("fingerprint", None)
        self.fingerprint = self.fingerprint if remembered is None else remembered.clone()

    def _fill(self) -> None:
        """Give the parameters just made the values that were loaded for them."""
        made = self._state()
        wrong = [name for name, value in self._pending.items() if name not in made or made[name].shape != value.shape]
        if wrong:
            raise ArgumentError(
                f"state: {', '.join(sorted(wrong)[:5])} are no parameters of this AutoGuide on these data. Load it "
                "into a program made in the same way"
            )
        with torch.no_grad():
            for name, value in self._pending.items():
                made[name].copy_(value)
        self._pending = {}

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.guide.state_dict(keep_vars=True)
        return state

    def _is_untouched(self) -> bool:
        """Whether the guide is as its first run left it: then nothing is lost by making it anew."""
        now = self._state()
        return bool(self._begun) and all(torch.equal(now[name], value) for name, value in self._begun.items())

    def _begin_again(self, adopted: Adopted) -> None:
        self.forget()
        adopted.scope.lend_again(adopted.networks, adopted.networks)  # the store forgets the old parameters
        for _, part in _autoguides(self.guide):
            part.prototype_trace = None
            if isinstance(part, AutoNormalizingFlow):
                part.transform = None

    def _knows(self, data: Data, ours: Tensor) -> bool:
        """Whether these datapoints are those, or some of those, that the guide was made on."""
        assert self.fingerprint is not None
        known = self.fingerprint.to(ours.device)
        inside = bool((data.index < len(known)).all())
        return inside and torch.allclose(known[data.index], ours, rtol=TOLERANCE, atol=TOLERANCE)

    def _refuse(self, data: Data) -> None:
        assert self.fingerprint is not None
        raise GuideDataError(
            f"{type(self.guide).__name__} has parameters of its own for each of the {len(self.fingerprint)} datapoints "
            f"that it was made on, and these {data.num_datapoints} are others. Write a guide that reads the data (an "
            "encoder) to go from one data set to another; fit posteriors to these data, am.fit_local(program, x, "
            "init='prior'); or train a new AutoGuide on them"
        )

    def _reattach(self) -> None:
        for name, part in _autoguides(self.guide):
            if part._model is None:
                part._model = self._models[name]


def fingerprint(data: Data) -> Tensor:
    """A number (N,) float64 a datapoint: random projections of its entries, those it shares with others included."""
    total = torch.zeros(data.num_datapoints, dtype=torch.float64, device=data.index.device)
    for number, (leaf, own) in enumerate(zip(data.leaves, data.per_datapoint, strict=True)):
        if not isinstance(leaf, Tensor) or leaf.numel() == 0:
            continue
        rows = leaf.detach().reshape(data.num_datapoints if own else 1, -1).to(total)
        gen = generator(number, "fingerprint")
        weights = torch.randn(rows.shape[1], generator=gen, dtype=torch.float64).to(total)
        total = total + rows.nan_to_num(0.0, 1e3, -1e3) @ weights
    return total


def _autoguides(guide: AutoGuide) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in guide.named_modules() if isinstance(part, AutoGuide)]
