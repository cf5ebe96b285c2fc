r"""The penalty of contractive autoencoders: how much codes move when the data do.

.. math:: \lambda\, \frac1N \sum_n \Bigl\| \frac{\partial z(x_n)}{\partial x_n} \Bigr\|_F^2

exactly, not by random directions. Letters: N datapoints of a batch, D numbers of a code, X numbers of a datapoint.
Source: Rifai et al. (2011), "Contractive auto-encoders: explicit invariance during feature extraction",
https://icml.cc/2011/papers/455_icmlpaper.pdf.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_number, shown
from amortize.inference.penalty import Penalty, PenaltyTerm
from amortize.program.data import Data
from amortize.program.jacobian import code_jacobian, moving_leaves
from amortize.program.points import point_sites
from amortize.program.program import Program
from amortize.program.rates import RatedRun

__all__ = ["Contraction"]


@dataclass(frozen=True)
class Contraction(Penalty):
    """Squared Frobenius norm of the Jacobian of a point guide's codes; it costs a backward pass an entry of the code.

    Parameters
    ----------
    weight
        lambda, nats a datapoint for a squared norm of 1; 0 or more.
    scaling
        Units of the data that the Jacobian is taken by: "none", their own, or "shared", the root mean square deviation
        of all entries from their columns' means, measured on the training data.

    Raises
    ------
    ArgumentError
        If the weight is negative, or the scaling unknown; on a program, if its guide is no point or its data don't
        vary.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    >>> model = am.models.Autoencoder.from_data(x, latent_dim=2, hidden=(8,))
    >>> objective = am.BetaELBO(beta=0.0, penalties=(am.Contraction(weight=0.1),))
    >>> am.fit(model.program(), x, objective=objective, num_steps=10).bound
    'distortion + 0 rate + contraction, no bound'
    """

    name: ClassVar[str] = "contraction"
    weight: float = 0.1
    scaling: Literal["none", "shared"] = "none"

    def __post_init__(self) -> None:
        check_number("Contraction weight", self.weight, "[0, inf)")
        if self.scaling not in ("none", "shared"):
            raise ArgumentError(f"Contraction scaling: expected 'none' or 'shared', got {shown(self.scaling)}")

    def on(self, program: Program, data: Data, *, seed: int) -> PenaltyTerm:  # noqa: ARG002 (nothing is drawn)
        """The penalty on a program."""
        return _Term(self, program, data)

    def settings(self) -> dict[str, Any]:
        """What to write down."""
        return {"name": self.name, **asdict(self)}


class _Term(PenaltyTerm):
    def __init__(self, chosen: Contraction, program: Program, data: Data) -> None:
        super().__init__()
        self.weight = chosen.weight * (_mean_variance(data) if chosen.scaling == "shared" else 1.0)
        self._program = [program]  # in a list: its parameters are not the penalty's own
        self._structure = program.structure(data)
        if set(point_sites(program, data)) != set(self._structure.sites):
            raise ArgumentError("Contraction: expected a guide that is a point at every latent, got one with spread.")

    def forward(self, batch: Data, run: RatedRun) -> Tensor:  # noqa: ARG002 (codes there know no slope by the data)
        """Of one batch."""
        jacobian = code_jacobian(self._program[0], self._structure, batch)
        return self.weight * jacobian.square().sum((1, 2)).mean()


def _mean_variance(data: Data) -> float:
    """Of all entries of floating-point data around their columns' means."""
    leaves = [leaf.double().reshape(data.num_datapoints, -1) for leaf in moving_leaves(data).values()]
    variances = torch.cat([leaf.var(0, correction=0) for leaf in leaves]) if leaves else torch.zeros(1)
    mean = float(variances.mean())
    if not mean > 0:
        raise ArgumentError("Contraction: expected floating-point data that vary, for scaling='shared'.")
    return mean
