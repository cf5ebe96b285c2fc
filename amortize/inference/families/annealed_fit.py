"""Training and running the chains of annealed posteriors, a row by itself.

Letters: S draws, D latents, K steps, M parts, J rows, each a part of a datapoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from amortize.inference.chart import Chart
from amortize.inference.families.annealed_chain import Chain, Ran
from amortize.inference.families.annealed_parts import Parts
from amortize.inference.families.ascent import Drawn, ascend
from amortize.inference.families.density import GaussianDensity
from amortize.inference.families.family import Fit, Parameters, Problem
from amortize.inference.second_order import SecondOrderTerms
from amortize.random import generator

__all__ = ["AnnealedFit"]

FIRST_SIZES = tuple(2.0**-power for power in range(8))
FIRST_DRAWS = 64
TRAINING_COST = 4  # gradients: the value with its gradient, and a product with second derivatives
RATE = 0.03
BASE = ("shift", "log_stretch", "lower")


@dataclass
class AnnealedFit:
    """The chains of the J rows of ``problem``, which has as many draws as a training step has chains."""

    kind: str
    num_steps: int
    hidden: int
    problem: Problem
    parts: Parts
    _held: tuple[Tensor, _Target] | None = field(default=None, repr=False)

    @property
    def chain(self) -> Chain:
        """Kind and sizes."""
        return Chain(self.kind, self.num_steps, self.problem.dim, self.hidden)

    def fit(self, loc: Tensor, scale_tril: Tensor) -> Fit:
        """Train from Gaussians ``loc`` (J, D) and ``scale_tril`` (J, D, D) on; parameters (J, ...)."""
        frame = Chart(loc, scale_tril)
        begun = self.chain.theta(self._begin(frame))

        def draw(theta: Tensor, index: Tensor, noise: torch.Generator) -> Drawn:
            """All gradients are those of the log weight itself."""
            target = self._target(index, frame)
            ran = self._run(self.chain.parameters(theta), Chart(loc[index], scale_tril[index]), target, noise)
            log_p = (ran.log_p - target.log_share(ran.u)).detach()
            return Drawn(ran.u.detach(), log_p - ran.log_weights)

        ended = ascend(self.problem, begun, draw, name="annealed", rate=RATE)
        cost = TRAINING_COST * (self.num_steps + 1) + 1  # one gradient more is the optimiser's own
        trace = ended.trace._replace(num_gradients=cost * ended.trace.num_gradients)
        priced = replace(ended, num_gradients=cost * ended.num_gradients, trace=trace)
        return priced.fit(self._moved(self.chain.parameters(ended.theta), frame))

    @torch.no_grad()
    def bound(self, chains: Parameters, stream: str, num_draws: int) -> tuple[Tensor, Tensor]:
        """Mean log weight of at least ``num_draws`` fresh chains and its standard error, (J,) nats each."""
        noise, frame = self._noise(stream), _frame(chains)
        target = self._target(torch.arange(len(frame.loc), device=frame.loc.device), frame)
        count = -(-num_draws // self.problem.num_draws)
        values = torch.cat(
            [self._run(self._inner(chains), frame, target, noise).log_weights.double() for _ in range(count)]
        )
        return values.mean(0), values.std(0) / math.sqrt(len(values))

    @torch.no_grad()
    def ends(self, chains: Parameters, num_draws: int) -> Tensor:
        """Where ``num_draws`` fresh chains end, (S, J, D)."""
        every, frame = torch.arange(len(chains["loc"]), device=chains["loc"].device), _frame(chains)
        target = _Target(replace(self.problem, num_draws=num_draws), self.parts, every, frame, backend="eager")
        return self._run(self._inner(chains), frame, target, self._noise("ends")).u

    def _run(self, chains: Parameters, frame: Chart, target: _Target, noise: torch.Generator) -> Ran:
        return self.chain.run(chains, frame, target.terms, target.num_draws, noise)

    def _target(self, index: Tensor, frame: Chart) -> _Target:
        if self._held is None or not torch.equal(self._held[0], index):
            rows = Chart(frame.loc[index], frame.scale[index])
            self._held = index, _Target(self.problem, self.parts, index, rows)
        return self._held[1]

    @torch.no_grad()
    def _begin(self, frame: Chart) -> Parameters:
        """Where training begins: for each row the step size, common to all steps, with the best bound."""
        target = self._target(torch.arange(len(frame.loc), device=frame.loc.device), frame)
        count = -(-FIRST_DRAWS // self.problem.num_draws)
        found = []
        for size in FIRST_SIZES:
            chains, noise = self._first(torch.full_like(frame.loc[:, 0], size)), self._noise("sizes")
            runs = [self._run(chains, frame, target, noise).log_weights for _ in range(count)]
            found.append(torch.nan_to_num(torch.cat(runs).mean(0), -torch.inf, -torch.inf, -torch.inf))
        sizes = torch.tensor(FIRST_SIZES, device=frame.loc.device).to(frame.loc)
        return self._first(sizes[torch.stack(found).argmax(0)])

    def _first(self, step_size: Tensor) -> Parameters:
        return self.chain.first(step_size, self._noise("network"))

    def _noise(self, stream: str) -> torch.Generator:
        return generator(self.problem.seed, "annealed", stream, device=self.problem.data.index.device)

    def _moved(self, chains: Parameters, frame: Chart) -> Parameters:
        """With the Gaussians that chains start from, in place of how they were moved."""
        chart = self.chain.chart(chains, frame)
        rest = {name: value for name, value in chains.items() if name not in BASE}
        return {"loc": chart.loc, "scale_tril": chart.scale, **rest}

    def _inner(self, chains: Parameters) -> Parameters:
        """What chains read: Gaussians that were moved already stay where they are."""
        like, units = chains["loc"], self.chain.units
        stay = {name: like.new_zeros(len(like), *units[name][0]) for name in BASE}
        return {**stay, **{name: value for name, value in chains.items() if name not in ("loc", "scale_tril")}}


class _Target:
    """What the chains of some rows are drawn to: log p(x, u) and their share of it, with derivatives."""

    def __init__(self, problem: Problem, parts: Parts, index: Tensor, frame: Chart, *, backend: str = "auto") -> None:
        self.num_draws = problem.num_draws
        self._shares = parts.rows(index)
        folded = problem.data.rows(index).fold(self.num_draws)
        noise = generator(problem.seed, "shapes", device=index.device)
        gaussian = GaussianDensity(frame.loc, frame.scale)
        examples = (
            gaussian.draw(self.num_draws, noise).flatten(0, 1),
            gaussian.draw(self.num_draws, noise).flatten(0, 1),
        )

        def terms(u: Tensor) -> tuple[Tensor, Tensor]:
            joint = problem.log_joint.terms(folded, u=u).joint
            return torch.zeros_like(joint), joint + self._shares.log_share(u)

        self.terms = SecondOrderTerms(terms, examples, backend=backend)

    def log_share(self, u: Tensor) -> Tensor:
        """Log r (S, j) at u (S, j, D), as a number."""
        with torch.no_grad():
            return self._shares.log_share(u.flatten(0, 1)).reshape(u.shape[:2])


def _frame(chains: Parameters) -> Chart:
    return Chart(chains["loc"], chains["scale_tril"])
