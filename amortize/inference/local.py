r"""The best non-amortized posterior of each datapoint: variational inference in u, every datapoint by itself.

.. math:: \max_{\lambda_n} \; E_{q(u; \lambda_n)}[\log p(x_n, u) - \log q(u; \lambda_n)]

All datapoints are fitted at once, and each by itself; how, is the business of each family (``families``). The reported
ELBO is that of fresh draws, never the optimiser's. A fit that failed, or may have, is begun anew elsewhere
(``local_fits``).

Letters: S draws, N datapoints, D latents.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortize.errors import ArgumentError, DiscreteLatentError, check_count
from amortize.inference.chunks import slices
from amortize.inference.families.density import Density, GaussianDensity
from amortize.inference.families.family import Family, Implicit, Problem
from amortize.inference.families.registry import family_of, make_family
from amortize.inference.local_fits import COLUMNS, Fits, joined_trace
from amortize.inference.starts import FamilyStart, GaussianStart, GuideStart, PriorStart, Start
from amortize.program.data import Data
from amortize.program.density import LogJoint
from amortize.program.operands import require_program
from amortize.program.points import has_density
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.program.sites import Structure
from amortize.random import check_seed, generator, stream_seed

__all__ = ["LocalPosterior", "fit_local"]

INITS = ("guide", "prior")
MAX_DATAPOINTS = 2048


@dataclass(frozen=True)
class LocalPosterior:
    """Posteriors over u, one a datapoint, with their ELBO on fresh draws.

    Attributes
    ----------
    family
        The name of the family, one of ``amortize.inference.families.registry.FAMILIES``.
    elbo, elbo_se
        (N,) nats; of points, log p(x, z) there, which is no bound.
    converged
        (N,) whether the datapoint stopped by itself, finite, and not below where it began. Stopping means that less
        than 0.01 nats seemed to be left; under correlations above .99, which mean field leaves out, it may be more.
    num_steps, num_gradients
        (N,) optimisation steps taken, and gradients of the log joint.
    num_restarts
        (N,) how often a fit was begun anew.
    parameters
        What was fitted, by name, (N, ...) each.
    family_settings
        Those of the family.
    settings, seconds
        How it was fitted, and how long it took.
    trace_seconds, trace_num_gradients, trace_elbo
        The fit on its way, at K looks: (K,), (K,) gradients a datapoint, and (K, N) nats by the optimiser's own draws.
    """

    family: str
    elbo: np.ndarray
    elbo_se: np.ndarray
    converged: np.ndarray
    num_steps: np.ndarray
    parameters: dict[str, np.ndarray]
    settings: dict[str, Any]
    seconds: float
    num_gradients: np.ndarray
    num_restarts: np.ndarray
    family_settings: dict[str, Any] = field(default_factory=dict)
    trace_seconds: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    trace_num_gradients: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    trace_elbo: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    program: Program | None = field(default=None, repr=False, compare=False)
    data: Data | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        good = np.isfinite(self.elbo)
        mean = self.elbo[good].mean() if good.any() else np.nan
        value = "ELBO" if family_of(self.family, self.family_settings).is_bound else "log p(x, z)"
        return (
            f"{self.family} posteriors: mean {value} {mean:.3f} nats over {good.sum()} of {len(good)} datapoints, "
            f"{self.converged.sum()} of them converged"
        )

    @property
    def loc(self) -> np.ndarray:
        """Mean of each datapoint's Gaussian, (N, D).

        Raises
        ------
        ArgumentError
            If the family is not Gaussian.
        """
        return np.asarray(self._gaussian().loc)

    @property
    def scale_tril(self) -> np.ndarray:
        """Cholesky factor of the covariance of each datapoint's Gaussian, (N, D, D).

        Raises
        ------
        ArgumentError
            If the family is not Gaussian.
        """
        return np.asarray(self._gaussian().scale_tril)

    def density(self, like: Tensor) -> Density:
        """Its densities over u, as tensors of the dtype and on the device of ``like``."""
        family = family_of(self.family, self.family_settings)
        return family.density(self._tensors(like))

    def start(self, log_joint: LogJoint) -> GaussianStart | FamilyStart:
        """These posteriors as what chains start from.

        Raises
        ------
        ArgumentError
            If it was fitted to other data, or its family has no density.
        """
        family = family_of(self.family, self.family_settings)
        if not family.has_density:
            raise ArgumentError(
                f"start: {self.family} posteriors have no density over u that chains could start from; take those of "
                "another family, as 'full-covariance'"
            )
        tensors = self._tensors(log_joint.like)
        density = family.density(tensors)
        if isinstance(density, GaussianDensity):
            return GaussianStart(log_joint, density.loc, density.scale_tril)
        return FamilyStart(log_joint, family, tensors)

    def draws(self, num_draws: int = 1000, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Posterior draws by latent site, in the site's own (constrained) space: arrays (draw, N, ...).

        Raises
        ------
        ArgumentError
            If this posterior was loaded from arrays and knows neither program nor data, or an argument is off.
        """
        num_draws = check_count("num_draws", num_draws)
        if self.program is None or self.data is None:
            raise ArgumentError("draws: this posterior was made from arrays alone; use its parameters")
        seed = check_seed(seed)
        with self.program.evaluating(), torch.no_grad():
            log_joint = self.program.log_joint(self.data)
            u = self._draw(log_joint, num_draws, seed)
            return constrained(log_joint, self.data, u, seed=stream_seed(seed, "local-sites"))

    def _draw(self, log_joint: LogJoint, num_draws: int, seed: int) -> Tensor:
        assert self.data is not None
        family = family_of(self.family, self.family_settings)
        if not isinstance(family, Implicit):
            gen = generator(seed, "local-draws")
            return family.density(self._tensors(torch.zeros(0, dtype=torch.float64))).draw(num_draws, gen)
        problem = Problem(log_joint, PriorStart(log_joint), self.data, num_draws, 1, stream_seed(seed, "local-draws"))
        return family.draw(self._tensors(log_joint.like), problem)

    def _tensors(self, like: Tensor) -> dict[str, Tensor]:
        return {name: torch.as_tensor(array).to(like) for name, array in self.parameters.items()}

    def _gaussian(self) -> GaussianDensity:
        density = self.density(torch.zeros(0, dtype=torch.float64))
        if not isinstance(density, GaussianDensity):
            raise ArgumentError(
                f"loc, scale_tril: {self.family} posteriors aren't Gaussian; take moments of .draws(), or .parameters"
            )
        return density


def fit_local(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    family: str | Family = "mean-field",
    init: str | None = None,
    num_draws: int = 8,
    num_steps: int = 3000,
    num_restarts: int = 1,
    seed: int = 0,
    device: str | None = None,
) -> LocalPosterior:
    """Fit a posterior to each datapoint by itself, all at once.

    Parameters
    ----------
    program, x
        The program and N datapoints.
    family
        "point" (MAP), "laplace", "mean-field", "low-rank", "full-covariance", "mixture", "coupling", "iaf", "spline",
        "flow" or "annealed", from poor to rich; or the settings of one, as ``am.Mixture(num_components=2)``.
    init
        "guide" (the default where there is one) or "prior": where each datapoint begins, by mean and scale of draws.
    num_draws
        S, draws a step (antithetic pairs).
    num_steps
        Most steps a datapoint may take in a fit, or in each part of one (a flow follows full covariance).
    num_restarts
        How often a fit that failed - not finite, or below where it began - is begun anew, elsewhere; so is, once, a
        Gaussian one whose log weights spread by more than 2 nats, as between two modes. Of all its fits, a datapoint
        keeps the best.
    seed, device
        Of all draws, and where to run ("cpu", "cuda").

    Returns
    -------
    LocalPosterior
        One posterior a datapoint, its ELBO on fresh draws (N,) in nats, and whether its fit converged.

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
    made = make_family(family)
    num_draws, num_steps = check_count("num_draws", num_draws, 2), check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts, 0)
    if num_draws % 2:
        raise ArgumentError(f"num_draws: expected an even number (draws come in antithetic pairs), got {num_draws}")
    seed = check_seed(seed)
    begin = time.perf_counter()
    data = program.prepare(x, device=device)
    with program.evaluating():
        start = _start(program, data, init)
        _require_continuous(start.log_joint.structure)
        parts = []
        for chunk in slices(data.num_datapoints, MAX_DATAPOINTS):
            chunk_seed = stream_seed(seed, "local", made.name, chunk.start)
            rows = data.rows(chunk)
            problem = Problem(start.log_joint, start.rows(chunk), rows, num_draws, num_steps, chunk_seed)
            parts.append(Fits(made, problem).after(num_restarts))
    trace = joined_trace([part.trace for part in parts])
    return LocalPosterior(
        made.name,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS},
        parameters={name: np.concatenate([p.parameters[name] for p in parts]) for name in parts[0].parameters},
        family_settings=made.settings(),
        settings={
            "init": start.name,
            "num_draws": num_draws,
            "num_steps": num_steps,
            "num_restarts": num_restarts,
            "seed": seed,
        },
        seconds=time.perf_counter() - begin,
        trace_seconds=trace.seconds,
        trace_num_gradients=trace.num_gradients,
        trace_elbo=trace.elbo,
        program=program,
        data=data,
    )


def _require_continuous(structure: Structure) -> None:
    """A density over u needs a u, and nothing beside it that is drawn."""
    if structure.sampled:
        raise DiscreteLatentError(
            "local posteriors are over continuous latents, but the discrete latents "
            f"{', '.join(map(repr, structure.sampled))} are sampled ({structure.reason}). Where "
            "they can be summed out: am.Program(..., discrete='enumerate')"
        )
    if not structure.dim:
        raise DiscreteLatentError(
            "the program has no continuous latents, so there is nothing to fit; its discrete ones are summed out, "
            "and am.evidence(program, x) and am.posterior(program, x) are exact"
        )


def _start(program: Program, data: Data, init: str | None) -> Start:
    init = ("guide" if has_density(program, data) else "prior") if init is None else init
    if init not in INITS:
        raise ArgumentError(f"init: expected one of {INITS}, got {init!r}")
    if init == "guide":
        return GuideStart(program.guide_density(data))
    return PriorStart(program.log_joint(data))
