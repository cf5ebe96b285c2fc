r"""Annealed importance sampling of each datapoint's evidence (Neal 2001, "Annealed importance sampling").

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \, r(u_{t-1}), \qquad E[w_n] = p(x_n)

A pilot run of its own random stream adapts step sizes and whitening (tables over temperature and datapoint) and
places the temperatures; all are then frozen, because adapting inside the weighted run would void E[w] = p(x). The mean
of the log weights and the log of their mean are lower bounds on log p(x) in expectation.

The chains of a datapoint share their velocities' strata (see ``hmc``): each weight is unbiased as ever and their mean
varies less, by less than the reported standard error, which takes chains for independent, and so errs upward.

Sampled discrete variables move by Gibbs sweeps, one after each move of the kernel.

Letters: C chains, N datapoints, D continuous latents, B = C * N rows (chain-major), T temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.inference import schedule as schedules
from amortize.inference import whitening
from amortize.inference.annealing import Annealed, Plan, anneal, make_movers, most_planned, move_cost
from amortize.inference.hmc import HMC
from amortize.inference.kernels import Kernel
from amortize.inference.method import AnnealingPath, Estimate, Method, estimate_of, most_rows
from amortize.inference.pilot import FIRST_STEP, Budget, run_pilot
from amortize.inference.starts import Start
from amortize.program.compile import check_backend
from amortize.program.data import Data
from amortize.program.options import check_flag
from amortize.random import generator

__all__ = ["AIS", "annealing_path", "num_gradients", "run_ais"]

SCHEDULES = ("pilot", "pilot-per-datapoint", *schedules.FIXED)


@dataclass(frozen=True)
class AIS(Method):
    """Settings of annealed importance sampling.

    Parameters
    ----------
    num_chains
        C, chains a datapoint.
    num_temperatures
        T, annealing steps.
    kernel
        The transition kernel: ``am.HMC(...)``, ``am.MALA()`` or ``am.ULA()``.
    schedule
        "pilot" (equal thermodynamic length from the pilot run, shared by the datapoints), "pilot-per-datapoint",
        "linear", "power", "sigmoid", or T + 1 increasing numbers from 0 to 1.
    pilot
        Adapt step sizes in a pilot run and freeze them; False takes ``step_size`` (and a linear schedule in place of
        the pilot's).
    step_size
        Step size in whitened coordinates where there is no pilot.
    backend
        How the densities are computed: "fx", a traced graph; "inductor", that graph as machine code, which takes up to
        a minute to make; "eager"; or "auto", Inductor where the run is long enough to pay for it and else "fx".
    """

    num_chains: int = 16
    num_temperatures: int = 100
    kernel: Kernel = field(default_factory=HMC)
    schedule: str | tuple[float, ...] = "pilot"
    pilot: bool = True
    step_size: float = FIRST_STEP
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures"):
            check_count(f"AIS {name}", getattr(self, name))
        if not isinstance(self.kernel, Kernel):
            raise ArgumentError(f"AIS kernel: expected am.HMC(...), am.MALA() or am.ULA(), got {shown(self.kernel)}")
        self._check_schedule()
        check_number("AIS step_size", self.step_size)
        check_backend(self.backend)
        check_flag("AIS pilot", self.pilot)

    def _check_schedule(self) -> None:
        if isinstance(self.schedule, str):
            if self.schedule not in SCHEDULES:
                raise ArgumentError(f"AIS schedule: expected one of {SCHEDULES} or numbers, got {self.schedule!r}")
            return
        try:
            betas = np.asarray(self.schedule, dtype=float)
        except (TypeError, ValueError, OverflowError):
            betas = np.zeros(0)
        right = betas.shape == (self.num_temperatures + 1,) and betas[0] == 0 and betas[-1] == 1
        if not (right and (np.diff(betas) > 0).all()):
            raise ArgumentError(
                f"AIS schedule: expected one of {SCHEDULES}, or num_temperatures + 1 = {self.num_temperatures + 1} "
                f"increasing numbers from 0 to 1, got {self.schedule!r}"
            )
        object.__setattr__(self, "schedule", tuple(betas.tolist()))

    @property
    def num_calls(self) -> tuple[int, int]:
        """How often the path of the weighted run is evaluated, and its gradient."""
        return self.num_temperatures, self.num_temperatures * (self.kernel.num_gradients - 1)

    @property
    def budget(self) -> Budget:
        """What the pilot is to plan for."""
        return Budget(
            self.kernel, self.num_temperatures, self.schedule, self.pilot, self.step_size, backend=self.backend
        )

    def chunk_size(self, start: Start) -> int:
        """As many datapoints as memory allows, fewer where the run is long."""
        rows = most_rows(self.num_temperatures * self.kernel.num_gradients) // self.num_chains
        room = most_planned(start, self.num_temperatures, whitening.DENSE_DIM)
        return max(1, min(rows // start.log_joint.num_tiles, room))

    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """Pilot, freeze, anneal."""
        plan = run_pilot(start, data, self.budget, seed=seed)
        run = run_ais(start, data, self, plan=plan, seed=seed)
        return estimate_of(
            run.log_weights.double().cpu().numpy(),
            name="AIS",
            num_gradients=num_gradients(start, self),
            acceptance=run.acceptance.double().mean(0).cpu().numpy(),
            num_nonfinite=run.num_nonfinite.cpu().numpy(),
            path=annealing_path(plan, run),
        )


def run_ais(start: Start, data: Data, settings: AIS, *, plan: Plan, seed: int) -> Annealed:
    """Anneal C chains of each of the N datapoints of ``data`` by a frozen plan."""
    folded = data.fold(settings.num_chains)
    movers = make_movers(
        start, folded, settings.kernel, seed=seed, backend=settings.backend, num_calls=settings.num_calls
    )
    latents = start.draw(folded, seed, "chains")
    return anneal(movers, latents, plan, generator(seed, "chains", "noise", device=latents.u.device))


def num_gradients(start: Start, settings: AIS) -> float:
    """Gradients a datapoint: those of the pilot and of the chains, and the values of Gibbs sweeps."""
    moves = settings.num_chains * settings.num_temperatures + settings.budget.num_pilot_moves
    return moves * move_cost(start, settings.kernel)


def annealing_path(plan: Plan, run: Annealed) -> AnnealingPath:
    """How a run went, as arrays."""
    num = run.spread.shape[1]
    betas = plan.betas if plan.betas.dim() == 2 else plan.betas.unsqueeze(1).expand(-1, num)
    return AnnealingPath(*(_numpy(table) for table in (betas, run.acceptance, run.spread)))


def _numpy(table: Tensor) -> np.ndarray:
    result: np.ndarray = table.double().cpu().numpy()
    return result
