r"""A guide on one batch in training: particles as functions of its parameters, and their density.

A guide whose sites read none of its own draws runs once a batch, whatever the number of particles: these are drawn from
the distributions that it stated. Other guides run once on the batch folded K times. Where the gradient is cut at the
draws, values are leaves of their own, z' = z, with which the guide goes on; `Drawn.through` takes a gradient at them
back to the guide's parameters, site by site from the last:

.. math:: \nabla_\phi = \sum_i g_i \frac{\partial z_i(\phi, z'_{<i})}{\partial \phi}, \qquad
          g_i = \frac{\partial f}{\partial z'_i} + \sum_{j > i} g_j \frac{\partial z_j}{\partial z'_i}

Letters: K particles, N datapoints, B = K * N rows (particle-major), D continuous latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortize.errors import DiscreteLatentError
from amortize.program.autoguide import AutoDensity
from amortize.program.data import Data
from amortize.program.guide import TracedGuide
from amortize.program.handlers import LogTerms, Record, Score, data_dim, log_density, unmasked, unvalidated
from amortize.program.masks import mask_of
from amortize.program.probes import recorded
from amortize.program.whole_guide import WholeGuide

__all__ = [
    "AutoRun",
    "CapturedRun",
    "Drawn",
    "Gate",
    "GuideRun",
    "TracedRun",
    "WholeRun",
    "captured_run",
    "frozen_statistics",
    "reads_no_draws",
]

PROBES = 3


class Drawn(NamedTuple):
    """Draws (B, ...) by site, and log q (B,) at them, nats; ``auxiliary`` is a term of the loss alone, a scalar.

    Where the gradient is cut, ``values`` are leaves and ``sources`` the same numbers as functions of the guide's
    parameters and, where they are ``chained``, of earlier leaves; elsewhere both are one.
    """

    values: dict[str, Tensor]
    sources: dict[str, Tensor]
    log_q: Tensor
    auxiliary: Tensor
    chained: bool = False

    def through(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """A scalar whose gradient in the guide's parameters is that of f, given ``gradients`` of f at the values."""
        names = [name for name in self.values if name in gradients]
        total = dict(gradients)
        for place in range(len(names) - 1, 0, -1) if self.chained else ():
            source, earlier = self.sources[names[place]], names[:place]
            if not source.requires_grad:
                continue
            leaves = [self.values[name] for name in earlier]
            more = torch.autograd.grad(source, leaves, total[names[place]], retain_graph=True, allow_unused=True)
            total |= {name: total[name] + g for name, g in zip(earlier, more, strict=True) if g is not None}
        parts = [(self.sources[name] * total[name]).sum() for name in names]
        return torch.stack(parts).sum()


class Gate:
    """Lets gradients through to the guide's draws, each row's times a share that is known only later.

    One pass backwards through a model then serves two weightings: its own parameters', and that of the draws.
    """

    def __init__(self) -> None:
        self.shares: Tensor | None = None

    def behind(self, source: Tensor, front: int) -> Tensor:
        """The value (B rows at axis ``front``), its gradient to be weighted by ``shares`` (B,)."""
        if not source.requires_grad:
            return source

        def weigh(gradient: Tensor) -> Tensor:
            assert self.shares is not None
            return gradient * self.shares.reshape(-1, *[1] * (gradient.dim() - front - 1))

        value = source.view_as(source)
        value.register_hook(weigh)  # type: ignore[no-untyped-call]
        return value


class GuideRun(ABC):
    """A guide on a batch of N datapoints, with its parameters as they are now."""

    @abstractmethod
    def draw(self, num_particles: int, *, cut: bool, pathwise: bool) -> Drawn:
        """K draws for each datapoint from the global generators, differentiable in them where ``pathwise``."""

    @abstractmethod
    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Log q (B,) at values on the batch folded, differentiable in them and in the guide's parameters."""

    def moments(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Mean and standard deviation of each site, in the shape of its value; None where they are not known."""
        return None


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
        log_q = self.guide.log_joint.like.new_zeros(())
        for name, msg in self.messages.items():
            require_path(name, msg["fn"], pathwise)
            draw = msg["fn"].rsample if pathwise else msg["fn"].sample
            raw = draw((num_particles,))
            front = self.guide.sites[name].front
            sources[name] = raw.movedim(0, front).flatten(front, front + 1)
            values[name] = _leaf(sources[name], pathwise) if cut else sources[name]
            at = _unfolded(values[name], front, num_particles) if cut else raw
            log_q = log_q + self._log_density(name, at).flatten()
        return Drawn(values, sources, log_q, self.auxiliary)

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
        return Drawn(score.values, steer.sources, terms.latent, auxiliary, chained=cut and len(guide.sites) > 1)

    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Another run, with the values put in; running statistics stay as they are."""
        program = self.guide.log_joint.program
        with frozen_statistics(program):
            return self.guide.log_density(folded, values)


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
        values = {name: _leaf(value, pathwise) for name, value in sources.items()}
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
        value = _leaf(source, pathwise) if cut else source
        log_q = self.guide.density_of_u(folded, value)
        return Drawn({self.U: value}, {self.U: source}, log_q, log_q.new_zeros(()))

    def log_q(self, folded: Data, values: Mapping[str, Tensor]) -> Tensor:
        """From its parameters."""
        return self.guide.density_of_u(folded, values[self.U])


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
    runs = [recorded(guide.runner.function, data, number) for number in range(PROBES)]
    with unvalidated(), torch.no_grad():
        for name in guide.sites:
            values = [runs[0][name]["value"], runs[-1][name]["value"]]
            for value in values:
                first, *others = (unmasked(run[name]["fn"]).log_prob(value) for run in runs)
                if not all(torch.equal(first, other) for other in others):
                    return False
    return True


def require_path(name: str, fn: Any, pathwise: bool) -> None:
    """Refuse draws without a gradient where one is needed.

    Raises
    ------
    DiscreteLatentError
        Naming the site and the way out.
    """
    if pathwise and not fn.has_rsample:
        raise DiscreteLatentError(
            f"guide site {name!r} ({type(fn).__name__}) can't be drawn with a gradient, which this objective needs. "
            "Give it a distribution with rsample, or train by objective='wake-sleep' or 'graph-elbo'"
        )


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
            msg["value"] = _leaf(msg["value"], self.pathwise)


def _leaf(value: Tensor, differentiable: bool) -> Tensor:
    return value.detach().requires_grad_(differentiable and value.is_floating_point())


def _unfolded(value: Tensor, front: int, num_particles: int) -> Tensor:
    """(K, ...) of a value whose data axis ``front`` holds K * N rows."""
    shape = value.shape
    return value.reshape(*shape[:front], num_particles, -1, *shape[front + 1 :]).movedim(front, 0)


@contextmanager
def frozen_statistics(module: torch.nn.Module) -> Iterator[None]:
    """Copies of the buffers (running statistics) inside: a second run on the same batch is no second batch."""
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    try:
        for part, buffers in kept:
            part._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)
