r"""A masked autoencoder: from a quarter of an image's patches to the others.

.. math:: z_p = f_p(x_S)\ (p \in S), \qquad z \sim N(0, I_D), \qquad
          x_p | z \sim N(\mu + s\,g_p(z_S), \sigma^2 I)\ (p \notin S)

The encoder f is a transformer over the visible patches S alone; the decoder g, smaller, is one over all places, with
the codes of S and one learned mask token everywhere else. In training S is drawn anew for each image and step, and only
what is hidden is scored. Outside of training nothing is drawn: the patches are dealt into 1 / ``visible`` fixed groups,
each is encoded by itself (so z has a code for every patch), and a patch is predicted from the codes of each group that
it is not in, the predictions' mean taken. So no patch is ever predicted from itself, in training or out of it.
Afterwards the decoder detaches: ``features`` are the encoder's, of whole images.

Letters: N datapoints, X = P * pixels features, P patches, W the encoder's width, C numbers in a patch's code,
D = P * C latents, G groups. Source: He et al. (2022), "Masked autoencoders are scalable vision learners",
https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

import copy
from typing import Any, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError, check_count, check_number
from amortize.inference.beta import BetaELBO
from amortize.models.networks import seeded_linear
from amortize.models.transformer import Patches, Transformer, seeded_places
from amortize.models.vae import VAE, StandardNormal, matrix_of
from amortize.random import generator

__all__ = ["MaskedAutoencoder", "MaskedDecoder", "MaskedEncoder"]


@final
class MaskedAutoencoder(VAE):
    """A transformer that sees a quarter of the patches, and a smaller one that fills in the rest; its guide is a point.

    Parameters
    ----------
    encoder, decoder
        Cut and dealt alike, as `from_data` makes them.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.rand(20, 64, generator=torch.Generator().manual_seed(0))
    >>> model = am.models.MaskedAutoencoder.from_data(x, width=16)
    >>> fitted = am.fit(model.program(), x, objective=model.objective, num_steps=5)
    >>> model.features(x).shape
    torch.Size([20, 16])
    """

    encoder: MaskedEncoder
    decoder: MaskedDecoder

    def __init__(self, *, encoder: MaskedEncoder, decoder: MaskedDecoder) -> None:
        prior = StandardNormal(encoder.patches.num * encoder.code_dim)
        super().__init__(prior=prior, decoder=decoder, encoder=encoder, objective=BetaELBO(beta=0.0))

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        patch: int | None = None,
        visible: float = 0.25,
        width: int = 64,
        code_dim: int = 8,
        seed: int = 0,
    ) -> MaskedAutoencoder:
        """A masked autoencoder for images x (N, X), with random weights.

        Parameters
        ----------
        x
            Training data; X is a square.
        patch
            Side of a patch; None takes the largest that leaves four or more a side (2 x 2 pixels of 8 x 8, 7 x 7 of
            28 x 28).
        visible
            Share of the patches that the encoder sees, up to a half.
        width
            W of the encoder, three blocks deep; the decoder has half of it and one block. A multiple of 8.
        code_dim
            C.
        seed
            Of the initial weights, and of how patches are dealt into groups.

        Raises
        ------
        DataError
            If x is no finite matrix, or nothing in it varies.
        ArgumentError
            If X is no square, or a setting is out of range.
        """
        data = matrix_of(x).double()
        loc = data.mean(0)
        scale = (data - loc).square().mean().sqrt()
        if not scale > 0:
            raise DataError(f"x: expected columns that vary, got {len(data)} equal rows.")
        patches = Patches(data.shape[1], patch)
        groups = deal(patches.num, visible, seed=seed)
        sizes = {"width": width, "code_dim": check_count("code_dim", code_dim)}
        encoder = MaskedEncoder(patches, groups, **sizes, generator=generator(seed, "encoder"))
        sizes["width"] = width // 2
        decoder = MaskedDecoder(copy.deepcopy(patches), groups, **sizes, generator=generator(seed, "decoder"))
        for part in (encoder, decoder):
            part.standardise(loc.float(), scale.float())
        return cls(encoder=encoder, decoder=decoder)

    @torch.no_grad()
    def features(self, x: Any) -> Tensor:
        """What the encoder alone makes of whole images, (N, W): the mean of its tokens, before they become codes."""
        like = next(iter(self.encoder.parameters()))
        data = matrix_of(x).to(device=like.device, dtype=like.dtype)
        everything = torch.arange(self.encoder.patches.num, device=like.device).expand(len(data), -1)
        return self.encoder.tokens(data, everything).mean(-2)


class _Standardised(nn.Module):
    loc: Tensor
    scale: Tensor

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        self.patches = patches
        self.register_buffer("loc", torch.zeros(patches.num * patches.pixels))
        self.register_buffer("scale", torch.ones(()))

    def standardise(self, loc: Tensor, scale: Tensor) -> None:
        """Means of the pixels (X,) and their scale in the training data."""
        self.loc.copy_(loc)
        self.scale.copy_(scale)


class MaskedEncoder(_Standardised):
    """A guide that is a point: codes of the patches that it sees; zeros, in training, for those it doesn't.

    Parameters
    ----------
    patches, groups
        How images are cut, and which patches are seen together outside of training, a tensor a group.
    width, code_dim
        W and C.
    generator
        Where the initial weights come from.
    """

    def __init__(
        self, patches: Patches, groups: list[Tensor], *, width: int, code_dim: int, generator: torch.Generator
    ) -> None:
        super().__init__(patches)
        self.code_dim, self.num_groups = code_dim, len(groups)
        for index, group in enumerate(groups):
            self.register_buffer(f"group{index}", group)
        self.places = seeded_places(patches.num, width, generator=generator)
        self.embed = seeded_linear(patches.pixels, width, generator=generator)
        self.transformer = Transformer(width, depth=3, generator=generator)
        self.code = seeded_linear(width, code_dim, generator=generator)

    def forward(self, x: Tensor) -> dist.Distribution:
        """Of z (N, D) given x (N, X), a Delta."""
        if self.training:
            num_seen = max(1, self.patches.num // self.num_groups)
            order = torch.rand(len(x), self.patches.num, device=x.device).argsort(-1)
            code = self._codes(x, order[:, :num_seen])
        else:
            groups = [getattr(self, f"group{index}") for index in range(self.num_groups)]
            code = torch.stack([self._codes(x, group.expand(len(x), -1)) for group in groups]).sum(0)
        return dist.Delta(code.flatten(-2), event_dim=1)  # type: ignore[no-untyped-call]

    def tokens(self, x: Tensor, seen: Tensor) -> Tensor:
        """Of the patches ``seen`` (N, K), each datapoint's own, and nothing else of x (N, X): (N, K, W)."""
        parts = self.patches.split((x - self.loc) / self.scale)
        parts = parts.gather(-2, seen.unsqueeze(-1).expand(*seen.shape, parts.shape[-1]))
        tokens: Tensor = self.transformer(self.embed(parts) + self.places[seen])
        return tokens

    def _codes(self, x: Tensor, seen: Tensor) -> Tensor:
        """(N, P, C), zeros where nothing was seen."""
        codes: Tensor = self.code(self.tokens(x, seen))
        index = seen.unsqueeze(-1).expand_as(codes)
        return codes.new_zeros(len(x), self.patches.num, self.code_dim).scatter(-2, index, codes)


class MaskedDecoder(_Standardised):
    """Of codes, where a code of zeros is none: every place without one gets the mask token.

    Parameters are those of `MaskedEncoder`.
    """

    member: Tensor

    def __init__(
        self, patches: Patches, groups: list[Tensor], *, width: int, code_dim: int, generator: torch.Generator
    ) -> None:
        super().__init__(patches)
        self.code_dim = code_dim
        member = torch.zeros(len(groups), patches.num, dtype=torch.bool)
        for index, group in enumerate(groups):
            member[index, group] = True
        self.register_buffer("member", member)
        self.places = seeded_places(patches.num, width, generator=generator)
        self.embed = seeded_linear(code_dim, width, generator=generator)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.transformer = Transformer(width, depth=1, generator=generator)
        self.pixels = seeded_linear(width, patches.pixels, generator=generator)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Of x given z (..., D); in training, of the patches alone that z has no code of."""
        codes = z.reshape(*z.shape[:-1], self.patches.num, self.code_dim)
        scale = self.scale * self.log_scale.exp()
        if not self.training:
            return dist.Independent(dist.Normal(self.loc + self.scale * self._unseen(codes), scale), 1)
        seen = (codes != 0).any(-1)
        hidden = self.patches.join((~seen).unsqueeze(-1).expand(*seen.shape, self.patches.pixels))
        mean = self.loc + self.scale * self.patches.join(self.fill(codes, seen))
        scored = dist.Normal(mean, scale).mask(hidden)  # type: ignore[no-untyped-call]
        return dist.Independent(scored, 1)

    def fill(self, codes: Tensor, seen: Tensor) -> Tensor:
        """Standardised patches (..., P, pixels) from codes (..., P, C), of which only those ``seen`` (..., P) count."""
        tokens = torch.where(seen.unsqueeze(-1), self.embed(codes), self.mask_token) + self.places
        parts: Tensor = self.pixels(self.transformer(tokens))
        return parts

    def _unseen(self, codes: Tensor) -> Tensor:
        """Each patch from the groups that it is not in, (..., X)."""
        predicted = self.fill(codes.unsqueeze(-3), self.member)  # (..., G, P, pixels)
        weight = (~self.member).to(codes.dtype).unsqueeze(-1)
        return self.patches.join((predicted * weight).sum(-3) / weight.sum(-3))


def deal(num: int, visible: float, *, seed: int) -> list[Tensor]:
    """Patches in 1 / ``visible`` groups of the same size, or one more, at random by the seed.

    Raises
    ------
    ArgumentError
        If ``visible`` is not above 0 and up to a half, or so small that a group would be empty.
    """
    check_number("visible", visible, "(0, 0.5]")
    num_groups = round(1 / visible)
    if num_groups > num:
        raise ArgumentError(f"visible: expected 1/{num} (one patch) or more, got {visible:g}.")
    order = torch.randperm(num, generator=generator(seed, "groups"))
    return [group.sort().values for group in order.tensor_split(num_groups)]
