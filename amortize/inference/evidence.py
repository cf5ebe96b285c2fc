"""The evidence of each datapoint, log p(x_n) in nats, with what is known of its error."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from amortize.diagnostics.trust import LEAST_DRAWS, LEAST_ESS, Trust, assess
from amortize.errors import AmortizeWarning, ArgumentError, shown
from amortize.inference.ais import AIS
from amortize.inference.auto import Auto, shortfall
from amortize.inference.chunks import slices
from amortize.inference.enumeration import exact_log_evidence, is_exact
from amortize.inference.importance import ImportanceSampling
from amortize.inference.local import LocalPosterior
from amortize.inference.method import AnnealingPath, Estimate, Method, concatenate
from amortize.inference.starts import GuideStart, PriorStart, Start
from amortize.program.data import Data
from amortize.program.operands import require_program
from amortize.program.points import has_density, sure_sites
from amortize.program.program import Program
from amortize.program.runtime import undisturbed
from amortize.random import check_seed, stream_seed

if TYPE_CHECKING:
    from amortize.inference.simulated_error import SimulatedError

__all__ = ["Evidence", "evidence", "make_start"]

ERRORS = ("monte-carlo", "simulated")
UNREACHED = "none"
"""What was used for datapoints that Ctrl-C left out."""


@dataclass(frozen=True)
class Evidence:
    """Log evidence a datapoint, numpy float64, in the data's order.

    Attributes
    ----------
    log_evidence, se
        (N,) estimate and its standard error, nats; the error is NaN where one draw carries the weight.
    ess, khat
        (N,) effective sample size of the weights, and Pareto k-hat (NaN where there are too few draws to say).
    acceptance, num_nonfinite
        (N,) mean acceptance (NaN for a method without proposals) and count of proposals whose energy was not finite.
    lower, upper
        (N,) bounds in expectation, or None where the method gives none.
    log_weights
        (C, N) log weights whose mean weight estimates p(x_n); NaN pads datapoints that have fewer than others.
    used, num_gradients
        (N,) the method used for each datapoint, and the gradient evaluations it took (a value counts as a third).
    path
        How annealing went at each temperature, or None.
    interrupted
        Whether Ctrl-C stopped the run: datapoints not reached are NaN.
    method, settings, seed, start, seconds
        How the numbers came about.
    simulated
        With ``error="simulated"``, the error measured on data simulated from the model and taken for that of the
        estimates here; None otherwise. ``se`` is the Monte Carlo error in either case.
    """

    log_evidence: np.ndarray
    se: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    acceptance: np.ndarray
    num_nonfinite: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None
    log_weights: np.ndarray
    used: np.ndarray
    num_gradients: np.ndarray
    path: AnnealingPath | None
    interrupted: bool
    method: str
    settings: dict[str, Any]
    seed: int
    start: str
    seconds: float
    simulated: SimulatedError | None = None

    @property
    def trust(self) -> Trust:
        """Which datapoints can be relied on, and what to do about the others (see ``amortize.diagnostics.assess``)."""
        return assess(self)

    @property
    def trusted(self) -> np.ndarray:
        """(N,) whether a number can be relied on within its standard error, by the signs that its run left."""
        return self.trust.trusted

    @property
    def warnings(self) -> tuple[str, ...]:
        """In plain words what is wrong, on how many datapoints, and a remedy."""
        reached = self.used != UNREACHED
        if not reached.all():
            done = f"{int(reached.sum())} of {len(reached)} datapoints"
            return (f"Ctrl-C stopped the run after {done}; the others are NaN.", *self._of(reached).warnings)
        missed = shortfall(self.se, self.settings["target_se"]) if "target_se" in self.settings else ""
        return (*self.trust.warnings, f"{missed}.") if missed else self.trust.warnings

    def _of(self, rows: np.ndarray) -> Evidence:
        """The evidence of some datapoints."""
        columns: dict[str, Any] = {
            name: value[..., rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        path = self.path and AnnealingPath(*(table[:, rows] for table in vars(self.path).values()))
        return replace(self, **columns, path=path)

    @property
    def table(self) -> pd.DataFrame:
        """A row a datapoint."""
        columns = {
            "log_evidence": self.log_evidence,
            "se": self.se,
            "ess": self.ess,
            "khat": self.khat,
            "acceptance": self.acceptance,
            "num_nonfinite": self.num_nonfinite,
            "lower": self.lower if self.lower is not None else np.nan,
            "upper": self.upper if self.upper is not None else np.nan,
            "used": self.used,
            "num_gradients": self.num_gradients,
            "trusted": self.trusted,
        }
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self.se), name="datapoint"))

    def __str__(self) -> str:
        good = np.isfinite(self.log_evidence)
        mean = self.log_evidence[good].mean() if good.any() else np.nan
        known = good & np.isfinite(self.se)
        error = np.sqrt(np.sum(np.square(self.se[known]))) / known.sum() if known.any() else np.nan
        unknown = f", {good.sum() - known.sum()} of them with an unknown error" if (good & ~known).any() else ""
        doubtful = int((good & ~self.trusted).sum())
        doubt = f"; {doubtful} not to be trusted (.warnings says why)" if doubtful else ""
        return (
            f"{self.method} from the {self.start}: mean log p(x) {mean:.3f} +- {error:.3f} nats (Monte Carlo) over "
            f"{good.sum()} of {len(good)} datapoints{unknown}{doubt}"
            + (f". {self.simulated}" if self.simulated is not None else "")
        )


def evidence(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    method: Method | str | None = None,
    start: str | LocalPosterior | None = None,
    error: str = "monte-carlo",
    discrete: str | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Evidence:
    """Estimate log p(x_n) of each datapoint.

    Parameters
    ----------
    program
        A program that meets the contract.
    x
        Data, N datapoints.
    method
        ``am.AIS(...)`` (the default), ``am.SMC(...)``, ``am.Langevin(...)``, ``am.Diffusion(...)`` or
        ``am.ImportanceSampling(...)``; or "auto", which is ``am.Auto()``: for each datapoint the cheapest means that
        reach a standard error of 0.05 nats.
    start
        "guide" (the default where there is one), "prior", or a ``LocalPosterior`` fitted on the same data.
    error
        "monte-carlo", the standard error of the weights, which knows nothing of what no chain has found; or
        "simulated": in addition the error that the same run makes on data simulated from the model, where log p(x) can
        be bounded from above, transferred to ``x`` (``Evidence.simulated``). That takes two to three times as long.
    discrete
        "enumerate" or "sample" treats discrete latents in another way than the program says. Where every latent is
        discrete and summed out, the evidence is exact and ``method`` and ``start`` have no part in it.
    seed, device
        Of all draws, and where to run ("cpu", "cuda").

    Returns
    -------
    Evidence
        Log p(x_n) in nats with what is known of its error, (N,) each, in the data's order.

    Raises
    ------
    ContractError
        Where the program breaks the contract; the message names the site.
    ArgumentError
        For an unknown method or start.
    ReplayError
        With ``error="simulated"``, where data can't be simulated from the model; nothing is estimated then.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(__import__("torch").zeros(8, 4))[1]["x"]
    >>> result = am.evidence(analysis.program(), x, method=am.AIS(num_chains=8, num_temperatures=20), start="prior")
    >>> result.log_evidence.shape
    (8,)
    """
    require_program(program)
    method = AIS() if method is None else Auto() if isinstance(method, str) and method == "auto" else method
    if not isinstance(method, Method):
        got = shown(method)
        raise ArgumentError(f"method: expected 'auto', am.AIS(...) or the settings of another method, got {got}")
    if error not in ERRORS:
        raise ArgumentError(f"error: expected one of {ERRORS}, got {error!r}")
    seed = check_seed(seed)
    begin = time.perf_counter()
    data = program.prepare(x, device=device)
    with program.evaluating(), program.treating(discrete):
        origin = make_start(program, data, start)
        exact = is_exact(origin.log_joint)
        if error == "simulated" and not exact:
            _try_simulation(program, data, method, start)
        result, interrupted = (
            (_by_enumeration(origin, data), False)
            if exact
            else _in_chunks(method, origin, data, stream_seed(seed, "evidence"))
        )
        sampled = isinstance(origin, GuideStart) and bool(origin.log_joint.structure.sampled)
        if sampled and sure_sites(program, data):
            result = replace(result, ess=np.ones_like(result.ess), khat=np.full_like(result.khat, np.nan))
    result = _mark_hopeless(result, warn=not isinstance(method, ImportanceSampling))
    if isinstance(method, Auto) and not exact and (missed := _missed(result, method.target_se)):
        warnings.warn(missed, AmortizeWarning, stacklevel=2)
    columns = {name: value for name, value in vars(result).items() if name != "name"}
    transferred = None
    if error == "simulated" and not exact and not interrupted:
        with program.treating(discrete):
            transferred = _simulated(program, data, result, method, start, seed)
    return Evidence(
        **columns,
        simulated=transferred,
        interrupted=interrupted,
        method=result.name,
        settings={} if exact else method.settings(),
        seed=seed,
        start=origin.name,
        seconds=time.perf_counter() - begin,
    )


def _missed(result: Estimate, target_se: float) -> str:
    """Datapoints short of the target; an error that is not to be trusted is not known to meet it."""
    return shortfall(np.where(assess(result).trusted, result.se, np.nan), target_se)


def _try_simulation(program: Program, data: Data, method: Method, start: str | LocalPosterior | None) -> None:
    from amortize.inference.simulated_error import require_simulation  # it runs evidence itself

    require_simulation(program, data, method, start)


def _simulated(
    program: Program, data: Data, result: Estimate, method: Method, start: str | LocalPosterior | None, seed: int
) -> SimulatedError | None:
    from amortize.inference.simulated_error import simulated_error  # it runs evidence itself

    measured = result.log_evidence, result.log_weights
    try:
        return simulated_error(program, data, measured, method=method, start=start, seed=seed)
    except KeyboardInterrupt:  # the estimates on the real data are done, and are kept
        warnings.warn("stopped before the error on simulated data was known", AmortizeWarning, stacklevel=3)
        return None


def _in_chunks(method: Method, start: Start, data: Data, seed: int) -> tuple[Estimate, bool]:
    """The estimates of chunks of datapoints; Ctrl-C keeps those that are done.

    Raises
    ------
    KeyboardInterrupt
        If none is done.
    """
    num, size = data.num_datapoints, method.chunk_size(start)
    parts: list[Estimate] = []
    hidden = True if num <= size else None
    try:
        with undisturbed(), tqdm(total=num, desc="evidence", unit="datapoint", leave=False, disable=hidden) as bar:
            for rows in slices(num, size):
                chunk_seed = stream_seed(seed, "chunk", rows.start)
                parts.append(method.estimate(start.rows(rows), data.rows(rows), seed=chunk_seed))
                bar.update(rows.stop - rows.start)
    except KeyboardInterrupt:
        if not parts:
            raise
        done = sum(len(part.se) for part in parts)
        warnings.warn(f"stopped after {done} of {num} datapoints; the others are NaN", AmortizeWarning, stacklevel=3)
        return _padded(concatenate(parts), num), True
    return concatenate(parts), False


def _padded(estimate: Estimate, num: int) -> Estimate:
    """NaN for the datapoints that were not reached."""
    missing = num - len(estimate.se)

    def pad(column: Any) -> Any:
        if not isinstance(column, np.ndarray):
            return column
        fill: Any = UNREACHED if column.dtype == object else 0 if column.dtype.kind == "i" else np.nan
        width = [(0, 0)] * (column.ndim - 1) + [(0, missing)]
        return np.pad(column, width, constant_values=fill)

    columns = {name: pad(value) for name, value in vars(estimate).items() if name != "path"}
    path = estimate.path and AnnealingPath(*(pad(table) for table in vars(estimate.path).values()))
    return Estimate(**columns, path=path)


def _mark_hopeless(result: Estimate, *, warn: bool) -> Estimate:
    """Where one draw carries the weight, the error is unknown: no standard error, and a warning.

    Importance sampling has its k-hat to say so; chains are too few for one.
    """
    num_draws = len(result.log_weights)
    if num_draws < LEAST_DRAWS:
        return result
    hopeless = (result.ess < LEAST_ESS) & np.isfinite(result.log_evidence)  # -inf is certain, and says so itself
    if warn and hopeless.any():
        warnings.warn(
            f"for {int(hopeless.sum())} of {len(hopeless)} datapoints one of {num_draws} draws carries nearly all the "
            "weight: their log evidence is probably too low, by an unknown amount (standard error NaN). Anneal more "
            "slowly (num_temperatures), take more chains, or start nearer to the posterior (guide, local posterior)",
            AmortizeWarning,
            stacklevel=3,
        )
    return replace(result, se=np.where(hopeless, np.nan, result.se))


def make_start(program: Program, data: Data, start: str | LocalPosterior | None) -> Start:
    """Resolve ``start`` for a program."""
    if start is None:
        start = "guide" if has_density(program, data) else "prior"
    if isinstance(start, LocalPosterior):
        log_joint = program.log_joint(data)
        fitted = start.start(log_joint)
        if fitted.density.shape != (data.num_datapoints, log_joint.dim):
            raise ArgumentError(
                f"start: expected a local posterior of {data.num_datapoints} datapoints and {log_joint.dim} latents, "
                f"got one of shape {fitted.density.shape}; fit it on the same data"
            )
        return fitted
    if isinstance(start, str) and start == "guide":
        return GuideStart(program.guide_density(data))
    if isinstance(start, str) and start == "prior":
        return PriorStart(program.log_joint(data))
    got = repr(start) if isinstance(start, str) else type(start).__name__
    raise ArgumentError(f"start: expected 'guide', 'prior' or a LocalPosterior, got {got}")


def _by_enumeration(start: Start, data: Data) -> Estimate:
    """With discrete latents alone, all summed out."""
    exact, num = exact_log_evidence(start.log_joint, data), data.num_datapoints
    return Estimate(
        log_evidence=exact,
        se=np.zeros(num),
        ess=np.full(num, np.inf),
        khat=np.full(num, -np.inf),
        acceptance=np.full(num, np.nan),
        num_nonfinite=np.isnan(exact).astype(int),
        num_gradients=np.zeros(num),
        log_weights=exact[None],
        lower=exact,
        upper=exact,
        name="exact enumeration",
        used=np.full(num, "exact enumeration", dtype=object),
    )
