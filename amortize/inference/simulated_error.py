r"""The error of an estimate on real data, from that on data simulated from the same model.

On simulated data log p(x) lies below an upper bound (see ``bdmc``), so that the mean of (upper bound - estimate) is, in
expectation, at least the mean error of the method there. That error is transferred to the real data, as Grosse, Ancha
and Roy do (2016, "Measuring the reliability of MCMC inference with bidirectional Monte Carlo", section 4,
https://arxiv.org/abs/1606.02275). It is an assumption and no bound: that the method finds real data as easy as those
the model makes. It can be seen to fail, and then a warning says so: where real evidence lies far outside that of
simulated data, or log weights vary much more.

Letters: N real datapoints, M simulated ones.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from amortize.errors import AmortizeWarning, ArgumentError
from amortize.inference.ais import AIS
from amortize.inference.auto import Auto
from amortize.inference.bdmc import bdmc, refitted, require_start_elsewhere
from amortize.inference.diffusion import TrainedDiffusion
from amortize.inference.evidence import evidence
from amortize.inference.langevin import Langevin
from amortize.inference.local import LocalPosterior
from amortize.inference.method import Method
from amortize.inference.sandwich import Sandwich
from amortize.inference.smc import SMC
from amortize.inference.two_sided import has_reverse
from amortize.program.data import Data
from amortize.program.program import Program
from amortize.random import stream_seed

__all__ = ["SimulatedError", "require_simulation", "simulated_error"]

FEWEST, MOST = 32, 256
"""Simulated datapoints: more data sets are simulated for few datapoints, and of many some are taken."""
FEW_ROWS = 2
MARGIN = 0.5  # of the range of simulated evidence, to either side
OUTSIDE_SHARE = 0.25
HARDER = 2.0
SMALL_SPREAD = 0.1  # nats


@dataclass(frozen=True)
class SimulatedError:
    """By how much a method's estimates are too low on data simulated from the model; numpy float64, nats.

    Attributes
    ----------
    estimate, upper
        (M,) what the method estimates on simulated data, and upper bounds in expectation.
    outside
        Share of the real datapoints whose log evidence lies far outside the range of the simulated ones'.
    harder
        Median standard deviation of the log weights of real datapoints over that of simulated ones.
    sandwich
        The bounds on simulated data, with the data.
    warnings
        Why the error may not be that on the real data, in plain words.
    """

    estimate: np.ndarray
    upper: np.ndarray
    outside: float
    harder: float
    sandwich: Sandwich
    warnings: tuple[str, ...]

    @property
    def errors(self) -> np.ndarray:
        """(M,) upper - estimate."""
        return np.asarray(self.upper - self.estimate)

    @property
    def mean(self) -> float:
        """Mean error: in expectation at least that of the estimates on simulated data."""
        return float(self._known.mean()) if len(self._known) else np.nan

    @property
    def se(self) -> float:
        """Standard error of the mean over simulated datapoints."""
        return float(self._known.std(ddof=1) / np.sqrt(len(self._known))) if len(self._known) > 1 else np.nan

    @property
    def _known(self) -> np.ndarray:
        return np.asarray(self.errors[np.isfinite(self.errors)])

    def __str__(self) -> str:
        failed = len(self.errors) - len(self._known)
        text = (
            f"On {len(self._known)} datapoints simulated from the model the same estimates are at most {self.mean:.3f} "
            f"+- {self.se:.3f} nats too low on average, which is taken for their error here (transferred, no bound)"
        )
        text += f"; {failed} more have no finite error" if failed else ""
        return text + (f"; doubtful: {' '.join(self.warnings)}" if self.warnings else "")


def simulated_error(
    program: Program,
    data: Data,
    measured: tuple[np.ndarray, np.ndarray],
    *,
    method: Method,
    start: str | LocalPosterior | None,
    seed: int,
) -> SimulatedError:
    """Measure the error of ``method`` on data simulated like ``data``, and look at whether these are like them.

    Parameters
    ----------
    program, data
        The program and its N real datapoints.
    measured
        Their log evidence (N,) and log weights (C, N).
    method, start, seed
        As for ``am.evidence``.

    Raises
    ------
    ReplayError
        Where the model can't be simulated.
    """
    seed, num = stream_seed(seed, "simulated error"), data.num_datapoints
    few = data if num <= MOST else data.rows(torch.arange(MOST, device=data.index.device) * num // MOST)
    options: dict[str, Any] = {"start": start, "seed": seed}
    two_sided = method if has_reverse(method) else _reference(method)
    repeats = -(-FEWEST // few.num_datapoints)
    sandwich = bdmc(program, few, method=two_sided, num_simulations=repeats, **options)
    estimate, spread = sandwich.lower, _spread(sandwich.log_weights)
    if not isinstance(method, (AIS, Langevin)):  # of those, the forward run is the estimate
        estimate, spread = _estimates(program, sandwich, method, options)
    outside, harder = _outside(measured[0], estimate), _harder(_spread(measured[1]), spread)
    found = SimulatedError(estimate, sandwich.upper, outside, harder, sandwich, _doubts(outside, harder))
    for text in found.warnings:
        warnings.warn(text, AmortizeWarning, stacklevel=3)
    return found


def require_simulation(program: Program, data: Data, method: Method, start: str | LocalPosterior | None) -> None:
    """Try on a few datapoints what ``simulated_error`` needs, so that what it would refuse is refused at once.

    Raises
    ------
    ReplayError
        Where the model can't be simulated.
    ArgumentError, GuideDataError
        For a method or a guide that serves no other data than those it was made on.
    """
    if isinstance(method, TrainedDiffusion) and method.data is not None:
        raise ArgumentError(
            f"error: 'simulated' tries the method on simulated data, and the {method.diffusion.base} base of this "
            "bridge belongs to the datapoints it was trained on. Give its settings, method=am.Diffusion(...), which "
            "are trained on any data, or a bridge of base='start'"
        )
    require_start_elsewhere(program, start)
    program.simulated(data.rows(slice(0, FEW_ROWS)), seed=0)


def _reference(method: Method) -> AIS:
    """What bounds log p(x) from above on simulated data for a method that has no run in reverse."""
    return AIS(kernel=method.kernel) if isinstance(method, (SMC, Auto)) else AIS()


def _estimates(
    program: Program, sandwich: Sandwich, method: Method, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Log evidence of the simulated data by the method itself, and the spread of its log weights."""
    parts = []
    for x in sandwich.data:
        start = options["start"]
        if isinstance(start, LocalPosterior):
            start = refitted(program, program.prepare(x), start, options["seed"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AmortizeWarning)  # said of the real data, where it applies
            parts.append(evidence(program, x, method=method, **(options | {"start": start})))
    spread = np.concatenate([_spread(part.log_weights) for part in parts])
    return np.concatenate([part.log_evidence for part in parts]), spread


def _outside(real: np.ndarray, simulated: np.ndarray) -> float:
    """Share of real values beyond the range of the simulated ones, widened by half of it to either side."""
    real, simulated = real[np.isfinite(real)], simulated[np.isfinite(simulated)]
    if not (len(real) and len(simulated) > 1):
        return np.nan
    margin = MARGIN * np.ptp(simulated)
    return float(np.mean((real < simulated.min() - margin) | (real > simulated.max() + margin)))


def _spread(log_weights: np.ndarray) -> np.ndarray:
    """(N,) standard deviation of the finite log weights of each datapoint."""
    return np.array(
        [np.std(column[np.isfinite(column)]) if np.isfinite(column).any() else 0 for column in log_weights.T]
    )


def _harder(real: np.ndarray, simulated: np.ndarray) -> float:
    """Of medians; spreads below a tenth of a nat are all harmless."""
    first, second = (max(float(np.median(spread)), SMALL_SPREAD) for spread in (real, simulated))
    return first / second


def _doubts(outside: float, harder: float) -> tuple[str, ...]:
    found = []
    if outside > OUTSIDE_SHARE:
        found.append(
            f"the evidence of {outside:.0%} of the real datapoints lies far outside that of data simulated from the "
            "model: the data are not like what it makes, and the error measured there may not be that here. Improve "
            "the model, or compare with longer runs."
        )
    if harder > HARDER:
        found.append(
            f"the log weights of the real datapoints vary {harder:.3g} times as much as those of simulated ones: the "
            "real data are harder, and the error here is likely to be larger. Compare with runs of more temperatures."
        )
    return tuple(found)
