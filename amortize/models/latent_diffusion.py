r"""Latent diffusion: a variational autoencoder, and then a diffusion as the prior of its codes.

.. math:: z_T \sim N(0, I), \quad z_{t-1} | z_t \sim N(\mu_t(z_t), \sigma_t(z_t)^2), \quad x | z_0 \sim p(x | z_0);
          \qquad z_0 | x \sim N(\mathrm{loc}(x), \mathrm{diag}(\mathrm{scale}(x)^2)), \quad z_t | z_{t-1} \sim q

The path z_1, ..., z_T is a latent like the code, and the guide noises the code as `amortize.models.diffusion_prior`
says; so the evidence of the very model is measured as that of any other. Two stages of training: first encoder and
decoder under N(0, I), which the prior is at its start, then the prior alone on the codes of the encoder. Letters: N
datapoints, X features, T steps, D latents. Sources: Rombach et al. (2022), "High-resolution image
synthesis with latent diffusion models", https://arxiv.org/abs/2112.10752; Vahdat et al. (2021), "Score-based generative
modeling in latent space", https://arxiv.org/abs/2106.05931.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_number
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.models.diffusion_prior import DiffusionPrior
from amortize.models.networks import register
from amortize.models.vae_parts import NetworkKind, bernoulli_parts
from amortize.models.zoo import ZooModel
from amortize.program.data import Data
from amortize.program.density import JointTerms
from amortize.program.guide_runs import Drawn
from amortize.program.handlers import unvalidated
from amortize.program.program import Program

__all__ = ["LatentDiffusion", "TwoStageELBO"]

CODE = "z"
"""The site of the code z_0."""


class LatentDiffusion(ZooModel):
    """Binary data with independent pixels given a code, whose prior is a diffusion.

    Parameters
    ----------
    prior
        Of code and path.
    decoder
        Of z (..., D): a distribution of x with event shape (X,).
    encoder
        Of x (N, X): a distribution of z with batch shape (N,) and event shape (D,).

    Examples
    --------
    >>> import amortize as am
    >>> model = LatentDiffusion.from_data(torch.eye(8), latent_dim=2, hidden=(8,))
    >>> fitted = am.fit(model.program(), torch.eye(8), objective=model.objective, num_steps=10)
    """

    def __init__(self, *, prior: DiffusionPrior, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.prior, self.decoder, self.encoder = prior, decoder, encoder

    @classmethod
    def from_data(
        cls,
        x: Any,
        latent_dim: int = 8,
        *,
        num_noisings: int = 8,
        network: NetworkKind = "mlp",
        hidden: Sequence[int] | None = None,
        seed: int = 0,
    ) -> LatentDiffusion:
        """A model for binary data whose pixels begin at their means, and its prior at N(0, I).

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, num_noisings
            D and T.
        network, hidden
            Of encoder and decoder: "mlp" and widths, or "conv" or "residual" and channels, from the data on.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Settings that make no sense.
        """
        parts = bernoulli_parts(x, latent_dim, network=network, hidden=hidden, seed=seed)
        prior = DiffusionPrior(latent_dim, num_noisings, seed=seed)
        return cls(prior=prior, decoder=parts["decoder"], encoder=parts["encoder"])

    @property
    def objective(self) -> Objective:
        """The ELBO in two stages."""
        return TwoStageELBO()

    def model(self, x: Tensor) -> None:
        """The generative model: sites ``path`` (N, T, D) and ``z`` (N, D), observed site ``x`` (N, X)."""
        register("prior", self.prior)
        register("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            path = pyro.sample("path", self.prior())
            z = pyro.sample(CODE, self.prior.code(path))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder, and the noising of its codes."""
        register("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample(CODE, self.encoder(x))
            pyro.sample("path", self.prior.noised(z))


@dataclass(frozen=True)
class TwoStageELBO(Objective):
    """The ELBO of a latent diffusion: all but the prior is trained first, then the prior alone.

    In the first stage the prior rests at its start, N(0, I). In the second, on draws of the code, its bound has each
    step's divergence in closed form.

    Parameters
    ----------
    first
        Share of the optimiser's steps that the first stage takes, in [0, 1].
    beta
        Price of a nat of the code's rate in the first stage: below 1 codes are longer, and lie less like N(0, I).

    Examples
    --------
    >>> TwoStageELBO(first=0.5).settings()
    {'name': 'two-stage-elbo', 'first': 0.5, 'beta': 0.5}
    """

    name: ClassVar[str] = "two-stage-elbo"
    first: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_number("TwoStageELBO beta", self.beta)
        check_number("TwoStageELBO first", self.first, "[0, 1]")

    @property
    def bound(self) -> str:
        """In words."""
        return "ELBO"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program, which must have a `DiffusionPrior`."""
        return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: TwoStageELBO, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=True)
        self.settings = settings
        found = [module for module in program.modules() if isinstance(module, DiffusionPrior)]
        if not found or CODE not in self.trained.structure.sites:
            raise ArgumentError("objective: TwoStageELBO trains a latent diffusion, a program with a DiffusionPrior")
        self._prior = found[:1]  # in a list: its parameters are the program's

    @property
    def rows_per_datapoint(self) -> int:
        return 1

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""
        if self.training and torch.is_grad_enabled() and self.progress >= self.settings.first:
            return self._of_the_prior(batch)
        with _resting(self._prior[0]):
            drawn, found = self._run(batch)
        rate = drawn.log_q - found.prior
        surrogate = found.likelihood - self.settings.beta * rate
        return self.terms(found.likelihood - rate, surrogate, found.outside, drawn.auxiliary)

    def _of_the_prior(self, batch: Data) -> Terms:
        """The second stage: nothing but the prior has a gradient."""
        with torch.no_grad():
            drawn, found = self._run(batch)
        surrogate = -self._prior[0].cost(drawn.values[CODE])
        return self.terms(found.joint - drawn.log_q, surrogate, found.outside, drawn.auxiliary)

    def _run(self, batch: Data) -> tuple[Drawn, JointTerms]:
        """A draw of the guide for each datapoint, and the model there."""
        with self.trained.filled(), unvalidated():
            drawn = self.trained.run_guide(batch).draw(1, cut=False, pathwise=True)
            return drawn, self.trained.log_joint.terms(batch.fold(1), values=drawn.values)


@contextmanager
def _resting(module: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient to the module's parameters."""
    held = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in held:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in held:
            parameter.requires_grad = True
