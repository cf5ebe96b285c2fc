r"""The annealed run: rows moved along a path of tempered densities, forward or in reverse, and their weights.

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \, r(u_{t-1}) + \sum_{t=1}^T c_t

with :math:`c_t` the kernel's correction (0 where it leaves its density invariant). Forward, from exact draws of the
start, :math:`E[w] = p(x)`. In reverse, from exact draws of the posterior down to the start, the same sum over the
path run backwards has :math:`E[1 / w] = 1 / p(x)` (Neal 2001, "Annealed importance sampling"; Grosse et al. 2015,
"Sandwiching the marginal likelihood using bidirectional Monte Carlo").

Letters: C chains, N datapoints, D continuous latents, M sampled discrete variables, B = C * N rows (chain-major), T
temperatures.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.inference import whitening
from amortize.inference.gibbs import Conditionals, gibbs
from amortize.inference.kernels import Info, Kernel, Parameters, Target
from amortize.inference.method import VALUE_COST
from amortize.inference.path import GeometricPath, Point
from amortize.inference.starts import Start
from amortize.program.data import Data
from amortize.program.density import Latents

__all__ = [
    "MOST_NUMBERS",
    "SMALLEST_STEP",
    "Annealed",
    "Movers",
    "Plan",
    "anneal",
    "make_conditionals",
    "make_movers",
    "make_path",
    "most_planned",
    "move_cost",
]

SMALLEST_STEP = 1e-4
MOST_NUMBERS = 2**26
"""In the whitening of a plan."""
ADAPTATION_RATE = 0.3


class Plan(NamedTuple):
    """What the pilot leaves behind, frozen.

    ``betas`` (T + 1,) or (T + 1, N), ``step_sizes`` (T, N), whitening ``scales`` (T, N, D) or (T, N, D, D).
    """

    betas: Tensor
    step_sizes: Tensor
    scales: Tensor


class Movers(NamedTuple):
    """What moves the rows: a kernel along the path, and Gibbs sweeps where there are sampled discrete variables."""

    path: GeometricPath
    conditionals: Conditionals | None
    kernel: Kernel


class Annealed(NamedTuple):
    """A run: log weights (C, N), acceptance (T, N), non-finite proposals (N,), where it ended, what a pilot learns.

    ``spread`` (T + 1, N) is the standard deviation over chains of the log ratio, ``variance`` (T, N, D) or
    (T, N, D, D) that of u (empty where the run doesn't adapt).
    """

    log_weights: Tensor
    acceptance: Tensor
    num_nonfinite: Tensor
    spread: Tensor
    step_sizes: Tensor
    variance: Tensor
    state: Point
    choices: Tensor


def move_cost(start: Start, kernel: Kernel) -> float:
    """Gradients a chain takes at one temperature: those of the kernel, and of a Gibbs sweep, a value being a third.

    After a sweep the density is evaluated anew.
    """
    structure = start.log_joint.structure
    values = sum(structure.sites[name].cardinality * structure.sites[name].num_variables for name in structure.sampled)
    return (kernel.num_gradients if structure.dim else 0) + values * VALUE_COST + bool(values)


def most_planned(start: Start, num_temperatures: int, dense_dim: int) -> int:
    """Datapoints whose whitening at each temperature memory has room for; up to ``dense_dim`` it is by matrices."""
    dim = max(1, start.log_joint.dim)
    return MOST_NUMBERS // (num_temperatures * (dim**2 if dim <= dense_dim else dim))


def make_movers(
    start: Start, data: Data, kernel: Kernel, *, seed: int, backend: str = "auto", num_calls: tuple[int, int] = (0, 0)
) -> Movers:
    """Path and kernels for the B rows of ``data``."""
    path = make_path(start, data, seed, backend=backend, num_calls=num_calls)
    return Movers(path, make_conditionals(start, data, seed), kernel)


def make_path(
    start: Start, data: Data, seed: int, *, backend: str = "auto", num_calls: tuple[int, int] = (0, 0)
) -> GeometricPath:
    """The path from ``start`` to the posterior for the B rows of ``data``, compiled where that works."""
    first, second = _examples(start, data, seed)
    extra = ((first.choices,), (second.choices,)) if first.choices.shape[-1] else ((), ())

    def terms(u: Tensor, *choices: Tensor) -> tuple[Tensor, Tensor]:
        nothing = u[:, :0].sum(-1)  # so that there is a gradient, if an empty one, without continuous latents
        base, ratio = start.terms(data, u, *choices)
        return base + nothing, ratio + nothing

    return GeometricPath(terms, (first.u, second.u), extra=extra, backend=backend, num_calls=num_calls)


def make_conditionals(start: Start, data: Data, seed: int) -> Conditionals | None:
    """Of the sampled discrete variables, None where there are none."""
    structure = start.log_joint.structure
    if not structure.sampled:
        return None
    sites = [structure.sites[name] for name in structure.sampled]
    counts = [site.cardinality for site in sites for _ in range(site.num_variables)]
    return Conditionals(start, data, counts, _examples(start, data, seed))


def _examples(start: Start, data: Data, seed: int) -> tuple[Latents, Latents]:
    return start.draw(data, seed, "example-0"), start.draw(data, seed, "example-1")


@torch.no_grad()
def anneal(
    movers: Movers,
    latents: Latents,
    plan: Plan,
    noise: torch.Generator,
    *,
    adapt: bool = False,
    reverse: bool = False,
) -> Annealed:
    """Move B rows between the start and the posterior and weigh them.

    With ``adapt``, step sizes follow the acceptance, as factors on the plan's: that is the pilot run, whose weights are
    not used. Otherwise the plan is taken as it is, and the weights are exact. With ``reverse`` the rows come from the
    posterior; ``log_weights`` are those of the same paths run forward.
    """
    assert not (adapt and reverse)
    steps, num = plan.step_sizes.shape
    run = _Run(movers, latents, plan, noise, strata=1 if adapt else len(latents.u) // num, reverse=reverse)
    names = {(True, False): "pilot", (False, False): "annealing", (False, True): "annealing in reverse"}
    order = reversed(range(steps)) if reverse else range(steps)
    for t in tqdm(order, total=steps, desc=names[adapt, reverse], leave=False, disable=None):
        if reverse:
            run.move(t)
            run.weigh(t)
        else:
            run.weigh(t)
            run.move(t)
        if adapt:
            run.adapt(t)
    return run.result()


class _Run:
    """The state of a run; its tables are filled temperature by temperature."""

    def __init__(
        self, movers: Movers, latents: Latents, plan: Plan, noise: torch.Generator, *, strata: int, reverse: bool
    ) -> None:
        u, self.choices = latents
        self.steps, self.num = plan.step_sizes.shape
        self.movers, self.plan, self.noise, self.reverse = movers, plan, noise, reverse
        self.chains, self.strata = len(u) // self.num, strata
        self.betas = plan.betas.to(u)
        self.state = _evaluate(movers, latents)
        self.log_weights = torch.zeros_like(self.state.ratio)
        self.sizes = plan.step_sizes.clone()
        self.factor = u.new_ones(self.num)
        nothing = 0.0 if u.shape[-1] else math.nan  # Gibbs sweeps reject nothing
        self.acceptance = u.new_full((self.steps, self.num), nothing)
        self.nonfinite = torch.zeros(self.num, dtype=torch.long, device=u.device)
        self.spread = u.new_zeros(self.steps + 1, self.num)
        self.spread[self.steps if reverse else 0] = self._spread()
        self.variance: list[Tensor] = []

    def weigh(self, t: int) -> None:
        """Take in the step from temperature t to t + 1, at the present state."""
        step = self._by_row(self.betas[t + 1] - self.betas[t])
        self.log_weights = self.log_weights + step * self.state.ratio

    def move(self, t: int) -> None:
        """Move at temperature t + 1; in reverse, by the time reversal of the forward move."""
        beta = self._by_row(self.betas[t + 1]).expand(len(self.state.u)).unsqueeze(-1)
        if self.reverse:
            self._sweep(beta)
        if self.state.u.shape[-1]:
            self._transit(t, beta)
        if not self.reverse:
            self._sweep(beta)
        self.spread[t if self.reverse else t + 1] = self._spread()

    def adapt(self, t: int) -> None:
        """Learn from the move at temperature t + 1."""
        u = self.state.u
        if not u.shape[-1]:
            return
        self.variance.append(whitening.spread_over_chains(u, self.num))
        kernel = self.movers.kernel
        rise = torch.exp(ADAPTATION_RATE * (self.acceptance[t] - kernel.target_acceptance))
        self.factor = self.sizes[t] * rise / self.plan.step_sizes[t]
        if t + 1 < self.steps:
            self.sizes[t + 1] = (self.sizes[t + 1] * self.factor).clamp(SMALLEST_STEP, kernel.largest_step)

    def result(self) -> Annealed:
        """What the run has found."""
        weights = self.log_weights.reshape(self.chains, self.num)
        learned = torch.stack(self.variance) if self.variance else weights.new_zeros(0)
        return Annealed(
            weights, self.acceptance, self.nonfinite, self.spread, self.sizes, learned, self.state, self.choices
        )

    def _transit(self, t: int, beta: Tensor) -> None:
        path = self.movers.path
        target: Target = path if self.movers.conditionals is None else path.held(self.choices)
        size = self.sizes[t].repeat(self.chains).unsqueeze(-1)
        parameters = Parameters(beta, size, self.plan.scales[t], self.movers.kernel, self.strata)
        self.state, info = self.movers.kernel.transition(self.state, target, parameters, self.noise)
        self.log_weights = self.log_weights + (-info.log_correction if self.reverse else info.log_correction)
        self._count(t, info)

    def _count(self, t: int, info: Info) -> None:
        self.acceptance[t] = info.acceptance.reshape(self.chains, self.num).mean(0)
        self.nonfinite += (~info.finite).reshape(self.chains, self.num).sum(0)

    def _sweep(self, beta: Tensor) -> None:
        if self.movers.conditionals is None:
            return
        present = Latents(self.state.u, self.choices)
        self.choices = gibbs(
            present, self.movers.conditionals, beta.squeeze(-1), self.noise, backwards=self.reverse
        ).choices
        self.state = _evaluate(self.movers, Latents(self.state.u, self.choices))

    def _by_row(self, beta: Tensor) -> Tensor:
        return beta.repeat(self.chains) if beta.dim() else beta

    def _spread(self) -> Tensor:
        """Standard deviation over chains of the log ratio, (N,); NaN where it isn't finite."""
        return self.state.ratio.reshape(self.chains, -1).std(0, correction=1 if self.chains > 1 else 0)


def _evaluate(movers: Movers, latents: Latents) -> Point:
    extra = () if movers.conditionals is None else (latents.choices,)
    return movers.path.evaluate(latents.u, *extra)
