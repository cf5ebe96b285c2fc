r"""The penalty of WAE-GAN: an adversary learns to tell codes from draws of the prior, and the guide to deceive it.

.. math:: \max_D \; E_{p(z)} \log \sigma(D(z)) + E_{q(z)} \log(1 - \sigma(D(z))), \qquad
          \min_q \; -w \, E_{q(z)} \log \sigma(D(z))

Both take a step at once, with the same optimiser: the adversary's loss does not reach the guide, nor the guide's the
adversary. Letters: B rows, D numbers of a code. Sources: Goodfellow et al. (2014), "Generative adversarial nets";
Makhzani et al. (2016), "Adversarial autoencoders", https://arxiv.org/abs/1511.05644; Tolstikhin et al. (2018),
"Wasserstein auto-encoders", algorithm 1, https://arxiv.org/abs/1711.01558.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.inference.penalty import Penalty, PenaltyTerm
from amortize.inference.prior_codes import PriorCodes
from amortize.program.data import Data
from amortize.program.program import Program
from amortize.program.rates import RatedRun
from amortize.random import pyro_rng

__all__ = ["Adversary"]


@dataclass(frozen=True)
class Adversary(Penalty):
    """A classifier of codes against draws of the prior, trained along; its weights are kept with the fit.

    Parameters
    ----------
    weight
        w, nats a datapoint for a nat of the guide's loss; that of the adversary has weight 1.
    hidden
        Widths of its hidden layers.

    Raises
    ------
    ArgumentError
        A weight or a width that is not positive.

    Examples
    --------
    >>> import torch, amortize as am
    >>> vae = am.models.BernoulliVAE(data_dim=6, latent_dim=2, hidden=(8,))
    >>> objective = am.BetaELBO(beta=0.0, penalties=(am.Adversary(weight=5.0, hidden=(16,)),))
    >>> am.fit(vae.program(), torch.eye(6), objective=objective, num_steps=20).bound
    'distortion + 0 rate + adversary, no bound'
    """

    name: ClassVar[str] = "adversary"
    weight: float = 10.0
    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        check_number("Adversary weight", self.weight)
        if not isinstance(self.hidden, tuple):
            raise ArgumentError(f"Adversary hidden: expected a tuple of widths, got {shown(self.hidden)}")
        for width in self.hidden:
            check_count("Adversary hidden", width)

    def on(self, program: Program, data: Data, *, seed: int) -> PenaltyTerm:
        """The penalty on a program, its network begun from the seed."""
        codes = PriorCodes(program, data)
        return _Term(self, codes, program.dtype, seed).to(data.index.device)

    def settings(self) -> dict[str, Any]:
        """What to write down."""
        return {"name": self.name, **asdict(self)}


class _Term(PenaltyTerm):
    def __init__(self, settings: Adversary, codes: PriorCodes, dtype: Any, seed: int) -> None:
        super().__init__()
        self.weight, self._codes = settings.weight, codes
        with pyro_rng(seed, "adversary"):
            self.network = _classifier((codes.dim, *settings.hidden, 1)).to(dtype)

    def forward(self, batch: Data, run: RatedRun) -> Tensor:
        """Its value is that of both losses; their gradients don't meet."""
        codes, prior = self._codes.of(run), self._codes.drawn(batch, run)
        learned = softplus(-self.network(prior)).mean() + softplus(self.network(codes.detach())).mean()
        frozen: Mapping[str, Tensor] = {name: value.detach() for name, value in self.network.named_parameters()}
        deceived: Tensor = softplus(-functional_call(self.network, dict(frozen), (codes,))).mean()
        return learned + self.weight * deceived


def _classifier(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in pairwise(sizes):
        layers += [nn.Linear(num_inputs, num_outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])
