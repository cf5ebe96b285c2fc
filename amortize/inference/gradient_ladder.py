"""Which gradient estimator for this program: bias, variance, what it trains to, and seconds, in one table.

Every estimator is measured at the same parameters by many draws of its gradient, against the exact gradient where the
configurations of the discrete latents can be summed; then each trains the program from that same start, and the result
is scored as the discrete model that it is. Letters: N datapoints, P parameters.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro.infer import ELBO
from torch import Tensor
from tqdm.auto import tqdm

from amortize.errors import AmortizeError, AmortizeWarning, ArgumentError, check_count, shown
from amortize.inference.exact_elbo import num_configurations
from amortize.inference.ladder_estimators import claim_of, draws_of, read_estimators
from amortize.inference.ladder_gradients import Measured, exact_gradient, measure_gradients
from amortize.inference.ladder_moments import FEWEST_DRAWS
from amortize.inference.ladder_standing import NOWHERE, Standing, standing_of
from amortize.inference.ladder_words import markdown, sentences, text
from amortize.inference.method import Method
from amortize.inference.objective import Objective
from amortize.inference.svi import fit
from amortize.inference.training import Training
from amortize.program.data import Data
from amortize.program.density import require_guide
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.program.trained import TrainedProgram
from amortize.random import check_seed, stream_seed

__all__ = ["GradientLadder", "gradient_ladder"]

MOST_DATAPOINTS = 100
MOST_ROWS = 2**16  # of an exact gradient, all at once in memory


@dataclass(frozen=True)
class GradientLadder:
    """Gradient estimators of one program, compared.

    Attributes
    ----------
    table
        A row an estimator: ``target`` (the ELBO, or the bound of K draws); ``unbiased`` by theory ("yes", "no", "to
        scale", "?"); ``bias``, the distance of the mean gradient from the exact one as a share of the latter's length,
        and ``bias_se``, what noise alone would make it; ``z``, a joint test of all coordinates as a normal deviate, and
        ``largest_z``, of eight directions one by one; ``variance``, the trace of one datapoint's covariance;
        ``num_nonfinite`` gradients; ``rows`` of the program that a step takes for a datapoint; after training ``elbo``
        and ``log_evidence`` of the discrete program, nats a datapoint, with ``_se``, ``trusted`` and ``method``;
        ``seconds`` a step. NaN where nothing was measured.
    left_out
        Estimators that can't treat the program, and why.
    notes
        What went wrong after that, by estimator.
    exact
        How the exact gradient was found, or why there is none.
    start
        Where the program stood before training.
    num_datapoints, num_draws, num_steps, seed, seconds
        Datapoints of gradients and scores, draws of each gradient, steps of training, and how long all of it took.
    """

    table: pd.DataFrame
    left_out: Mapping[str, str]
    notes: Mapping[str, str]
    exact: str
    start: Standing
    num_datapoints: int
    num_draws: int
    num_steps: int
    seed: int
    seconds: float

    def describe(self) -> str:
        """The table, how it was made, and what stands out in it."""
        start, count = self.start, f"{self.num_datapoints} datapoints, {self.num_draws} gradients each"
        stood = f"ELBO {start.elbo:.3f}, log p(x) {start.log_evidence:.3f} ({start.method})"
        then = f"{self.num_steps} steps each from there" if self.num_steps else "nothing was trained"
        head = [f"{len(self.table)} estimators at one point, {count}. {self.exact}", f"At that point: {stood}; {then}."]
        said = sentences(self.table, self.left_out, self.notes)
        return "\n".join([*head, "", text(self.table), *([""] if said else []), *said])

    def to_markdown(self) -> str:
        """The table alone."""
        return markdown(self.table)

    def __str__(self) -> str:
        return self.describe()


@dataclass
class _Bench:
    """What every estimator is measured on: the program at its start, all data, and some of them."""

    program: Program
    data: Data
    some: Data
    state: dict[str, Tensor]
    num_draws: int
    num_steps: int
    seed: int
    training: Training
    method: Method | None
    no_exact: str = ""
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def exact_of(self, num_particles: int) -> Tensor | None:
        """The exact gradient at the start, once for each K."""
        if self.no_exact:
            return None
        if num_particles not in self.gradients:
            self.gradients[num_particles] = exact_gradient(self.program, self.some, num_particles)
        return self.gradients[num_particles]

    def standing(self) -> Standing:
        """Of the program now."""
        seed = stream_seed(self.seed, "standing")
        return standing_of(self.program, self.some, exact=not self.no_exact, method=self.method, seed=seed)


def gradient_ladder(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    estimators: Sequence[str | ELBO | Objective] | Mapping[str, str | ELBO | Objective] | None = None,
    num_draws: int = 500,
    num_steps: int = 200,
    seed: int = 0,
    training: Training | None = None,
    method: Method | None = None,
) -> GradientLadder:
    """Compare gradient estimators on a program whose guide samples discrete latents.

    Parameters
    ----------
    program, x
        The program as it stands, and its data. It is left as it was.
    estimators
        Labels of the default ones, names or settings of objectives, or a dict of them by label; None is the default
        ones: the exact gradient, Concrete at three temperatures, straight-through, REINFORCE, NVIL, leave-one-out,
        VIMCO, DisARM, RELAX and wake-sleep.
    num_draws
        Gradients of each, at least 20, on at most 100 datapoints (evenly spread over ``x``; fewer where 4096
        configurations of each would not fit). An estimator's own parameters are trained first on as many, at most 100.
    num_steps
        Of training, each from the program as it stands; 0 trains nothing.
    seed
        Of all draws.
    training
        ``am.Training(...)``; its rate and batches are the same for all.
    method
        Of log p(x) where it can't be summed exactly; None is ``am.ImportanceSampling()`` from the trained guide.

    Returns
    -------
    GradientLadder
        Print it; its numbers are in ``.table``.

    Raises
    ------
    ArgumentError
        For an unknown estimator, or where none of them can treat the program.

    Examples
    --------
    >>> import pyro, torch, amortize as am
    >>> import pyro.distributions as dist
    >>> weights, encoder = torch.nn.Linear(3, 6), torch.nn.Linear(6, 3)
    >>> def model(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
    ...         pyro.sample("x", dist.Bernoulli(logits=weights(z)).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))
    >>> program = am.Program(model, guide)
    >>> ladder = am.gradient_ladder(program, torch.eye(6), estimators=["exact", "vimco"], num_draws=20, num_steps=5)
    >>> float(ladder.table.loc["exact", "bias"]), ladder.table.loc["vimco", "target"]
    (0.0, 'bound of 5 draws')
    """
    require_program(program)
    read = read_estimators(estimators)
    num_draws, num_steps = check_count("num_draws", num_draws, FEWEST_DRAWS), check_count("num_steps", num_steps, 0)
    training = Training(progress=False) if training is None else training
    if not isinstance(training, Training):
        raise ArgumentError(f"training: expected am.Training(learning_rate=..., ...), got {shown(training)}")
    if method is not None and not isinstance(method, Method):
        raise ArgumentError(f"method: expected am.AIS(...) or another method of evidence, got {shown(method)}")
    seed, begin = check_seed(seed), time.perf_counter()
    require_guide(program)
    data = program.prepare(x)
    some, exact, no_exact = _measured_on(program, data)
    bench = _Bench(program, data, some, program.state(), num_draws, num_steps, seed, training, method, no_exact)
    try:
        start = bench.standing()
        rows, left_out, notes = _climb(bench, read)
    finally:
        program.restore(bench.state)
        program.zero_grad(set_to_none=True)
    if not rows:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise ArgumentError(f"estimators: none of them can treat this program. {reasons}")
    table = pd.DataFrame.from_dict(rows, orient="index")
    seconds = time.perf_counter() - begin
    return GradientLadder(
        table, left_out, notes, exact, start, some.num_datapoints, num_draws, num_steps, seed, seconds
    )


def _measured_on(program: Program, data: Data) -> tuple[Data, str, str]:
    """Some datapoints, how the exact gradient is found or why not, and the latter alone."""
    most = MOST_DATAPOINTS
    try:
        with program.evaluating():
            count = num_configurations(TrainedProgram(program, data, pathwise=False))
        most = max(1, min(most, MOST_ROWS // count))
        exact, reason = f"Exact gradient: {count} configurations a datapoint summed.", ""
    except AmortizeError as error:
        exact, reason = f"No exact gradient to measure bias by: {error}", str(error)
    num = min(most, data.num_datapoints)
    index = torch.linspace(0, data.num_datapoints - 1, num).round().long().to(data.index.device)
    return (data if num == data.num_datapoints else data.rows(index)), exact, reason


Rows = dict[str, dict[str, Any]]


def _climb(bench: _Bench, estimators: Mapping[str, ELBO | Objective]) -> tuple[Rows, dict[str, str], dict[str, str]]:
    """The rows, who is left out, and notes."""
    rows: Rows = {}
    left_out: dict[str, str] = {}
    notes: dict[str, str] = {}
    hidden = None if bench.training.progress is None else not bench.training.progress
    for label, objective in tqdm(estimators.items(), desc="ladder", leave=False, disable=hidden):
        bench.program.restore(bench.state)
        try:
            measured = measure_gradients(
                bench.program,
                bench.some,
                objective,
                bench.exact_of(draws_of(objective)),
                num_draws=bench.num_draws,
                seed=stream_seed(bench.seed, "ladder"),
            )
        except Exception as error:  # the user's code runs on values (soft ones) that it may not be made for
            left_out[label] = _in_words(error)
            continue
        rows[label] = _row(objective, measured) | _trained(bench, label, objective, notes)
    return rows, left_out, notes


def _row(objective: ELBO | Objective, measured: Measured) -> dict[str, Any]:
    count = draws_of(objective)
    return {
        "target": "ELBO" if count == 1 else f"bound of {count} draws",
        "unbiased": claim_of(objective),
        **vars(measured.bias),
        "variance": measured.variance,
        "num_nonfinite": measured.num_nonfinite,
        "rows": measured.rows,
    }


def _trained(bench: _Bench, label: str, objective: ELBO | Objective, notes: dict[str, str]) -> dict[str, Any]:
    """Where training by an estimator takes the program, and how long a step takes."""
    nothing = {**vars(NOWHERE), "seconds": math.nan}
    if not bench.num_steps:
        return nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AmortizeWarning)
            fitted = fit(
                bench.program,
                bench.data,
                objective=objective,
                num_steps=bench.num_steps,
                seed=bench.seed,
                training=bench.training,
            )
        if fitted.interrupted:
            raise KeyboardInterrupt("the ladder was stopped in training; the program is as it was")
        standing = bench.standing()
    except AmortizeError as error:
        notes[label] = f"training failed: {error}"
        return nothing
    steps = np.diff(fitted.history["seconds"].to_numpy(), prepend=0.0)
    return {**vars(standing), "seconds": float(np.median(steps))}


def _in_words(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, AmortizeError) else f"{type(error).__name__}: {said[:200]}"
