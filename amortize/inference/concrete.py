r"""The ELBO of a program whose discrete latents are relaxed, in training alone.

.. math:: L_T(x_n) = E_{y \sim q_T(y | x_n)}\big[\log p(x_n | z(y))\big] - \beta R_n

z(y) is soft, or hard with the soft value's gradient (straight-through). The rate R is the divergence of the discrete
guide from the discrete prior (Jang et al.), or of the relaxed variables (Maddison et al.), which makes L a bound for a
relaxed model. None of them is a bound on log p(x) of the discrete program; what is measured, in validation and by every
other verb, is the discrete program. Letters: T temperature, K particles, N datapoints of a batch, B = K * N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from amortize.errors import ArgumentError, DiscreteLatentError, check_count, check_number, shown
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.program.data import Data
from amortize.program.guide_contract import guide_messages
from amortize.program.probes import head_of
from amortize.program.program import Program
from amortize.program.rates import RatedRun, require_rates
from amortize.program.relaxed import relaxed_twin
from amortize.program.relaxing import Relax

__all__ = ["ConcreteELBO"]

FIRST, FINAL = 1.0, 0.5
"""Temperatures of guides that say none, at the start and the end of annealing."""


@dataclass(frozen=True)
class ConcreteELBO(Objective):
    """Relaxed Bernoulli and one-hot categorical latents (Concrete, Gumbel-softmax) in training.

    Parameters
    ----------
    temperature
        Of the guide's relaxations, at the start. None for what relaxed distributions in the guide say themselves;
        discrete ones then fall from 1 to 0.5.
    final_temperature
        To which the temperature falls geometrically; None to keep it.
    anneal
        Share of the optimiser's steps, 0 to 1, over which it falls.
    straight_through
        Give the model hard values that have the gradients of the soft ones.
    rate
        "discrete", the divergence of the discrete guide from the discrete prior, in closed form where the model's
        conditional is fixed when the guide draws and at the draw elsewhere; or "relaxed", that of the relaxed
        variables, which is larger at every temperature: a hard value is a function of the relaxed one.
    prior_temperature
        Of the model's relaxations where ``rate`` is "relaxed"; None for the guide's.
    beta, warmup
        Price of a nat of rate, and the share of steps over which it climbs from 0.
    num_particles
        K, draws of the guide for each datapoint.

    Notes
    -----
    The history holds the relaxed value while training; ``validation_elbo`` is the ELBO of the discrete program.
    Sources: Maddison et al. (2017), "The Concrete distribution", https://arxiv.org/abs/1611.00712; Jang et al. (2017),
    "Categorical reparameterization with Gumbel-softmax", https://arxiv.org/abs/1611.01144; Bengio et al. (2013),
    "Estimating or propagating gradients through stochastic neurons", https://arxiv.org/abs/1308.3432.

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
    >>> relaxed = am.ConcreteELBO(temperature=0.5)
    >>> fitted = am.fit(am.Program(model, guide), torch.eye(6), objective=relaxed, num_steps=20)
    >>> fitted.bound
    'relaxed ELBO in training; ELBO of the discrete program where it is measured'
    """

    name: ClassVar[str] = "concrete-elbo"
    temperature: float | None = None
    final_temperature: float | None = None
    anneal: float = 0.5
    straight_through: bool = False
    rate: Literal["discrete", "relaxed"] = "discrete"
    prior_temperature: float | None = None
    beta: float = 1.0
    warmup: float = 0.0
    num_particles: int = 1

    def __post_init__(self) -> None:
        for name in ("temperature", "final_temperature", "prior_temperature"):
            if getattr(self, name) is not None:
                check_number(f"ConcreteELBO {name}", getattr(self, name), "(0, inf)")
        if self.final_temperature is not None and self.temperature is None:
            raise ArgumentError(
                "ConcreteELBO temperature: expected the one to start from, as final_temperature is given"
            )
        check_number("ConcreteELBO anneal", self.anneal, "[0, 1]")
        check_number("ConcreteELBO beta", self.beta, "[0, inf)")
        check_number("ConcreteELBO warmup", self.warmup, "[0, 1]")
        check_count("ConcreteELBO num_particles", self.num_particles)
        if not isinstance(self.straight_through, bool):
            raise ArgumentError(
                f"ConcreteELBO straight_through: expected True or False, got {shown(self.straight_through)}"
            )
        if self.rate not in ("discrete", "relaxed"):
            raise ArgumentError(f"ConcreteELBO rate: expected 'discrete' or 'relaxed', got {shown(self.rate)}")
        if self.prior_temperature is not None and self.rate == "discrete":
            raise ArgumentError("ConcreteELBO prior_temperature: it is used where rate='relaxed'; leave it out")

    @property
    def bound(self) -> str:
        """In words."""
        return "relaxed ELBO in training; ELBO of the discrete program where it is measured"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: ConcreteELBO, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=False)
        self.settings, self._program = settings, [program]  # in a list: its parameters are not the objective's own
        structure = self.trained.structure
        require_rates(program, structure, relaxed=True)
        self.sites = structure.discrete
        self._refuse(program, data)

    def _refuse(self, program: Program, data: Data) -> None:
        """What can't be relaxed, said before training."""
        if not self.sites:
            raise ArgumentError(
                "objective: ConcreteELBO relaxes discrete latents, and this program has none; train by 'elbo'"
            )
        with program.evaluating():
            messages = guide_messages(program, head_of(data))
        left = [name for name in self.sites if name not in messages]
        if left:
            raise DiscreteLatentError(
                f"the guide leaves out the discrete latent {left[0]!r}, so there is nothing to relax. Sample it in the "
                "guide, or train by objective='enum-elbo', which sums it out"
            )
        for name in self.sites:
            relaxed_twin(name, messages[name]["fn"], 1.0)

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_particles

    @property
    def temperature(self) -> float | None:
        """Now; None for the guide's own."""
        return self._annealed(self.settings.temperature, self.settings.final_temperature)

    def _annealed(self, first: float | None, final: float | None) -> float | None:
        if first is None or final is None:
            return first
        done = min(1.0, self.progress / self.settings.anneal) if self.settings.anneal else 1.0
        return float(first * (final / first) ** done)

    @property
    def beta(self) -> float:
        """Now: while training, on its way up."""
        warmup = self.settings.warmup if self.training else 0.0
        return self.settings.beta * (min(1.0, self.progress / warmup) if warmup else 1.0)

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch; relaxed where there is a gradient to be had."""
        if self.training or torch.is_grad_enabled():
            return self._relaxed(batch)
        particles = self.trained.particles(batch, self.settings.num_particles, cut=True)
        bound = (particles.log_joint - particles.log_q).mean(0)
        return self.terms(bound, bound, particles.outside, particles.auxiliary)

    def _relaxed(self, batch: Data) -> Terms:
        num, settings = batch.num_datapoints, self.settings
        fallback = self._annealed(FIRST, FINAL)
        assert fallback is not None
        relax = Relax(
            self.sites,
            temperature=self.temperature,
            straight_through=settings.straight_through,
            fallback=fallback,
            relaxed_rates=settings.rate == "relaxed",
            prior_temperature=settings.prior_temperature,
        )
        run = RatedRun.of(self._program[0], self.trained.structure, batch, settings.num_particles, relax=relax)
        bound, priced = (
            (-run.distortion - price * run.rate).reshape(-1, num).mean(0) for price in (settings.beta, self.beta)
        )
        return self.terms(bound, priced, run.outside, run.auxiliary)
