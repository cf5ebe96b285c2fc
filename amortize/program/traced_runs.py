"""Guides that run as Pyro programs, on a batch in training: see ``guide_runs``.

Letters: K particles, N datapoints, B = K * N rows (particle-major).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortize.program.data import Data
from amortize.program.discover import run_recorded
from amortize.program.guide import TracedGuide
from amortize.program.guide_runs import Drawn, GuideRun, frozen_statistics, leaf, require_path
from amortize.program.handlers import LogTerms, Record, Score, Substitute, data_dim, log_density, unmasked, unvalidated
from amortize.program.masks import mask_of
from amortize.random import generator

__all__ = ["CapturedRun", "TracedRun", "captured_run", "reads_no_draws"]

PROBES = 3
CHOICES = 16
"""Runs where draws are discrete: some of any few runs draw the same."""


class CapturedRun(GuideRun):
    """The distributions that one run of the guide stated.

    Parameters
    ----------
    guide
        Whose sites read none of its draws.
    messages
        By site, latents alone.
    auxiliary
        Terms of the loss alone, a scalar.
    """

    def __init__(self, guide: TracedGuide, messages: Mapping[str, Mapping[str, Any]], auxiliary: Tensor) -> None:
        self.guide, self.messages, self.auxiliary = guide, messages, auxiliary

    def draw(self, num_particles: int, *, cut: bool, pathwise: bool) -> Drawn:
        """From the distributions; without further runs of the guide."""
        values: dict[str, Tensor] = {}
        sources: dict[str, Tensor] = {}
        log_qs: dict[str, Tensor] = {}
        for name, msg in self.messages.items():
            require_path(name, msg["fn"], pathwise)
            draw = msg["fn"].rsample if pathwise else msg["fn"].sample
            raw = draw((num_particles,))
            front = self.guide.sites[name].front
            sources[name] = raw.movedim(0, front).flatten(front, front + 1)
            values[name] = leaf(sources[name], differentiable=pathwise) if cut else sources[name]
            at = _unfolded(values[name], front, num_particles) if cut else raw
            log_qs[name] = self._log_density(name, at).flatten()
        log_q = sum(log_qs.values(), self.guide.log_joint.like.new_zeros(()))
        return Drawn(values, sources, log_q, self.auxiliary, log_qs=log_qs)

    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """By the distributions."""
        total = self.guide.log_joint.like.new_zeros(folded.num_datapoints)
        for name, msg in self.messages.items():
            site = self.guide.sites[name]
            num = msg["value"].shape[site.front]
            value = _unfolded(values[name], site.front, folded.num_datapoints // num)
            total = total + self._log_density(name, value).flatten()
        return total

    def moments(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Where each distribution has them."""
        try:
            return {name: (msg["fn"].mean, msg["fn"].stddev) for name, msg in self.messages.items()}
        except (NotImplementedError, AttributeError):
            return None

    def _log_density(self, name: str, value: Tensor) -> Tensor:
        """Of draws (K, ...): (K, N)."""
        msg = self.messages[name]
        log_prob = log_density(unmasked(msg["fn"]), value)
        mask = mask_of(msg) if name in self.guide.hides else None
        if mask is not None:
            log_prob = torch.where(mask, log_prob, 0.0)
        dim = data_dim(msg, self.guide.plate)
        assert dim is not None
        rows: Tensor = log_prob.movedim(log_prob.dim() + dim, 1).flatten(2).sum(-1) if log_prob.dim() > 2 else log_prob
        return rows


class TracedRun(GuideRun):
    """A guide that runs on the batch folded, each time that it is asked.

    Parameters
    ----------
    guide, data
        The guide and the batch.
    """

    def __init__(self, guide: TracedGuide, data: Data) -> None:
        self.guide, self.data = guide, data

    def draw(self, num_particles: int, *, cut: bool, pathwise: bool) -> Drawn:
        """One run."""
        folded, guide = self.data.fold(num_particles), self.guide
        terms = LogTerms(folded.num_datapoints, guide.log_joint.like)
        score = Score(guide.sites, guide.plate, terms, hides=guide.hides, stands_in=False)
        steer = _Steer(guide.sites, cut=cut, pathwise=pathwise)
        with unvalidated(), steer, score:  # outermost, so that a draw is cut before it is scored
            guide.runner.function(*folded.args, **folded.kwargs)
        auxiliary = terms.observed.sum() / num_particles
        chained = cut and len(guide.sites) > 1
        return Drawn(score.values, steer.sources, terms.latent, auxiliary, chained, terms.by_site)

    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Another run, with the values put in; running statistics stay as they are."""
        program = self.guide.log_joint.program
        with frozen_statistics(program):
            return self.guide.log_density(folded, values)


def captured_run(guide: TracedGuide, data: Data) -> CapturedRun:
    """Run the guide once and keep its distributions."""
    record, terms = Record(), LogTerms(data.num_datapoints, guide.log_joint.like)
    score = Score(guide.sites, guide.plate, terms, hides=guide.hides, stands_in=False)
    with unvalidated(), record, score:
        guide.runner.function(*data.args, **data.kwargs)
    return CapturedRun(guide, {name: record.messages[name] for name in guide.sites}, terms.observed.sum())


def reads_no_draws(guide: TracedGuide, data: Data) -> bool:
    """Whether the guide's distributions are the same whatever it drew, on a few datapoints."""
    if len(guide.sites) == 1:
        return True
    runs, discrete = [], any(site.discrete for site in guide.sites.values())
    for number in range(CHOICES if discrete else PROBES):
        with Substitute(guide.sites, LogTerms(0, guide.log_joint.like), choices=_any_choices(guide, data, number)):
            runs.append(run_recorded(guide.runner.function, data, number, "check"))
    with unvalidated(), torch.no_grad():
        for name in guide.sites:
            values = [runs[0][name]["value"], runs[-1][name]["value"]]
            for value in values:
                first, *others = (unmasked(run[name]["fn"]).log_prob(value) for run in runs)
                if not all(torch.equal(first, other) for other in others):
                    return False
    return True


def _any_choices(guide: TracedGuide, data: Data, number: int) -> dict[str, Tensor]:
    """Values of discrete sites (N, M) by site, each as likely: a guide that is sure would draw the same in every run.

    None for the first run, which is the guide's own.
    """
    stream, device = generator(number, "check", "choices"), data.index.device
    sites = [site for site in guide.sites.values() if site.cardinality] if number else []
    shapes = {site.name: (data.num_datapoints, site.num_variables) for site in sites}
    return {
        site.name: torch.randint(site.cardinality, shapes[site.name], generator=stream).to(device) for site in sites
    }


class _Steer(Messenger):
    """Cut the gradient at each draw, before later sites read it."""

    def __init__(self, sites: Mapping[str, Any], *, cut: bool, pathwise: bool) -> None:
        super().__init__()
        self.sites, self.cut, self.pathwise = sites, cut, pathwise
        self.sources: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name not in self.sites or msg["is_observed"]:
            return
        require_path(name, msg["fn"], self.pathwise)
        self.sources[name] = msg["value"]
        if self.cut:
            msg["value"] = leaf(msg["value"], differentiable=self.pathwise)


def _unfolded(value: Tensor, front: int, num_particles: int) -> Tensor:
    """(K, ...) of a value whose data axis ``front`` holds K * N rows."""
    shape = value.shape
    return value.reshape(*shape[:front], num_particles, -1, *shape[front + 1 :]).movedim(front, 0)
