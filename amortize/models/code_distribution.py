r"""Distributions of grids of codes, one position after another, and what the networks behind them must say.

.. math:: p(k | c) = \prod_{i=1}^P p(k_i | k_1, \ldots, k_{i-1}, c)

in raster order, normalised by construction. Letters: P positions, K codes, H numbers of a condition at each position,
C what enters each position of the network, B rows; leading sizes are free. Source: van den Oord et al. (2017), "Neural
discrete representation learning", section 3.3, https://arxiv.org/abs/1711.00937.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import cross_entropy

from amortize.errors import ArgumentError, check_count
from amortize.models.networks import seeded_linear
from amortize.models.transformer import seeded_places

__all__ = ["AutoregressiveCodes", "CausalCodes", "CodePrior", "check_condition"]

MAX_ROWS = 1024
"""Grids that the networks see at once: what they remember of one is P times their width, and its logits P times K."""


class CodePrior(nn.Module, ABC):
    """A prior of P codes: called without arguments, or with a condition (..., P, H), it gives their distribution.

    Parameters
    ----------
    num_positions, num_codes
        P and K.
    condition_dim
        H; 0 for a prior without a condition.

    Raises
    ------
    ArgumentError
        A size that is not positive, or a negative H.
    """

    def __init__(self, num_positions: int, num_codes: int, condition_dim: int = 0) -> None:
        super().__init__()
        self.num_positions = check_count("num_positions", num_positions)
        self.num_codes = check_count("num_codes", num_codes)
        self.condition_dim = check_count("condition_dim", condition_dim, 0)

    @abstractmethod
    def forward(self, condition: Tensor | None = None) -> dist.Distribution:
        """The distribution of codes (P,); its batch shape is the condition's leading sizes."""


class CausalCodes(CodePrior):
    """A prior whose network reads the codes before each position.

    It begins as the uniform prior, for the last layer begins at zero: what training adds is a gain over it.

    Parameters
    ----------
    num_positions, num_codes, condition_dim
        As for `CodePrior`.
    entry_dim
        C.
    generator
        Where the initial weights come from.
    """

    def __init__(
        self, num_positions: int, num_codes: int, condition_dim: int, entry_dim: int, *, generator: torch.Generator
    ) -> None:
        super().__init__(num_positions, num_codes, condition_dim)
        width = check_count("width", entry_dim)
        self.places = seeded_places(num_positions, width, generator=generator)
        begun = torch.randn(num_codes, width, generator=generator)
        self.vectors = nn.Embedding(num_codes, width, _weight=begun)
        self.told = seeded_linear(condition_dim, width, generator=generator) if condition_dim else None

    def forward(self, condition: Tensor | None = None) -> AutoregressiveCodes:
        """The distribution of codes (P,), given a condition (..., P, H) where there is one.

        Raises
        ------
        ArgumentError
            No condition where one is due, one where none is, or one of another shape.
        """
        check_condition(self, condition)
        if condition is None or self.told is None:
            return AutoregressiveCodes(self, self.places)
        return AutoregressiveCodes(self, self.places + self.told(condition))

    @abstractmethod
    def logits(self, codes: Tensor, entered: Tensor) -> Tensor:
        """Logits (B, P, K) of every position, given the codes before it, of codes (B, P) and what enters (B, P, C)."""

    @abstractmethod
    def draw(self, entered: Tensor) -> Tensor:
        """Codes (B, P) from the global generator of torch, one position after another."""


class AutoregressiveCodes(TorchDistribution):
    """Codes of a grid, each given those before it.

    Parameters
    ----------
    network
        With ``logits`` and ``draw``.
    entered
        What each position is told beside the codes, (..., P, C); its leading sizes are the batch shape.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch has it)
    has_rsample = False

    def __init__(self, network: CausalCodes, entered: Tensor, validate_args: bool | None = None) -> None:
        self.network, self.entered = network, entered
        super().__init__(entered.shape[:-2], entered.shape[-2:-1], validate_args=validate_args)

    @property
    def support(self) -> Any:
        """P integers from 0 to K - 1."""
        each = constraints.integer_interval(0, self.network.num_codes - 1)  # type: ignore[no-untyped-call]
        return constraints.independent(each, 1)  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveCodes:
        """The same codes for a larger batch."""
        entered = self.entered.expand(*batch_shape, *self.entered.shape[-2:])
        return AutoregressiveCodes(self.network, entered, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, one for each grid (..., P)."""
        if self._validate_args:
            self._validate_sample(value)
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)  # type: ignore[no-untyped-call]
        codes = value.long().expand(*leading, -1).flatten(0, -2) if leading else value.long().unsqueeze(0)
        entered = self.entered.expand(*leading, -1, -1).reshape(len(codes), *self.entered.shape[-2:])
        parts = zip(torch.split(codes, MAX_ROWS), torch.split(entered, MAX_ROWS), strict=True)
        return torch.cat([self._of_rows(*part) for part in parts]).reshape(leading)

    def _of_rows(self, codes: Tensor, entered: Tensor) -> Tensor:
        """Of codes (B, P) and what enters (B, P, C)."""
        logits = self.network.logits(codes, entered)
        return -cross_entropy(logits.transpose(1, 2), codes, reduction="none").sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Codes (..., P), drawn in raster order from the global generator of torch."""
        with torch.no_grad():
            entered = self.entered.expand(*sample_shape, *self.entered.shape)
            parts = torch.split(entered.reshape(-1, *self.entered.shape[-2:]), MAX_ROWS)
            return torch.cat([self.network.draw(part) for part in parts]).reshape(entered.shape[:-1])


def check_condition(prior: CodePrior, condition: Tensor | None) -> None:
    """Refuse a condition that the prior was not made for.

    Raises
    ------
    ArgumentError
        What was expected, and what came.
    """
    expected = (prior.num_positions, prior.condition_dim)
    if condition is None and not prior.condition_dim:
        return
    if condition is None:
        raise ArgumentError(f"condition: expected numbers of shape (..., {expected[0]}, {expected[1]}), got none")
    if not prior.condition_dim:
        raise ArgumentError(
            "condition: expected none, for the prior has condition_dim = 0; make it with condition_dim= the number of "
            f"numbers at each position, got one of shape {tuple(condition.shape)}"
        )
    if condition.shape[-2:] != expected:
        raise ArgumentError(
            f"condition: expected numbers of shape (..., {expected[0]}, {expected[1]}), got {tuple(condition.shape)}"
        )
