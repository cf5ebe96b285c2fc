r"""The penalty of WAE-MMD: how far the codes of all data together are from the prior, by maximum mean discrepancy.

.. math:: \mathrm{MMD}^2 = E\,k(z, z') + E\,k(\tilde z, \tilde z') - 2\,E\,k(z, \tilde z), \qquad
          z, z' \sim q(z) = \frac1N \sum_n q(z | x_n), \quad \tilde z, \tilde z' \sim p(z)

It is 0 where the two are the same distribution and, for these kernels, nowhere else. The estimate is the unbiased one,
so it may fall below 0. Letters: B rows, D numbers of a code. Sources: Gretton et al. (2012), "A kernel two-sample
test", lemma 6, https://jmlr.org/papers/v13/gretton12a.html; Tolstikhin et al. (2018), "Wasserstein auto-encoders",
algorithm 2, https://arxiv.org/abs/1711.01558.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_number, shown
from amortize.inference.penalty import Penalty, PenaltyTerm
from amortize.inference.prior_codes import PriorCodes
from amortize.program.data import Data
from amortize.program.program import Program
from amortize.program.rates import RatedRun

__all__ = ["MMD", "squared_mmd"]

KERNELS = ("inverse-multiquadratic", "gaussian")
FEWEST_ROWS = 2


@dataclass(frozen=True)
class MMD(Penalty):
    """Squared maximum mean discrepancy of the guide's draws from the prior's, over a batch.

    Parameters
    ----------
    weight
        Nats a datapoint for a squared discrepancy of 1; kernels are at most 1, so that 2 is the largest.
    kernel
        "inverse-multiquadratic", c / (c + r^2), whose heavy tails pull on codes that are far away, or "gaussian",
        exp(-r^2 / c).
    scales
        c as shares of the prior's mean squared distance between draws; the kernel is the mean over them.

    Raises
    ------
    ArgumentError
        An unknown kernel, no scales, or numbers that are not positive.

    Examples
    --------
    >>> import torch, amortize as am
    >>> vae = am.models.BernoulliVAE(data_dim=6, latent_dim=2, hidden=(8,))
    >>> objective = am.BetaELBO(beta=0.0, penalties=(am.MMD(weight=10.0),))
    >>> am.fit(vae.program(), torch.eye(6), objective=objective, num_steps=20).bound
    'distortion + 0 rate + mmd, no bound'
    """

    name: ClassVar[str] = "mmd"
    weight: float = 10.0
    kernel: Literal["inverse-multiquadratic", "gaussian"] = "inverse-multiquadratic"
    scales: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

    def __post_init__(self) -> None:
        check_number("MMD weight", self.weight)
        if self.kernel not in KERNELS:
            raise ArgumentError(f"MMD kernel: expected one of {KERNELS}, got {self.kernel!r}")
        if not isinstance(self.scales, tuple) or not self.scales:
            raise ArgumentError(f"MMD scales: expected a tuple of positive numbers, got {shown(self.scales)}")
        for scale in self.scales:
            check_number("MMD scales", scale)

    def on(self, program: Program, data: Data, *, seed: int) -> PenaltyTerm:  # noqa: ARG002 (nothing is drawn yet)
        """The penalty on a program."""
        return _Term(self, PriorCodes(program, data))

    def settings(self) -> dict[str, Any]:
        """What to write down."""
        return {"name": self.name, **asdict(self)}


class _Term(PenaltyTerm):
    def __init__(self, settings: MMD, codes: PriorCodes) -> None:
        super().__init__()
        self.chosen, self._codes = settings, codes

    def forward(self, batch: Data, run: RatedRun) -> Tensor:
        """Of one batch; nothing where it has a single row, which no pair can be made of."""
        codes = self._codes.of(run)
        if len(codes) < FEWEST_ROWS:
            return torch.zeros_like(run.outside)
        prior = self._codes.drawn(batch, run)
        return self.chosen.weight * squared_mmd(codes, prior, kernel=self.chosen.kernel, scales=self.chosen.scales)


def squared_mmd(
    codes: Tensor, prior: Tensor, *, kernel: str = "inverse-multiquadratic", scales: tuple[float, ...] = (1.0,)
) -> Tensor:
    """Unbiased estimate of the squared discrepancy, a scalar with gradients.

    Parameters
    ----------
    codes, prior
        (B, D) each, independent draws, at least two.
    kernel, scales
        As for `MMD`; distances are in units of the mean squared distance between rows of ``prior``.

    Examples
    --------
    >>> stream = torch.Generator().manual_seed(0)
    >>> near, far = torch.randn(200, 2, generator=stream), torch.randn(200, 2, generator=stream) + 3
    >>> bool(squared_mmd(far, near) > 0.5)
    True
    """
    if codes.shape != prior.shape or codes.ndim != 2 or len(codes) < FEWEST_ROWS:
        raise ArgumentError(
            f"codes, prior: expected the same shape (B, D), B > 1, got {tuple(codes.shape)}, {tuple(prior.shape)}"
        )
    within, between, across = _squares(codes, codes), _squares(prior, prior), _squares(codes, prior)
    unit = between.sum().detach() / (len(prior) * (len(prior) - 1))
    total = codes.new_zeros(())
    for scale in scales:
        same = _off_diagonal(_kernel(kernel, within, scale * unit)) + _off_diagonal(
            _kernel(kernel, between, scale * unit)
        )
        total = total + same - 2 * _kernel(kernel, across, scale * unit).mean()
    return total / len(scales)


def _squares(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances (B, B)."""
    return (first[:, None] - second).square().sum(-1)


def _kernel(kernel: str, squares: Tensor, width: Tensor) -> Tensor:
    return width / (width + squares) if kernel == "inverse-multiquadratic" else (-squares / width).exp()


def _off_diagonal(values: Tensor) -> Tensor:
    """Mean over pairs of different rows; all these kernels are 1 on the diagonal."""
    num = len(values)
    return (values.sum() - num) / (num * (num - 1))
