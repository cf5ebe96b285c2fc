"""Networks that the zoo shares; their initial weights come from a generator, not from global random state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pyro
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError

__all__ = ["MLP", "GaussianEncoder", "register", "seeded_linear"]


def register(name: str, network: nn.Module) -> None:
    """Tell Pyro of a network's parameters (``pyro.module``), unless it is frozen as a whole: Pyro would warn."""
    if any(parameter.requires_grad for parameter in network.parameters()):
        pyro.module(name, network)


def seeded_linear(num_inputs: int, num_outputs: int, *, generator: torch.Generator) -> nn.Linear:
    """A linear layer with Glorot-uniform weights drawn from ``generator`` and a zero bias.

    Source: Glorot and Bengio (2010), "Understanding the difficulty of training deep feedforward neural
    networks".
    """
    empty = nn.Linear(num_inputs, num_outputs, device="meta")  # where it draws no weights of its own
    layer = empty.to_empty(device="cpu")
    bound = math.sqrt(6.0 / (num_inputs + num_outputs))
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer


class MLP(nn.Module):
    """Linear layers with a smooth non-linearity between them.

    Parameters
    ----------
    sizes
        Widths from input to output, at least two.
    activation
        What stands between the layers. It should have a continuous derivative where gradients of the log
        joint drive a sampler.
    generator
        Where the initial weights come from.

    Raises
    ------
    ArgumentError
        Fewer than two sizes, or one that is not positive.

    Examples
    --------
    >>> net = MLP((4, 8, 2), generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        generator: torch.Generator,
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or any(size < 1 for size in sizes):
            raise ArgumentError(f"sizes: expected two or more positive widths, got {tuple(sizes)}.")
        layers: list[nn.Module] = []
        for num_inputs, num_outputs in pairwise(sizes):
            layers += [seeded_linear(num_inputs, num_outputs, generator=generator), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        return last

    @property
    def last_bias(self) -> nn.Parameter:
        """Bias of the output layer."""
        return self.last.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., sizes[0]) to (..., sizes[-1])."""
        outputs: Tensor = self.layers(inputs)
        return outputs


class GaussianEncoder(nn.Module):
    """Data to the mean and scale of a diagonal Gaussian over D latents.

    Parameters
    ----------
    network
        Maps data (N, X) to means and log scales, (N, 2 D).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale, each (N, D), for data (N, X)."""
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        return loc, log_scale.exp()
