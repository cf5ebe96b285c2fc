r"""A guide made from a model: an encoder over the data, and a density over u that it gives to each datapoint.

.. math:: q(k, u \mid x) = \prod_j q(k_j \mid x, k_{<j}) \, \prod_i q(u_i \mid x, k, u_{<i})

with k the discrete latents that are sampled, and u the continuous ones, site by site. Letters: N datapoints, B rows, D
latents, P latents of a site, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from amortize.errors import ContractError
from amortize.program.auto_guide_choices import ChoiceSite
from amortize.program.auto_guide_encoder import FLOWS, Encoder, Joint
from amortize.program.auto_guide_features import Features
from amortize.program.auto_guide_glimpse import glimpse
from amortize.program.auto_guide_sites import Framed, Layout, Noise, StandardNormal, factorised
from amortize.program.masks import kept_entries, mask_of

__all__ = ["EncoderGuide", "Plan", "SitePlan"]

Messages = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class SitePlan:
    """A continuous site: its layout; its support, None where a run of the model must tell; whether a mask hides it.

    ``follows`` says that support or mask depend on earlier latents, and not on the data alone.
    """

    layout: Layout
    support: Any | None
    hidden: bool
    follows: bool

    @property
    def looks(self) -> bool:
        """Whether the model must run for it."""
        return self.support is None or self.hidden


@dataclass(frozen=True)
class Plan:
    """What was read of a model: the data plate, whether it subsamples, and the continuous sites in the order of u."""

    plate: str
    subsamples: bool
    sites: Mapping[str, SitePlan]


class EncoderGuide(nn.Module):
    """An amortized guide, called with the model's arguments; made by ``am.auto_guide``.

    Parameters
    ----------
    model, condition
        The model, and the values of its global latents: run inside where supports or masks move.
    plan
        Its sites.
    features, encoder
        The networks.
    choices, flows
        By site: those of the sampled discrete latents, and of flows.

    Attributes
    ----------
    family
        The family of q(u | x), as it was asked for.
    """

    def __init__(
        self,
        model: tuple[Callable[..., Any], Mapping[str, Tensor]],
        plan: Plan,
        features: Features,
        encoder: Encoder | None,
        choices: Mapping[str, ChoiceSite],
        flows: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        self._model, self.plan = model, plan  # in a tuple: the model's networks are its own
        self.features, self.encoder = features, encoder
        self.names = tuple(choices)
        self.choices = nn.ModuleList(choices.values())
        self.flow_names = tuple(flows)
        self.flows = nn.ModuleList(flows.values())

    @property
    def family(self) -> str | None:
        """Of q(u | x); None where there is no u."""
        return None if self.encoder is None else self.encoder.family

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latents; their values by site."""
        pyro.module("auto_guide", self)
        rows = self.features(args, kwargs)
        run = _Run(self, (args, kwargs), len(rows))
        for name, choice in zip(self.names, self.choices, strict=True):
            assert isinstance(choice, ChoiceSite)
            value, written = run.choose(name, choice, rows)
            run.values[name] = value
            rows = torch.cat([rows, written], -1)
        if self.encoder is not None:
            joint = self.encoder(rows)
            for name, site in self.plan.sites.items():
                run.values[name] = run.sample(name, site, joint)
        return run.values

    def look(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]) -> Messages:
        """A run of the model with ``values`` put in."""
        model, condition = self._model
        device = next(self.buffers()).device
        given = {name: value.to(device) for name, value in condition.items()}
        return glimpse(model, args, kwargs, {**given, **values})

    def noise(self, name: str, context: Tensor) -> Noise:
        """The density of a site's w."""
        if name not in self.flow_names:
            return StandardNormal()
        noise: Noise = self.flows[self.flow_names.index(name)](context)
        return noise


class _Run:
    """One call of a guide."""

    def __init__(self, guide: EncoderGuide, arguments: tuple[tuple[Any, ...], Mapping[str, Any]], num_rows: int):
        self.guide, self.arguments, self.num_rows = guide, arguments, num_rows
        self.values: dict[str, Tensor] = {}
        self.w: list[Tensor] = []
        self.plates: dict[str, Any] = {}
        plan = guide.plan
        looks = plan.subsamples or any(site.looks for site in plan.sites.values())
        self.seen: Messages = guide.look(*arguments, {}) if looks else {}

    def choose(self, name: str, choice: ChoiceSite, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The value of a discrete site, and how the networks to come read it (B, ...)."""
        fn = choice(rows)
        with self._plates(choice.layout):
            value: Tensor = pyro.sample(name, fn)
        return value, choice.written(fn, value)

    def sample(self, name: str, plan: SitePlan, joint: Joint) -> Tensor:
        """The value of a continuous site."""
        if plan.looks and plan.follows:
            self.seen = self.guide.look(*self.arguments, self.values)
        support = self.seen[name]["fn"].support if plan.support is None else plan.support
        kept, mask = self._kept(name, plan)
        layout = plan.layout
        columns = layout.columns
        if joint.tril is None:
            loc, scale = joint.loc[:, columns], joint.scale[:, columns]
            if kept is not None:
                loc, scale = torch.where(kept, loc, 0.0), torch.where(kept, scale, 1.0)
            return self._drawn(name, layout, factorised(layout, loc, scale, support), mask)
        fn = self._framed(name, layout, joint, support, kept)
        value = self._drawn(name, layout, fn, mask)
        w = fn.w(value)
        if w.dim() > 2 and name != list(self.guide.plan.sites)[-1]:
            raise ContractError(
                f"auto_guide: site {name!r} was drawn for several particles at once, and those after follow it. Take "
                "objective='iwae', or vectorize_particles=False in Pyro's own"
            )
        self.w.append(w if kept is None else torch.where(kept, w, 0.0))
        return value

    def _framed(self, name: str, layout: Layout, joint: Joint, support: Any, kept: Tensor | None) -> Framed:
        """Given the w of the sites before; what a mask hides is a standard normal by itself."""
        assert joint.tril is not None
        columns, before = layout.columns, slice(0, layout.columns.start)
        earlier = torch.cat([joint.loc[:, :0], *self.w], -1)
        loc = joint.loc[:, columns] + (joint.tril[:, columns, before] @ earlier.unsqueeze(-1)).squeeze(-1)
        tril = joint.tril[:, columns, columns]
        if kept is not None:
            loc = torch.where(kept, loc, 0.0)
            both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
            tril = torch.where(both, tril, torch.eye(layout.size).to(tril))
        noise = self.guide.noise(name, torch.cat([joint.context, earlier], -1))
        return Framed(layout, (loc, tril), noise, support)

    def _kept(self, name: str, plan: SitePlan) -> tuple[Tensor | None, Tensor | None]:
        """Which numbers (B, P) the model's mask leaves, and the mask."""
        if not plan.hidden:
            return None, None
        msg, layout = self.seen[name], plan.layout
        raw = torch.empty(layout.shape(self.num_rows), device=msg["value"].device)
        return layout.rows(kept_entries(layout.site, msg, raw).expand(raw.shape)), mask_of(msg)

    def _drawn(self, name: str, layout: Layout, fn: Any, mask: Tensor | None) -> Tensor:
        hides: Any = True if mask is None else mask
        with self._plates(layout), poutine.mask(mask=hides):
            value: Tensor = pyro.sample(name, fn)
        return value

    def _plates(self, layout: Layout) -> ExitStack:
        """The data plate and those beside it, as in the model; each is made once a call."""
        plan = self.guide.plan
        if plan.plate not in self.plates:
            size, rows = self.num_rows, None
            if plan.subsamples:
                frames = self.seen[layout.site.name]["cond_indep_stack"]
                size = next(frame.full_size for frame in frames if frame.name == plan.plate)
                rows = torch.arange(self.num_rows)
            self.plates[plan.plate] = pyro.plate(plan.plate, size, subsample=rows, dim=layout.site.data_dim)
        for name, dim, count in layout.plates:
            if name not in self.plates:
                self.plates[name] = pyro.plate(name, count, dim=dim)
        stack = ExitStack()
        for name in (plan.plate, *(name for name, _, _ in layout.plates)):
            stack.enter_context(self.plates[name])
        return stack


def flow_kind(family: str) -> str | None:
    """Which flow a family is; "flow" is the default kind."""
    return None if family not in FLOWS else "spline" if family == "flow" else family
