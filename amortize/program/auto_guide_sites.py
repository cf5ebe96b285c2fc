r"""How an automatic guide samples one site: a part of u, laid out as the model's site and mapped to its support.

Sites come one after another, each given the numbers w before it, so that together they are any joint density over u:

.. math:: u = m + L w, \qquad q(u) = \prod_k q_w(w_k \mid w_{<k}) \, |\det L_{kk}|^{-1}

with L lower-triangular, and w standard normal (a Gaussian over u) or a flow. Every site is an ordinary one, so that
nothing auxiliary is left over. Letters: S sample shape, B rows, P unconstrained numbers of a site.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Normal, TorchDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints

from amortize.program.sites import Site

__all__ = ["Framed", "Layout", "Noise", "StandardNormal", "factorised"]


@dataclass(frozen=True)
class Layout:
    """Where a site's numbers stand in u, and in its value; ``plates`` are those around it, as (name, dim, size).

    The data plate is not among them.
    """

    site: Site
    plates: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        """P, unconstrained numbers a datapoint."""
        return self.site.stop - self.site.start

    @property
    def columns(self) -> slice:
        """Of u."""
        return slice(self.site.start, self.site.stop)

    def placed(self, rows: Tensor) -> Tensor:
        """Rows (S, B, P) in the shape of the site's unconstrained value."""
        ahead = rows.dim() - 2
        shaped = rows.reshape(*rows.shape[:-1], *self.site.unconstrained_shape)
        return shaped.movedim(ahead, ahead + self.site.front)

    def rows(self, placed: Tensor) -> Tensor:
        """The inverse: (S, B, P)."""
        ahead = placed.dim() - len(self.site.unconstrained_shape) - 1
        front = placed.movedim(ahead + self.site.front, ahead)
        return front.reshape(*front.shape[: ahead + 1], self.size)

    def summed(self, terms: Tensor) -> Tensor:
        """Terms in the shape of the unconstrained value, with event dimensions summed."""
        ahead = terms.dim() - len(self.site.unconstrained_shape) - 1
        event = tuple(range(ahead + self.site.batch_ndim, terms.dim()))
        return terms.sum(event) if event else terms

    def shape(self, num_rows: int) -> tuple[int, ...]:
        """Shape of the unconstrained value."""
        free, front = self.site.unconstrained_shape, self.site.front
        return (*free[:front], num_rows, *free[front:])


def factorised(layout: Layout, loc: Tensor, scale: Tensor, support: Any) -> Any:
    """A diagonal Gaussian over u (B, P), as the site's distribution."""
    base: Any = Normal(layout.placed(loc), layout.placed(scale))
    event = len(layout.shape(1)) - layout.site.batch_ndim
    base = base.to_event(event) if event else base
    inner = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    if inner is constraints.real or inner is constraints.real_vector:
        return base
    return TransformedDistribution(base, [biject_to(support)])


class Noise(ABC):
    """A density over w (S, B, P), given what the encoder made of the data."""

    @abstractmethod
    def draw(self, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
        """W of the shape, differentiable, and its log density where it comes along; draws globally."""

    @abstractmethod
    def log_density(self, w: Tensor) -> Tensor:
        """In nats: of each number (S, B, P), or of all of a row, (S, B, 1)."""


class StandardNormal(Noise):
    """Independent standard normal numbers."""

    def draw(self, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
        """No parameters."""
        return torch.randn(*shape, dtype=like.dtype, device=like.device), None

    def log_density(self, w: Tensor) -> Tensor:
        """Of each number."""
        return -0.5 * w.square() - 0.5 * math.log(2 * math.pi)


class Framed(TorchDistribution):
    """The distribution of a site whose u is ``loc + tril w``, mapped to ``support``.

    Where further plates stand around the site, the log density of an entry is that of its numbers given those before
    them; of a flow, an equal share of the whole.

    Parameters
    ----------
    layout
        Of the site.
    frame
        Loc (B, P) and tril (B, P, P).
    noise
        The density of w.
    support
        The site's, in the model.
    ahead
        Batch dimensions in front, of particles.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's name and kind)
    has_rsample = True

    def __init__(
        self, layout: Layout, frame: tuple[Tensor, Tensor], noise: Noise, support: Any, ahead: torch.Size | None = None
    ) -> None:
        self.layout, self.noise, self._support = layout, noise, support
        self.loc, self.tril = frame
        self.ahead = torch.Size() if ahead is None else ahead
        self.transform = biject_to(support)
        self._drawn: tuple[Tensor, Tensor, Tensor | None] | None = None
        free = layout.shape(len(self.loc))
        value = self.transform.forward_shape(torch.Size(free))
        batch = torch.Size((*self.ahead, *free[: layout.site.batch_ndim]))
        super().__init__(batch, torch.Size(value[layout.site.batch_ndim :]), validate_args=False)

    @property
    def support(self) -> Any:
        """The model's."""
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Framed:
        """Particles in front; the rest must be there already."""
        batch_shape = torch.Size(batch_shape)
        own = self.batch_shape[len(self.ahead) :]
        if batch_shape == self.batch_shape:
            return self
        if batch_shape[len(batch_shape) - len(own) :] != own:
            raise ValueError(f"expected a batch shape that ends in {tuple(own)}, got {tuple(batch_shape)}")
        ahead = batch_shape[: len(batch_shape) - len(own)]
        return Framed(self.layout, (self.loc, self.tril), self.noise, self._support, ahead)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """A draw, differentiable; draws from the global generators."""
        shape = (*sample_shape, *self.ahead, *self.loc.shape)
        w, log_q = self.noise.draw(shape, self.loc)
        rows = self.loc + (self.tril @ w.unsqueeze(-1)).squeeze(-1)
        value: Tensor = self.transform(self.layout.placed(rows))
        self._drawn = (value, w, log_q)
        return value

    def w(self, value: Tensor) -> Tensor:
        """The numbers behind a value (S, B, P); of the last draw, exactly those that it was made of."""
        if self._drawn is not None and self._drawn[0] is value:
            return self._drawn[1]
        behind = self.layout.rows(self.transform.inv(value)) - self.loc
        solved: Tensor = torch.linalg.solve_triangular(self.tril, behind.unsqueeze(-1), upper=False)
        return solved.squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (S, batch) in nats."""
        w = self.w(value)
        drawn = self._drawn is not None and self._drawn[0] is value
        own = self._drawn[2] if drawn and self._drawn is not None else None
        log_w = self.noise.log_density(w) if own is None else own
        if log_w.shape[-1] != self.layout.size:
            log_w = (log_w / self.layout.size).expand(*log_w.shape[:-1], self.layout.size)
        log_u = log_w - self.tril.diagonal(dim1=-2, dim2=-1).log()
        raw = self.layout.placed(self.loc + (self.tril @ w.unsqueeze(-1)).squeeze(-1))
        jacobian: Tensor = self.transform.log_abs_det_jacobian(raw, value)
        ahead = raw.dim() - len(self.layout.shape(1))
        event = tuple(range(ahead + self.layout.site.batch_ndim, jacobian.dim()))
        return self.layout.summed(self.layout.placed(log_u)) - (jacobian.sum(event) if event else jacobian)
