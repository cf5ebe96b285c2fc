r"""Evidence from both sides: bidirectional Monte Carlo (Grosse, Ghahramani and Adams 2015).

.. math:: E[\mathrm{lower}] \le \log p(x_n) \le E[\mathrm{upper}], \qquad (x_n, z_n) \sim p(x, z)

Data are simulated from the model, shaped like the data given, so that the latents that made them are exact draws of
their posterior; the upper side starts there (see ``two_sided``). The gap is how far the method can be off on data from
this model: no assumption, no truth needed. On real data no exact draw is known. Runs in reverse from approximate ones
give an estimate, which is labelled as such: where the draws miss a mode, it misses it as well.

The chains of a datapoint share its one exact draw: more of them hardly tighten the upper side, and its standard error
over chains knows nothing of the draw. More simulations tighten it, and the standard error of the mean gap knows.

Letters: C chains, N datapoints of a data set, S simulated data sets, M = S * N bounded datapoints (simulation-major).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from amortize.errors import AmortizeWarning, ArgumentError, GuideDataError, check_count
from amortize.inference.ais import AIS
from amortize.inference.chunks import slices
from amortize.inference.enumeration import is_exact
from amortize.inference.evidence import make_start
from amortize.inference.families.registry import family_of
from amortize.inference.local import LocalPosterior, fit_local
from amortize.inference.method import Method
from amortize.inference.posterior_draws import annealed_draws, as_latents
from amortize.inference.sandwich import Sandwich
from amortize.inference.starts import GuideStart, Start
from amortize.inference.two_sided import BothSides, both_sides, exact_sides, join_sides, require_reverse
from amortize.program.data import Data
from amortize.program.density import Latents
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.program.runtime import undisturbed
from amortize.program.simulated import exact_latents, shares_observations
from amortize.random import check_seed, stream_seed

__all__ = ["bdmc", "refitted", "require_start_elsewhere"]

EXACT = "the latents that made the data"


class Batch(NamedTuple):
    """Datapoints to bound at once: a start for them, draws of their posteriors, and where the draws are from."""

    start: Start
    data: Data
    draws: Latents
    source: str


def bdmc(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    method: Method | None = None,
    start: str | LocalPosterior | None = None,
    num_simulations: int = 1,
    posterior_draws: Mapping[str, Any] | AIS | None = None,
    discrete: str | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Sandwich:
    """Bound log p(x) from below and above on data simulated from the model.

    Parameters
    ----------
    program
        A program that meets the contract and whose observations can be simulated.
    x
        Data, N datapoints: what is simulated is shaped like them, with their covariates and what they miss.
    method
        ``am.AIS(...)`` (the default) with any kernel, ``am.Langevin(...)`` or ``am.ImportanceSampling(...)``.
    start
        "guide" (the default where there is one), "prior", or a ``LocalPosterior``: posteriors are then fitted to the
        simulated data with its settings.
    num_simulations
        S, independent data sets to simulate.
    posterior_draws
        Bounds ``x`` itself from below, and *estimates* it from approximate draws of the posterior in place of an upper
        bound: a dict of arrays (draw, N, ...) by latent site, as ``am.posterior`` or an MCMC run gives them; or
        ``am.AIS(...)``, a long run whose last states are drawn by their weights.
    discrete
        As for ``am.evidence``. Where every latent is discrete and summed out, both sides are exact.
    seed, device
        Of all draws, and where to run ("cpu", "cuda").

    Returns
    -------
    Sandwich
        Both sides for M = S * N datapoints, in nats, and the gap between them.

    Raises
    ------
    ReplayError
        Where the model can't be simulated, or its observations can't be put back into the data.
    ContractError, ArgumentError
        Where the program breaks the contract or an argument is off.

    Examples
    --------
    >>> import torch, amortize as am
    >>> program = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0).program()
    >>> method = am.AIS(num_chains=8, num_temperatures=30)
    >>> sandwich = am.bdmc(program, torch.zeros(8, 4), method=method, start="prior", num_simulations=2)
    >>> sandwich.lower.shape, sandwich.data[0].shape
    ((16,), torch.Size([8, 4]))
    >>> bool(abs(sandwich.mean_gap) < 0.2)
    True
    """
    require_program(program)
    method = AIS() if method is None else method
    require_reverse(method)
    num_simulations = check_count("num_simulations", num_simulations)
    _check_draws(posterior_draws, num_simulations)
    stream, begin = stream_seed(check_seed(seed), "bdmc"), time.perf_counter()
    data = program.prepare(x, device=device)
    with program.evaluating(), program.treating(discrete):
        if posterior_draws is None:
            batches = [
                _simulated(program, data, start, count, stream_seed(stream, "simulation", turn))
                for turn, count in enumerate(_batches(program, data, num_simulations))
            ]
        else:
            batches = [_given(program, data, start, posterior_draws, stream)]
        sides, interrupted = _run(method, batches, stream)
    exact = posterior_draws is None
    return Sandwich(
        lower=sides.lower,
        lower_se=sides.lower_se,
        upper=sides.upper,
        upper_se=sides.upper_se,
        exact=exact,
        log_weights=sides.forward,
        reverse_log_weights=sides.reverse,
        acceptance=sides.acceptance,
        data=tuple(given for batch in batches for given in _as_given(batch.data, data.num_datapoints)),
        interrupted=interrupted,
        method=type(method).__name__,
        settings=method.settings(),
        start=batches[0].start.name,
        draws=batches[0].source,
        seed=seed,
        seconds=time.perf_counter() - begin,
    )


def refitted(program: Program, data: Data, local: LocalPosterior, seed: int) -> LocalPosterior:
    """Local posteriors of other data, fitted with the same settings."""
    names = ("init", "num_draws", "num_steps", "num_restarts")
    kept = {name: local.settings[name] for name in names if name in local.settings}
    family = family_of(local.family, local.family_settings)
    return fit_local(program, data, family=family, seed=stream_seed(seed, "local"), **kept)


def _check_draws(posterior_draws: object, num_simulations: int) -> None:
    if posterior_draws is None:
        return
    if not isinstance(posterior_draws, (Mapping, AIS)):
        raise ArgumentError(
            "posterior_draws: expected a dict of arrays (draw, N, ...) by latent site, or am.AIS(...) to draw with, "
            f"got {type(posterior_draws).__name__}"
        )
    if num_simulations != 1:
        raise ArgumentError(
            "num_simulations: with posterior_draws the data themselves are bounded, and nothing is simulated; expected "
            f"1, got {num_simulations}"
        )


def _batches(program: Program, data: Data, num_simulations: int) -> list[int]:
    """How many simulations to run at once: all, unless observations lie in what datapoints share."""
    if num_simulations > 1 and shares_observations(program, data):
        return [1] * num_simulations
    return [num_simulations]


def _simulated(program: Program, data: Data, start: str | LocalPosterior | None, count: int, seed: int) -> Batch:
    folded = data.fold(count)
    drawn = program.simulated(folded, seed=seed)
    origin = _start_on(program, drawn.data, start, seed)
    _warn_if_blind(origin, folded, drawn.data, seed)
    return Batch(origin, drawn.data, exact_latents(origin.log_joint, drawn, seed=seed), EXACT)


def _given(
    program: Program, data: Data, start: str | LocalPosterior | None, draws: Mapping[str, Any] | AIS, seed: int
) -> Batch:
    origin = make_start(program, data, start)
    if isinstance(draws, AIS):
        ends = annealed_draws(origin, data, draws, seed=seed)
        return Batch(origin, data, ends, f"the end of an AIS run of {draws.num_temperatures} temperatures")
    return Batch(origin, data, as_latents(origin.log_joint, data, draws, seed=seed), "the draws given")


def _start_on(program: Program, data: Data, start: str | LocalPosterior | None, seed: int) -> Start:
    """The same kind of start on simulated data."""
    if isinstance(start, LocalPosterior):
        return make_start(program, data, refitted(program, data, start, seed))
    require_start_elsewhere(program, start)
    return make_start(program, data, start)


def require_start_elsewhere(program: Program, start: str | LocalPosterior | None) -> None:
    """Refuse a guide that can't be used on simulated data."""
    if program.bound is not None and not isinstance(start, LocalPosterior) and start != "prior":
        raise GuideDataError(
            "this AutoGuide belongs to the data that it was made on and knows nothing of simulated ones. Start from "
            "the prior, start='prior', or from local posteriors, start=am.fit_local(program, x, init='prior')"
        )


def _warn_if_blind(start: Start, data: Data, simulated: Data, seed: int) -> None:
    """A guide that looks at none of the simulated observations is a valid start, and far from the posterior."""
    if not isinstance(start, GuideStart):
        return
    real, drawn = (start.draw(rows, seed, "blind") for rows in (data, simulated))
    if torch.equal(real.u, drawn.u) and torch.equal(real.choices, drawn.choices):
        warnings.warn(
            "the guide's draws are the same for simulated data as for the real ones: it does not read what the model "
            "observes. If it reads a copy under another argument, say how simulated observations are put there, "
            "am.Program(..., replace=function)",
            AmortizeWarning,
            stacklevel=4,
        )


def _run(method: Method, batches: list[Batch], seed: int) -> tuple[BothSides, bool]:
    """Both sides of all batches, chunk by chunk; Ctrl-C keeps what is done.

    Raises
    ------
    KeyboardInterrupt
        If nothing is done.
    """
    num = sum(batch.data.num_datapoints for batch in batches)
    parts: list[BothSides] = []
    done = 0
    try:
        with undisturbed(), tqdm(total=num, desc="bdmc", unit="datapoint", leave=False, disable=None) as bar:
            for turn, batch in enumerate(batches):
                for rows in slices(batch.data.num_datapoints, method.chunk_size(batch.start)):
                    parts.append(_sides(method, batch, rows, stream_seed(seed, "chunk", turn, rows.start)))
                    bar.update(rows.stop - rows.start)
                    done += rows.stop - rows.start
    except KeyboardInterrupt:
        if not parts:
            raise
        warnings.warn(f"stopped after {done} of {num} datapoints; the others are NaN", AmortizeWarning, stacklevel=3)
    return join_sides(parts, num), done < num


def _sides(method: Method, batch: Batch, rows: slice, seed: int) -> BothSides:
    num = batch.data.num_datapoints
    start, data = batch.start.rows(rows), batch.data.rows(rows)
    if is_exact(start.log_joint):
        return exact_sides(start, data)
    each = (value.reshape(len(value) // num, num, value.shape[-1]) for value in batch.draws)
    draws = Latents(*(value[:, rows].flatten(0, 1) for value in each))
    return both_sides(method, start, data, draws, seed=seed)


def _as_given(data: Data, num: int) -> list[Any]:
    """The data sets of a batch, each as users give data."""
    return [data.rows(slice(at, at + num)).as_given() for at in range(0, data.num_datapoints, num)]
