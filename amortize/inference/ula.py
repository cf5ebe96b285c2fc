r"""The unadjusted Langevin algorithm on a tempered density, exact in the weights it leaves.

The step of ``mala`` without its Metropolis correction does not leave :math:`\pi_\beta` as it is. Annealing over it is
exact all the same once the weight takes in the ratio that would have been the acceptance,

.. math:: c = \log \frac{\pi_\beta(u') \, F(u' \to u)}{\pi_\beta(u) \, F(u \to u')}

with F the density of the step: importance sampling of whole paths, whose backward kernels are the steps themselves
(Heng, Bishop, Deligiannidis and Doucet 2020, "Controlled sequential Monte Carlo"; Wu, Koehler and Noe 2020,
"Stochastic normalizing flows"; Thin et al. 2021, "Monte Carlo variational auto-encoders").

A step to where the energy is not finite can't be weighed: the row stays where it was, with weight 0 from then on, and
the step is counted. That underestimates, never overestimates, the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amortize.inference.kernels import Info, Kernel, Parameters, Target, Transition, choose
from amortize.inference.leapfrog import propose
from amortize.inference.mala import LARGEST_STEP
from amortize.inference.path import Point

__all__ = ["ULA", "ula"]


@dataclass(frozen=True)
class ULA(Kernel):
    """Settings of the kernel.

    Examples
    --------
    >>> import amortize as am
    >>> am.AIS(kernel=am.ULA(), num_temperatures=1000).kernel
    ULA()
    """

    @property
    def transition(self) -> Transition:
        """``ula``."""
        return ula

    @property
    def num_gradients(self) -> int:
        """One."""
        return 1

    @property
    def target_acceptance(self) -> float:
        """Of the ratio that the weight absorbs, were it an acceptance: small steps, whose corrections vary little."""
        return 0.95

    @property
    def largest_step(self) -> float:
        """The square root of 2."""
        return LARGEST_STEP


@torch.no_grad()
def ula(state: Point, target: Target, parameters: Parameters, generator: torch.Generator) -> tuple[Point, Info]:
    """One step of B independent rows; ``log_correction`` is its log Metropolis ratio, -inf where that isn't finite."""
    proposed = propose(state, target, parameters, generator, num_steps=1)
    ratio = proposed.log_ratio
    correction = torch.where(torch.isfinite(ratio), ratio, -torch.inf)  # +inf: from where the density was 0
    info = Info(ratio.clamp(max=0).exp(), proposed.finite, correction)
    return choose(ratio > -torch.inf, proposed.point, state), info
