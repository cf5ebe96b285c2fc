"""Networks of variational autoencoders by name, and the three parts of the Bernoulli VAE that its kin share.

Letters: N datapoints, X features, D latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.convolutions import ConvDecoder, ConvEncoder
from amortize.models.networks import MLP
from amortize.models.point_parts import Columns, Point
from amortize.models.vae import Bernoulli, DiagonalNormal, StandardNormal, log_odds_of_means, matrix_of
from amortize.random import generator

__all__ = [
    "NetworkKind",
    "Parts",
    "bernoulli_decoder",
    "bernoulli_parts",
    "check_network",
    "point_parts",
    "reading",
    "writing",
]

NetworkKind = Literal["mlp", "conv", "residual"]
"""A multilayer perceptron, strided convolutions, or those with residual blocks; both of the latter take squares."""

HIDDEN: dict[str, tuple[int, ...]] = {"mlp": (64,), "conv": (16, 32), "residual": (16, 32)}
"""What ``hidden=None`` is: widths of a perceptron, or channels of convolutions, from the data on."""


class Parts(TypedDict):
    """Arguments of `amortize.models.VAE`."""

    prior: nn.Module
    decoder: nn.Module
    encoder: nn.Module


def reading(
    num_inputs: int, num_outputs: int, *, network: str, hidden: Sequence[int] | None, generator: torch.Generator
) -> MLP | ConvEncoder:
    """A network from data to a code.

    Parameters
    ----------
    num_inputs, num_outputs
        Its sizes.
    network
        "mlp", "conv" or "residual".
    hidden
        Widths of hidden layers, or channels of convolutions, from the data on; None for (64,) and (16, 32).
    generator
        Where the initial weights come from.

    Raises
    ------
    ArgumentError
        An unknown network, or sizes it can't have.
    """
    widths = _widths(network, hidden)
    if network == "mlp":
        return MLP((num_inputs, *widths, num_outputs), generator=generator)
    residual = network == "residual"
    return ConvEncoder(num_inputs, num_outputs, channels=widths, generator=generator, residual=residual)


def writing(
    num_inputs: int, num_outputs: int, *, network: str, hidden: Sequence[int] | None, generator: torch.Generator
) -> MLP | ConvDecoder:
    """A network from a code to data, the mirror of `reading`: ``hidden`` counts from the data on here, too."""
    widths = tuple(reversed(_widths(network, hidden)))
    if network == "mlp":
        return MLP((num_inputs, *widths, num_outputs), generator=generator)
    residual = network == "residual"
    return ConvDecoder(num_inputs, num_outputs, channels=widths, generator=generator, residual=residual)


def check_network(network: str) -> str:
    """The name, or an error that says what there is."""
    if network not in HIDDEN:
        raise ArgumentError(f"network: expected one of {tuple(HIDDEN)}, got {shown(network)}.")
    return network


def bernoulli_decoder(
    data: Tensor, latent_dim: int, *, network: str, hidden: Sequence[int] | None, seed: int
) -> Bernoulli:
    """Independent pixels that begin at the data's means, through the output bias."""
    decoder = writing(latent_dim, data.shape[1], network=network, hidden=hidden, generator=generator(seed, "decoder"))
    with torch.no_grad():
        decoder.last_bias.copy_(log_odds_of_means(data))
    return Bernoulli(decoder)


def bernoulli_parts(
    x: Any, latent_dim: int, *, network: str = "mlp", hidden: Sequence[int] | None = None, seed: int = 0
) -> Parts:
    """Prior, decoder and encoder of the Bernoulli VAE for binary ``x`` (N, X), beginning at the data's means.

    Its weights, too, are those of ``BernoulliVAE.from_data`` with the same settings.

    Raises
    ------
    DataError
        ``x`` is not a matrix of zeros and ones.
    ArgumentError
        Settings that don't fit.
    """
    data = matrix_of(x, binary=True)
    check_count("latent_dim", latent_dim)
    read = reading(data.shape[1], 2 * latent_dim, network=network, hidden=hidden, generator=generator(seed, "encoder"))
    return {
        "prior": StandardNormal(latent_dim),
        "decoder": bernoulli_decoder(data, latent_dim, network=network, hidden=hidden, seed=seed),
        "encoder": DiagonalNormal(read),
    }


def point_parts(x: Any, latent_dim: int, *, network: str, hidden: Sequence[int] | None, seed: int) -> Parts:
    """Prior, decoder and encoder for binary ``x`` (N, X) whose encoder is a point, beginning at the data's means.

    Raises
    ------
    DataError
        ``x`` is not a matrix of zeros and ones, or its rows are all alike.
    ArgumentError
        Settings that don't fit.
    """
    data = matrix_of(x, binary=True)
    code = reading(data.shape[1], latent_dim, network=network, hidden=hidden, generator=generator(seed, "encoder"))
    return {
        "prior": StandardNormal(latent_dim),
        "decoder": bernoulli_decoder(data, latent_dim, network=network, hidden=hidden, seed=seed),
        "encoder": Point(code, Columns.of(data)),
    }


def _widths(network: str, hidden: Sequence[int] | None) -> tuple[int, ...]:
    check_network(network)
    if hidden is not None and not isinstance(hidden, Sequence):
        raise ArgumentError(f"hidden: expected widths or channels, as (64,), got {shown(hidden)}.")
    return HIDDEN[network] if hidden is None else tuple(hidden)
