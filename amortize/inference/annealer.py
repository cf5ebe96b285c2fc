"""Annealing in as many temperatures and chains as each datapoint needs, by one pilot.

The pilot's plan has equal thermodynamic length between its temperatures; stretched to another number of them, it still
has. Chains of the same plan join one another, each with the same weight; those of another number of temperatures
replace them.

Letters: C chains, N datapoints, D latents, T temperatures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortize.diagnostics.psis import khat_threshold
from amortize.inference.ais import AIS, num_gradients, run_ais
from amortize.inference.annealing import Annealed, Plan
from amortize.inference.chunks import slices
from amortize.inference.forecast import Now, Size, log_variance, ratio_error
from amortize.inference.method import Estimate, estimate_of
from amortize.inference.pilot import PILOT_TEMPERATURES, run_pilot
from amortize.inference.standing import Origin, Standing
from amortize.random import stream_seed

__all__ = ["Annealer", "stretched"]

LEAST_ESS = 0.25  # of the number of chains
KHAT_CHAINS = 100  # below, the prior on k-hat decides


class Annealer:
    """Annealed runs of the datapoints of ``origin``; ``first`` are the settings of the first one."""

    def __init__(self, origin: Origin, standing: Standing, *, first: AIS, target_se: float) -> None:
        self.origin, self.standing, self.first, self.target_se = origin, standing, first, target_se
        plain = replace(first, pilot=False)
        self.move_cost = num_gradients(origin.start, replace(plain, num_chains=1, num_temperatures=1))
        run_cost = num_gradients(origin.start, plain)
        self.pilot_cost = num_gradients(origin.start, replace(first, num_temperatures=PILOT_TEMPERATURES)) - (
            num_gradients(origin.start, replace(plain, num_temperatures=PILOT_TEMPERATURES))
        )
        self.first_cost = self.pilot_cost + run_cost
        self.begun = np.zeros(0, dtype=int)
        self.plan: Plan | None = None
        self.runs: dict[int, _Chains] = {}
        self.num_runs = 0

    def begin(self) -> None:
        """The pilot and the first run, for all that are open and can afford it."""
        index = self.standing.open(self.origin.places)
        self.begun = index[self.standing.left(index) >= self.first_cost]
        if not len(self.begun):
            return
        start, data = self.origin.rows(self.begun)
        budget = replace(self.first, num_temperatures=PILOT_TEMPERATURES).budget
        self.plan = run_pilot(start, data, budget, seed=self.origin.seed)
        self.standing.spend(self.begun, self.pilot_cost)
        self.extend(self.begun, Size(self.first.num_temperatures, self.first.num_chains, joins=False))

    def extend(self, index: np.ndarray, size: Size) -> None:
        """A run of this size for some datapoints."""
        settings = replace(self.first, num_temperatures=size.num_temperatures, num_chains=size.num_chains)
        for rows in slices(len(index), settings.chunk_size(self.origin.start)):
            part = index[rows]
            run = self._run(part, settings)
            self.standing.spend(part, self.move_cost * size.num_temperatures * size.num_chains)
            self._take(part, run, size)
            self._record(part)

    def now(self, n: int) -> Now | None:
        """What the last run of a datapoint measured, None where it had none or its weights were not finite."""
        if n not in self.runs or not np.isfinite(self.standing.columns["log_evidence"][n]):
            return None
        chains = self.runs[n]
        weights = chains.log_weights[:, None]
        variance = log_variance(weights, self.standing.columns["se"][n : n + 1])[0]
        heavy = len(weights) >= KHAT_CHAINS and self.standing.columns["khat"][n] > khat_threshold(len(weights))
        known = np.isfinite(variance)
        return Now(chains.num_temperatures, len(weights), float(variance), bool(heavy)) if known else None

    def ends(self, index: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Where the chains of datapoints ended, u (C, N, D) and log weights (C, N), of runs of the same size."""
        chosen = [self.runs[n] for n in index]
        return torch.stack([run.ends for run in chosen], 1), np.stack([run.log_weights for run in chosen], 1)

    def restore(self, index: np.ndarray) -> None:
        """Put the last run of some datapoints back as what is known of them."""
        for n in index:
            self._record(np.array([n]))

    def _run(self, index: np.ndarray, settings: AIS) -> Annealed:
        assert self.plan is not None
        self.num_runs += 1
        columns = torch.from_numpy(np.searchsorted(self.begun, index)).to(self.plan.step_sizes.device)
        plan = stretched(_columns(self.plan, columns), settings.num_temperatures)
        start, data = self.origin.rows(index)
        return run_ais(start, data, settings, plan=plan, seed=stream_seed(self.origin.seed, "run", self.num_runs))

    def _take(self, index: np.ndarray, run: Annealed, size: Size) -> None:
        weights, acceptance = (t.double().cpu().numpy() for t in (run.log_weights, run.acceptance.double().mean(0)))
        ends = run.state.u.reshape(len(weights), len(index), -1)
        for place, n in enumerate(index):
            new = _Chains(
                weights[:, place],
                size.num_temperatures,
                acceptance[place],
                int(run.num_nonfinite[place]),
                ends[:, place],
            )
            self.runs[n] = self.runs[n].joined(new) if size.joins and n in self.runs else new

    def _record(self, index: np.ndarray) -> None:
        """Judge what is there; datapoints with the same number of chains together."""
        lengths = np.array([len(self.runs[n].log_weights) for n in index])
        for length in np.unique(lengths):
            chosen = index[lengths == length]
            runs = [self.runs[n] for n in chosen]
            label = f", {self.origin.label}" if self.origin.label else ""
            estimate = estimate_of(
                np.stack([run.log_weights for run in runs], 1),
                name="AIS",
                num_gradients=0,
                acceptance=np.array([run.acceptance for run in runs]),
                num_nonfinite=np.array([run.num_nonfinite for run in runs]),
            )
            done = _good(estimate, self.target_se)
            for t in {run.num_temperatures for run in runs}:
                these = np.array([run.num_temperatures == t for run in runs])
                used = f"AIS ({t} temperatures{label})"
                self.standing.put(chosen[these], _select(estimate, these), used, done=done[these])


class _Chains:
    """The chains of one datapoint that count."""

    def __init__(
        self, log_weights: np.ndarray, num_temperatures: int, acceptance: float, num_nonfinite: int, ends: Tensor
    ) -> None:
        self.log_weights, self.num_temperatures = log_weights, num_temperatures
        self.acceptance, self.num_nonfinite, self.ends = acceptance, num_nonfinite, ends

    def joined(self, new: _Chains) -> _Chains:
        """With chains of the same plan."""
        share = len(new.log_weights) / (len(new.log_weights) + len(self.log_weights))
        return _Chains(
            np.concatenate([self.log_weights, new.log_weights]),
            self.num_temperatures,
            (1 - share) * self.acceptance + share * new.acceptance,
            self.num_nonfinite + new.num_nonfinite,
            torch.cat([self.ends, new.ends]),
        )


def stretched(plan: Plan, num_temperatures: int) -> Plan:
    """The same path in another number of temperatures, by position along the plan's own."""
    steps = len(plan.step_sizes)
    place = torch.linspace(0, steps, num_temperatures + 1, dtype=torch.float64, device=plan.betas.device)
    moves = (place[1:] - 1).clamp_min(0)
    betas = _between(plan.betas, place)
    betas[0], betas[-1] = 0.0, 1.0
    return Plan(betas, _between(plan.step_sizes, moves), _between(plan.scales, moves))


def _between(table: Tensor, place: Tensor) -> Tensor:
    """Rows of a table at fractional positions."""
    left = place.floor().long().clamp(max=max(len(table) - 2, 0))
    right = (left + 1).clamp(max=len(table) - 1)
    weight = (place - left).to(table).reshape(-1, *([1] * (table.dim() - 1)))
    return table[left] * (1 - weight) + table[right] * weight


def _columns(plan: Plan, columns: Tensor) -> Plan:
    betas = plan.betas if plan.betas.dim() == 1 else plan.betas[:, columns]
    return Plan(betas, plan.step_sizes[:, columns], plan.scales[:, columns])


def _good(estimate: Estimate, target_se: float) -> np.ndarray:
    """Whether the target is met, by every sign of the error that chains leave."""
    weights = estimate.log_weights
    num = len(weights)
    with np.errstate(invalid="ignore"):
        believed = ratio_error(log_variance(weights, estimate.se), num)
        good = (estimate.se <= target_se) & (believed <= target_se) & (estimate.ess >= LEAST_ESS * num)
    return np.asarray(good & (estimate.khat <= khat_threshold(num)) if num >= KHAT_CHAINS else good)


def _select(estimate: Estimate, chosen: np.ndarray) -> Estimate:
    columns: dict[str, Any] = {
        name: value[..., chosen] for name, value in vars(estimate).items() if isinstance(value, np.ndarray)
    }
    return replace(estimate, **columns)
