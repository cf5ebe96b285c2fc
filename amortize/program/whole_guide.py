"""A guide of a whole data set: its sites may stand in plates or outside them, like the model's.

Letters: B rows, each a run of the guide on all the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import biject_to

from amortize.errors import GuideMismatchError
from amortize.program.data import Data
from amortize.program.density import JointTerms
from amortize.program.discover import has_user_scale, run_recorded
from amortize.program.guide import GuideDensity
from amortize.program.handlers import base_of
from amortize.program.sites import Site
from amortize.program.whole import WholeLogJoint
from amortize.program.whole_runner import WHOLE, vectorised_if_right
from amortize.random import pyro_rng

__all__ = ["WholeGuide"]

PROBES = 16


class WholeGuide(GuideDensity):
    """A Pyro guide over all latents of a data set.

    Raises
    ------
    GuideMismatchError
        If its sites, shapes or supports are not those of the model's latents; the message names the site.
    """

    log_joint: WholeLogJoint

    def __init__(self, log_joint: WholeLogJoint, data: Data) -> None:
        self.log_joint = log_joint
        guide = log_joint.program.guide
        assert guide is not None
        _verify_sites(log_joint, data)
        self.runner = vectorised_if_right(replace(log_joint.whole, function=guide), data)
        self._verify_supports(data)

    def sample(self, data: Data) -> tuple[dict[str, Tensor], Tensor]:
        """Run the guide once a row."""
        return self.runner.draw(data)

    def log_density(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        """Run the guide with values put in, once a row."""
        return self.runner.rows(data, values=values).prior

    def log_q(self, data: Data, u: Tensor, terms: JointTerms) -> Tensor:  # noqa: ARG002 (its values are in terms)
        """Run the guide with the model's values put in."""
        return self.log_density(data, terms.values) + terms.jacobian

    def _verify_supports(self, data: Data) -> None:
        """The guide's draws must lie in the model's support, and prior draws in the guide's."""
        many = data.fold(PROBES)
        with pyro_rng(0, "supports"), torch.no_grad():
            drawn = self.sample(many)[0]
            probes = self.log_joint.whole.draw(many)[0]
        for row in range(PROBES):
            ours = self.log_joint.messages(data, _row(drawn, row))
            theirs = self.log_joint.messages(data, _row(probes, row), guide=True)
            for name in self.log_joint.structure.sites:
                _compare(name, ours[name], theirs[name])


def _row(values: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: value[row : row + 1] for name, value in values.items()}


def _compare(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    model, guide = ours["fn"].support, theirs["fn"].support
    if not bool(model.check(ours["value"]).all()):
        raise GuideMismatchError(
            f"guide site {name!r} can draw values outside the model's support: model {model}, guide {guide}"
        )
    if not bool(guide.check(theirs["value"]).all()):
        raise GuideMismatchError(
            f"guide site {name!r} covers only a part of the model's support: model {model}, guide {guide}"
        )
    if biject_to(model).codomain.event_dim != biject_to(guide).codomain.event_dim:
        raise GuideMismatchError(
            f"guide site {name!r} has {theirs['fn'].event_dim} event dimensions, the model's {ours['fn'].event_dim}"
        )


def _verify_sites(log_joint: WholeLogJoint, data: Data) -> None:
    program, sites = log_joint.program, log_joint.structure.sites
    assert program.guide is not None
    messages = {name: msg for name, msg in run_recorded(program.guide, data).items() if name not in program.condition}
    observed = [name for name, msg in messages.items() if msg["is_observed"]]
    if observed:
        raise GuideMismatchError(
            f"the guide observes {', '.join(map(repr, observed))}; its density must be normalised, so it may only "
            "sample. Move factors and observations to the model"
        )
    missing, extra = sorted(sites.keys() - messages.keys()), sorted(messages.keys() - sites.keys())
    if missing or extra:
        raise GuideMismatchError(
            f"the guide misses {missing or 'nothing'} and samples {extra or 'nothing'} that the model does not have. "
            f"It must sample exactly the model's latent sites: {', '.join(map(repr, sorted(sites)))}"
        )
    for name, site in sites.items():
        _verify_site(site, messages[name])


def _verify_site(site: Site, msg: Mapping[str, Any]) -> None:
    name, shape = site.name, tuple(msg["value"].shape)
    if shape != site.shape:
        raise GuideMismatchError(f"guide site {name!r} has shape {shape}, the model's has {site.shape}")
    if isinstance(base_of(msg["fn"]), Delta):
        raise GuideMismatchError(
            f"guide site {name!r} is a point (Delta), which has no density over u. Start from the prior "
            "(start='prior'), or give the site a distribution with spread"
        )
    if has_user_scale(msg, WHOLE):
        raise GuideMismatchError(
            f"guide site {name!r} is under poutine.scale, so its density is not normalised. Take the scale off"
        )
