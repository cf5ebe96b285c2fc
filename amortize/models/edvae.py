r"""The evidential discrete VAE: the encoder says how much evidence there is for each code, not how probable it is.

.. math:: \pi_p \sim \mathrm{Dirichlet}(1, \dots, 1), \quad k_p \sim \mathrm{Categorical}(\pi_p), \quad
          x \sim \mathrm{Bernoulli}(\mathrm{decoder}(e_{k_1}, \dots, e_{k_P}))

The encoder gives :math:`\alpha_p = 1 + \exp(\mathrm{encoder}(x)_p)`, for :math:`q(\pi_p | x) =
\mathrm{Dirichlet}(\alpha_p)` with the model's own :math:`q(k_p | \pi_p) = \pi_{p k_p}`. Given pi the codes cost
nothing, and the bound is

.. math:: \log p(x) \ge E_q[\log p(x | k)] - \sum_p \mathrm{KL}(\mathrm{Dirichlet}(\alpha_p) \| \mathrm{Dirichlet}(1)).

Saying pi is dear, K - 1 numbers where one code is to be named, hence a price below 1 in training. But nothing beyond
the codes depends on pi: the reconstruction asks for :math:`q(k_p | x) = \alpha_{p k_p} / \sum_j \alpha_{pj}` alone, so
that training draws no pi, and the guide may as well draw the codes first and then pi from its exact conditional,
:math:`q(\pi_p | k_p) = \mathrm{Dirichlet}(1 + \delta_{k_p}) = p(\pi_p | k_p)`. So it does here. Its bound is
:math:`E_q[\log p(x | k)] - \sum_p \mathrm{KL}(q(k_p | x) \| 1 / K)`, better by

.. math:: \sum_p E_{q(k_p | x)}
          \mathrm{KL}(\mathrm{Dirichlet}(\alpha_p + \delta_{k_p}) \| \mathrm{Dirichlet}(1 + \delta_{k_p})) \text{ nats}.

`EvidentialELBO` trains on the first bound, its rate at a price, and measures the second, by which the model is judged.
`EdVAE.collapsed` is the same without pi, a discrete VAE.
Letters: N images, X pixels, P positions, K codes. Sources: Baykal et al. (2023), "EdVAE: Mitigating codebook collapse
with evidential discrete variational autoencoders", https://arxiv.org/abs/2310.05718; Sensoy et al. (2018), "Evidential
deep learning to quantify classification uncertainty", https://arxiv.org/abs/1806.01768.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_number
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.models.discrete_vae_parts import grid_parts
from amortize.models.dvae import ANNEAL, COLDEST, DVAE, WARMUP, UniformOneHot
from amortize.models.edvae_parts import Evidential, Expected, dirichlet_rates
from amortize.models.networks import register
from amortize.models.zoo import ZooModel
from amortize.program.data import Data
from amortize.program.program import Program
from amortize.program.relaxed import RelaxedOneHotCategorical

__all__ = ["EdVAE", "EvidentialELBO"]

PRICE = 1e-3
"""Of a nat of the Dirichlets' rate: see the table of prices in docs/models/edvae.md."""


class EdVAE(ZooModel):
    """Binary images from a grid of codes, Dirichlets over the codes' probabilities as guide.

    Parameters
    ----------
    num_positions, num_codes
        P and K.
    decoder
        Of codes (..., P, K), one-hot or soft: a distribution of x with event shape (X,).
    encoder
        Of x (N, X): concentrations (N, P, K).
    objective
        What ``am.fit`` should maximise; None for ``EvidentialELBO()``.

    Examples
    --------
    >>> import amortize as am
    >>> x = torch.eye(16)
    >>> edvae = EdVAE.from_data(x, num_codes=4, channels=(4, 4))
    >>> fitted = am.fit(edvae.program(), x, num_steps=10)
    >>> edvae.codes(x).shape
    torch.Size([16, 1])
    """

    ones: Tensor

    def __init__(
        self,
        num_positions: int,
        num_codes: int,
        *,
        decoder: nn.Module,
        encoder: nn.Module,
        objective: str | Objective | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("ones", torch.ones(num_positions, num_codes), persistent=False)
        self.decoder, self.encoder = decoder, encoder
        self._objective = EvidentialELBO() if objective is None else objective

    @classmethod
    def from_data(
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        code_dim: int = 16,
        channels: Sequence[int] = (16, 32),
        beta: float = PRICE,
        seed: int = 0,
    ) -> EdVAE:
        """A model for square binary images whose pixels begin at their means; settings are those of `DVAE.from_data`.

        ``beta`` below 1 is the rule: a position that names one of K codes costs far more than log K nats here.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        parts = grid_parts(x, num_codes=num_codes, code_dim=code_dim, channels=channels, seed=seed)
        return cls(
            parts["encoder"].num_positions,
            num_codes,
            decoder=parts["decoder"],
            encoder=Evidential(parts["encoder"]),
            objective=EvidentialELBO(beta=beta),
        )

    @property
    def objective(self) -> str | Objective:
        """As it was given."""
        return self._objective

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The code of each position with the most evidence, integers (N, P)."""
        codes: Tensor = self.encoder(x).argmax(-1)
        return codes

    def model(self, x: Tensor) -> None:
        """The generative model: sites ``pi`` and ``codes`` (N, P, K), the latter one-hot, observed ``x`` (N, X)."""
        register("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            pi = pyro.sample("pi", dist.Independent(dist.Dirichlet(self.ones), 1))
            codes = pyro.sample("codes", dist.Independent(dist.OneHotCategorical(probs=pi), 1))
            pyro.sample("x", self.decoder(codes), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder: ``codes`` by their shares of the evidence, and ``pi`` from its exact conditional."""
        register("encoder", self.encoder)
        alpha = self.encoder(x)
        with pyro.plate("data", x.shape[0]):
            # probabilities would be clamped at 1e-7, and shares go below it
            codes = pyro.sample("codes", dist.Independent(dist.OneHotCategorical(logits=alpha.log()), 1))
            pyro.sample("pi", dist.Independent(dist.Dirichlet(1.0 + codes), 1))

    def collapsed(self) -> DVAE:
        """The same with pi summed out of model and guide, sharing all parameters: the same log p(x) and ELBO."""
        prior = UniformOneHot(*self.ones.shape).to(self.ones)
        return DVAE(prior=prior, decoder=self.decoder, encoder=Expected(self.encoder))


@dataclass(frozen=True)
class EvidentialELBO(Objective):
    """Reconstruction from relaxed codes, and the divergence of the Dirichlets at a price.

    Parameters
    ----------
    beta, warmup
        Price of a nat of that divergence, and the share of the optimiser's steps, 0 to 1, over which it climbs from 0.
    temperature, final_temperature, anneal
        Of the relaxed codes at the start and at the end, and the share of steps over which it falls, geometrically.

    Notes
    -----
    The history holds the relaxed value; ``validation_elbo`` and all else measures the discrete program.

    Examples
    --------
    >>> EvidentialELBO(beta=0.01).settings()["name"]
    'evidential-elbo'
    """

    name: ClassVar[str] = "evidential-elbo"
    beta: float = PRICE
    warmup: float = WARMUP
    temperature: float = 1.0
    final_temperature: float = COLDEST
    anneal: float = ANNEAL

    def __post_init__(self) -> None:
        check_number("EvidentialELBO beta", self.beta, "[0, inf)")
        for name in ("warmup", "anneal"):
            check_number(f"EvidentialELBO {name}", getattr(self, name), "[0, 1]")
        for name in ("temperature", "final_temperature"):
            check_number(f"EvidentialELBO {name}", getattr(self, name))

    @property
    def bound(self) -> str:
        """In words."""
        trained = f"relaxed reconstruction - {self.beta:g} rate in training"
        return f"{trained}; ELBO of the discrete program where it is measured"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program, which must be that of an `EdVAE`."""
        found = [module for module in program.modules() if isinstance(module, EdVAE)]
        if len(found) != 1:
            raise ArgumentError("objective: EvidentialELBO trains am.models.EdVAE's program(), and this is another")
        return _Loss(self, found[0], program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: EvidentialELBO, model: EdVAE, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=False)
        self.settings, self._model = settings, [model]  # in a list: its parameters are the program's

    @property
    def rows_per_datapoint(self) -> int:
        return 1

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch; relaxed where there is a gradient to be had."""
        if self.training and torch.is_grad_enabled():
            return self._relaxed(batch.args[0])
        particles = self.trained.particles(batch, 1, cut=True)
        bound = (particles.log_joint - particles.log_q).squeeze(0)
        return self.terms(bound, bound, particles.outside, particles.auxiliary)

    def _relaxed(self, x: Tensor) -> Terms:
        model, settings = self._model[0], self.settings
        alpha = model.encoder(x)
        logits = (alpha / alpha.sum(-1, keepdim=True)).log()
        fn = RelaxedOneHotCategorical(self._temperature(), logits=logits, validate_args=False)
        log_likelihood = model.decoder(fn.point(fn.rsample())).log_prob(x)
        rate = dirichlet_rates(alpha).joint.sum(-1)
        bound, priced = (log_likelihood - price * rate for price in (settings.beta, settings.beta * self._climbed()))
        zero = bound.new_zeros(())
        return self.terms(bound, priced, zero, zero)

    def _temperature(self) -> float:
        """Now."""
        first, final = self.settings.temperature, self.settings.final_temperature
        done = min(1.0, self.progress / self.settings.anneal) if self.settings.anneal else 1.0
        return float(first * (final / first) ** done)

    def _climbed(self) -> float:
        """Share of its price that a nat costs by now."""
        return min(1.0, self.progress / self.settings.warmup) if self.settings.warmup else 1.0
