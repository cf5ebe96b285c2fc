"""A guide for a program that has none: read the model, and make an encoder that fits its latents.

Letters: N datapoints, D latents, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, ContractError, check_count
from amortize.program.auto_guide import EncoderGuide, Plan, SitePlan, flow_kind
from amortize.program.auto_guide_choices import ChoiceSite
from amortize.program.auto_guide_encoder import FAMILIES, Encoder
from amortize.program.auto_guide_features import Features
from amortize.program.auto_guide_glimpse import fixed_support, glimpse, same_support
from amortize.program.auto_guide_sites import Layout
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.program.masks import mask_of
from amortize.program.options import check_callable
from amortize.program.program import Program
from amortize.program.sites import Structure
from amortize.random import check_seed, pyro_rng

__all__ = ["auto_guide"]

RUNS = 3  # of the model, to see what moves
MOST_ROWS = 64
PRIOR_DRAWS = 1024
NORMAL_QUARTILES = 1.349  # the distance between a standard normal's

Messages = Mapping[str, Mapping[str, Any]]


def auto_guide(
    model: Callable[..., Any] | Program,
    x: Any,
    *,
    family: str = "mean-field",
    hidden: Sequence[int] = (64, 64),
    features: Callable[..., Any] | None = None,
    seed: int = 0,
) -> EncoderGuide:
    """Make an amortized guide for a model: an encoder of the data, and a density over the model's latents.

    Parameters
    ----------
    model
        The model; or an ``am.Program`` of it, where it needs options (``condition=``, ``shared=``, ``discrete=``).
    x
        N datapoints to read the model on, and to take the statistics of that standardise what the encoder reads. The
        guide then takes any others, of any N.
    family
        Of q(u | x), over all continuous latents together: "mean-field", "low-rank" (of rank sqrt(D)),
        "full-covariance", or a flow on top of a full covariance: "iaf", "coupling", "spline", or "flow", which is
        "spline".
    hidden
        Sizes of the encoder's hidden layers; () is linear.
    features
        What the encoder reads, a function (or network) of the model's arguments that gives numbers (N, ...); None
        takes every argument with an entry a datapoint. A network is trained along.
    seed
        Of the first weights.

    Returns
    -------
    EncoderGuide
        A guide with the model's call signature: ``am.Program(model, guide)``. Discrete latents that the program sums
        out are left out of it; others are sampled.

    Raises
    ------
    ArgumentError
        If the family or sizes are unknown, or no argument has an entry a datapoint.
    ContractError
        If the model breaks the contract, or has one datapoint only (``whole=True``).

    Examples
    --------
    >>> import pyro, torch, amortize as am
    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    ...         pyro.sample("x", dist.Poisson(rate), obs=x)
    >>> x = am.Program(model).simulate(torch.zeros(200), seed=1)[1]["x"]
    >>> program = am.Program(model, am.auto_guide(model, x))
    >>> program.check(x).ok
    True
    """
    program = model if isinstance(model, Program) else Program(_checked(model))
    if family not in FAMILIES:
        raise ArgumentError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    hidden = _sizes(hidden)
    if features is not None:
        check_callable("features", features)
    check_seed(seed)
    if program.whole:
        raise ContractError(
            "auto_guide: a program with whole=True has one datapoint, so there is nothing to amortize. Take "
            "pyro.infer.autoguide.AutoNormal, or am.fit_local"
        )
    data = program.prepare(x)
    structure = program.structure(data)
    with program.evaluating(), unvalidated(), pyro_rng(seed, "auto_guide"):
        made = _made(program, data, structure, (family, hidden, features))
    return made.to(device=data.index.device, dtype=structure.dtype)


def _checked(model: Any) -> Callable[..., Any]:
    check_callable("model", model)
    checked: Callable[..., Any] = model
    return checked


def _sizes(hidden: Any) -> tuple[int, ...]:
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ArgumentError(f"hidden: expected a sequence of layer sizes, for example (64, 64), got {hidden!r}")
    return tuple(check_count("hidden", size) for size in hidden)


def _made(
    program: Program, data: Data, structure: Structure, settings: tuple[str, tuple[int, ...], Any]
) -> EncoderGuide:
    family, hidden, function = settings
    head = data.rows(slice(0, min(data.num_datapoints, MOST_ROWS)))
    runs = [_look(program, head) for _ in range(RUNS)]
    plan = Plan(
        structure.plate,
        structure.full_size is not None,
        {name: _site_plan(structure, name, runs) for name in structure.continuous},
    )
    _refuse_partly_hidden(plan, family)
    features = Features(program.model.function, data, function)
    size, choices = features.size, {}
    for name in structure.sampled:
        choices[name] = ChoiceSite(_layout(structure, name, runs[0]), runs[0][name]["fn"], size, hidden)
        size += choices[name].num_written
    encoder = None
    if structure.dim:
        rank = math.ceil(math.sqrt(structure.dim))
        encoder = Encoder(size, hidden, family, _prior(program, data), rank=rank)
    flows = {} if encoder is None else _flows(encoder, plan, hidden)
    parts = (program.model.function, dict(program.condition))
    return EncoderGuide(parts, plan, features, encoder, choices, flows)


def _look(program: Program, head: Data) -> Messages:
    """A run in which gradients say what training can move."""
    with program.model.scope.active():
        return glimpse(program.model.function, head.args, head.kwargs, program.condition)


def _site_plan(structure: Structure, name: str, runs: Sequence[Messages]) -> SitePlan:
    supports = [run[name]["fn"].support for run in runs]
    support, hidden = fixed_support(supports), name in structure.hidden
    masks = [mask_of(run[name]) for run in runs] if hidden else []
    moves = support is None and not all(same_support(supports[0], other) for other in supports)
    moves = moves or not all(torch.equal(masks[0], mask) for mask in masks)  # type: ignore[arg-type]
    return SitePlan(_layout(structure, name, runs[0]), support, hidden, moves)


def _layout(structure: Structure, name: str, run: Messages) -> Layout:
    msg, site = run[name], structure.sites[name]
    others = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name != structure.plate]
    batch = msg["value"].shape[: site.batch_ndim]
    return Layout(site, tuple((f.name, f.dim, int(batch[f.dim])) for f in others))


def _refuse_partly_hidden(plan: Plan, family: str) -> None:
    if flow_kind(family) is None:
        return
    for name, site in plan.sites.items():
        if site.hidden and site.layout.site.batch_ndim > 1:
            raise ContractError(
                f"auto_guide: a mask hides parts of the latent {name!r}, which stands in further plates, and a flow "
                "can't leave out a part of a site. Take family='full-covariance' or 'mean-field'"
            )


def _prior(program: Program, data: Data) -> tuple[Tensor, Tensor]:
    """Median and spread (D,) of u under the prior; quartiles, for tails may be heavy."""
    rows = data.rows(slice(0, min(data.num_datapoints, PRIOR_DRAWS)))
    many = rows.fold(math.ceil(PRIOR_DRAWS / rows.num_datapoints))
    u = program.log_joint(data).draw_prior(many).u
    low, middle, high = torch.nanquantile(u.double(), torch.tensor([0.25, 0.5, 0.75], device=u.device).double(), dim=0)
    spread = (high - low) / NORMAL_QUARTILES
    fine = middle.isfinite() & spread.isfinite() & (spread > 0)
    return torch.where(fine, middle, 0.0).to(u), torch.where(fine, spread, 1.0).to(u)


def _flows(encoder: Encoder, plan: Plan, hidden: tuple[int, ...]) -> dict[str, nn.Module]:
    kind = flow_kind(encoder.family)
    if kind is None:
        return {}
    from amortize.program.auto_guide_flows import SiteFlow  # it needs zuko, and takes a moment to load

    context = encoder.network.num_hidden
    return {
        name: SiteFlow(kind, site.layout.size, context + site.layout.columns.start, hidden[-1:])
        for name, site in plan.sites.items()
    }
