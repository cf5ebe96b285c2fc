r"""The best non-amortized posterior of each datapoint: Gaussian variational inference in u, every datapoint by itself.

.. math:: \max_{\lambda_n} \; E_{q(u; \lambda_n)}[\log p(x_n, u) - \log q(u; \lambda_n)]

All datapoints are fitted at once, and each by itself (see ``local_optimiser``); a full-covariance fit begins at the
mean-field one. The reported ELBO is that of fresh draws, never the optimiser's.

Letters: N datapoints, D latents.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from amortize.errors import ArgumentError, DiscreteLatentError, check_count
from amortize.inference.families import check_family
from amortize.inference.local_optimiser import Problem
from amortize.inference.starts import GuideStart, PriorStart, Start
from amortize.program.data import Data
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.program.sites import Structure
from amortize.random import check_seed, generator, stream_seed

__all__ = ["LocalPosterior", "fit_local"]

INITS = ("guide", "prior")
MAX_DATAPOINTS = 2048


@dataclass(frozen=True)
class LocalPosterior:
    """Gaussian posteriors over u, one a datapoint, with their ELBO on fresh draws.

    Attributes
    ----------
    family
        "mean-field" or "full-covariance".
    elbo, elbo_se
        (N,) nats.
    converged
        (N,) whether the datapoint stopped by itself, finite, and not below where it began. Stopping means that less
        than 0.01 nats seemed to be left; under correlations above .99, which mean field leaves out, it may be more.
    num_steps
        (N,) optimisation steps taken.
    loc, scale_tril
        (N, D) and (N, D, D).
    """

    family: str
    elbo: np.ndarray
    elbo_se: np.ndarray
    converged: np.ndarray
    num_steps: np.ndarray
    loc: np.ndarray
    scale_tril: np.ndarray
    settings: dict[str, Any]
    seconds: float
    program: Program | None = field(default=None, repr=False, compare=False)
    data: Data | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        good = np.isfinite(self.elbo)
        mean = self.elbo[good].mean() if good.any() else np.nan
        return (
            f"{self.family} posteriors: mean ELBO {mean:.3f} nats over {good.sum()} of {len(good)} datapoints, "
            f"{self.converged.sum()} of them converged"
        )

    def draws(self, num_draws: int = 1000, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Posterior draws by latent site, in the site's own (constrained) space: arrays (draw, N, ...).

        Raises
        ------
        ArgumentError
            If this posterior was loaded from arrays and knows neither program nor data, or an argument is off.
        """
        num_draws = check_count("num_draws", num_draws)
        if self.program is None or self.data is None:
            raise ArgumentError("draws: this posterior was made from arrays alone; use its loc and scale_tril")
        gen = generator(check_seed(seed), "local-draws")
        noise = torch.randn(num_draws, *self.loc.shape, generator=gen, dtype=torch.float64).numpy()
        u = self.loc + np.einsum("nij,snj->sni", self.scale_tril, noise)
        with self.program.evaluating():
            log_joint = self.program.log_joint(self.data)
            return constrained(log_joint, self.data, torch.from_numpy(u), seed=stream_seed(seed, "local-sites"))


def fit_local(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    family: str = "mean-field",
    init: str | None = None,
    num_draws: int = 8,
    num_steps: int = 3000,
    seed: int = 0,
    device: str | None = None,
) -> LocalPosterior:
    """Fit a posterior to each datapoint by itself, all at once.

    Parameters
    ----------
    program, x
        The program and N datapoints.
    family
        "mean-field" or "full-covariance" Gaussians in u.
    init
        "guide" (the default where there is one) or "prior": where each datapoint begins, by mean and scale of draws.
    num_draws
        S, draws a step (antithetic pairs).
    num_steps
        Most steps a datapoint may take.
    seed, device
        Of all draws, and where to run ("cpu", "cuda").

    Returns
    -------
    LocalPosterior
        One Gaussian a datapoint, its ELBO on fresh draws (N,) in nats, and whether its fit converged.

    Raises
    ------
    ContractError, ArgumentError
        Where the program breaks the contract or an argument is off.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(__import__("torch").zeros(8, 4))[1]["x"]
    >>> local = am.fit_local(analysis.program(), x, init="prior", num_steps=100)
    >>> local.elbo.shape
    (8,)
    """
    require_program(program)
    check_family(family)
    num_draws, num_steps = check_count("num_draws", num_draws, 2), check_count("num_steps", num_steps)
    if num_draws % 2:
        raise ArgumentError(f"num_draws: expected an even number (draws come in antithetic pairs), got {num_draws}")
    seed = check_seed(seed)
    begin = time.perf_counter()
    data = program.prepare(x, device=device)
    with program.evaluating():
        start = _start(program, data, init)
        _require_continuous(start.log_joint.structure)
        parts = []
        for first in range(0, data.num_datapoints, MAX_DATAPOINTS):
            chunk = slice(first, first + MAX_DATAPOINTS)
            problem = Problem(program.log_joint(data), start, data.rows(chunk), family, num_draws)
            parts.append(problem.solve(num_steps, stream_seed(seed, "local", family, first)))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    settings = {"init": start.name, "num_draws": num_draws, "num_steps": num_steps, "seed": seed}
    seconds = time.perf_counter() - begin
    return LocalPosterior(family, **arrays, settings=settings, seconds=seconds, program=program, data=data)


def _require_continuous(structure: Structure) -> None:
    """A Gaussian over u needs a u, and nothing beside it that is drawn."""
    if structure.sampled:
        raise DiscreteLatentError(
            f"local posteriors are Gaussian, but the discrete latents {', '.join(map(repr, structure.sampled))} are "
            f"sampled ({structure.reason}). Where they can be summed out: am.Program(..., discrete='enumerate')"
        )
    if not structure.dim:
        raise DiscreteLatentError(
            "the program has no continuous latents, so there is no Gaussian to fit; its discrete ones are summed out, "
            "and am.evidence(program, x) and am.posterior(program, x) are exact"
        )


def _start(program: Program, data: Data, init: str | None) -> Start:
    init = ("prior" if program.guide is None else "guide") if init is None else init
    if init not in INITS:
        raise ArgumentError(f"init: expected one of {INITS}, got {init!r}")
    if init == "guide":
        return GuideStart(program.guide_density(data))
    return PriorStart(program.log_joint(data))
