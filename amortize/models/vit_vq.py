r"""The ViT-VQ: a quantised model of transformers, whose codes are short and lie on a sphere.

.. math:: k \sim p(k), \qquad x \sim p(x | e_{k_1}, \dots, e_{k_P}); \qquad
          q(k | x) = \prod_p [k_p = \arg\max_j \langle z_p(x), e_j \rangle], \quad |z_p| = |e_j| = 1

Each patch of an image is a token; a transformer reads them all, and what it makes of each is projected to the few
numbers of a code before it is rounded (*factorised* codes: looked up in D dimensions, used in W), by its angle alone
(*normalised* codes). With these two most of a large codebook is used. The ELBO of the discrete model, :math:`\log p(x,
k^*) \le \log p(x)`, is exact as that of a VQ-VAE. A critic of patches can be added, as the paper has one. Letters: N
datapoints, X = P * pixels, P patches, K codes of D numbers, W the width of a token. Source: Yu et al. (2022),
"Vector-quantized image modeling with improved VQGAN", section 3, https://arxiv.org/abs/2110.04627.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn

from amortize.errors import ArgumentError, shown
from amortize.models.code_priors import CodePriorKind, code_prior
from amortize.models.patch_critic_penalty import PatchAdversary
from amortize.models.quantised import Level, Quantised
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.transformer import Patches
from amortize.models.vit_vq_networks import PatchReader, PatchWriter
from amortize.models.vq_gan_parts import Likelihood, critic_of, data_of, halves
from amortize.models.vq_vae import START_ROWS, codebook_of
from amortize.random import generator

__all__ = ["ViTVQ"]

NETWORK: dict[str, int | None] = {"patch": None, "width": 64, "depth": 2}
"""What ``network`` says where it says nothing else."""


@final
class ViTVQ(Quantised):
    """Square images from the codes of their patches.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(64)
    >>> model = ViTVQ.from_data(x, num_codes=4, network={"width": 16, "depth": 1})
    >>> fitted = am.fit(model.program(), x, num_steps=5)
    >>> model.codebooks[0].codes.norm(dim=-1).round(decimals=3)
    tensor([1., 1., 1., 1.])
    """

    @classmethod
    def from_data(  # noqa: PLR0913 (codebook, networks, prior, decoder and critic, each with a setting of its own)
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        codebook: Mapping[str, Any] | None = None,
        network: Mapping[str, Any] | None = None,
        prior: CodePriorKind = "transformer",
        decoder: Likelihood = "bernoulli",
        critic: PatchAdversary | Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> ViTVQ:
        """A model whose pixels begin at the data's means, and its codebook at vectors of data.

        Parameters
        ----------
        x
            Training data (N, X): zeros and ones, or any numbers for the decoder "normal".
        num_codes
            K.
        codebook
            What is not as here: ``dim`` 8, ``normalised`` True, and ``ema`` and ``restarts`` as
            `amortize.models.codebook.Codebook` has them.
        network
            What is not as here: ``patch`` (side of a patch; None takes the largest that leaves four or more a side),
            ``width`` 64, a multiple of 4, and ``depth`` 2.
        prior
            "transformer", "pixelcnn" or "uniform".
        decoder
            "bernoulli" or "normal".
        critic
            Settings of `amortize.models.patch_critic_penalty.PatchAdversary`; None has no critic.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones, or of numbers that vary.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        data = data_of(x, decoder)
        given = _network(network)
        book = codebook_of(num_codes, {"dim": 8, "normalised": True, **(codebook or {})})
        patches = Patches(data.shape[1], given.pop("patch"))
        sizes = {**given, "code_dim": book.dim}
        reader = PatchReader(patches, **sizes, generator=generator(seed, "encoder"))
        writer = PatchWriter(copy.deepcopy(patches), **sizes, generator=generator(seed, "decoder"))
        ends = halves(reader, writer, data, decoder)
        with torch.no_grad():
            book.start(ends.encoder(data[:START_ROWS]), generator=generator(seed, "codebook"))
        over = code_prior(prior, (patches.across, patches.across), num_codes, seed=seed)
        penalties = () if critic is None else (critic_of(critic),)
        return cls(
            encoder=ends.encoder,
            levels=[Level(book, over, nn.Identity())],
            decoder=ends.decoder,
            objective=QuantisedELBO(penalties=penalties),
        )


def _network(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    given = settings or {}
    if not isinstance(given, Mapping) or not set(given) <= set(NETWORK):
        raise ArgumentError(f"network: expected some of the settings {sorted(NETWORK)}, got {shown(given)}")
    return {**NETWORK, **given}
