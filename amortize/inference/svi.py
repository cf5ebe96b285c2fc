"""Training an amortized guide (and the model's parameters) by stochastic variational inference.

Minibatches are drawn without replacement, epoch by epoch, from a random stream of their own. The program is trained in
place, as in Pyro. Letters: N datapoints.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from tqdm.auto import tqdm

from amortize.errors import AmortizeWarning, ArgumentError, TrainingError, check_count, shown
from amortize.inference.aggressive import Aggression
from amortize.inference.code_usage import code_sites, columns_of, looked_up
from amortize.inference.fitted import Fitted
from amortize.inference.importance import log_ratios
from amortize.inference.objective import BatchLoss, Objective
from amortize.inference.objectives import is_direct, loss_of, make_objective, name_of, resolve_objective
from amortize.inference.starts import GuideStart
from amortize.inference.training import Training
from amortize.program.adopt import LOCK
from amortize.program.data import Data
from amortize.program.density import require_guide
from amortize.program.guide_contract import verify_trained_guide
from amortize.program.handlers import unvalidated
from amortize.program.operands import require_program
from amortize.program.points import point_sites
from amortize.program.program import Program
from amortize.program.runtime import undisturbed
from amortize.random import check_seed, generator, pyro_rng, stream_seed

__all__ = ["Training", "fit"]

FINAL_RATE = 0.01  # of the first learning rate, at the end of an exponential schedule
MOST_SKIPPED = 20  # non-finite steps in a row
VALIDATION_DRAWS = 16


def fit(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    objective: str | ELBO | Objective = "auto",
    num_steps: int = 5000,
    seed: int = 0,
    device: str | None = None,
    training: Training | None = None,
) -> Fitted:
    """Train a program's guide and model on N datapoints, in place.

    Parameters
    ----------
    program, x
        The program (with a guide) and its data.
    objective
        "elbo" (Trace_ELBO), "graph-elbo" (TraceGraph_ELBO), "mean-field-elbo" (TraceMeanField_ELBO), "enum-elbo"
        (TraceEnum_ELBO: discrete latents summed out), or a Pyro ELBO. "auto" is a model of ``am.models``'s own, else
        "enum-elbo" where the guide leaves discrete latents out, and "elbo" everywhere else. Tighter bounds, each for
        every datapoint by itself: "iwae", "wake-sleep", "l-mcvae", "a-mcvae", "dais", "mcd", or their settings,
        ``am.IWAE(num_particles=5)``, ``am.WakeSleep``, ``am.LMCVAE``, ``am.AMCVAE``, ``am.DAIS``, ``am.MCD``;
        "semi-amortized", ``am.SemiAmortized``, the ELBO after a few refinement steps; and "beta-elbo",
        ``am.BetaELBO``, distortion and rate at a price, which takes guides that are points, too. For guides that sample
        discrete latents: "nvil", "leave-one-out", "vimco", "disarm", "relax", "reinforce", "concrete-elbo" and
        "exact-elbo", and their settings, ``am.NVIL`` and so on.
    num_steps
        Optimiser steps; 0 measures and trains nothing.
    seed, device
        Of the batches and of Pyro's draws; and where to train ("cpu", "cuda").
    training
        ``am.Training(...)``.

    Returns
    -------
    Fitted
        The same program, with the history of its training. Ctrl-C ends training early and says so in ``interrupted``.

    Raises
    ------
    GuideMismatchError
        If there is no guide.
    DiscreteLatentError
        If the guide samples discrete latents and the objective differentiates through its draws.
    TrainingError
        If the loss stays non-finite, or there is nothing to train.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, num_steps=20)
    >>> len(fitted.history)
    20
    """
    require_program(program)
    training = Training() if training is None else training
    if not isinstance(training, Training):
        raise ArgumentError(f"training: expected am.Training(learning_rate=..., ...), got {shown(training)}")
    num_steps = check_count("num_steps", num_steps, 0)
    seed = check_seed(seed)
    require_guide(program)
    if objective != "auto":
        make_objective(objective)  # an unknown name is refused before anything runs
    data = program.prepare(x, device=device)
    _bind(program, data, training)
    valid = None if training.validation is None else program.prepare(training.validation, device=device)
    made = resolve_objective(objective, program, data)
    bound = _in_words(made, program, data)
    run = _Run(program, made, training, num_steps, stream_seed(seed, "fit"))
    begin = time.perf_counter()
    run.train(data, valid, begin)
    settings = training.settings() | {"num_steps": num_steps, "batch_size": run.batch_size(data)}
    settings["objective"] = (
        made.settings() if isinstance(made, Objective) else {"name": name_of(made), "num_particles": made.num_particles}
    )
    return Fitted(
        program=program,
        history=run.history(),
        objective=name_of(made),
        seed=seed,
        settings=settings,
        seconds=time.perf_counter() - begin,
        stopped_early=run.stopped_early,
        interrupted=run.interrupted,
        bound=bound,
        extra={} if run.loss is None else run.loss.own_state(),
    )


def _in_words(objective: ELBO | Objective, program: Program, data: Data) -> str:
    """What was trained: a point has no ELBO."""
    bound = objective.bound if isinstance(objective, Objective) else "ELBO"
    point = point_sites(program, data) or (program.bound is not None and isinstance(program.bound.guide, AutoDelta))
    return "log p(x, z) at a point, no bound" if bound == "ELBO" and point else bound


def _bind(program: Program, data: Data, training: Training) -> None:
    """Make an AutoGuide's parameters; they take all the datapoints at each step."""
    if program.bound is None:
        return
    if training.batch_size is not None and training.batch_size < data.num_datapoints:
        raise ArgumentError(
            f"Training batch_size: expected None (all {data.num_datapoints} datapoints) for an AutoGuide, got "
            f"{training.batch_size}. It has parameters for each datapoint and runs on all of them at once. Leave "
            "batch_size out, or write a guide that reads the data (an encoder)"
        )
    program.bind(data)


class _Run:
    """One training run: the optimiser, its schedule, the best state so far."""

    def __init__(
        self, program: Program, objective: ELBO | Objective, training: Training, num_steps: int, seed: int
    ) -> None:
        self.program, self.objective, self.training = program, objective, training
        self.loss: BatchLoss | None = None
        self.num_steps, self.seed = num_steps, seed
        self.rows: list[dict[str, float]] = []
        self.stopped_early = self.interrupted = False
        self.best: tuple[float, int, dict[str, Tensor], dict[str, Tensor]] | None = None
        self.skipped = 0
        self.full_size: int | None = None
        self.start: GuideStart | None = None
        self.lead: Aggression | None = None
        self.direct = False
        self.codes: tuple[str, ...] = ()

    def batch_size(self, data: Data) -> int:
        """Datapoints a step."""
        if self.program.bound is not None:  # each datapoint has parameters of its own
            return data.num_datapoints
        return min(self.training.batch_size or (128 if data.num_datapoints > 256 else 256), data.num_datapoints)

    def history(self) -> pd.DataFrame:
        """A row a step."""
        columns = [
            "step", "elbo", "validation_elbo", "validation_elbo_se", "learning_rate", "gradient_norm", "seconds",
        ]  # fmt: skip
        if self.lead is not None:
            columns += ["inner_steps", "mutual_information"]
        columns += columns_of(self.codes)
        return pd.DataFrame(self.rows, columns=columns).astype({"step": int})

    def train(self, data: Data, valid: Data | None, begin: float) -> None:
        """Step until done, patience runs out, or Ctrl-C."""
        parameters = [p for p in self.program.parameters() if p.requires_grad]
        if not parameters:
            raise TrainingError("the program has no parameters to train; use its guide as it is, without am.fit")
        structure = self.program.structure(data)
        verify_trained_guide(self.program, structure, data)
        if isinstance(self.objective, Objective):
            self.loss = self.objective.on(self.program, data, seed=self.seed)
            parameters += list(self.loss.own_parameters())
        self.direct = is_direct(self.objective, self.program, data)
        self.codes = () if valid is None else code_sites(self.program, data)
        if self.training.aggressive is not None:
            own = [] if self.loss is None else list(self.loss.own_parameters())
            looked_at = data if valid is None else valid
            self.lead = Aggression(self.training.aggressive, self.program, looked_at, own=own, seed=self.seed)
        optimiser = _adam(parameters, self.training.learning_rate)
        batches = _batches(data, self.batch_size(data), generator(self.seed, "batches"))
        if self.training.redraw is not None:
            redraw, stream = self.training.redraw, generator(self.seed, "redraw")
            batches = (redraw(batch, stream) for batch in batches)
        self.full_size = structure.full_size
        if isinstance(self.objective, TraceEnum_ELBO) and math.isinf(self.objective.max_plate_nesting):
            self.objective.max_plate_nesting = structure.batch_ndim  # Pyro's own guess, without its message
        if valid is not None and self.loss is None and (structure.dim or structure.sampled):
            with self.program.evaluating():  # checked once: training moves numbers, not sites
                self.start = GuideStart(self.program.guide_density(valid))
        hidden = None if self.training.progress is None else not self.training.progress
        bar = tqdm(total=self.num_steps, desc="fit", leave=False, disable=hidden)
        try:
            with LOCK, bar, undisturbed(), pyro_rng(self.seed, "steps"), _quiet_nan(), unvalidated():
                for step in range(1, self.num_steps + 1):
                    row = self._step(batches, optimiser, step)
                    last = step == self.num_steps
                    if valid is not None and (step % self.training.validate_every == 0 or last):
                        self._validate(valid, row, step)
                    row["seconds"] = time.perf_counter() - begin
                    self.rows.append(row)
                    bar.update()
                    if self._out_of_patience(step):
                        self.stopped_early = True
                        break
        except KeyboardInterrupt:
            self.interrupted = True
            warnings.warn(
                f"training was interrupted after {len(self.rows)} of {self.num_steps} steps; the program keeps what it "
                "learned until then",
                AmortizeWarning,
                stacklevel=3,
            )
        if self.best is not None and self.training.patience is not None:
            self.program.restore(self.best[2])
            if self.loss is not None:
                self.loss.load_state_dict(self.best[3])

    def _step(self, batches: Iterator[Data], optimiser: torch.optim.Optimizer, step: int) -> dict[str, float]:
        """One row of the history; where the guide leads, it is trained first, and then the model alone."""
        rate = self._rate(step)
        optimiser.param_groups[0]["lr"] = rate
        if self.loss is not None:
            self.loss.progress = (step - 1) / self.num_steps
        inner, held, lead = 0, [], self.lead
        if lead is not None and lead.going_on:
            inner = lead.lead(lambda: self._descend(next(batches), optimiser, step, lead.models)[0])
            held = lead.guides
        elbo, norm = self._descend(next(batches), optimiser, step, held)
        nan = float("nan")
        row = {
            "step": step,
            "elbo": elbo,
            "validation_elbo": nan,
            "validation_elbo_se": nan,
            "learning_rate": rate,
            "gradient_norm": norm,
        }
        if lead is not None:
            row["inner_steps"] = inner
            row["mutual_information"] = lead.look(step) if lead.going_on else nan
        return row | dict.fromkeys(columns_of(self.codes), nan)

    def _descend(
        self, batch: Data, optimiser: torch.optim.Optimizer, step: int, held: list[nn.Parameter]
    ) -> tuple[float, float]:
        """One step of all parameters but those that are held: the bound, nats a datapoint, and the gradient's norm."""
        optimiser.zero_grad(set_to_none=True)
        loss, elbo = self._loss(batch)
        if not loss.requires_grad:
            raise TrainingError("no parameter of the program enters its objective; there is nothing to train")
        norm = float("nan")
        if math.isfinite(float(loss.detach())):
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter in held:  # Adam passes over what has no gradient
                parameter.grad = None
            parameters = optimiser.param_groups[0]["params"]
            norm = _gradient_norm(parameters, self.training.clip_norm)
        if math.isfinite(norm):
            optimiser.step()
            increment_version(parameters)  # fused, Adam leaves alone the counters that compiled graphs go by
            self.skipped = 0
        else:
            self._skip(step, float(loss.detach()))
        return elbo, norm

    def _loss(self, batch: Data) -> tuple[Tensor, float]:
        """What to descend, and the bound, nats a datapoint."""
        if self.loss is not None:
            terms = self.loss(batch)
            return terms.loss, float(terms.bound.mean())
        assert isinstance(self.objective, ELBO)
        loss = loss_of(self.objective, self.program, batch, direct=self.direct) / (
            self.full_size or batch.num_datapoints
        )
        return loss, -float(loss.detach())

    def _skip(self, step: int, loss: float) -> None:
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise TrainingError(
                f"the loss or its gradient was not finite in {self.skipped} steps in a row (step {step}, loss {loss}). "
                "Lower the learning rate, clip gradients (clip_norm), or look for data outside a distribution's "
                "support with program.check(x)"
            )

    def _rate(self, step: int) -> float:
        """Learning rate of a step, 1 to ``num_steps``."""
        done = (step - 1) / max(self.num_steps, 1)
        if self.training.schedule == "cosine":
            return self.training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        decay = FINAL_RATE**done if self.training.schedule == "exponential" else 1.0
        return self.training.learning_rate * decay

    def _validate(self, valid: Data, row: dict[str, float], step: int) -> None:
        elbo, error = self._validation_elbo(valid)
        row["validation_elbo"], row["validation_elbo_se"] = elbo, error
        row |= looked_up(self.program, valid, self.codes)
        if np.isfinite(elbo) and (self.best is None or elbo > self.best[0]):
            extra = {} if self.loss is None else self.loss.own_state()
            self.best = (elbo, step, self.program.state(), extra)

    def _validation_elbo(self, valid: Data) -> tuple[float, float]:
        """Mean bound a datapoint and its standard error over datapoints, nats; the same draws at every call."""
        with self.program.evaluating():
            if self.loss is not None:
                values = self.loss.measured(valid, VALIDATION_DRAWS, seed=self.seed)
            elif self.start is None:
                return self._discrete_elbo(valid), float("nan")
            else:
                values = log_ratios(self.start, valid, VALIDATION_DRAWS, seed=self.seed, stream="validation").mean(0)
        good = values[np.isfinite(values)]
        if len(good) == 0:
            return float("nan"), float("nan")
        return float(good.mean()), float(good.std(ddof=1) / np.sqrt(len(good))) if len(good) > 1 else float("nan")

    def _discrete_elbo(self, valid: Data) -> float:
        """The loss itself, where every latent is discrete and summing them out leaves the guide nothing to do."""
        assert isinstance(self.objective, ELBO)
        with pyro_rng(self.seed, "validation"):  # Pyro refuses a loss without a gradient
            losses = [float(loss_of(self.objective, self.program, valid).detach()) for _ in range(VALIDATION_DRAWS)]
        return -float(np.mean(losses)) / (self.full_size or valid.num_datapoints)

    def _out_of_patience(self, step: int) -> bool:
        if self.training.patience is None or self.best is None:
            return False
        return step - self.best[1] >= self.training.patience * self.training.validate_every


def _adam(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam, its loop over parameters in one kernel where there is one."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


def _gradient_norm(parameters: list[nn.Parameter], limit: float | None) -> float:
    """Of all gradients together; they are clipped where it is above the limit."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


@contextmanager
def _quiet_nan() -> Iterator[None]:
    """Pyro's own warning about a NaN loss: such steps are skipped, counted and in the history."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")
        yield


def _batches(data: Data, size: int, gen: torch.Generator) -> Iterator[Data]:
    if size >= data.num_datapoints:
        while True:
            yield data
    while True:
        order = torch.randperm(data.num_datapoints, generator=gen).to(data.index.device)
        for first in range(0, data.num_datapoints - size + 1, size):
            yield data.rows(order[first : first + size])
