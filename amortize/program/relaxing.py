"""The messengers that stand between a guide's discrete sites and what runs it: their discrete twins, or relaxations.

A program is discrete to all that evaluate it. Training alone may relax it, inside `Program.relaxing`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortize.program.data import Data
from amortize.program.discover import run_recorded
from amortize.program.probes import head_of
from amortize.program.relaxed import Relaxed, discrete_twin, is_relaxed, relaxed_twin

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["Relax", "RelaxedDraw", "Twins", "says_relaxed"]


class Twins(Messenger):
    """Put in a relaxed distribution's place the discrete one that it stands for.

    Parameters
    ----------
    names
        Latents that are discrete in the model.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            msg["fn"] = discrete_twin(msg["fn"])


class RelaxedDraw(NamedTuple):
    """A relaxation, and a draw of it in log space."""

    fn: Relaxed
    value: Tensor

    def log_ratio(self, name: str, model: Any, temperature: float | None) -> Tensor:
        """Log q - log p of the draw where the model's distribution is relaxed too, variable by variable, nats.

        ``temperature`` of the model's, or None for the guide's.
        """
        prior = relaxed_twin(name, model, self.fn.temperature if temperature is None else temperature)
        result: Tensor = self.fn.log_prob(self.value) - prior.log_prob(self.value)
        return result


class Relax(Messenger):
    """Draw a guide's discrete sites from their relaxations; the guide and the model go on with soft values.

    The messages that others see keep the discrete twin as their distribution.

    Parameters
    ----------
    names
        Latents that are discrete in the model.
    temperature
        None for that of relaxed distributions themselves, and ``fallback`` for discrete ones.
    straight_through
        Whether to go on with hard values that have the soft ones' gradients.
    fallback
        Temperature of sites that say none themselves.
    relaxed_rates
        Whether the rate of a site is that of the relaxed variables.
    prior_temperature
        Of the model's relaxations then; None for the guide's.

    Attributes
    ----------
    drawn
        By site.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        temperature: float | None = None,
        straight_through: bool = False,
        fallback: float = 1.0,
        relaxed_rates: bool = False,
        prior_temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.relaxed_rates, self.prior_temperature = relaxed_rates, prior_temperature
        self.names = frozenset(names)
        self.temperature, self.fallback, self.straight_through = temperature, fallback, straight_through
        self.drawn: dict[str, RelaxedDraw] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name not in self.names or msg["done"] or msg["is_observed"]:
            return
        twin = discrete_twin(msg["fn"])
        temperature = self.fallback if self.temperature is None and twin is msg["fn"] else self.temperature
        fn = relaxed_twin(name, msg["fn"], temperature)
        value = fn.rsample()
        self.drawn[name] = RelaxedDraw(fn, value)
        msg["fn"], msg["value"], msg["done"] = twin, fn.point(value, straight_through=self.straight_through), True


def says_relaxed(program: Program, data: Data) -> bool:
    """Whether the guide has discrete latents, and a relaxed distribution at each; one run on a few datapoints."""
    discrete = program.structure(data).discrete
    if not discrete or program.guide is None or program.bound is not None:
        return False
    seen = _Seen(discrete)
    with program.evaluating(), program.relaxing(seen):
        run_recorded(program.guide, head_of(data))
    return seen.found == set(discrete)


class _Seen(Messenger):
    """Notes which latents have a relaxed distribution."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names, self.found = frozenset(names), set[str]()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.names and is_relaxed(msg["fn"]):
            self.found.add(msg["name"])
            msg["fn"] = discrete_twin(msg["fn"])
