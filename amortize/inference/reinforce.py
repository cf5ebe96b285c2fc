r"""The ELBO by the score function with Pyro's TraceGraph_ELBO: REINFORCE, each site against a running average.

.. math:: \nabla_\phi = E_q\Big[ \sum_i (C_i - b_i) \, \nabla_\phi \log q(z_i | \cdot) \Big] + \text{paths}

C_i holds the terms of log p - log q that depend on the site z_i, as Pyro tells them by provenance; b_i is the decaying
average of C_i over earlier steps, one for each place in the batch. Letters: N datapoints of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor

from amortize.errors import DiscreteLatentError, check_number
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.program.baselines import RunningBaselines
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.program.program import Program

__all__ = ["Reinforce"]


@dataclass(frozen=True)
class Reinforce(Objective):
    """Pyro's TraceGraph_ELBO with a decaying average as the baseline of each site that has no path.

    Parameters
    ----------
    decay
        Share of the old average that is kept at each step, 0 or more and below 1.

    Notes
    -----
    Unbiased, as the average knows nothing of the step's own draws. It is kept by place in the batch: where batches are
    all of the data, each datapoint has one of its own; with minibatches it is that of whatever stood there before, and
    does less. Sites with ``infer={"baseline": ...}`` in the guide keep theirs. While training, the history holds the
    mean over the batch. Sources: Schulman et al. (2015), "Gradient estimation using stochastic computation graphs",
    https://arxiv.org/abs/1506.05254; https://docs.pyro.ai/en/stable/inference_algos.html (TraceGraph_ELBO).

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.Reinforce(decay=0.95), num_steps=20)
    >>> fitted.objective, fitted.bound
    ('reinforce', 'ELBO')
    """

    name: ClassVar[str] = "reinforce"
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_number("Reinforce decay", self.decay, "[0, 1)")

    @property
    def bound(self) -> str:
        """In words."""
        return "ELBO"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: Reinforce, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=False)
        left = self.trained.structure.enumerated
        if left:
            raise DiscreteLatentError(
                f"the guide leaves out the discrete latent {left[0]!r}, which TraceGraph_ELBO does not sum out. Sample "
                "it in the guide, or train by objective='enum-elbo'"
            )
        self._program = [program]  # in a list: its parameters are not the objective's own
        self._baselines, self._size = RunningBaselines(settings.decay), 0
        make: Any = TraceGraph_ELBO
        self._elbo = make()
        self._scale = self.trained.structure.full_size

    @property
    def rows_per_datapoint(self) -> int:
        return 1

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""
        if not (self.training or torch.is_grad_enabled()):
            particles = self.trained.particles(batch, 1, cut=True)
            bound = (particles.log_joint - particles.log_q).mean(0)
            return self.terms(bound, bound, particles.outside, particles.auxiliary)
        elbo, surrogate = self._by_pyro(batch)
        full = self._scale or batch.num_datapoints
        mean = elbo.detach() / full
        loss = surrogate / full
        return Terms(mean.expand(batch.num_datapoints), loss + (-mean - loss.detach()))

    def _by_pyro(self, batch: Data) -> tuple[Tensor, Tensor]:
        """The ELBO of the batch as a whole and what to descend, both times what the plate scales by."""
        program = self._program[0]
        assert program.guide is not None
        if batch.num_datapoints != self._size:
            self._baselines.forget()
            self._size = batch.num_datapoints
        parts: Any = self._elbo._loss_and_surrogate_loss
        with unvalidated(), self._baselines.active():
            elbo, surrogate = parts(
                program.trained_model, self._baselines.marked(program.guide), batch.args, batch.kwargs
            )
        return elbo, surrogate
