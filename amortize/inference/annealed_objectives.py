r"""Objectives that carry the guide's draws on towards the posterior by K unadjusted steps, and train through them.

.. math:: L(x_n) = E[\log w_n] \le \log p(x_n), \qquad E[w_n] = p(x_n),

with w the weight of a bridge from the guide to the posterior along
:math:`q(u | x)^{1 - \beta_t} p(x, u)^{\beta_t}` (see ``bridge``). Every parameter of the steps - temperatures, step
sizes, persistence of the momentum, score network - is trained with the program's: whatever its value, the bound is a
bound, so adapting costs no exactness here. Steps are whitened by the guide's standard deviations where these are known.

Letters: C chains, N datapoints, B = C * N rows (chain-major), D latents, K steps, F features.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import ArgumentError, DiscreteLatentError, check_count, check_number
from amortize.inference.bridge import Score, bridge, differentiable
from amortize.inference.learned_steps import LearnedSteps
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.inference.score_network import Features, ScoreNetwork
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.program.program import Program
from amortize.program.reach import Reach
from amortize.random import generator, pyro_rng

__all__ = ["DAIS", "LMCVAE", "MCD", "Bridging", "require_continuous"]


@dataclass(frozen=True)
class Bridging(Objective):
    """What these objectives share; their parameters are those of ``LMCVAE``."""

    kind: ClassVar[str]
    words: ClassVar[str]
    num_steps: int = 5
    num_chains: int = 1
    step_size: float = 0.1

    def __post_init__(self) -> None:
        title = type(self).__name__
        check_count(f"{title} num_steps", self.num_steps)
        check_count(f"{title} num_chains", self.num_chains)
        check_number(f"{title} step_size", self.step_size)

    @property
    def bound(self) -> str:
        """In words."""
        return f"{self.words} bound, {self.num_steps} steps"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:
        """The loss on a program."""
        return _Loss(self, program, data, seed)

    @abstractmethod
    def steps(self) -> LearnedSteps:
        """The steps before training."""

    def network(self, dim: int, num_features: int) -> ScoreNetwork | None:  # noqa: ARG002
        """The learned part of the backward kernels before training, where there is one."""
        return None


@dataclass(frozen=True)
class LMCVAE(Bridging):
    """Langevin Monte Carlo VAE: K unadjusted Langevin steps from the guide, a lower bound on each log p(x_n).

    Parameters
    ----------
    num_steps
        K; each costs a gradient of the log joint, and training differentiates through it.
    num_chains
        C, independent chains a datapoint, over which the bound is averaged.
    step_size
        Of every step at first, in units of the guide's standard deviation.

    Notes
    -----
    Temperatures and step sizes are learned, one of each a step. Unadjusted steps that overshoot give a few datapoints
    enormous gradients: train with ``am.Training(clip_norm=...)``. Source: Thin et al. (2021), "Monte Carlo variational
    auto-encoders", section 3, https://arxiv.org/abs/2106.15921.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.LMCVAE(num_steps=3), num_steps=10)
    >>> sorted(fitted.extra)
    ['steps.log_increments', 'steps.log_step_sizes']
    """

    name: ClassVar[str] = "l-mcvae"
    kind: ClassVar[str] = "ula"
    words: ClassVar[str] = "Langevin Monte Carlo VAE"

    def steps(self) -> LearnedSteps:
        """Evenly spaced."""
        return LearnedSteps(self.kind, self.num_steps, step_size=self.step_size)


@dataclass(frozen=True)
class DAIS(Bridging):
    """Differentiable annealed importance sampling: K leapfrog steps with momentum, a lower bound on each log p(x_n).

    Parameters
    ----------
    num_steps, num_chains, step_size
        As for ``LMCVAE``.
    persistence
        Share of the momentum that each step keeps, at first.

    Notes
    -----
    Source: Zhang et al. (2021), "Differentiable annealed importance sampling and the perils of gradient noise",
    algorithm 2, https://arxiv.org/abs/2107.10211.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.DAIS(num_steps=3), num_steps=10)
    >>> fitted.bound
    'differentiable AIS bound, 3 steps'
    """

    name: ClassVar[str] = "dais"
    kind: ClassVar[str] = "dais"
    words: ClassVar[str] = "differentiable AIS"
    persistence: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("DAIS persistence", self.persistence, "(0, 1)")

    def steps(self) -> LearnedSteps:
        """Evenly spaced, with a momentum."""
        steps = self.num_steps
        return LearnedSteps(self.kind, steps, step_size=self.step_size, persistence=self.persistence)


@dataclass(frozen=True)
class MCD(Bridging):
    """Monte Carlo diffusion: Langevin steps whose backward kernels learn the time reversal, a lower bound on log p(x).

    Parameters
    ----------
    num_steps, num_chains, step_size
        As for ``LMCVAE``.
    hidden
        Sizes of the score network's hidden layers; it reads the location, the step and the datapoint.

    Notes
    -----
    The network begins at zero, where the bound is that of ``LMCVAE``; it is trained together with the guide and the
    model, and kept in ``Fitted.extra``. Source: Doucet et al. (2022), "Score-based diffusion meets annealed importance
    sampling", https://arxiv.org/abs/2208.07698.

    Examples
    --------
    >>> import torch, amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.program().simulate(torch.zeros(32, 4))[1]["x"]
    >>> fitted = am.fit(analysis.program(), x, objective=am.MCD(num_steps=3, hidden=(16,)), num_steps=10)
    >>> fitted.bound
    'Monte Carlo diffusion bound, 3 steps'
    """

    name: ClassVar[str] = "mcd"
    kind: ClassVar[str] = "mcd"
    words: ClassVar[str] = "Monte Carlo diffusion"
    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.hidden, tuple) or not self.hidden:
            raise ArgumentError(f"MCD hidden: expected sizes of hidden layers, as (64, 64), got {self.hidden!r}")
        for size in self.hidden:
            check_count("MCD hidden", size)

    def steps(self) -> LearnedSteps:
        """Evenly spaced."""
        return LearnedSteps(self.kind, self.num_steps, step_size=self.step_size)

    def network(self, dim: int, num_features: int) -> ScoreNetwork:
        """A network that begins at zero."""
        return ScoreNetwork(dim, self.num_steps, momentum=False, num_features=num_features, hidden=self.hidden)


class _Loss(BatchLoss):
    def __init__(self, settings: Bridging, program: Program, data: Data, seed: int) -> None:
        super().__init__(program, data, pathwise=True)
        require_continuous(settings.name, self.trained.structure.dim)
        like = self.trained.log_joint.like
        self.settings, self.features = settings, Features.of(data)
        with pyro_rng(seed, "objective"):
            self.steps = settings.steps().to(like)
            self.network = settings.network(self.trained.structure.dim, self.features.dim)
            self.network = None if self.network is None else self.network.to(like)

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_chains

    def forward(self, batch: Data) -> Terms:
        chains = self.settings.num_chains
        noise = generator(int(torch.randint(2**62, ())), "bridge", device=batch.index.device)
        with self.trained.filled(), unvalidated():
            reach = Reach(self.trained, batch, chains)
            steps = self.steps(reach.scale)
            score = None if self.network is None else self._score(self.network, reach, batch)
            end = bridge(self.settings.kind, differentiable(reach.terms), reach.u, steps, noise, score=score)
        bound = end.log_weights.reshape(chains, -1).mean(0)
        return self.terms(bound, bound, reach.outside, reach.auxiliary)

    def _score(self, network: ScoreNetwork, reach: Reach, batch: Data) -> Score:
        features = self.features(batch).to(reach.u) if self.features.dim else None
        chains = self.settings.num_chains
        loc, scale = (part.repeat(chains, 1) for part in (reach.loc, reach.scale))

        def score(u: Tensor, v: Tensor | None, t: int) -> Tensor:
            result: Tensor = network((u - loc) / scale, v, t, features)
            return result

        return score


def require_continuous(name: str, dim: int) -> None:
    """Refuse programs without a continuous latent to move.

    Raises
    ------
    DiscreteLatentError
        Naming the way out.
    """
    if not dim:
        raise DiscreteLatentError(
            f"objective {name!r} moves continuous latents, and this program has none. Where discrete latents are "
            "summed out, the evidence is exact: train by objective='enum-elbo'"
        )
