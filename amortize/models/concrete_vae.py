r"""A variational autoencoder whose code is discrete: bits or categories, relaxed in training.

.. math:: z_d \sim \mathrm{Categorical}(\pi_d), \qquad x | z \sim \mathrm{Bernoulli}(\mathrm{logits} = f(z)), \qquad
          q(z | x) = \prod_d \mathrm{Categorical}(\pi_d(x))

Letters: N datapoints, X features, D latent variables of K categories. Sources: Maddison et al. (2017), "The Concrete
distribution", https://arxiv.org/abs/1611.00712; Jang et al. (2017), "Categorical reparameterization with
Gumbel-softmax", https://arxiv.org/abs/1611.01144.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, final

from amortize.errors import ArgumentError, check_count, shown
from amortize.inference.concrete import ConcreteELBO
from amortize.inference.objective import Objective
from amortize.models.discrete_parts import DiscreteEncoder, DiscretePrior, FromCode, num_logits
from amortize.models.networks import MLP
from amortize.models.vae import VAE, Bernoulli, log_odds_of_means, matrix_of
from amortize.random import generator

__all__ = ["CONCRETE", "ConcreteVAE"]

CONCRETE = ConcreteELBO(temperature=0.5, final_temperature=0.1, anneal=0.7)
"""How it is trained unless told otherwise: the model sees values that come close to zeros and ones."""


@final
class ConcreteVAE(VAE):
    """Bits, or one-hot categories, in place of the Gaussian code of `BernoulliVAE`.

    Site ``z`` is (N, D) of zeros and ones for bits, (N, D, K) one-hot otherwise. The program is discrete: relaxed
    values exist in the training by `amortize.ConcreteELBO` alone.

    Examples
    --------
    >>> import torch, amortize as am
    >>> vae = am.models.ConcreteVAE.from_data(torch.eye(6), latent_dim=3, categories=4, hidden=(8,))
    >>> fitted = am.fit(vae.program(), torch.eye(6), objective=vae.objective, num_steps=5)
    >>> am.posterior(fitted.program, torch.eye(6), num_draws=2)["z"].shape
    (2, 6, 3, 4)
    """

    @classmethod
    def from_data(  # noqa: PLR0913 (the code, the networks, and how they are trained)
        cls,
        x: Any,
        latent_dim: int = 20,
        *,
        categories: int = 2,
        hidden: Sequence[int] | None = None,
        prior: Literal["learned", "uniform"] = "learned",
        objective: str | Objective = CONCRETE,
        seed: int = 0,
    ) -> Self:
        """A model that begins at the data's means, through the decoder's output bias.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim
            D, latent variables.
        categories
            K of each variable; 2 are bits.
        hidden
            Widths of the encoder's hidden layers (tanh), mirrored by the decoder's; None is (64,), and () a linear map
            either way.
        prior
            Whether the prior's logits, even at first, are "learned" or stay "uniform".
        objective
            What ``am.fit`` should maximise: ``am.ConcreteELBO(...)``, or what needs no relaxation, as "nvil", "vimco"
            or "graph-elbo".
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Settings that don't fit.
        """
        data = matrix_of(x, binary=True)
        num = num_logits(check_count("latent_dim", latent_dim), check_count("categories", categories, 2))
        if prior not in ("learned", "uniform"):
            raise ArgumentError(f"prior: expected 'learned' or 'uniform', got {shown(prior)}.")
        widths = _widths(hidden)
        encoder = MLP((data.shape[1], *widths, num), generator=generator(seed, "encoder"))
        decoder = MLP((num, *reversed(widths), data.shape[1]), generator=generator(seed, "decoder"))
        decoder.last_bias.data.copy_(log_odds_of_means(data))
        return cls(
            prior=DiscretePrior(latent_dim, categories, learned=prior == "learned"),
            encoder=DiscreteEncoder(encoder, data.to(decoder.last_bias).mean(0), categories),
            decoder=Bernoulli(FromCode(decoder, categories)),
            objective=objective,
        )


def _widths(hidden: Sequence[int] | None) -> tuple[int, ...]:
    if hidden is not None and not isinstance(hidden, (tuple, list)):
        raise ArgumentError(f"hidden: expected widths of hidden layers, as (64,), got {shown(hidden)}.")
    return (64,) if hidden is None else tuple(hidden)
