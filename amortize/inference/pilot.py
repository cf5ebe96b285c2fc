"""The pilot run: temperatures, step sizes and whitening learned from runs of their own, then frozen.

Adapting inside the weighted run would void E[w] = p(x), so the pilot has seed streams of its own and its weights are
thrown away. Two passes: the first is short and crowds its temperatures near the start, the second has equal
thermodynamic length.

Step sizes aim at the kernel's target acceptance and never go beyond its ``largest_step``: for Hamiltonian Monte Carlo
a quarter of a period, where a Gaussian's u forgets where it was, while at the acceptance alone it may come back to it,
and the log ratios of neighbouring temperatures add up instead of averaging out.

Letters: C chains, N datapoints, D continuous latents, T temperatures, P temperatures of the pilot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortize.inference import schedule as schedules
from amortize.inference import whitening
from amortize.inference.annealing import SMALLEST_STEP, Annealed, Plan, anneal, make_movers
from amortize.inference.kernels import Kernel
from amortize.inference.starts import Start, scale_of
from amortize.program.data import Data
from amortize.random import generator, stream_seed

__all__ = ["PILOT_CHAINS", "Budget", "run_pilot"]

PILOT_CHAINS = 4
PILOT_TEMPERATURES = 50
FIRST_PASS_GRADIENTS, SECOND_PASS_GRADIENTS = 500, 4000  # of a chain; longer passes have gained next to nothing
FIRST_STEP = 0.1
WINDOW = 25  # temperatures over which the pilot's spread in u is averaged


@dataclass(frozen=True)
class Budget:
    """What a plan is made for: a kernel, T temperatures, how to place them, and whether to adapt at all.

    ``schedule`` is "pilot" (equal thermodynamic length, shared), "pilot-per-datapoint", the name of a fixed schedule,
    or the betas themselves.
    """

    kernel: Kernel
    num_temperatures: int
    schedule: str | tuple[float, ...]
    pilot: bool
    step_size: float
    backend: str = "fx"

    def fixed_betas(self) -> Tensor:
        """The schedule that needs no pilot; linear in place of the pilot's."""
        if isinstance(self.schedule, tuple):
            return torch.tensor(self.schedule, dtype=torch.float64)
        make = schedules.FIXED.get(self.schedule, schedules.linear)
        return make(self.num_temperatures)

    @property
    def pilot_passes(self) -> tuple[int, int]:
        """P, temperatures of each pass of the pilot run."""
        fine = max(PILOT_TEMPERATURES, SECOND_PASS_GRADIENTS // self.kernel.num_gradients)
        second = min(max(self.num_temperatures, PILOT_TEMPERATURES), fine)
        rough = max(PILOT_TEMPERATURES, FIRST_PASS_GRADIENTS // self.kernel.num_gradients)
        return min(rough, second), second

    @property
    def num_pilot_moves(self) -> int:
        """Moves a datapoint that the pilot run takes."""
        return self.pilot * PILOT_CHAINS * sum(self.pilot_passes)


def run_pilot(start: Start, data: Data, budget: Budget, *, seed: int) -> Plan:
    """Step sizes, whitening and schedule for the N datapoints of ``data``."""
    scale = scale_of(start, data, seed)
    if not budget.pilot:
        return _flat_plan(budget.fixed_betas(), scale, budget.step_size)
    first, second = budget.pilot_passes
    plan = _flat_plan(schedules.power(first), scale, min(FIRST_STEP, budget.kernel.largest_step))
    folded = data.fold(PILOT_CHAINS)
    pilot = stream_seed(seed, "pilot")
    backend = "eager" if budget.backend == "eager" else "fx"  # a pilot is short
    movers = make_movers(start, folded, budget.kernel, seed=pilot, backend=backend)
    for turn in range(2):
        latents = start.draw(folded, seed, f"pilot-{turn}")
        noise = generator(seed, "pilot-noise", turn, device=latents.u.device)
        run = anneal(movers, latents, plan, noise, adapt=True)
        betas = _final_betas(plan, run, budget) if turn else _shared(plan, run, second)
        plan = _refine(plan, run, scale, betas, budget)
    return plan


def _flat_plan(betas: Tensor, scale: Tensor, step_size: float) -> Plan:
    steps = len(betas) - 1
    return Plan(betas, scale.new_full((steps, len(scale)), step_size), scale.expand(steps, *scale.shape))


def _final_betas(plan: Plan, run: Annealed, budget: Budget) -> Tensor:
    if budget.schedule == "pilot":
        return _shared(plan, run, budget.num_temperatures)
    if budget.schedule == "pilot-per-datapoint":
        square = torch.where(torch.isfinite(run.spread), run.spread, 0).square()
        spread = schedules.smooth(square, WINDOW).sqrt()  # few chains tell little of a single temperature
        return schedules.equal_length_each(plan.betas, spread, budget.num_temperatures)
    return budget.fixed_betas()


def _shared(plan: Plan, run: Annealed, num_temperatures: int) -> Tensor:
    """Equal length by the root mean variance over datapoints, leaving out what isn't finite."""
    good = torch.isfinite(run.spread)
    total = torch.where(good, run.spread, 0).square().sum(1)
    return schedules.equal_length(plan.betas, (total / good.sum(1).clamp_min(1)).sqrt(), num_temperatures)


def _refine(plan: Plan, run: Annealed, scale: Tensor, betas: Tensor, budget: Budget) -> Plan:
    """The next plan at ``betas``: whitening by the pilot's spread, step sizes carried over in its units."""
    if not scale.shape[-1]:  # discrete latents alone: Gibbs moves need neither step size nor whitening
        return _flat_plan(betas, scale, budget.step_size)
    at, wanted = plan.betas[1:], betas[1:]
    spread = schedules.smooth(run.variance, WINDOW)
    num_draws = WINDOW * (PILOT_CHAINS - 1)
    change = whitening.log_size(plan.scales) - whitening.log_size(whitening.learn(spread, scale, num_draws))
    size = (run.step_sizes * change.exp()).clamp(SMALLEST_STEP, budget.kernel.largest_step)
    learned = whitening.learn(schedules.interpolate(at, spread, wanted), scale, num_draws)
    return Plan(betas, schedules.interpolate(at, size, wanted), learned)
