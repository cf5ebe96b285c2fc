r"""Experiments that tell causes apart where the ledger's numbers cannot: train the guide on, and look for modes.

Neither leaves a trace in the program. All in nats. Letters: N datapoints, S draws.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from amortize.errors import TrainingError
from amortize.inference.importance import log_ratios
from amortize.inference.starts import GuideStart, PriorStart
from amortize.inference.svi import Training, fit
from amortize.program.data import Data
from amortize.program.discover import HEAD
from amortize.program.program import Program
from amortize.random import check_seed, stream_seed
from amortize.study.causes import Clues
from amortize.study.findings import examine
from amortize.study.modes import share_multimodal

if TYPE_CHECKING:
    from amortize.study.ledger import Ledger

__all__ = ["CONTINUED_STEPS", "continue_training", "probe"]

CONTINUED_STEPS = 1000
"""Steps for which a guide is trained on."""
CONTINUED_RATE = 3e-3
NUM_DRAWS = 128
MODES_MATTER = ("nothing", "undecided", "approximation")
"""Verdicts that several modes explain, or that evidence from a guide which misses modes leads to."""


def probe(ledger: Ledger, program: Program, data: Data, *, x_train: Any = None, seed: int = 0) -> Clues:
    """The ledger's clues with what experiments add, those that its verdict calls for.

    Parameters
    ----------
    ledger
        The ledger of ``program`` on ``data``.
    program, data
        As measured.
    x_train
        What to train the guide on with; without it that is not tried.
    seed
        Of the experiments.
    """
    own = ledger.guide_family if ledger.guide_family in ledger.local else None
    verdict = examine(ledger.table, reference=own).verdict
    clues, seed = ledger.clues, stream_seed(check_seed(seed), "probe")
    if verdict in MODES_MATTER and ledger.cause != "correlated-posterior" and math.isnan(clues.multimodal):
        share = share_multimodal(program, data, seed=seed)
        return replace(clues, multimodal=share, one_start=ledger.evidence.start == "guide")
    if verdict == "amortization" and x_train is not None and ledger.cause != "overfitted-encoder":
        won = continue_training(program, data, x_train, seed=seed)
        if won is not None:
            return replace(clues, continued=won[0], continued_se=won[1], continued_steps=CONTINUED_STEPS)
    return clues


def continue_training(program: Program, data: Data, x_train: Any, *, seed: int = 0) -> tuple[float, float] | None:
    """What the guide wins by training on, the model left as it is, and the paired standard error over datapoints.

    The program's parameters are put back. None where the guide has nothing to train that is its own, or parameters for
    each datapoint.
    """
    if program.guide is None or program.bound is not None or program.whole:
        return None
    training = Training(learning_rate=CONTINUED_RATE, schedule="cosine", clip_norm=100.0, progress=False)
    before = _elbos(program, data, seed)
    with _model_frozen(program, data), _put_back(program):
        try:
            with warnings.catch_warnings():  # Pyro speaks of each frozen parameter that a module is called with
                warnings.filterwarnings("ignore", ".*was not registered in the param store", UserWarning)
                fitted = fit(program, x_train, num_steps=CONTINUED_STEPS, seed=seed, training=training)
        except TrainingError:
            return None
        if fitted.interrupted:
            raise KeyboardInterrupt
        gains = _elbos(program, data, seed) - before
    gains = gains[np.isfinite(gains)]
    se = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
    return (float(gains.mean()), float(se)) if len(gains) else None


def _elbos(program: Program, data: Data, seed: int) -> np.ndarray:
    """The guide's ELBO at the same random numbers at each call, (N,)."""
    with program.evaluating(), np.errstate(invalid="ignore"):
        start = GuideStart(program.guide_density(data))
        return np.asarray(log_ratios(start, data, NUM_DRAWS, seed=seed, stream="continued").mean(0))


@contextmanager
def _model_frozen(program: Program, data: Data) -> Iterator[None]:
    """No parameter that the model's density hangs on is trained inside, those that the guide shares included."""
    frozen = _of_model(program, data)
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _of_model(program: Program, data: Data) -> list[Tensor]:
    """Parameters that the log joint hangs on: model and guide may be methods of one module, and hold all of it."""
    own = [parameter for parameter in program.parameters() if parameter.requires_grad]
    few = data.head(HEAD)
    with program.evaluating(), torch.enable_grad():
        log_joint = program.log_joint(few)
        u = PriorStart(log_joint).draw(few, 0, "model").u
        joint = log_joint.terms(few, u=u).joint.sum()
        if not joint.requires_grad or not own:
            return []
        slopes = torch.autograd.grad(joint, own, allow_unused=True)
    return [parameter for parameter, slope in zip(own, slopes, strict=True) if slope is not None]


@contextmanager
def _put_back(program: Program) -> Iterator[None]:
    state = program.state()
    try:
        yield
    finally:
        program.restore(state)
