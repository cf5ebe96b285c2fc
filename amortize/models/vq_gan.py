r"""The VQ-GAN: a VQ-VAE whose decoder has to please a critic of patches, too, and a transformer as prior of its codes.

.. math:: k \sim p(k), \qquad x \sim p(x | e_{k_1}, \dots, e_{k_P}); \qquad
          q(k | x) = \prod_p [k_p = \arg\min_j \|z_p(x) - e_j\|^2]

.. math:: \mathrm{loss} = -\log p(x | \tilde z) + c \, \|z - \mathrm{stop}(e_{k^*})\|^2
          + \lambda_a E[-D(\hat x)] + \lambda_f \, d(x, \hat x), \qquad \text{then} \quad \mathrm{loss} = -\log p(k^*)

with :math:`\hat x` the mean of x given its codes, D the critic and d the distance in its features, or one of the user's
(`amortize.models.patch_critic`). The critic is no part of the model, which is scored as the VQ-VAE that it is: the ELBO
:math:`\log p(x, k^*) \le \log p(x)` is exact, and lower than without a critic, for a mean that looks like data is
farther from them than one that is blurred. Letters: N datapoints, X = side * side pixels, P positions, K codes. Source:
Esser et al. (2021), "Taming transformers for high-resolution image synthesis", https://arxiv.org/abs/2012.09841.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from amortize.models.code_priors import CodePriorKind
from amortize.models.convolutions import side_of
from amortize.models.patch_critic_penalty import PatchAdversary
from amortize.models.quantised import Quantised
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.vq_gan_parts import Likelihood, critic_of, data_of
from amortize.models.vq_vae import VQVAE

__all__ = ["VQGAN"]

SMALL = 16
"""Side below which two steps halve an image, not three."""


@final
class VQGAN(Quantised):
    """Square images from one grid of codes, sharpened by a critic.

    Its parts are those of `amortize.models.VQVAE` with the same settings and seed.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.rand(20, 64, generator=torch.Generator().manual_seed(0))
    >>> model = VQGAN.from_data(x, num_codes=4, channels=(4, 4))
    >>> fitted = am.fit(model.program(), x, num_steps=10)
    >>> fitted.bound
    'ELBO'
    """

    @classmethod
    def from_data(  # noqa: PLR0913 (codebook, prior, decoder and critic, each with a setting of its own)
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        codebook: Mapping[str, Any] | None = None,
        channels: Sequence[int] | None = None,
        prior: CodePriorKind = "transformer",
        decoder: Likelihood = "normal",
        critic: PatchAdversary | Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> VQGAN:
        """A model whose pixels begin at the data's means, and its codebook at vectors of data.

        Parameters
        ----------
        x
            Training data (N, X): numbers, or zeros and ones for the decoder "bernoulli".
        num_codes
            K.
        codebook
            What is not as `amortize.models.codebook.Codebook` has it: ``dim`` (16 here), ``ema``, ``restarts``,
            ``normalised``.
        channels
            Of each step that halves the side. None takes (32, 32, 64), a grid of an eighth of the image's side, or
            (32, 32) for images of less than 16 x 16.
        prior
            "transformer", "pixelcnn" or "uniform".
        decoder
            "normal" or "bernoulli".
        critic
            Settings of `amortize.models.patch_critic_penalty.PatchAdversary`: ``adversarial``, ``matching``,
            ``channels`` and ``perceptual``, a distance of images in place of the critic's features.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of numbers that vary, or of zeros and ones.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        data = data_of(x, decoder)
        steps = _steps(data.shape[1]) if channels is None else channels
        settings: dict[str, Any] = {"codebook": codebook, "channels": steps, "prior": prior, "decoder": decoder}
        plain = VQVAE.from_data(data, num_codes, **settings, seed=seed)
        objective = QuantisedELBO(penalties=(critic_of(critic or {}),))
        return cls(encoder=plain.encoder, levels=plain.levels, decoder=plain.decoder, objective=objective)


def _steps(data_dim: int) -> tuple[int, ...]:
    return (32, 32) if side_of(data_dim) < SMALL else (32, 32, 64)
