r"""The skeleton of the zoo's quantised models: grids of codes, rounded from an encoder's vectors, under a prior.

.. math:: k_1 \sim p(k_1), \quad k_l \sim p(k_l | e_{k_1}, \dots, e_{k_{l-1}}), \quad
          x \sim p(x | e_{k_1}, \dots, e_{k_L}); \qquad q(k | x) = [k = k^*(x)]

The guide is sure of the nearest codes: its density there is 1, so that the ELBO of the discrete model is
:math:`\log p(x, k^*) \le \log p(x)` exactly. Levels go from the top down: one in a VQ-VAE, two or more in a VQ-VAE-2.
Letters: N datapoints, X features, L levels of P_l positions, K codes of D numbers; leading dimensions of what the model
is given are free. Source: van den Oord et al. (2017), "Neural discrete representation learning",
https://arxiv.org/abs/1711.00937.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_number
from amortize.inference.objective import Objective
from amortize.models.codebook import Codebook, Quantisation
from amortize.models.networks import register
from amortize.models.zoo import ZooModel
from amortize.program.program import Program

__all__ = ["Level", "Quantised", "QuantisedRun"]


class Level(NamedTuple):
    """One grid of codes.

    Parameters
    ----------
    codebook
        Its vectors.
    prior
        Called with the embedded codes (..., P_l, D) of the levels above it: a distribution of its own, event shape
        (P,). That of the first level is called without arguments and has no batch shape.
    head
        Called with what the encoder gives and the quantised vectors of the levels above: the vectors (N, P, D) to be
        rounded.
    """

    codebook: Codebook
    prior: nn.Module
    head: nn.Module


class QuantisedRun(NamedTuple):
    """A pass from data to data: what each level was rounded to, from the top down, and the likelihood.

    ``likelihood`` is a distribution of x, batch shape (N,), at the straight-through vectors.
    """

    levels: tuple[Quantisation, ...]
    likelihood: TorchDistribution

    @property
    def codes(self) -> tuple[Tensor, ...]:
        """(N, P_l) of each level."""
        return tuple(level.codes for level in self.levels)


class Quantised(ZooModel):
    """Grids of codes with nearest neighbours as their guide.

    Parameters
    ----------
    encoder
        Of x (N, X): what the heads make vectors of; for one level the vectors (N, P, D) themselves.
    levels
        From the top down.
    decoder
        Called with the vectors (..., P_l, D) of all levels: a distribution of x with event shape (X,).
    objective
        What ``am.fit`` should maximise.
    """

    def __init__(
        self, *, encoder: nn.Module, levels: Sequence[Level], decoder: nn.Module, objective: str | Objective
    ) -> None:
        super().__init__()
        if not levels:
            raise ArgumentError("levels: expected one or more, got none.")
        self.encoder, self.decoder = encoder, decoder
        self.codebooks = nn.ModuleList(level.codebook for level in levels)
        self.priors = nn.ModuleList(level.prior for level in levels)
        self.heads = nn.ModuleList(level.head for level in levels)
        self._objective = objective

    @property
    def objective(self) -> str | Objective:
        """As it was given."""
        return self._objective

    @property
    def levels(self) -> tuple[Level, ...]:
        """From the top down."""
        parts = zip(self.codebooks, self.priors, self.heads, strict=True)
        return tuple(Level(cast("Codebook", codebook), prior, head) for codebook, prior, head in parts)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the latents: ``codes``, or ``codes_1``, ``codes_2`` ... from the top down."""
        num = len(self.codebooks)
        return ("codes",) if num == 1 else tuple(f"codes_{number}" for number in range(1, num + 1))

    def model(self, x: Tensor) -> None:
        """The generative model: the sites of the codes (N, P_l), observed site ``x`` (N, X)."""
        for name, network in (("priors", self.priors), ("codebooks", self.codebooks), ("decoder", self.decoder)):
            register(name, network)
        above: list[Tensor] = []
        with pyro.plate("data", x.shape[0]):
            for site, level in zip(self.sites, self.levels, strict=True):
                codes = pyro.sample(site, level.prior(*above))
                above.append(level.codebook.embed(codes))
            pyro.sample("x", self.decoder(*above), obs=x)

    def guide(self, x: Tensor) -> None:
        """The nearest codes."""
        self._guide(x, 0.0)

    def _guide(self, x: Tensor, temperature: float) -> None:
        for name, network in (("encoder", self.encoder), ("heads", self.heads), ("codebooks", self.codebooks)):
            register(name, network)
        features = self.encoder(x)
        above: list[Tensor] = []
        with pyro.plate("data", x.shape[0]):
            for site, level in zip(self.sites, self.levels, strict=True):
                vectors = level.head(features, *above)
                codes = pyro.sample(site, level.codebook.assigned(vectors, temperature))
                above.append(level.codebook.embed(codes))

    def softened(self, temperature: float) -> Program:
        """The same model under a guide that leaves codes open, for evidence by importance sampling.

        Codes are drawn by a softmax of their squared distance over -T. The nearest alone tell log p(x, k), a lower
        bound on log p(x), and nothing of how far below it is.

        Parameters
        ----------
        temperature
            T, in squared units of the vectors.
        """
        check_number("temperature", temperature)

        def guide(x: Tensor) -> None:
            self._guide(x, temperature)

        return Program(self.model, guide)

    def quantised(self, x: Tensor, *, learning: bool = False) -> tuple[Quantisation, ...]:
        """What x (N, X) is rounded to; where ``learning``, each codebook first takes a step towards the batch."""
        features = self.encoder(x)
        found: list[Quantisation] = []
        for level in self.levels:
            vectors = level.head(features, *(above.vectors for above in found))
            if learning:
                level.codebook.learn(vectors.detach())
            found.append(level.codebook.quantise(vectors))
        return tuple(found)

    def run(self, x: Tensor, *, learning: bool = False) -> QuantisedRun:
        """From x (N, X) to its codes and back, differentiable in all but the priors."""
        levels = self.quantised(x, learning=learning)
        return QuantisedRun(levels, self.decoder(*(level.vectors for level in levels)))

    def log_prior(self, codes: Sequence[Tensor]) -> Tensor:
        """Log probability (N,) in nats of codes (N, P_l) of all levels, differentiable in the priors alone."""
        with torch.no_grad():
            vectors = [level.codebook.embed(each) for level, each in zip(self.levels, codes, strict=True)]
        priors = [level.prior(*vectors[:place]) for place, level in enumerate(self.levels)]
        return torch.stack([prior.log_prob(each) for prior, each in zip(priors, codes, strict=True)]).sum(0)
