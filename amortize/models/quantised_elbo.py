r"""How quantised models are trained: through the rounding first, and then the prior on codes that rest.

.. math:: \mathrm{loss} = -\log p(x | \tilde z) + c \, \|z - \mathrm{stop}(e_{k^*})\|^2
          \; [+ \|\mathrm{stop}(z) - e_{k^*}\|^2], \qquad \text{then} \quad \mathrm{loss} = -\log p(k^*)

The term in brackets is for codebooks that are learned by gradient. What is reported is at all times the ELBO of the
discrete model, :math:`\log p(x | e_{k^*}) + \log p(k^*)`. Letters: N datapoints, X features. Source: van den Oord et
al. (2017), "Neural discrete representation learning", https://arxiv.org/abs/1711.00937, equation 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_number, shown
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.models.quantised import Quantised, QuantisedRun
from amortize.program.data import Data
from amortize.program.program import Program

__all__ = ["QuantisedELBO", "QuantisedPenalty", "QuantisedPenaltyTerm"]


class QuantisedPenaltyTerm(nn.Module, ABC):
    """A penalty on one model. Its own parameters, where it has any, are trained along with the model's."""

    @abstractmethod
    def forward(self, x: Tensor, run: QuantisedRun) -> Tensor:
        """A scalar to be added to the loss of the first stage, in nats a datapoint, for a batch x (N, X)."""


class QuantisedPenalty(ABC):
    """Settings of a penalty on the pass from data to data: a frozen dataclass."""

    name: ClassVar[str]

    @abstractmethod
    def on(self, model: Quantised, data: Data, *, seed: int) -> QuantisedPenaltyTerm:
        """The penalty on a model, tried on data."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What to write down."""


@dataclass(frozen=True)
class QuantisedELBO(Objective):
    """The ELBO of a quantised model in two stages: encoder, codebooks and decoder; then the priors alone.

    Parameters
    ----------
    commitment
        c, nats for a squared unit between the encoder's vectors and their codes.
    first
        Share of the optimiser's steps that the first stage takes, in [0, 1]; all of them where no prior has
        parameters.
    penalties
        Further terms of the loss in the first stage.

    Examples
    --------
    >>> QuantisedELBO(first=0.5).settings()
    {'name': 'quantised-elbo', 'commitment': 0.25, 'first': 0.5, 'penalties': []}
    """

    name: ClassVar[str] = "quantised-elbo"
    commitment: float = 0.25
    first: float = 0.6
    penalties: tuple[QuantisedPenalty, ...] = ()

    def __post_init__(self) -> None:
        check_number("QuantisedELBO commitment", self.commitment, "[0, inf)")
        check_number("QuantisedELBO first", self.first, "[0, 1]")
        if not isinstance(self.penalties, tuple) or not all(isinstance(p, QuantisedPenalty) for p in self.penalties):
            raise ArgumentError(
                f"QuantisedELBO penalties: expected a tuple of penalties on codes, got {shown(self.penalties)}"
            )

    @property
    def bound(self) -> str:
        """In words."""
        return "ELBO"

    def settings(self) -> dict[str, Any]:
        """What to write down."""
        penalties = [penalty.settings() for penalty in self.penalties]
        return {"name": self.name, "commitment": self.commitment, "first": self.first, "penalties": penalties}

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:
        """The loss on a program, which must be that of a `Quantised` model."""
        found = [module for module in program.modules() if isinstance(module, Quantised)]
        if len(found) != 1:
            raise ArgumentError("objective: QuantisedELBO trains quantised models, as am.models.VQVAE's program()")
        return _Loss(self, found[0], program, data, seed)


class _Loss(BatchLoss):
    def __init__(self, settings: QuantisedELBO, model: Quantised, program: Program, data: Data, seed: int) -> None:
        super().__init__(program, data, pathwise=False)
        self.settings, self._model = settings, [model]  # in a list: its parameters are the program's
        self.penalties = nn.ModuleList(penalty.on(model, data, seed=seed) for penalty in settings.penalties)

    @property
    def rows_per_datapoint(self) -> int:
        return 1

    @property
    def first(self) -> float:
        """Share of the steps of the first stage."""
        learned = any(parameter.requires_grad for parameter in self._model[0].priors.parameters())
        return self.settings.first if learned else 1.0

    def forward(self, batch: Data) -> Terms:
        """Restarts of codes draw from the global generators of torch."""
        if not (self.training and torch.is_grad_enabled()):
            return self._measured(batch)
        return self._of_the_priors(batch) if self.progress >= self.first else self._through(batch.args[0])

    def _measured(self, batch: Data) -> Terms:
        """The program as it is."""
        particles = self.trained.particles(batch, 1, cut=True)
        bound = (particles.log_joint - particles.log_q).squeeze(0)
        return self.terms(bound, bound, particles.outside, particles.auxiliary)

    def _through(self, x: Tensor) -> Terms:
        """The first stage: nothing but the priors is without a gradient."""
        model = self._model[0]
        run = model.run(x, learning=True)
        log_likelihood = run.likelihood.log_prob(x)
        with torch.no_grad():
            bound = log_likelihood + model.log_prior(run.codes)
        loss = -log_likelihood.mean()
        for level, found in zip(model.levels, run.levels, strict=True):
            loss = loss + self.settings.commitment * found.commitment.mean()
            if level.codebook.ema is None:
                loss = loss + found.fit.mean()
        for penalty in self.penalties:
            loss = loss + penalty(x, run)
        return Terms(bound.detach(), loss)

    def _of_the_priors(self, batch: Data) -> Terms:
        """The second stage: nothing but the priors has a gradient."""
        model, x = self._model[0], batch.args[0]
        with torch.no_grad():
            run = model.run(x)
            log_likelihood = run.likelihood.log_prob(x)
        log_prior = model.log_prior(run.codes)
        return Terms((log_likelihood + log_prior).detach(), -log_prior.mean())
