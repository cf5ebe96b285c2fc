"""Guides of a whole data set, and AutoGuides, on a batch in training: see ``guide_runs``.

Letters: K particles, N datapoints, B = K * N rows (particle-major), D continuous latents.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from amortize.program.autoguide import AutoDensity
from amortize.program.data import Data
from amortize.program.guide_runs import Drawn, GuideRun, leaf
from amortize.program.whole_guide import WholeGuide

__all__ = ["AutoRun", "WholeRun"]


class WholeRun(GuideRun):
    """A guide of a whole data set, run once a particle."""

    def __init__(self, guide: WholeGuide, data: Data) -> None:
        self.guide, self.data = guide, data

    def draw(self, num_particles: int, *, cut: bool, pathwise: bool) -> Drawn:
        """One run a particle; where cut, the density is that of a run with the values put in."""
        folded = self.data.fold(num_particles)
        sources, log_q = self.guide.runner.draw(folded, pathwise=pathwise)
        zero = log_q.new_zeros(())
        if not cut:
            return Drawn(sources, sources, log_q, zero)
        values = {name: leaf(value, differentiable=pathwise) for name, value in sources.items()}
        return Drawn(values, sources, self.log_q(folded, values), zero)

    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Runs with the values put in."""
        return self.guide.log_density(folded, values)


class AutoRun(GuideRun):
    """An AutoGuide: draws are u (B, D), under the name `U`, and log q is over u."""

    U = "u"

    def __init__(self, guide: AutoDensity, data: Data) -> None:
        self.guide, self.data = guide, data

    def draw(self, num_particles: int, *, cut: bool, pathwise: bool) -> Drawn:
        """From its parameters, without a run."""
        folded = self.data.fold(num_particles)
        source = self.guide.draw_u(folded)
        value = leaf(source, differentiable=pathwise) if cut else source
        log_q = self.guide.density_of_u(folded, value)
        return Drawn({self.U: value}, {self.U: source}, log_q, log_q.new_zeros(()))

    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """From its parameters."""
        return self.guide.density_of_u(folded, values[self.U])
