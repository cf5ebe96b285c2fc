r"""Item response theory: one ability a person, and answers that are more or less likely by it.

.. math:: z_n \sim N(0, 1), \qquad x_{nj} \mid z_n \sim \mathrm{Bernoulli}(\sigma(a_j (z_n - b_j)))

The two-parameter logistic model: item j has a difficulty :math:`b_j` and a discrimination :math:`a_j`; the code keeps
the intercept :math:`-a_j b_j`. Letters: N persons, X items. Sources: Birnbaum (1968), in Lord and Novick, "Statistical
theories of mental test scores"; Bock and Aitkin (1981), "Marginal maximum likelihood estimation of item parameters";
with an encoder, Wu et al. (2020), "Variational item response theory", https://arxiv.org/abs/2002.00276.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from amortize.errors import ArgumentError, DataError, shown
from amortize.models.networks import MLP
from amortize.models.quadrature import log_integral
from amortize.models.vae import VAE, Bernoulli, DiagonalNormal, StandardNormal, log_odds_of_means, matrix_of
from amortize.random import generator

__all__ = ["ItemResponse"]

LARGEST_CORRELATION = 0.9  # of an item with the score, at the start


class ItemResponse(VAE):
    """Site ``z`` (N, 1), the ability; observed site ``x`` (N, X), zeros and ones.

    Parameters
    ----------
    discrimination, difficulty
        a and b, (X,); no a is 0.
    hidden
        Widths of the encoder's hidden layers.
    seed
        Of the encoder's weights.

    Raises
    ------
    ArgumentError
        Shapes that don't fit, or a discrimination of 0.

    Examples
    --------
    >>> import torch, amortize as am
    >>> test = am.models.ItemResponse(torch.tensor([1.0, 2.0]), torch.tensor([-0.5, 0.5]))
    >>> test.log_evidence(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).shape
    torch.Size([2])
    """

    def __init__(
        self, discrimination: Tensor, difficulty: Tensor, *, hidden: Sequence[int] = (32,), seed: int = 0
    ) -> None:
        _check(discrimination, difficulty)
        data_dim = len(discrimination)
        items = nn.Linear(1, data_dim, device="meta", dtype=discrimination.dtype).to_empty(device="cpu")
        with torch.no_grad():
            items.weight.copy_(discrimination[:, None])
            items.bias.copy_(-discrimination * difficulty)
        network = MLP((data_dim, *hidden, 2), generator=generator(seed, "encoder")).to(discrimination.dtype)
        super().__init__(prior=StandardNormal(1), decoder=Bernoulli(items), encoder=DiagonalNormal(network))
        self.data_dim = data_dim
        self.prior.to(discrimination.dtype)

    @classmethod
    def from_data(cls, x: Any, *, hidden: Sequence[int] = (32,), seed: int = 0) -> ItemResponse:
        """A model for answers x (N, X), zeros and ones, begun where each item stands with the score of a person.

        Raises
        ------
        DataError
            ``x`` is anything else, or all persons have the same score.
        """
        answers = matrix_of(x, binary=True).double()
        centred = answers - answers.mean(0)
        score = centred.sum(1)
        if not bool(score.abs().max() > 0):
            raise DataError("x: expected persons with different numbers of ones, got one score for all.")
        spread = (centred.square().sum(0) * score.square().sum()).sqrt()
        together = (centred * score[:, None]).sum(0) / torch.where(spread > 0, spread, 1.0)
        r = together.clamp(-LARGEST_CORRELATION, LARGEST_CORRELATION)
        slope = 1.7 * r / (1 - r.square()).sqrt()  # of a probit, and 1.7 of a logit make one of it
        slope = torch.where(slope.abs() < 1e-2, 1e-2, slope)
        difficulty = -log_odds_of_means(answers) / slope
        return cls(slope.float(), difficulty.float(), hidden=hidden, seed=seed)

    @property
    def items(self) -> nn.Linear:
        """Weight a (X, 1) and bias -a b (X,)."""
        assert isinstance(self.decoder, Bernoulli)
        assert isinstance(self.decoder.network, nn.Linear)
        return self.decoder.network

    @property
    def discrimination(self) -> Tensor:
        """a, (X,)."""
        return self.items.weight[:, 0]

    @property
    def difficulty(self) -> Tensor:
        """b, (X,): the ability at which one answers right half the time."""
        return -self.items.bias / self.discrimination

    def log_evidence(self, x: Any) -> Tensor:
        """Log p(x_n), (N,) nats, float64, by quadrature to 1e-10; gradients pass to the items.

        Raises
        ------
        DataError
            ``x`` is not of zeros and ones, (N, X).
        """
        answers = matrix_of(x, binary=True).to(self.items.weight.device).double()
        if answers.shape[1] != self.data_dim:
            raise DataError(f"x: expected shape (N, {self.data_dim}), got {tuple(answers.shape)}.")
        slope, intercept = self.items.weight[:, 0].double(), self.items.bias.double()

        def log_likelihood(z: Tensor) -> Tensor:
            logits = z[:, None] * slope + intercept
            return answers @ logits.T - softplus(logits).sum(1)

        return log_integral(log_likelihood, device=answers.device)


def _check(discrimination: Tensor, difficulty: Tensor) -> None:
    for name, value in (("discrimination", discrimination), ("difficulty", difficulty)):
        if not isinstance(value, Tensor) or value.ndim != 1 or len(value) != len(discrimination):
            raise ArgumentError(f"ItemResponse {name}: expected a tensor (X,), the same for both, got {shown(value)}")
    if not bool((discrimination.abs() > 0).all()):
        raise ArgumentError("ItemResponse discrimination: expected none of 0, which no difficulty goes with")
