"""Rows for a bridge: S draws of each of M datapoints, whose data can be replaced in place beneath a compiled graph.

Letters: S draws, M datapoints of the batch, N of the data, D latents, B = S * M rows (draw-major).
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortize.inference.bridge_model import BridgeModel, Launch
from amortize.inference.chart import MOMENT_DRAWS, Chart, gaussian_evaluate, moments_of
from amortize.inference.chunks import slices
from amortize.inference.method import MAX_ROWS
from amortize.inference.second_order import SecondOrderTerms
from amortize.inference.starts import GaussianStart, Start
from amortize.program.data import Data
from amortize.program.leaves import take_rows
from amortize.random import generator, stream_seed

__all__ = ["Batch", "charts_of", "refillable"]


def charts_of(start: Start, data: Data, seed: int) -> Chart:
    """Coordinates for each of the N datapoints: those of a Gaussian start itself, or the moments of draws."""
    if isinstance(start, GaussianStart):
        return Chart(start.loc, start.scale_tril)
    size = max(1, MAX_ROWS // (MOMENT_DRAWS * start.log_joint.num_tiles))
    parts = [
        moments_of(start.rows(rows), data.rows(rows), stream_seed(seed, rows.start))
        for rows in slices(data.num_datapoints, size)
    ]
    return Chart(*(torch.cat(tables) for tables in zip(*parts, strict=True)))


def refillable(data: Data) -> bool:
    """Whether other datapoints' numbers fit in place of these: plain tensors, taken by their first index."""
    return all(take in (None, take_rows) for take in data.takes)


class Batch:
    """Draws, log terms and features of some datapoints.

    Parameters
    ----------
    start, data
        The start and all N datapoints.
    charts
        Coordinates of all of them.
    index
        (M,) which of them are in the batch.
    num_draws
        S.
    trained_base
        Whether a trained Gaussian takes the place of the start.
    backend, num_calls
        As for ``Compiled``.
    """

    def __init__(  # noqa: PLR0913 (what rows are made of)
        self,
        start: Start,
        data: Data,
        charts: Chart,
        *,
        index: Tensor,
        num_draws: int,
        trained_base: bool = False,
        backend: str = "auto",
        num_calls: int = 0,
    ) -> None:
        self.start, self.data, self.charts, self.num_draws = start, data, charts, num_draws
        self.gaussian = trained_base or isinstance(start, GaussianStart)
        self.index = index
        self.rows = data.rows(index)
        self.folded = self.rows.fold(num_draws)
        chart = self._chart()
        noise = generator(0, "trace", device=chart.loc.device)
        shape = (num_draws * len(index), chart.loc.shape[-1])
        examples = [
            chart.u(0.5 * torch.randn(shape, generator=noise, device=chart.loc.device, dtype=chart.loc.dtype))
            for _ in range(2)
        ]
        terms = self._joint if self.gaussian else self._both
        self.terms = SecondOrderTerms(terms, (examples[0], examples[1]), backend=backend, num_calls=num_calls)

    def refill(self, index: Tensor) -> None:
        """Put other datapoints in, as many as before."""
        assert len(index) == len(self.index)
        self.index = index
        self.rows = self.data.rows(index)
        fresh = self.rows.fold(self.num_draws)
        for own, new, take in zip(self.folded.leaves, fresh.leaves, self.folded.takes, strict=True):
            if take is not None:
                own.copy_(new)
        self.folded.index.copy_(fresh.index)

    def launch(self, model: BridgeModel, seed: int, stream: str) -> Launch:
        """Exact draws of the start, in its coordinates, and the log terms there."""
        features = model.read(self.rows)
        chart = self._chart() if model.base is None else model.base.chart(self.rows.index)
        if self.gaussian:
            noise = generator(seed, stream, device=chart.loc.device)
            shape = (self.num_draws * len(self.index), chart.loc.shape[-1])
            z = torch.randn(shape, generator=noise, device=chart.loc.device, dtype=chart.loc.dtype)
            return Launch(z, gaussian_evaluate(chart, self.terms), features)
        with torch.no_grad():
            z = chart.z(self._held().draw(self.folded, seed, stream).u)
        return Launch(z, chart.evaluate(self.terms), features)

    def _held(self) -> Start:
        return self.start.rows(self.index)

    def _chart(self) -> Chart:
        return Chart(self.charts.loc[self.index], self.charts.scale[self.index])

    def _joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing, and the log joint."""
        return torch.zeros_like(u[:, 0]), self.start.log_joint.terms(self.folded, u=u).joint

    def _both(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._held().terms(self.folded, u)
