"""Whether a model takes soft values of its discrete latents: a control variate made of them may not jump.

Where a draw passes from one hard value to another, a model that rounds its latents, or looks one up by argmax, jumps;
the path of such a control variate misses the jump, and the estimate is biased without a sign of it. Letters: B rows, C
categories.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Bernoulli
from torch.nn.functional import one_hot

from amortize.errors import DiscreteLatentError
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.program.probes import head_of
from amortize.program.steered import steered
from amortize.program.trained import TrainedProgram
from amortize.random import generator

__all__ = ["require_soft"]

FAR, NEAR = 1e-2, 1e-5
"""Steps from a tie of two hard values: what is continuous changes a thousand times less over the shorter one."""
NOISE = 1e-2  # nats, of rounding


def require_soft(trained: TrainedProgram, data: Data, kinds: Mapping[str, type]) -> None:
    """Try on a few datapoints, on both sides of a tie; a jump elsewhere is not seen.

    Raises
    ------
    DiscreteLatentError
        If the log joint jumps there.
    """
    far, near = (_change(trained, head_of(data), kinds, step) for step in (FAR, NEAR))
    if bool((near > 0.1 * far + NOISE).any()):
        raise DiscreteLatentError(
            "the model's log joint jumps between soft values of its discrete latents, as it does where a model rounds "
            "them or indexes by their argmax, and RELAX would be biased. Let the model take them as numbers (z @ table "
            "in place of table[z.argmax(-1)]), or train by objective='leave-one-out' or 'nvil', which take any model"
        )


def _change(trained: TrainedProgram, head: Data, kinds: Mapping[str, type], step: float) -> Tensor:
    """Of the log joint from one side of a tie of each variable to the other, (B,) nats."""
    found = []
    for side in (0, 1):

        def choose(name: str, logits: Tensor, side: int = side) -> Tensor:
            first = torch.rand(logits.shape, generator=generator(0, "soft", name)).to(logits)
            away = step * (2.0 * side - 1.0)
            if kinds[name] is Bernoulli:
                return (0.5 + away * (first - 0.5).sign()).requires_grad_()
            count = logits.shape[-1]
            one, other = (one_hot((first.argmax(-1) + i) % count, count).to(logits) for i in (0, 1))
            return ((0.5 + away) * one + (0.5 - away) * other).requires_grad_()

        with trained.program.evaluating(), trained.filled(), unvalidated():
            drawn = steered(trained, trained.run_guide(head), head, choose)
            found.append(trained.log_joint_at(head, drawn.values)[0].detach())
    return (found[1] - found[0]).abs()
