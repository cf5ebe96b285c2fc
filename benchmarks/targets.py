"""Hard targets whose log Z is known: regressions, Brownian motion, a funnel, a mixture, many wells.

    python benchmarks/targets.py [--seeds 5] [--threads 1] [--only funnel] [--skip-local]

Prints two markdown tables. The first: log Z by sequential Monte Carlo from the prior, one run a seed, its error, the
reported standard error, and the CPU seconds a run takes (with one thread, those of the clock on a quiet machine). The
second: local posteriors of the regressions, the mean-field ELBO and the Laplace approximation, whose importance weights
must be flagged.

The funnel, the mixture and the wells are densities of their own; as programs their prior is a normal distribution, and
a factor holds the target over that prior. The funnel has x_0 ~ N(0, 9) and nine others ~ N(0, e^{x_0}). The mixture has
forty components of unit variance in two dimensions, their means uniform on [-40, 40]^2. The wells are sixteen pairs,
density exp(0.5 x + 6 x^2 - x^4 - y^2 / 2): two modes each, 65536 in all.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from global_latents import BROWNIAN, problems
from scipy import integrate
from torch import Tensor

import amortize as am
from amortize.errors import AmortizeWarning

Density = Callable[[Tensor], Tensor]
NUM_MEANS, FUNNEL_DIM, NUM_PAIRS = 40, 10, 16
FULL = {
    "ionosphere": am.SMC(num_particles=4000, pilot_particles=500),
    "sonar": am.SMC(num_particles=4000, pilot_particles=500),
    "brownian": am.SMC(num_particles=16_000, pilot_particles=500, conditional_ess=0.95),
    "funnel": am.SMC(
        num_particles=16_000,
        pilot_particles=1000,
        conditional_ess=0.98,
        num_moves=8,
        kernel=am.HMC(num_leapfrog=20, jitter=0.95),
    ),
    "mixture": am.SMC(num_particles=4000, pilot_particles=2000),
    "many-well": am.SMC(num_particles=64_000, pilot_particles=1000, conditional_ess=0.95),
}
TOLERANCES = {"ionosphere": 0.1, "sonar": 0.2, "brownian": 0.02, "funnel": 0.1, "mixture": 0.1, "many-well": 0.2}
ELBOS = {"ionosphere": (-123.7, 0.3), "sonar": (-138.1, 0.4)}
"""Of mean-field Gaussians, and how far off they may be."""
NUM_DRAWS = 10_000


@dataclass(frozen=True)
class Target:
    """A program with its data, and log Z."""

    program: am.Program
    data: Any
    log_z: float


def funnel(u: Tensor) -> Tensor:
    """Log density of the funnel at u (..., 10): x_0 ~ N(0, 9), the others ~ N(0, e^{x_0})."""
    first = dist.Normal(0.0, 3.0).log_prob(u[..., 0])
    return first + dist.Normal(0.0, (0.5 * u[..., :1]).exp()).log_prob(u[..., 1:]).sum(-1)


def mixture(u: Tensor) -> Tensor:
    """Log density of forty normal components at u (..., 2)."""
    means = 80 * (torch.rand(NUM_MEANS, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    far = (u.unsqueeze(-2) - means.to(u)).square().sum(-1)
    return (-0.5 * far).logsumexp(-1) - math.log(2 * math.pi * NUM_MEANS)


def many_well(u: Tensor) -> Tensor:
    """Log density, not normalised, of sixteen pairs at u (..., 32)."""
    x, y = u[..., 0::2], u[..., 1::2]
    return (0.5 * x + 6 * x.square() - x.square().square() - 0.5 * y.square()).sum(-1)


def log_z_of_wells() -> float:
    """By quadrature over one x, and the normal integral over y."""
    over_x, _ = integrate.quad(lambda x: math.exp(0.5 * x + 6 * x**2 - x**4), -6, 6, epsabs=1e-10)
    return NUM_PAIRS * (math.log(over_x) + 0.5 * math.log(2 * math.pi))


def from_normal(log_target: Density, dim: int, scale: float) -> am.Program:
    """The program of a target whose prior is N(0, scale^2); each row of the data is a copy of it."""

    def model(x: Tensor) -> None:
        base = dist.Normal(x.new_zeros(dim), scale).to_event(1)
        with pyro.plate("data", x.shape[0]):
            u = pyro.sample("u", base)
            pyro.factor("target", log_target(u) - base.log_prob(u))

    return am.Program(model)


def targets() -> dict[str, Callable[[], Target]]:
    """By name."""
    return {
        **{name: lambda name=name: _regression(name) for name in ("ionosphere", "sonar", "brownian")},
        "funnel": lambda: Target(from_normal(funnel, FUNNEL_DIM, 4.0), torch.zeros(1), 0.0),
        "mixture": lambda: Target(from_normal(mixture, 2, 40.0), torch.zeros(1), 0.0),
        "many-well": lambda: Target(from_normal(many_well, 2 * NUM_PAIRS, 1.0), torch.zeros(1), log_z_of_wells()),
    }


def _regression(name: str) -> Target:
    problem = problems()[name]()
    truth = BROWNIAN if name == "brownian" else problem.truth
    return Target(am.Program(problem.model, whole=True), problem.data, truth)


def laplace(program: am.Program, data: Any) -> am.LocalPosterior:
    """The Gaussian at the mode of a log joint of one datapoint, with its inverse Hessian as covariance."""
    prepared = program.prepare(data)
    with program.evaluating():
        log_joint = program.log_joint(prepared)
        u = torch.zeros(log_joint.dim, requires_grad=True)

        def loss(u: Tensor) -> Tensor:
            return -log_joint(prepared, u[None, None]).sum()

        optimiser = torch.optim.LBFGS([u], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            value = loss(u)
            value.backward()
            return value

        optimiser.step(closure)
        precision = torch.autograd.functional.hessian(loss, u.detach()).double()
    covariance = torch.linalg.inv(precision)
    unknown = np.full(1, np.nan)
    return am.LocalPosterior(
        "full-covariance",
        elbo=unknown,
        elbo_se=unknown,
        converged=np.ones(1, dtype=bool),
        num_steps=np.zeros(1, dtype=int),
        parameters={
            "loc": u.detach().double().numpy()[None],
            "scale_tril": torch.linalg.cholesky(covariance).numpy()[None],
        },
        settings={},
        seconds=0.0,
        num_gradients=np.zeros(1),
        num_restarts=np.zeros(1, dtype=int),
    )


def evidence_row(name: str, seeds: range) -> str:
    """A target's log Z over seeds."""
    target, method = targets()[name](), FULL[name]
    begin = time.process_time()
    runs = [am.evidence(target.program, target.data, method=method, start="prior", seed=seed) for seed in seeds]
    seconds = (time.process_time() - begin) / len(seeds)
    errors = np.array([run.log_evidence[0] for run in runs]) - target.log_z
    steps = runs[0].path.betas.shape[0] - 1
    within = int((np.abs(errors) <= TOLERANCES[name]).sum())
    return (
        f"| {name} | {target.program.dim(target.data)} | {method.num_particles} x {steps} x {method.num_moves} | "
        f"{target.log_z:.3f} | {errors.mean():+.3f} | {errors.std(ddof=1) if len(errors) > 1 else np.nan:.3f} | "
        f"{np.mean([run.se[0] for run in runs]):.3f} | {np.abs(errors).max():.3f} | {TOLERANCES[name]}, "
        f"{within} of {len(errors)} | {max(run.khat[0] for run in runs):.2f} | {seconds:.0f} |"
    )


def local_row(name: str, seeds: range) -> str:
    """Mean-field ELBO over seeds, and importance sampling from the Laplace approximation."""
    target = targets()[name]()
    fits = [am.fit_local(target.program, target.data, family="mean-field", seed=seed) for seed in seeds]
    elbos = np.array([fit.elbo[0] for fit in fits])
    start, method = laplace(target.program, target.data), am.ImportanceSampling(num_draws=NUM_DRAWS)
    runs = [am.evidence(target.program, target.data, method=method, start=start, seed=seed) for seed in seeds]
    shares = [run.ess[0] / NUM_DRAWS for run in runs]
    flagged = sum(not run.trusted[0] for run in runs)
    asked, tolerance = ELBOS[name]
    return (
        f"| {name} | {elbos.mean():.2f} +- {elbos.std(ddof=1) if len(elbos) > 1 else np.nan:.2f} | "
        f"{asked} +- {tolerance} | {np.mean([run.log_weights.mean() for run in runs]):.2f} | {np.mean(shares):.2%} | "
        f"{min(run.khat[0] for run in runs):.2f} | {flagged} of {len(runs)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=sorted(targets()))
    parser.add_argument("--skip-local", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", AmortizeWarning)
    seeds = range(options.seeds)
    print(
        "| target | D | particles x temperatures x moves | log Z | mean error | sd over seeds | reported se | "
        "largest error | asked for | largest k-hat | CPU s a run |"
    )
    print("| --- " * 11 + "|")
    names = [options.only] if options.only else list(targets())
    for name in names:
        print(evidence_row(name, seeds), flush=True)
    if options.skip_local or not set(names) & set(ELBOS):
        return
    print("\n| data | mean-field ELBO | asked for | Laplace ELBO | ESS of draws | least k-hat | flagged |")
    print("| --- " * 7 + "|")
    for name in ELBOS:
        if name in names:
            print(local_row(name, seeds), flush=True)


if __name__ == "__main__":
    main()
