"""Data simulated by a model in training, and the latents behind them as a run of the guide has them.

Letters: N datapoints of a batch.
"""

from __future__ import annotations

from torch import Tensor

from amortize.errors import GuideDataError
from amortize.program.data import Data
from amortize.program.probes import head_of
from amortize.program.replay import locate
from amortize.program.simulated import drawn_until_settled, latents_by_row
from amortize.program.trained import TrainedProgram

__all__ = ["dream", "require_dreams"]


def require_dreams(trained: TrainedProgram, data: Data) -> None:
    """Try on a few datapoints that the model can be simulated and its data replaced.

    Raises
    ------
    ReplayError, GuideDataError
        Naming the site and the way out.
    """
    if trained.program.bound is not None:
        raise GuideDataError(
            "the guide has parameters of its own for each datapoint, and can't be run on simulated ones. Write a guide "
            "that reads the data (an encoder), or leave the sleep phase out, am.WakeSleep(sleep=0)"
        )
    trained.program.simulated(data if trained.program.whole else head_of(data), seed=0)


def dream(trained: TrainedProgram, batch: Data, *, seed: int) -> tuple[Data, dict[str, Tensor]]:
    """Data shaped like a batch, and the constrained values (N, ...) of the latents that made them.

    A model whose later sites read earlier observations runs again, with the same random numbers, until all of its
    sites have seen the simulated data.
    """
    program, structure = trained.program, trained.structure
    with program.evaluating():
        drawn, _ = drawn_until_settled(program, structure, batch, locate(program, structure, batch), seed=seed)
    return drawn.data, latents_by_row(program, drawn)
