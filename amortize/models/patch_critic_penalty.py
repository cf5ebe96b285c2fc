"""The critic of patches as a penalty of `amortize.models.quantised_elbo.QuantisedELBO`.

Letters: N datapoints, X = side * side pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.models.patch_critic import Distance, PatchCritic, PatchGame
from amortize.models.quantised import Quantised, QuantisedRun
from amortize.models.quantised_elbo import QuantisedPenalty, QuantisedPenaltyTerm
from amortize.program.data import Data
from amortize.random import generator

__all__ = ["PatchAdversary"]


@dataclass(frozen=True)
class PatchAdversary(QuantisedPenalty):
    """A critic of patches, trained along, and the distance of features, each weighed by the distortion's gradient.

    Parameters
    ----------
    adversarial, matching
        Lengths of their gradients at the decoder's last layer, as shares of the distortion's; 0 leaves one out.
    channels
        Of the critic, for each layer that halves the side.
    perceptual
        In place of the critic's features, how far reconstructions (N, X) are from images (N, X), a number each (N,): a
        function, or a network, which is not trained.

    Raises
    ------
    ArgumentError
        A share below 0, channels that are not positive, or a distance that can't be called.

    Examples
    --------
    >>> PatchAdversary(adversarial=0.5).settings()["matching"]
    1.0
    """

    name: ClassVar[str] = "patch-adversary"
    adversarial: float = 0.8
    matching: float = 1.0
    channels: tuple[int, ...] = (32, 64)
    perceptual: Distance | None = None

    def __post_init__(self) -> None:
        check_number("PatchAdversary adversarial", self.adversarial, "[0, inf)")
        check_number("PatchAdversary matching", self.matching, "[0, inf)")
        if not isinstance(self.channels, tuple) or not self.channels:
            raise ArgumentError(
                f"PatchAdversary channels: expected a tuple of numbers, as (32, 64), got {shown(self.channels)}"
            )
        for num in self.channels:
            check_count("PatchAdversary channels", num)
        if self.perceptual is not None and not callable(self.perceptual):
            raise ArgumentError(
                "PatchAdversary perceptual: expected a function or network of two batches of images, got "
                f"{shown(self.perceptual)}"
            )

    def on(self, model: Quantised, data: Data, *, seed: int) -> QuantisedPenaltyTerm:
        """The penalty on a model, its critic begun from the seed."""
        x = data.args[0]
        critic = PatchCritic(x.shape[-1], channels=self.channels, generator=generator(seed, "critic"))
        game = PatchGame(
            critic, adversarial=self.adversarial, matching=self.matching, perceptual=_frozen(self.perceptual)
        )
        return _Term(game, _last_weight(model.decoder)).to(device=x.device, dtype=x.dtype)

    def settings(self) -> dict[str, Any]:
        """What to write down: of a perceptual distance, its name."""
        plain = {name: getattr(self, name) for name in ("adversarial", "matching")}
        named = (
            None if self.perceptual is None else getattr(self.perceptual, "__name__", type(self.perceptual).__name__)
        )
        return {"name": self.name, **plain, "channels": list(self.channels), "perceptual": named}


class _Term(QuantisedPenaltyTerm):
    def __init__(self, game: PatchGame, last: nn.Parameter) -> None:
        super().__init__()
        self.game, self._last = game, (last,)  # in a tuple: it is the model's

    def forward(self, x: Tensor, run: QuantisedRun) -> Tensor:
        """A scalar, nats a datapoint; its gradient reaches the decoder, encoder and critic."""
        likelihood: Any = run.likelihood
        distortion = -likelihood.log_prob(x).mean()
        added: Tensor = self.game(x, likelihood.mean, distortion, last=self._last[0])
        return added


def _last_weight(decoder: nn.Module) -> nn.Parameter:
    """The weights of the layer that is registered last."""
    weights = [parameter for parameter in decoder.parameters() if parameter.ndim > 1 and parameter.requires_grad]
    if not weights:
        raise ArgumentError(
            "decoder: expected one with a layer to train, at whose weights the critic's gradient is compared"
        )
    return weights[-1]


def _frozen(perceptual: Distance | None) -> Distance | None:
    """Without gradients to its parameters, where it is a network."""
    if isinstance(perceptual, nn.Module):
        perceptual.eval().requires_grad_(requires_grad=False)
    return perceptual
