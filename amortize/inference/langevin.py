r"""Annealed Langevin: unadjusted steps along the path, exact in the weights.

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \, r(u_{t-1})
          + \sum_{t=1}^T \log \frac{\pi_t(u_t) \, F_t(u_t \to u_{t-1})}{\pi_t(u_{t-1}) \, F_t(u_{t-1} \to u_t)}

with F_t the density of a Langevin step at :math:`\beta_t` (see ``ula``), so that :math:`E[w_n] = p(x_n)` at any step
size (Heng, Bishop, Deligiannidis and Doucet 2020, "Controlled sequential Monte Carlo"; Wu, Koehler and Noe 2020,
"Stochastic normalizing flows"; Thin et al. 2021, "Monte Carlo variational auto-encoders").

What the step size does cost is variance: long steps make corrections that vary, short ones leave the chains behind
their temperatures. Which prevails hangs on the number of temperatures and on the start; no one acceptance suits all.
So the pilot run, which moves by Metropolis-adjusted steps, gives the *relative* step sizes of temperatures and
datapoints, and a factor for all of them is then searched for: the one with the highest mean log weight, in runs of a
few chains whose weights are thrown away. All is then frozen.

Letters: C chains, N datapoints, T temperatures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_number
from amortize.inference.ais import AIS, annealing_path, num_gradients, run_ais
from amortize.inference.annealing import Plan, anneal, make_movers
from amortize.inference.mala import MALA
from amortize.inference.method import Estimate, Method, estimate_of
from amortize.inference.pilot import FIRST_STEP, PILOT_CHAINS, run_pilot
from amortize.inference.starts import Start
from amortize.inference.ula import ULA
from amortize.program.data import Data
from amortize.random import generator, stream_seed

__all__ = ["Langevin", "plan_langevin"]

FIRST_ACCEPTANCE = 0.85
FACTORS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125)


@dataclass(frozen=True)
class Langevin(Method):
    """Settings of annealed Langevin.

    Parameters
    ----------
    num_chains
        C, chains a datapoint.
    num_temperatures
        T, annealing steps, a gradient each.
    target_acceptance
        Takes the step sizes at which a Metropolis correction would accept this share, in place of searching for those
        with the best weights.
    schedule, pilot, step_size, backend
        As for ``AIS``; without a pilot run, ``step_size`` is taken as it is.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = torch.as_tensor(analysis.program().simulate(torch.zeros(8, 4))[1]["x"])
    >>> method = am.Langevin(num_chains=32, num_temperatures=100)
    >>> result = am.evidence(analysis.program(), x, method=method, start="prior")
    >>> bool(abs(torch.as_tensor(result.log_evidence) - analysis.log_evidence(x)).max() < 1)
    True
    """

    num_chains: int = 16
    num_temperatures: int = 1000
    target_acceptance: float | None = None
    schedule: str | tuple[float, ...] = "pilot"
    pilot: bool = True
    step_size: float = FIRST_STEP
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.target_acceptance is not None:
            check_number("Langevin target_acceptance", self.target_acceptance, "(0, 1)")
        try:
            annealing = self.annealing
        except ArgumentError as error:
            raise ArgumentError(str(error).replace("AIS ", "Langevin ")) from None
        object.__setattr__(self, "schedule", annealing.schedule)

    @property
    def annealing(self) -> AIS:
        """The weighted run."""
        return AIS(
            num_chains=self.num_chains,
            num_temperatures=self.num_temperatures,
            kernel=ULA(),
            schedule=self.schedule,
            pilot=self.pilot,
            step_size=self.step_size,
            backend=self.backend,
        )

    @property
    def searches(self) -> bool:
        """Whether a factor of the pilot's step sizes is searched for."""
        return self.pilot and self.target_acceptance is None

    def chunk_size(self, start: Start) -> int:
        """As for annealed importance sampling."""
        return self.annealing.chunk_size(start)

    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """Pilot, search, freeze, anneal."""
        plan, num_tried = plan_langevin(start, data, self, seed=seed)
        run = run_ais(start, data, self.annealing, plan=plan, seed=seed)
        return estimate_of(
            run.log_weights.double().cpu().numpy(),
            name="annealed Langevin",
            num_gradients=num_gradients(start, self.annealing) + num_tried * num_gradients(start, self._trial()),
            acceptance=run.acceptance.double().mean(0).cpu().numpy(),
            num_nonfinite=run.num_nonfinite.cpu().numpy(),
            path=annealing_path(plan, run),
        )

    def _trial(self) -> AIS:
        return replace(self.annealing, num_chains=PILOT_CHAINS, pilot=False)


def plan_langevin(start: Start, data: Data, settings: Langevin, *, seed: int) -> tuple[Plan, int]:
    """Schedule, whitening and step sizes for N datapoints, and how many factors of the step sizes were tried."""
    kernel = MALA(settings.target_acceptance or FIRST_ACCEPTANCE)
    plan = run_pilot(start, data, replace(settings.annealing.budget, kernel=kernel), seed=seed)
    if not settings.searches or not plan.scales.shape[-1]:
        return plan, 0
    folded = data.fold(PILOT_CHAINS)
    movers = make_movers(
        start, folded, ULA(), seed=stream_seed(seed, "factors"), backend=settings.annealing.budget.backend
    )
    tried: list[Tensor] = []
    for factor in FACTORS:
        latents = start.draw(folded, seed, f"factor-{factor}")
        noise = generator(seed, "factor-noise", len(tried), device=latents.u.device)
        run = anneal(movers, latents, plan._replace(step_sizes=factor * plan.step_sizes), noise)
        tried.append(run.log_weights.double().mean(0))
        if len(tried) > 1 and not _better(tried[-1], tried[-2]):
            return plan._replace(step_sizes=FACTORS[len(tried) - 2] * plan.step_sizes), len(tried)
    return plan._replace(step_sizes=FACTORS[-1] * plan.step_sizes), len(tried)


def _better(shorter: Tensor, longer: Tensor) -> bool:
    """Whether mean log weights (N,) are higher, over the datapoints that have a number; -inf is the lowest."""
    known = ~(torch.isnan(shorter) | torch.isnan(longer))
    lost = torch.isneginf(longer[known]).sum() - torch.isneginf(shorter[known]).sum()
    if lost:
        return bool(lost > 0)
    both = torch.isfinite(shorter) & torch.isfinite(longer)
    return bool((shorter - longer)[both].sum() > 0)
