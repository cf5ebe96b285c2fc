r"""A codebook: K vectors, of which each number of a grid of codes names one, and how it is learned.

.. math:: k(z) = \arg\min_k \|z - e_k\|^2, \qquad
          \tilde z = e_{k(z)} + z - \mathrm{stop}(z), \qquad \mathrm{commitment} = \|z - \mathrm{stop}(e_{k(z)})\|^2

The straight-through vector :math:`\tilde z` has the code's value and the encoder's gradient. The vectors follow the
means of what is assigned to them, :math:`n_k \leftarrow \gamma n_k + (1 - \gamma) \#_k / n` and
:math:`m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{z: k(z) = k} z / n`, :math:`e_k = m_k / n_k`: Lloyd's k-means for
:math:`\gamma = 0`. Letters: P positions, K codes, D numbers of a vector; leading dimensions are free. Sources: van den
Oord et al. (2017), "Neural discrete representation learning", https://arxiv.org/abs/1711.00937, equations 2 and 3 and
appendix A.1; Dhariwal et al. (2020), "Jukebox", https://arxiv.org/abs/2005.00341, for restarts; Yu et al. (2022),
"Vector-quantized image modeling with improved VQGAN", https://arxiv.org/abs/2110.04627, for normalised codes.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize, one_hot

from amortize.errors import ArgumentError, check_count, check_number

__all__ = ["Codebook", "Quantisation", "certain"]

MEMORY = 0.99
"""By which usage is averaged where the vectors are learned by gradient."""


class Quantisation(NamedTuple):
    """Vectors and what they are rounded to.

    ``vectors`` (..., P, D) straight-through, ``codes`` (..., P), and squared distances summed over positions and
    numbers, (...): ``commitment`` with a gradient to the encoder alone, ``fit`` to the codebook alone.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor
    fit: Tensor


class Codebook(nn.Module):
    """K vectors of D numbers.

    Parameters
    ----------
    num_codes, dim
        K and D.
    ema
        gamma, in [0, 1): how slowly the vectors follow the means of what is assigned to them. None leaves them to the
        optimiser.
    restarts
        A code is dead where its share of the assignments, averaged over batches, is below this share of 1 / K; it
        starts again at a vector of the batch, one in proportion to its squared distance from its code. 0 restarts none.
    normalised
        Whether vectors and codes are compared on the unit sphere, by their angle.

    Attributes
    ----------
    usage
        Share of the assignments of each code (K,), averaged over batches of training.

    Raises
    ------
    ArgumentError
        Settings that make no sense.

    Examples
    --------
    >>> book = Codebook(4, 2)
    >>> book.start(torch.eye(2).repeat(3, 1), generator=torch.Generator().manual_seed(0))
    >>> found = book.quantise(torch.tensor([[0.9, 0.2], [0.1, 0.7]]))
    >>> found.vectors
    tensor([[1., 0.],
            [0., 1.]])
    """

    vectors: Tensor
    usage: Tensor
    sums: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        ema: float | None = 0.99,
        restarts: float = 0.1,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.num_codes, self.dim = check_count("num_codes", num_codes, 2), check_count("dim", dim)
        self.ema = None if ema is None else check_number("ema", ema, "[0, 1)")
        self.restarts = check_number("restarts", restarts, "[0, 1)")
        self.normalised = normalised
        begun = torch.zeros(num_codes, dim)
        if ema is None:
            self.vectors = nn.Parameter(begun)
        else:
            self.register_buffer("vectors", begun)
        self.register_buffer("usage", torch.full((num_codes,), 1.0 / num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, dim))

    @torch.no_grad()
    def start(self, vectors: Tensor, *, generator: torch.Generator) -> None:
        """Take K of some vectors (..., D), far from each other, as the codes.

        Each is drawn in proportion to its squared distance from those taken before; where there are fewer than K
        different ones, the others are drawn beside them. Source: Arthur and Vassilvitskii (2007), "k-means++".
        """
        rows = self._placed(vectors).reshape(-1, self.dim)
        spread = rows.std(0, correction=0).mean()
        first = torch.randint(len(rows), (1,), generator=generator)
        taken = [rows[first[0]]]
        left = (rows - taken[0]).square().sum(-1)
        for _ in range(1, self.num_codes):
            if bool(left.sum() > 0):
                taken.append(rows[torch.multinomial(left, 1, generator=generator)[0]])
            else:
                beside = taken[int(torch.randint(len(taken), (1,), generator=generator))]
                taken.append(beside + 0.1 * spread * torch.randn(self.dim, generator=generator).to(beside))
            left = torch.minimum(left, (rows - taken[-1]).square().sum(-1))
        self._put(slice(None), torch.stack(taken))

    def nearest(self, vectors: Tensor) -> Tensor:
        """The number (...) of the code nearest to each vector (..., D)."""
        codes = self.codes
        return (codes.square().sum(-1) - 2 * self._placed(vectors) @ codes.T).argmin(-1)

    def assigned(self, vectors: Tensor, temperature: float = 0.0) -> dist.TorchDistribution:
        """The distribution of codes (N, P) of vectors (N, P, D): softmax of -squared distance / temperature.

        At 0 it is sure of the nearest.
        """
        if temperature == 0:
            return certain(self.nearest(vectors), self.num_codes)
        logits = (2 * self._placed(vectors) @ self.codes.T - self.codes.square().sum(-1)) / temperature
        return dist.Independent(dist.Categorical(logits=logits), 1)

    def embed(self, codes: Tensor) -> Tensor:
        """The vectors (..., D) of codes (...)."""
        return embedding(codes.long(), self.codes)

    @property
    def codes(self) -> Tensor:
        """The vectors (K, D), on the unit sphere where they are normalised."""
        return self._placed(self.vectors)

    def quantise(self, vectors: Tensor) -> Quantisation:
        """Round vectors (..., P, D); nothing is learned."""
        placed = self._placed(vectors)
        codes = self.nearest(placed.detach())
        found = self.embed(codes)
        straight = found.detach() + (placed - placed.detach())
        commitment = (placed - found.detach()).square().sum((-1, -2))
        return Quantisation(straight, codes, commitment, (placed.detach() - found).square().sum((-1, -2)))

    @torch.no_grad()
    def learn(self, vectors: Tensor) -> None:
        """One step of training on a batch of vectors (..., D): moving averages, and restarts.

        Restarts draw from the global generator of torch.
        """
        rows = self._placed(vectors).reshape(-1, self.dim)
        hits = one_hot(self.nearest(rows), self.num_codes).to(rows)
        memory = MEMORY if self.ema is None else self.ema
        self.usage.mul_(memory).add_(hits.mean(0), alpha=1 - memory)
        self.sums.mul_(memory).add_(hits.T @ rows / len(rows), alpha=1 - memory)
        if self.ema is not None:
            seen = hits.sum(0) > 0  # elsewhere both have shrunk alike, and may be zero in the end
            self.vectors[seen] = self.sums[seen] / self.usage[seen].unsqueeze(-1)
        if self.restarts:
            self._restart(rows)

    def _restart(self, rows: Tensor) -> None:
        dead = (self.usage < self.restarts / self.num_codes).nonzero().squeeze(-1)
        if not len(dead):
            return
        apart = (rows - self.embed(self.nearest(rows))).square().sum(-1)
        num = min(len(dead), int(apart.count_nonzero()))
        if num:
            self._put(dead[:num], rows[torch.multinomial(apart, num)])

    @torch.no_grad()
    def _put(self, which: slice | Tensor, vectors: Tensor) -> None:
        """Codes anew, as if each had its fair share of the assignments."""
        share = 1.0 / self.num_codes
        self.vectors[which] = vectors.to(self.vectors)
        self.usage[which] = share
        self.sums[which] = share * vectors.to(self.sums)

    def _placed(self, vectors: Tensor) -> Tensor:
        if vectors.shape[-1] != self.dim:
            raise ArgumentError(f"vectors: expected {self.dim} numbers each, got shape {tuple(vectors.shape)}.")
        return normalize(vectors, dim=-1) if self.normalised else vectors


def certain(codes: Tensor, num_codes: int) -> dist.TorchDistribution:
    """The distribution of codes (N, P) that are sure, with event shape (P,) and the density 1 there.

    Examples
    --------
    >>> certain(torch.tensor([[0, 2]]), 3).log_prob(torch.tensor([[0, 2]]))
    tensor([0.])
    """
    chosen = one_hot(codes, num_codes).bool()
    logits = torch.zeros(chosen.shape, device=codes.device).masked_fill(~chosen, -torch.inf)
    return dist.Independent(dist.Categorical(logits=logits), 1)
