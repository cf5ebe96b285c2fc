r"""Evidence by a trained bridge: unadjusted annealing whose steps, and backward kernels, were learned first.

.. math:: E[\log w] \le E[\log \tfrac1C \textstyle\sum_c w_c] \le \log p(x_n)

Both sides of the first inequality are reported: the mean log weight, the bound that was trained, as ``lower``, and the
tighter log mean weight as the estimate. Training and evaluation draw from separate streams, so that both are bounds in
expectation, whatever training did. See ``bridge`` for the kinds and their sources.

Letters: C draws, N datapoints, D latents, K steps.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortize.errors import ArgumentError, DiscreteLatentError, check_count, check_number
from amortize.inference.bridge import KINDS
from amortize.inference.bridge_batch import Batch, charts_of
from amortize.inference.bridge_model import BridgeModel
from amortize.inference.chart import Chart
from amortize.inference.chunks import slices
from amortize.inference.diffusion_training import FIRST_SIZES, Recipe, Trained, train
from amortize.inference.evidence import make_start
from amortize.inference.local import LocalPosterior
from amortize.inference.method import Estimate, Method, concatenate, estimate_of, most_rows
from amortize.inference.starts import Start
from amortize.program.compile import check_backend
from amortize.program.data import Data
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.random import check_seed, generator, stream_seed

__all__ = ["Diffusion", "TrainedDiffusion"]

NAMES = {
    "ula": "Langevin bridge (ULA)",
    "mcd": "Monte Carlo diffusion (MCD)",
    "uha": "uncorrected Hamiltonian annealing (UHA)",
    "ldvi": "Langevin diffusion (LDVI)",
    "dais": "differentiable annealing (DAIS)",
}
BASES = ("start", "mean-field", "full-covariance")
FEWEST_DRAWS, FEWEST_ROWS = 8, 64  # of a training step
TRAINING_COST = 4  # gradients: the value with its gradient, and a product with second derivatives


@dataclass(frozen=True)
class Diffusion(Method):
    """Settings of a trained bridge; as a method of ``am.evidence`` it is trained on the given data first.

    Parameters
    ----------
    kind
        "ula", "mcd" (the default), "uha", "ldvi" or "dais"; "mcd" and "ldvi" learn a score network.
    num_steps
        K.
    num_draws
        C, draws a datapoint in the evaluation.
    base
        "start" keeps the start as it is. "mean-field" and "full-covariance" train a Gaussian in u for each datapoint
        beside the bridge, begun at the start where that is a local posterior, else at one fitted first; what is
        trained then serves these datapoints only.
    num_iterations, learning_rate
        Steps of Adam and their first rate.
    train_draws, batch_size
        Draws a datapoint, and datapoints, at each of them. None takes so many draws that there are 64 rows or more, and
        at least 8: few draws make noisy gradients, and rows cost little beside the steps that all of them take.
    hidden
        Sizes of the score network's hidden layers.
    backend
        How densities are computed, as for ``am.AIS``.

    Raises
    ------
    ArgumentError
        For a value out of range.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> settings = am.Diffusion(kind="mcd", num_steps=4, num_iterations=20)
    >>> fitted = settings.fit(analysis.program(), analysis.simulate(32, seed=1), start="prior")
    >>> am.evidence(analysis.program(), analysis.simulate(8, seed=2), method=fitted, start="prior").lower.shape
    (8,)
    """

    kind: str = "mcd"
    num_steps: int = 8
    num_draws: int = 100
    base: str = "start"
    num_iterations: int = 500
    learning_rate: float = 0.01
    train_draws: int | None = None
    batch_size: int = 64
    hidden: tuple[int, ...] = (64, 64)
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"Diffusion kind: expected one of {KINDS}, got {self.kind!r}")
        if self.base not in BASES:
            raise ArgumentError(f"Diffusion base: expected one of {BASES}, got {self.base!r}")
        for name in ("num_steps", "num_draws", "num_iterations", "batch_size"):
            check_count(f"Diffusion {name}", getattr(self, name))
        if self.train_draws is not None:
            check_count("Diffusion train_draws", self.train_draws)
        check_number("Diffusion learning_rate", self.learning_rate)
        if not isinstance(self.hidden, tuple | list) or not self.hidden:
            raise ArgumentError(f"Diffusion hidden: expected sizes of layers such as (64, 64), got {self.hidden!r}")
        object.__setattr__(self, "hidden", tuple(check_count("Diffusion hidden", size) for size in self.hidden))
        check_backend(self.backend)

    @property
    def num_evaluations(self) -> int:
        """Gradients of one path: at its start and after, or within, each step."""
        return self.num_steps + (2 if self.kind == "dais" else 1)

    def fit(
        self,
        program: Program,
        x: Any,
        *,
        start: str | LocalPosterior | None = None,
        seed: int = 0,
        device: str | None = None,
    ) -> TrainedDiffusion:
        """Train a bridge on N datapoints, for use on these or others; the program stays as it is.

        Parameters
        ----------
        program, x
            The program and its data.
        start
            "guide" (the default where there is one), "prior", or a ``LocalPosterior`` fitted on ``x``.
        seed, device
            Of all draws of the training, and where to run ("cpu", "cuda").

        Returns
        -------
        TrainedDiffusion
            A method for ``am.evidence``, with the history of its training.

        Raises
        ------
        ContractError
            Where the program breaks the contract, or leaves discrete latents to be sampled.
        TrainingError
            If the bound is nowhere finite.
        """
        require_program(program)
        seed = check_seed(seed)
        data = program.prepare(x, device=device)
        with program.evaluating():
            return self.trained(make_start(program, data, start), data, seed=stream_seed(seed, "diffusion"))

    def trained(self, start: Start, data: Data, *, seed: int) -> TrainedDiffusion:
        """Train on data that were read, from a start that was made."""
        _require_continuous(start)
        settings = {name: getattr(self, name) for name in Recipe.__dataclass_fields__}
        settings["train_draws"] = self._train_draws(data)
        result = train(start, data, Recipe(**settings), seed=stream_seed(seed, "training"))
        return TrainedDiffusion(self, start.name, result, None if self.base == "start" else data)

    def _train_draws(self, data: Data) -> int:
        if self.train_draws is not None:
            return self.train_draws
        return max(FEWEST_DRAWS, FEWEST_ROWS // min(self.batch_size, data.num_datapoints))

    def chunk_size(self, start: Start) -> int:  # noqa: ARG002
        """All datapoints, as one bridge is trained on them together."""
        return sys.maxsize

    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """Train on these datapoints, then estimate with fresh draws.

        Raises
        ------
        KeyboardInterrupt
            If training was interrupted: ``fit`` keeps such a bridge, and what is asked for here is the evidence.
        """
        method = self.trained(start, data, seed=stream_seed(seed, "diffusion"))
        if method.result.interrupted:
            raise KeyboardInterrupt
        parts = []
        for rows in slices(data.num_datapoints, method.chunk_size(start)):
            chunk_seed = stream_seed(seed, "chunk", rows.start)
            parts.append(method.estimate(start.rows(rows), data.rows(rows), seed=chunk_seed))
        whole = concatenate(parts)
        share = min(self.batch_size, data.num_datapoints) / data.num_datapoints
        paths = TRAINING_COST * self.num_iterations + len(FIRST_SIZES)  # first step sizes are tried by values alone
        cost = method.result.base_gradients + paths * self._train_draws(data) * self.num_evaluations * share
        return replace(whole, name=f"{whole.name}, trained on these data", num_gradients=whole.num_gradients + cost)


@dataclass(frozen=True)
class TrainedDiffusion(Method):
    """A trained bridge, a method of ``am.evidence``.

    Attributes
    ----------
    diffusion
        The settings.
    start
        Name of the start it was trained from; it is used from the same kind of start.
    result
        The bridge, and the mean log weight at each iteration, nats a datapoint.
    data
        The datapoints that a trained base belongs to; None where the start was kept.
    """

    diffusion: Diffusion
    start: str
    result: Trained = field(repr=False, compare=False)
    data: Data | None = field(repr=False, compare=False)

    @property
    def model(self) -> BridgeModel:
        """The bridge: its steps, score and base, as modules."""
        return self.result.model

    @property
    def history(self) -> np.ndarray:
        """Mean log weight at each iteration (I,), nats a datapoint."""
        return self.result.history

    def chunk_size(self, start: Start) -> int:
        """As many datapoints as memory allows."""
        rows = most_rows(self.diffusion.num_evaluations) // self.diffusion.num_draws
        return max(1, rows // start.log_joint.num_tiles)

    @torch.no_grad()
    def estimate(self, start: Start, data: Data, *, seed: int) -> Estimate:
        """Log weights of fresh draws; a path that left the range of numbers has weight 0, and is counted.

        Raises
        ------
        ArgumentError
            If the start is of another kind than in training, or a trained base belongs to other datapoints.
        """
        self._check(start, data)
        settings, model = self.diffusion, self.model.to(start.log_joint.like)
        batch = Batch(
            start,
            data,
            self._charts(start, data, seed),
            index=torch.arange(data.num_datapoints, device=data.index.device),
            num_draws=settings.num_draws,
            trained_base=model.base is not None,
            backend=settings.backend,
            num_calls=settings.num_evaluations,
        )
        noise = generator(seed, "chains", "noise", device=data.index.device)
        log_weights = model(batch.launch(model, seed, "chains"), noise).log_weights
        weights = log_weights.reshape(settings.num_draws, -1).double().cpu().numpy()
        lost = ~np.isfinite(weights)
        weights = np.where(lost & ~lost.all(0), -np.inf, weights)  # a weight is no less, so the estimate errs downward
        base = "" if model.base is None else f", {settings.base} base"
        estimate = estimate_of(
            weights,
            name=f"{NAMES[settings.kind]}, {settings.num_steps} steps{base}",
            num_gradients=settings.num_draws * settings.num_evaluations,
            num_nonfinite=lost.sum(0),
        )
        return replace(estimate, lower=weights.mean(0))

    def _charts(self, start: Start, data: Data, seed: int) -> Chart:
        if self.model.base is not None:
            return self.model.base.chart(data.index)
        return charts_of(start, data, seed)

    def _check(self, start: Start, data: Data) -> None:
        if start.log_joint.dim != self.model.dim:
            raise ArgumentError(
                f"method: this bridge was trained for {self.model.dim} latent dimensions a datapoint, and these have "
                f"{start.log_joint.dim}; fit it on the same program"
            )
        features = self.model.features
        if features is not None and not features.fit(data):
            raise ArgumentError(
                f"method: this bridge was trained on data of {len(features.loc)} numbers a datapoint, and these have "
                "another number of them; fit it on the same program and data like these"
            )
        if self.data is None:
            if start.name != self.start:
                raise ArgumentError(
                    f"start: this bridge was trained from the start {self.start!r} and is used from {start.name!r}; "
                    "give the same kind of start, or fit another"
                )
        elif not _same(self.data, data):
            raise ArgumentError(
                f"x: the {self.diffusion.base} base of this bridge belongs to the datapoints it was trained on, and "
                "these are others. Fit it on these, or with base='start', which keeps the start and serves any data"
            )


def _same(known: Data, data: Data) -> bool:
    """Whether these datapoints are those that stand at their places in the known data."""
    if len(known.leaves) != len(data.leaves) or int(data.index.max()) >= known.num_datapoints:
        return False
    rows = known.rows(data.index) if any(known.per_datapoint) else known
    pairs = zip(rows.leaves, data.leaves, strict=True)
    return all(not isinstance(a, Tensor) or _equal(a, b) for a, b in pairs)


def _equal(a: Tensor, b: object) -> bool:
    return isinstance(b, Tensor) and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _require_continuous(start: Start) -> None:
    structure = start.log_joint.structure
    if structure.sampled:
        raise DiscreteLatentError(
            f"a bridge moves continuous latents only, but the discrete latents "
            f"{', '.join(map(repr, structure.sampled))} are sampled ({structure.reason}). Where they can be summed "
            "out: am.Program(..., discrete='enumerate'); else use am.AIS()"
        )
    if not structure.dim:
        raise DiscreteLatentError(
            "the program has no continuous latents, so there is no bridge to train; am.evidence(program, x) is exact"
        )
