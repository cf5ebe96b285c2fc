"""Aggressive training of the guide, so that it does not lag behind the model.

Before each step of the model the guide is trained alone, until its bound stops rising; this goes on until the mutual
information between datapoints and the guide's draws stops rising, and from then on training is as usual. A guide that
lags behind makes the model do without the latents: the posterior collapses (He et al. 2019, "Lagging inference networks
and posterior collapse in variational autoencoders", algorithm 1, https://arxiv.org/abs/1901.05534).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count
from amortize.inference.mutual_information import mutual_information
from amortize.program.data import Data
from amortize.program.guide import GuideDensity
from amortize.program.program import Program
from amortize.random import generator, pyro_rng

__all__ = ["Aggression", "Aggressive"]

HEAD = 2
"""Datapoints on which it is tried which parameters are whose."""


@dataclass(frozen=True)
class Aggressive:
    """How to train the guide ahead of the model.

    Parameters
    ----------
    max_inner_steps
        Steps of the guide alone before each step of the model, at most.
    window
        Steps over which its bound is averaged; it has stopped rising where one window is no higher than the last.
    check_every
        Steps of the model between two measurements of the mutual information.
    patience
        Measurements in a row without a new highest one, after which training goes on as usual.
    num_datapoints
        Datapoints on which it is measured, which costs the square of their number in densities of the guide. It can't
        show more than the logarithm of that number.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> training = am.Training(aggressive=am.Aggressive(max_inner_steps=20, check_every=5))
    >>> fitted = am.fit(analysis.program(), analysis.simulate(32), num_steps=10, training=training)
    >>> int(fitted.history.inner_steps.max()) <= 20
    True
    """

    max_inner_steps: int = 100
    window: int = 10
    check_every: int = 100
    patience: int = 1
    num_datapoints: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_count(f"Aggressive {name}", value, 2 if name == "num_datapoints" else 1)


class Aggression:
    """Aggressive training of one program: which parameters are the guide's, and whether it still goes on.

    Parameters
    ----------
    settings
        Of the user.
    program, data
        The program, and the datapoints on which its mutual information is measured.
    own
        Parameters of the objective itself, which are trained with the guide.
    seed
        Of which datapoints, and of the draws.

    Raises
    ------
    ArgumentError
        If the guide is no encoder, or has no parameters of its own.
    """

    def __init__(
        self, settings: Aggressive, program: Program, data: Data, *, own: list[nn.Parameter], seed: int
    ) -> None:
        if program.bound is not None or data.num_datapoints < 2:
            raise ArgumentError(
                "Training aggressive: expected a guide that reads several datapoints (an encoder); an AutoGuide, or "
                "the guide of a whole data set, has nothing to generalise. Leave aggressive out"
            )
        order = torch.randperm(data.num_datapoints, generator=generator(seed, "mutual-information"))
        self._data = data.rows(order[: settings.num_datapoints].to(data.index.device))
        with program.evaluating():  # the contract is tried once: training moves numbers, not sites
            self._guide = program.guide_density(self._data)
            self.models, guides = _owners(program, self._guide, self._data.rows(slice(0, HEAD)), seed)
        self.guides = guides + own
        if not self.guides or not self.models:
            whose = "model" if self.guides else "guide"
            raise ArgumentError(
                f"Training aggressive: the {whose} has no parameters of its own to train, so that neither can lag "
                "behind the other. Leave aggressive out"
            )
        self._settings, self._program, self._seed = settings, program, seed
        self._highest, self._missed = -float("inf"), 0
        self.going_on = True

    def lead(self, step: Callable[[], float]) -> int:
        """Call ``step``, one of the guide alone that gives its bound, until that stops rising; how many it took."""
        window, previous = self._settings.window, -float("inf")
        taken = 0
        while taken < self._settings.max_inner_steps:
            count = min(window, self._settings.max_inner_steps - taken)
            mean = sum(step() for _ in range(count)) / count
            taken += count
            if not mean > previous:
                break
            previous = mean
        return taken

    def look(self, step: int) -> float:
        """The mutual information in nats, where it is due after this step of the model, and NaN elsewhere."""
        if step % self._settings.check_every:
            return float("nan")
        with self._program.evaluating():
            value = mutual_information(self._guide, self._data, seed=self._seed)
        self._missed = 0 if value > self._highest else self._missed + 1
        self._highest = max(self._highest, value) if value == value else self._highest
        self.going_on = self._missed < self._settings.patience
        return value


def _owners(
    program: Program, guide: GuideDensity, data: Data, seed: int
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that the log joint reads, and those that the guide's density alone reads.

    Modules do not tell: one may hold both networks.
    """
    parameters = [p for p in program.parameters() if p.requires_grad]
    with pyro_rng(seed, "owners"):
        values = guide.sample(data)[0]
    with torch.enable_grad():
        models = _reached(guide.log_joint.terms(data, values=values).joint, parameters)
        guides = _reached(guide.log_density(data, values), parameters)
    ours = [p for p in parameters if id(p) in guides - models]
    return [p for p in parameters if id(p) in models], ours


def _reached(value: Tensor, parameters: list[nn.Parameter]) -> set[int]:
    if not value.requires_grad or not parameters:
        return set()
    slopes = torch.autograd.grad(value.sum(), parameters, allow_unused=True)
    return {id(p) for p, slope in zip(parameters, slopes, strict=True) if slope is not None}
