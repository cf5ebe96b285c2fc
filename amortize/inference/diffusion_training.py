r"""Training a bridge: its mean log weight, a lower bound on log p(x), raised by Adam over draws and datapoints.

.. math:: \max_\theta \; \frac1N \sum_n E[\log w_n(\theta)] \le \frac1N \sum_n \log p(x_n)

The program stays as it is. A step size common to all steps is chosen first, as the best of powers of two; then
everything trains at once, at a rate that rises over the first steps and falls along a cosine.

Letters: S draws a step, M datapoints a step, N datapoints, D latents, K steps of the bridge.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amortize.errors import AmortizeWarning, TrainingError
from amortize.inference.bridge_batch import Batch, charts_of, refillable
from amortize.inference.bridge_model import BridgeModel, GaussianBase
from amortize.inference.chart import Chart
from amortize.inference.chunks import slices
from amortize.inference.families.density import GaussianDensity
from amortize.inference.families.family import Problem
from amortize.inference.families.registry import make_family
from amortize.inference.method import MAX_ROWS
from amortize.inference.score_network import Features
from amortize.inference.starts import GaussianStart, Start
from amortize.program.data import Data
from amortize.program.runtime import undisturbed
from amortize.random import generator, pyro_rng, stream_seed

__all__ = ["FIRST_SIZES", "Recipe", "Trained", "train"]

PRETRAINING_STEPS, PRETRAINING_DRAWS = 3000, 8
FIRST_SIZES = tuple(2.0**-power for power in range(8))
WARM_UP = 50
LAST_RATE = 0.01  # of the first
NETWORK_RATE = 0.3  # of the learning rate: a network's parameters are many and have no units
MOST_SKIPPED = 100


@dataclass(frozen=True)
class Recipe:
    """What is trained and how; ``Diffusion`` says what each means."""

    kind: str
    num_steps: int
    base: str
    num_iterations: int
    learning_rate: float
    train_draws: int
    batch_size: int
    hidden: tuple[int, ...]
    backend: str


class Trained(NamedTuple):
    """A bridge, and the mean log weight at each iteration (I,), nats a datapoint.

    ``base_gradients`` (N,) are those that fitting a base to each datapoint took, before the training.
    """

    model: BridgeModel
    history: np.ndarray
    interrupted: bool
    base_gradients: np.ndarray


def train(start: Start, data: Data, recipe: Recipe, *, seed: int) -> Trained:
    """Fit a bridge to the N datapoints of ``data``.

    Raises
    ------
    TrainingError
        If no datapoint has a finite density, no step size a finite weight, or the gradient stays non-finite.
    """
    usable = _usable(start, data, seed)
    model, base_gradients = make_model(start, data, usable, recipe, seed)
    if model.base is not None:
        charts = Chart(*(table.detach() for table in model.base.chart(data.index)))
    else:
        charts = charts_of(start, data, seed)
    run = _Run(model, start, data, charts, recipe=recipe, seed=seed)
    history, interrupted = run.train(usable)
    return Trained(model, history, interrupted, base_gradients)


def make_model(start: Start, data: Data, usable: Tensor, recipe: Recipe, seed: int) -> tuple[BridgeModel, np.ndarray]:
    """The bridge before training, and the gradients (N,) it took; a trained base begins at a local posterior."""
    like, base, cost = start.log_joint.like, None, np.zeros(data.num_datapoints)
    if recipe.base != "start":
        base, cost = _make_base(start, data, recipe.base, seed)
        base = base.to(like)
    features = None if data.num_datapoints == 1 else Features.of(data.rows(usable))
    with pyro_rng(seed, "network"):
        model = BridgeModel(
            recipe.kind,
            recipe.num_steps,
            start.log_joint.dim,
            features=features if features is not None and features.dim else None,
            base=base,
            hidden=recipe.hidden,
        )
    return model.to(like), cost


def _make_base(start: Start, data: Data, family: str, seed: int) -> tuple[GaussianBase, np.ndarray]:
    """From a Gaussian start as it is; else from the best Gaussian of the family, fitted to each datapoint."""
    full = family == "full-covariance"
    if isinstance(start, GaussianStart) and (full or _is_diagonal(start.scale_tril)):
        return GaussianBase(start.loc, start.scale_tril, full=full), np.zeros(data.num_datapoints)
    base_seed = stream_seed(seed, "base", family)
    problem = Problem(start.log_joint, start, data, PRETRAINING_DRAWS, PRETRAINING_STEPS, base_seed)
    made = make_family(family)
    fit = made.fit(problem)
    gaussians = made.density(fit.parameters)
    assert isinstance(gaussians, GaussianDensity)
    return GaussianBase(gaussians.loc, gaussians.scale_tril, full=full), fit.num_gradients.double().cpu().numpy()


def _is_diagonal(matrix: Tensor) -> bool:
    return not bool(matrix.tril(-1).any())


def _usable(start: Start, data: Data, seed: int) -> Tensor:
    """Positions of the datapoints whose density is finite at a draw from the start."""
    size = max(1, MAX_ROWS // start.log_joint.num_tiles)
    chunks = slices(data.num_datapoints, size)
    finite = torch.cat([_finite(start.rows(rows), data.rows(rows), seed) for rows in chunks])
    if not bool(finite.any()):
        raise TrainingError("no datapoint has a finite density at a draw from the start; try program.check(x)")
    if not bool(finite.all()):
        warnings.warn(
            f"{int((~finite).sum())} of {len(finite)} datapoints have no finite density at a draw from the start; the "
            "bridge is trained on the others",
            AmortizeWarning,
            stacklevel=4,
        )
    return torch.nonzero(finite).flatten()


@torch.no_grad()
def _finite(start: Start, data: Data, seed: int) -> Tensor:
    base, ratio = start.terms(data, start.draw(data, seed, "usable").u)
    return torch.isfinite(base) & torch.isfinite(ratio)


class _Run:
    """One training run."""

    def __init__(
        self, model: BridgeModel, start: Start, data: Data, charts: Chart, *, recipe: Recipe, seed: int
    ) -> None:
        self.model, self.start, self.data, self.charts = model, start, data, charts
        self.recipe, self.seed = recipe, seed
        self.batch: Batch | None = None
        self.refillable = refillable(data)
        self.noise = generator(seed, "steps", device=charts.loc.device)
        self.optimiser = torch.optim.Adam(self._groups())
        self.skipped = 0

    def train(self, usable: Tensor) -> tuple[np.ndarray, bool]:
        """Choose the first step size, then step; Ctrl-C keeps what was learned. The history, and whether it came."""
        batches = _batches(usable, min(self.recipe.batch_size, len(usable)), self.seed)
        self._choose_step_size(self._rows(next(batches)))
        history: list[float] = []
        interrupted = False
        count = self.recipe.num_iterations
        try:
            with undisturbed():
                for step in tqdm(range(count), desc="training a bridge", leave=False, disable=None):
                    bound = self._step(self._rows(next(batches)), step)
                    history.append(bound)
        except KeyboardInterrupt:
            interrupted = True
            warnings.warn(
                f"training was interrupted after {len(history)} of {count} iterations; the bridge "
                "keeps what it learned until then",
                AmortizeWarning,
                stacklevel=4,
            )
        self.model.requires_grad_(False)
        return np.array(history), interrupted

    def _rows(self, index: Tensor) -> Batch:
        """These datapoints in the compiled batch; data that can't be replaced in place run eagerly."""
        if self.batch is None or (not self.refillable and not torch.equal(index, self.batch.index)):
            one = len(index) == self.data.num_datapoints or self.refillable
            self.batch = Batch(
                self.start,
                self.data,
                self.charts,
                index=index,
                num_draws=self.recipe.train_draws,
                trained_base=self.model.base is not None,
                backend=self.recipe.backend if one else "eager",
                num_calls=self.recipe.num_iterations * (self.recipe.num_steps + 1),
            )
        elif not torch.equal(index, self.batch.index):
            self.batch.refill(index)
        return self.batch

    def _choose_step_size(self, batch: Batch) -> None:
        steps = self.model.steps.log_step_sizes
        found = []
        for size in FIRST_SIZES:
            with torch.no_grad():
                steps.fill_(math.log(size))
                noise = generator(self.seed, "first", device=self.charts.loc.device)
                found.append(float(self.model(batch.launch(self.model, self.seed, "first"), noise).log_weights.mean()))
        best = int(np.argmax(np.nan_to_num(found, nan=-np.inf, posinf=-np.inf)))
        if not np.isfinite(found[best]):
            raise TrainingError(
                f"with step sizes from {FIRST_SIZES[0]} down to {FIRST_SIZES[-1]} of the start's scale, the bridge's "
                "log weights are not finite. Start nearer to the posterior (guide, local posterior)"
            )
        with torch.no_grad():
            steps.fill_(math.log(FIRST_SIZES[best]))

    def _step(self, batch: Batch, step: int) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        for group in self.optimiser.param_groups:
            group["lr"] = group["first"] * _decay(step, self.recipe.num_iterations)
        with torch.enable_grad():
            launch = batch.launch(self.model, self.seed, f"draws-{step}")
            bound = self.model(launch, self.noise).log_weights.mean()
            (-bound).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None])
        if bool(torch.isfinite(norm) & torch.isfinite(bound)):
            self.optimiser.step()
            self.skipped = 0
        else:
            self._skip(step)
        return float(bound.detach())

    def _skip(self, step: int) -> None:
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise TrainingError(
                f"the bridge's bound or its gradient was not finite in {self.skipped} iterations in a row (iteration "
                f"{step}). Lower the learning rate, or start nearer to the posterior (guide, local posterior)"
            )

    def _trained(self) -> list[Tensor]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def _groups(self) -> list[dict[str, object]]:
        model, rate = self.model, self.recipe.learning_rate
        groups: list[dict[str, object]] = [{"params": list(model.steps.parameters()), "first": rate}]
        if model.base is not None:
            groups.append({"params": list(model.base.parameters()), "first": rate})
        if model.score is not None:
            linear = [model.score.linear]
            others = [p for p in model.score.parameters() if p is not model.score.linear]
            groups += [{"params": linear, "first": rate}, {"params": others, "first": rate * NETWORK_RATE}]
        return groups


def _decay(step: int, num_iterations: int) -> float:
    falling = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / num_iterations))
    return min(1.0, (step + 1) / WARM_UP) * falling


def _batches(usable: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """``size`` datapoints after another, shuffled at each pass; all of them in order where they fit."""
    if size == len(usable):
        while True:
            yield usable
    stream = generator(seed, "batches")
    left = usable[:0]
    while True:
        while len(left) < size:
            order = torch.randperm(len(usable), generator=stream).to(usable.device)
            left = torch.cat([left, usable[order]])
        yield left[:size]
        left = left[size:]
