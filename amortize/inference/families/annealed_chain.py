r"""The chains of annealed local posteriors: bridges from Gaussians, all of whose parameters belong to one row.

In the coordinates z of the Gaussian, u = m + A z, a bridge of K steps (``bridge``) with temperatures and step sizes of
its own, and in the kinds that learn one a small score network of its own:

.. math:: c(z, v, t) = a_t \odot z + b_t \odot v + W_2\, \mathrm{silu}(W_1 [z, v] + e_t) + d_t

It begins at zero, so that "mcd" begins as "ula" and "ldvi" as "uha".

Letters: S draws, N rows, D latents, K steps, H hidden units, P parameters a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amortize.inference.bridge import SCORED, UNDERDAMPED, Evaluate, Score, Steps, bridge
from amortize.inference.chart import Chart, gaussian_evaluate
from amortize.inference.families.family import Parameters
from amortize.inference.path import Point

__all__ = ["Chain", "Ran"]

FIRST_PERSISTENCE = 0.8
NETWORK_UNIT = 0.2  # of a network's weights for a step of 1: they are many and have no units


class Ran(NamedTuple):
    """Where chains ended: ``u`` (S, N, D), log weights and the target, (S, N) nats each."""

    u: Tensor
    log_weights: Tensor
    log_p: Tensor


@dataclass(frozen=True)
class Chain:
    """Kind and sizes of the chains of one datapoint."""

    kind: str
    num_steps: int
    dim: int
    hidden: int

    @property
    def units(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """By name of a parameter, its shape for one datapoint, and what a step of 1 of the optimiser means in it."""
        num, dim, hidden = self.num_steps, self.dim, self.hidden
        moments = 2 if self.kind in UNDERDAMPED else 1
        units: dict[str, tuple[tuple[int, ...], float]] = {
            "shift": ((dim,), 1.0),
            "log_stretch": ((dim,), 1.0),
            "lower": ((dim * (dim - 1) // 2,), dim**-0.5),
            "log_step_sizes": ((num,), 1.0),
            "log_widths": ((dim,), 1.0),
            "log_increments": ((num,), 1.0),
        }
        if self.kind in UNDERDAMPED:
            units["logit_persistence"] = ((1,), 1.0)
        if self.kind in SCORED:
            units["score_linear"] = ((num, moments, dim), 1.0)
            units["score_shift"] = ((num, dim), 1.0)
            units["score_first"] = ((moments * dim, hidden), NETWORK_UNIT)
            units["score_times"] = ((num, hidden), NETWORK_UNIT)
            units["score_last"] = ((hidden, dim), NETWORK_UNIT)
        return units

    def theta(self, parameters: Parameters) -> Tensor:
        """What the optimiser moves, (N, P)."""
        return torch.cat([parameters[name].flatten(1) / unit for name, (_, unit) in self.units.items()], -1)

    def parameters(self, theta: Tensor) -> Parameters:
        """By name, (N, ...) each."""
        sizes = [math.prod(shape) for shape, _ in self.units.values()]
        parts = torch.split(theta, sizes, -1)
        return {
            name: (part * unit).reshape(len(theta), *shape)
            for part, (name, (shape, unit)) in zip(parts, self.units.items(), strict=True)
        }

    def first(self, step_size: Tensor, generator: torch.Generator) -> Parameters:
        """Where training begins: the Gaussian as it is, even temperatures, steps of ``step_size`` (N,), no score."""
        num = len(step_size)
        values = {name: step_size.new_zeros(num, *shape) for name, (shape, _) in self.units.items()}
        values["log_step_sizes"] += step_size.log().unsqueeze(-1)
        if "logit_persistence" in values:
            values["logit_persistence"] += math.log(FIRST_PERSISTENCE / (1 - FIRST_PERSISTENCE))
        for name in ("score_first", "score_times"):
            if name in values:
                shape = values[name].shape[1:]
                draws = torch.randn(shape, generator=generator, device=step_size.device, dtype=step_size.dtype)
                values[name] += draws / (shape[0] ** 0.5 if name == "score_first" else 1.0)
        return values

    def run(
        self, parameters: Parameters, frame: Chart, joint: Evaluate, num_draws: int, generator: torch.Generator
    ) -> Ran:
        """Chains of N rows from Gaussians that are those of ``frame``, shifted and stretched."""
        chart = self.chart(parameters, frame)
        last: list[Point] = []

        def evaluate(z: Tensor) -> Point:
            last[:] = [moving(z)]
            return last[0]

        moving = gaussian_evaluate(chart, joint)
        shape = (num_draws * len(frame.loc), self.dim)
        z = torch.randn(shape, generator=generator, device=frame.loc.device, dtype=frame.loc.dtype)
        score = self._score(parameters) if self.kind in SCORED else None
        ended = bridge(self.kind, evaluate, z, self._steps(parameters, num_draws), generator, score=score)
        (end,) = last  # a bridge evaluates the place where it ends last
        log_p = (end.base + end.ratio).reshape(num_draws, -1)
        u = chart.u(ended.u).reshape(num_draws, -1, self.dim)
        return Ran(u, ended.log_weights.reshape(num_draws, -1), log_p)

    def chart(self, parameters: Parameters, frame: Chart) -> Chart:
        """The Gaussians that chains start from."""
        row, column = torch.tril_indices(self.dim, self.dim, -1, device=frame.loc.device)
        inner = torch.diag_embed(parameters["log_stretch"].exp())
        inner = inner.index_put(
            (torch.arange(len(inner), device=row.device)[:, None], row, column), parameters["lower"]
        )
        return Chart(frame.loc + torch.einsum("nij,nj->ni", frame.scale, parameters["shift"]), frame.scale @ inner)

    def _steps(self, parameters: Parameters, num_draws: int) -> Steps:
        increments = parameters["log_increments"].softmax(-1)
        inner = increments.cumsum(-1)[:, :-1]
        betas = torch.cat([torch.zeros_like(increments[:, :1]), inner, torch.ones_like(increments[:, :1])], -1)
        sizes = parameters["log_step_sizes"].unsqueeze(-1) + parameters["log_widths"].unsqueeze(1)
        keep = parameters.get("logit_persistence")
        return Steps(
            betas.T.unsqueeze(-1).repeat(1, num_draws, 1),
            sizes.exp().movedim(1, 0).repeat(1, num_draws, 1),
            None if keep is None else keep.sigmoid().repeat(num_draws, 1),
        )

    def _score(self, parameters: Parameters) -> Score:
        def score(z: Tensor, v: Tensor | None, t: int) -> Tensor:
            parts = [part.reshape(-1, len(parameters["shift"]), self.dim) for part in ((z,) if v is None else (z, v))]
            straight = parameters["score_shift"][:, t - 1]
            for number, part in enumerate(parts):
                straight = straight + parameters["score_linear"][:, t - 1, number] * part
            hidden = torch.einsum("snd,ndh->snh", torch.cat(parts, -1), parameters["score_first"])
            hidden = torch.nn.functional.silu(hidden + parameters["score_times"][:, t - 1])
            return (straight + torch.einsum("snh,nhd->snd", hidden, parameters["score_last"])).reshape(z.shape)

        return score
