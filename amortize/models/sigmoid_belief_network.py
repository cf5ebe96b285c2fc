r"""A sigmoid belief network: layers of bits, each a logistic regression on the layer above.

.. math:: z^L \sim \mathrm{Bernoulli}(\sigma(b^L)), \qquad
          z^l | z^{l+1} \sim \mathrm{Bernoulli}(\sigma(W^l z^{l+1} + b^l)), \qquad
          x | z^1 \sim \mathrm{Bernoulli}(\sigma(W^0 z^1 + b^0))

The guide goes up, q(z^1 | x) q(z^2 | z^1) ... Where the layers are small, log p(x) is an exact sum over all bits, layer
by layer from the top. Letters: N datapoints, X features, L layers, D_l bits of a layer, C = 2^(D_l) its configurations.
Sources: Neal (1992), "Connectionist learning of belief networks"; Mnih and Gregor (2014), "Neural variational inference
and learning in belief networks", https://arxiv.org/abs/1402.0030, for the guide.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, Self, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from amortize.errors import ArgumentError, check_count, shown
from amortize.inference.objective import Objective
from amortize.inference.vimco import VIMCO
from amortize.models.discrete_parts import DiscreteEncoder, DiscretePrior, FromCode, codes_from_logits
from amortize.models.networks import MLP, register
from amortize.models.vae import log_odds_of_means, matrix_of
from amortize.models.zoo import ZooModel
from amortize.random import generator

__all__ = ["MOST_BITS", "SigmoidBeliefNetwork", "all_codes"]

MOST_BITS = 20
"""Of two neighbouring layers together, up to which log p(x) is summed: a million pairs of configurations."""
TRAINED_BY = VIMCO(num_particles=5)
CHUNK = 2**24  # entries of the matrix of datapoints and configurations


@final
class SigmoidBeliefNetwork(ZooModel):
    """Sites ``z1`` (N, D_1), next to the data, up to ``zL`` (N, D_L); observed site ``x`` (N, X).

    Parameters
    ----------
    prior
        Of the highest layer, `DiscretePrior`.
    down
        L networks, from the data on: of the bits of layer l to the logits of what is below.
    up
        The guide's: `DiscreteEncoder` of x, then L - 1 networks of the bits of a layer to the logits of the next.
    objective
        What ``am.fit`` should maximise.

    Examples
    --------
    >>> import torch, amortize as am
    >>> network = am.models.SigmoidBeliefNetwork.from_data(torch.eye(6), units=(4, 3))
    >>> network.log_evidence(torch.eye(6)).shape
    torch.Size([6])
    """

    def __init__(
        self, *, prior: DiscretePrior, down: nn.ModuleList, up: nn.ModuleList, objective: str | Objective = TRAINED_BY
    ) -> None:
        super().__init__()
        if len(down) != len(up) or not len(down):
            raise ArgumentError(f"down, up: expected a network each for every layer, got {len(down)} and {len(up)}.")
        self.prior, self.down, self.up = prior, down, up
        self._objective = objective

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        units: Sequence[int] = (10,),
        hidden: Sequence[int] = (),
        objective: str | Objective = TRAINED_BY,
        seed: int = 0,
    ) -> Self:
        """A network that begins at the data's means, through the lowest layer's bias.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        units
            Bits of each layer, from the data on.
        hidden
            Widths of hidden layers (tanh) of the guide's networks; the model's are linear.
        objective
            What ``am.fit`` should maximise: ``am.VIMCO(...)``, ``am.LeaveOneOut(...)``, ``am.ConcreteELBO(...)`` or
            another that takes discrete latents.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Widths that are not positive.
        """
        data = matrix_of(x, binary=True)
        if not isinstance(units, (tuple, list)) or not units:
            raise ArgumentError(f"units: expected the bits of one or more layers, as (10,), got {shown(units)}.")
        sizes = (data.shape[1], *(check_count("units", num) for num in units))
        down, up = nn.ModuleList(), nn.ModuleList()
        for at, (below, above) in enumerate(pairwise(sizes)):
            writer = MLP((above, below), generator=generator(seed, "down", at))
            reader = MLP((below, *hidden, above), generator=generator(seed, "up", at))
            centre = data.to(reader.last_bias).mean(0)
            up.append(FromCode(reader) if at else DiscreteEncoder(reader, centre, 2))
            down.append(FromCode(writer))
            if not at:
                writer.last_bias.data.copy_(log_odds_of_means(data))
        prior = DiscretePrior(sizes[-1], 2, learned=True)
        return cls(prior=prior, down=down, up=up, objective=objective)

    @property
    def objective(self) -> str | Objective:
        """As it was given."""
        return self._objective

    def model(self, x: Tensor) -> None:
        """From the highest layer down to the data."""
        register("prior", self.prior)
        register("down", self.down)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample(f"z{len(self.down)}", self.prior())
            for at in range(len(self.down) - 1, 0, -1):
                z = pyro.sample(f"z{at}", codes_from_logits(self.down[at](z), 2))
            pyro.sample("x", dist.Independent(dist.Bernoulli(logits=self.down[0](z)), 1), obs=x)

    def guide(self, x: Tensor) -> None:
        """From the data up, each layer's bits given those below."""
        register("up", self.up)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z1", self.up[0](x))
            for at in range(1, len(self.up)):
                z = pyro.sample(f"z{at + 1}", codes_from_logits(self.up[at](z), 2))

    @torch.no_grad()
    def log_evidence(self, x: Any) -> Tensor:
        """Exact log p(x), (N,) nats in float64, of x (N, X): the sum over all bits.

        Raises
        ------
        ArgumentError
            If a layer, or one and the layer above it, have more than `MOST_BITS` bits.
        DataError
            If ``x`` is not a matrix of zeros and ones.
        """
        data = matrix_of(x, binary=True).to(self.prior.logits).double()
        codes = all_codes(_few(len(self.prior.logits)))
        log_prior = _log_bernoulli(codes, self.prior.logits.double()[None])[:, 0]
        for network in reversed(list(self.down)[1:]):
            logits = _in_double(network, codes)
            codes = all_codes(_few(logits.shape[1], codes.shape[1]))
            log_prior = (_log_bernoulli(codes, logits) + log_prior).logsumexp(1)
        logits = _in_double(self.down[0], codes)
        rows = max(1, CHUNK // len(codes))
        parts = [data[first : first + rows] for first in range(0, len(data), rows)]
        return torch.cat([(_log_bernoulli(part, logits) + log_prior).logsumexp(1) for part in parts])


def all_codes(num_bits: int) -> Tensor:
    """Every configuration of so many bits, (2^num_bits, num_bits), in float64.

    Examples
    --------
    >>> all_codes(2).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    places = torch.arange(num_bits - 1, -1, -1)
    bits: Tensor = (torch.arange(2**num_bits)[:, None] >> places) & 1
    return bits.double()


def _log_bernoulli(values: Tensor, logits: Tensor) -> Tensor:
    """Of values (M, F) under logits (C, F): (M, C) nats."""
    return values @ logits.T - softplus(logits).sum(-1)


def _in_double(network: nn.Module, codes: Tensor) -> Tensor:
    """Logits (C, F) of codes (C, D); the network itself keeps its precision."""
    logits: Tensor = deepcopy(network).double()(codes)
    return logits


def _few(num_bits: int, neighbour: int = 0) -> int:
    """The bits of a layer, if they and its neighbour's can be listed."""
    if num_bits + neighbour > MOST_BITS:
        raise ArgumentError(
            f"log_evidence: expected at most {MOST_BITS} bits in a layer and the one above it together, got "
            f"{num_bits + neighbour}. Estimate it by am.evidence(program, x)"
        )
    return num_bits
