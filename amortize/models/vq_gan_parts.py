"""What the VQ-GAN and the ViT-VQ share: where data enter and leave their networks, and settings given by name.

Letters: N datapoints, X = side * side pixels, D numbers of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, shown
from amortize.models.gaussian_vae import ScaledNormal, Standardised, moments
from amortize.models.patch_critic_penalty import PatchAdversary
from amortize.models.vae import Bernoulli, log_odds_of_means, matrix_of

__all__ = ["Halves", "Likelihood", "critic_of", "data_of", "halves"]

Likelihood = Literal["bernoulli", "normal"]
"""Independent binary pixels; or numbers, with one scale that is learned."""


class Halves(NamedTuple):
    """From data to vectors and back to a distribution of data."""

    encoder: nn.Module
    decoder: nn.Module


def data_of(x: Any, likelihood: str) -> Tensor:
    """Training data (N, X), zeros and ones where the likelihood asks for them.

    Raises
    ------
    DataError
        They are anything else.
    ArgumentError
        There is no such likelihood.
    """
    if likelihood not in get_args(Likelihood):
        raise ArgumentError(f"decoder: expected one of {get_args(Likelihood)}, got {shown(likelihood)}")
    return matrix_of(x, binary=likelihood == "bernoulli").float()


def halves(reader: nn.Module, writer: nn.Module, data: Tensor, likelihood: str) -> Halves:
    """Networks between images and vectors as encoder and decoder that begin at the data's means.

    The ``writer`` has a parameter ``last_bias`` (X,), which is added to each pixel.
    """
    if likelihood == "normal":
        return Halves(Standardised(reader, *moments(data)), ScaledNormal(writer, *moments(data)))
    bias = writer.last_bias
    assert isinstance(bias, nn.Parameter)
    with torch.no_grad():
        bias.copy_(log_odds_of_means(data))
    return Halves(reader, Bernoulli(writer))


def critic_of(settings: PatchAdversary | Mapping[str, Any]) -> PatchAdversary:
    """A critic's settings, as they are or by name; those that are not given are its own.

    Raises
    ------
    ArgumentError
        An unknown name, or settings that make no sense.

    Examples
    --------
    >>> critic_of({"adversarial": 0.3, "channels": [8, 16]}).channels
    (8, 16)
    """
    if isinstance(settings, PatchAdversary):
        return settings
    known = {field.name for field in fields(PatchAdversary)}
    if not isinstance(settings, Mapping) or not set(settings) <= known:
        raise ArgumentError(
            f"critic: expected a PatchAdversary or some of its settings {sorted(known)}, got {shown(settings)}"
        )
    given = dict(settings)
    if isinstance(given.get("channels"), list):  # as a study's file has them
        given["channels"] = tuple(given["channels"])
    return PatchAdversary(**given)
