"""The clauses of the contract that a guide can be tried on: sites, plates, densities, rows, draws, supports.

Each function measures one clause and raises where it fails; ``verify_guide`` tries all of them for the verbs, and
``Program.check`` calls each by itself. Letters: N datapoints, B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import TransformedDistribution, biject_to

from amortize.errors import AmortizeError, DynamicStructureError, GuideMismatchError, NotIndependentError
from amortize.program.blame import modes_of, named, site_terms, terms_that_differ, with_line
from amortize.program.data import Data
from amortize.program.discover import has_user_scale, run_recorded
from amortize.program.explain import explained
from amortize.program.guide import TracedGuide
from amortize.program.handlers import atoms, base_of, data_dim, is_auxiliary
from amortize.program.points import verify_point_rows
from amortize.program.probes import head_of, rows_in_words
from amortize.random import generator, pyro_rng

if TYPE_CHECKING:
    from amortize.program.density import LogJoint
    from amortize.program.program import Program
    from amortize.program.sites import Site, Structure

__all__ = [
    "guide_messages",
    "verify_guide",
    "verify_guide_densities",
    "verify_guide_draws",
    "verify_guide_names",
    "verify_guide_plates",
    "verify_guide_rows",
    "verify_guide_static",
    "verify_guide_supports",
    "verify_trained_guide",
]

PROBES = 16
PROBE_SPREAD = 2.0
STATIC_RUNS = 3

Messages = Mapping[str, Mapping[str, Any]]


def verify_guide(log_joint: LogJoint, data: Data, *, points: bool = False) -> tuple[str, set[str]]:
    """Compare the guide's sites, shapes and supports with the model's latents; ``points`` (Delta) may be welcome.

    Returns the guide's data plate and the latent sites it samples: those that the model sums out may be missing.

    Raises
    ------
    GuideMismatchError, NotIndependentError, DynamicStructureError
        Naming the site and the way out.
    """
    program, structure, head = log_joint.program, log_joint.structure, head_of(data)
    messages = guide_messages(program, head)
    verify_guide_names(structure, messages)
    verify_guide_static(program, head)
    plate = verify_guide_plates(structure, messages, head.num_datapoints)
    verify_guide_densities(structure, messages, plate, points=points)
    drawn = {name for name in structure.sites if name in messages}
    verify_guide_draws(log_joint, head)
    is_point = any(isinstance(base_of(messages[name]["fn"]), Delta) for name in drawn)
    (verify_point_rows if is_point else verify_guide_rows)(TracedGuide(log_joint, plate, head, drawn), head)
    verify_guide_supports(log_joint, head)
    return plate, drawn


def verify_trained_guide(program: Program, structure: Structure, data: Data) -> None:
    """What training relies on: a latent that the guide leaves out would be drawn from the prior, without an error.

    Discrete latents may be left out, for training can sum them out; scales, points and relaxed sites may be trained.

    Raises
    ------
    GuideMismatchError
        Naming the sites that are missing or too many.
    """
    guide = program.guide
    if guide is None or guide.per_datapoint or program.bound is not None or program.whole:
        return
    with program.evaluating():
        messages = guide_messages(program, head_of(data))
    drawn = {name: msg for name, msg in messages.items() if not is_auxiliary(msg)}
    verify_guide_names(replace(structure, sampled=()), drawn)


def guide_messages(program: Program, data: Data, number: int = 0) -> Messages:
    """The message of each sample site of one run of the guide, what is given left out."""
    assert program.guide is not None
    with explained(program.guide.name, data):
        found = run_recorded(program.guide, data, number)
    return {name: msg for name, msg in found.items() if name not in program.condition}


def verify_guide_names(structure: Structure, messages: Messages) -> str:
    """The guide samples the model's latents, all but those that are summed out, and observes nothing."""
    drawn = {name for name, msg in messages.items() if not msg["is_observed"]}
    missing = sorted(set(structure.sites) - drawn - set(structure.enumerated))
    extra = sorted(drawn - set(structure.sites))
    if missing or extra:
        parts = [f"misses {named(missing)}"] if missing else []
        parts += [f"samples {named(extra)}, which the model does not have"] if extra else []
        raise GuideMismatchError(
            f"the guide {' and '.join(parts)}. It must sample exactly the model's latent sites: "
            f"{named(sorted(structure.sites))}"
        )
    factors = sorted(name for name, msg in messages.items() if msg["is_observed"] and not is_auxiliary(msg))
    if factors:
        raise GuideMismatchError(
            f"the guide observes {named(factors)} (obs= or pyro.factor); its density must be normalised, so it may "
            "only sample. Move factors and observations to the model; a term of the loss alone says so by has_rsample="
        )
    aside = sorted(name for name, msg in messages.items() if msg["is_observed"])
    said = f"; {named(aside)} is a term of the loss alone, left out of its density" if aside else ""
    return f"it samples {named(sorted(drawn))}{said}"


def verify_guide_static(program: Program, data: Data) -> str:
    """Run the guide with other random numbers: the same sites."""
    runs: list[set[str]] = [set(guide_messages(program, head_of(data), number)) for number in range(STATIC_RUNS)]
    changed = sorted({name for run in runs for name in run ^ runs[0]})
    if changed:
        raise DynamicStructureError(
            f"guide site {named(changed)} appears in one run and not in another on the same datapoints. Sample the "
            "same sites always, under pyro.poutine.mask(mask=...) where they should not count"
        )
    return f"{STATIC_RUNS} runs: the same sites"


def verify_guide_plates(structure: Structure, messages: Messages, size: int) -> str:
    """The guide's data plate, in the model's dimension, with the model's shapes; returns its name."""
    plate = _guide_plate(structure.plate, messages, size)
    for name, site in structure.sites.items():
        if name not in messages:
            continue
        dim = data_dim(messages[name], plate)
        if dim is None:
            raise GuideMismatchError(
                f"guide site {name!r} stands outside the data plate {plate!r}. Move it inside "
                f"`with pyro.plate({plate!r}, x.shape[0]):`, as in the model"
            )
        if dim != site.data_dim:
            raise GuideMismatchError(
                f"guide site {name!r} has its data plate at dimension {dim}, the model at {site.data_dim}. Give both "
                f"the same plates, for example pyro.plate({plate!r}, x.shape[0], dim={site.data_dim})"
            )
        shape = tuple(n for i, n in enumerate(messages[name]["value"].shape) if i != site.front)
        if shape != site.shape:
            raise GuideMismatchError(
                f"guide site {name!r} has shape {shape} per datapoint, the model's has {site.shape}. Give both the "
                "same shape: the size of the guide's output, or .to_event(1) on one of the two"
            )
    return plate


def _guide_plate(plate: str, messages: Messages, size: int) -> str:
    frames: dict[str, int] = {frame.name: frame.size for msg in messages.values() for frame in msg["cond_indep_stack"]}
    if plate in frames or not messages:  # a guide may be empty where every latent is summed out
        return plate
    following = [name for name, now in frames.items() if now == size]
    if len(following) != 1:
        raise GuideMismatchError(
            f"the guide has no plate {plate!r} around its sites (plates: {named(sorted(frames)) or 'none'}). Put them "
            f"inside `with pyro.plate({plate!r}, x.shape[0]):`, as in the model"
        )
    return following[0]


def verify_guide_densities(structure: Structure, messages: Messages, plate: str, *, points: bool = False) -> str:
    """Each of the guide's sites has a normalised density: no scale; points where they are welcome and all are."""
    drawn = [name for name in structure.sites if name in messages]
    all_points = all(isinstance(base_of(messages[name]["fn"]), Delta) for name in drawn)
    for name in structure.sites:
        if name not in messages:
            continue
        if has_user_scale(messages[name], plate):
            raise GuideMismatchError(
                f"guide site {name!r} is under poutine.scale, so its density is not normalised. Take the scale off"
            )
        if isinstance(base_of(messages[name]["fn"]), Delta) and not (points and all_points):
            raise GuideMismatchError(_no_density(name, [other for other in drawn if other != name], all_points))
        if structure.sites[name].discrete:
            _same_cardinality(name, structure.sites[name], messages[name]["fn"])
    return f"{named(drawn)} is a point: trained, but without a density" if drawn and all_points else "normalised"


def _no_density(name: str, others: list[str], all_points: bool) -> str:
    said = f"guide site {name!r} is a point (Delta), which has no density over u"
    if not all_points:
        return (
            f"{said}, beside sites that may have one ({named(others)}). Give all of them a distribution with spread, "
            "or make all of them points, which training by objective='beta-elbo' takes; evidence can do "
            "without a guide (start='prior')"
        )
    return (
        f"{said}. Give it a distribution with spread; or, for evidence, start from the prior (start='prior'), and for "
        "training take objective='beta-elbo', which points have"
    )


def _same_cardinality(name: str, site: Site, fn: Any) -> None:
    try:
        count = len(atoms(fn))
    except NotImplementedError:
        count = 0
    if count != site.cardinality:
        raise GuideMismatchError(
            f"guide site {name!r} is {type(base_of(fn)).__name__} with {count or 'no list of'} values, the model's is "
            f"discrete with {site.cardinality}. Give both the same distribution; a relaxation is scored as the "
            "discrete distribution that it stands for, so it must be the model's own"
        )


def verify_guide_draws(log_joint: LogJoint, data: Data) -> str:
    """The guide draws finite values."""
    many = data.fold(PROBES)
    messages = guide_messages(log_joint.program, many)
    for name, site in log_joint.structure.sites.items():
        if name not in messages:
            continue
        value = messages[name]["value"].movedim(site.front, 0)
        bad = ~torch.isfinite(value.reshape(len(value), -1)).all(1)
        if bool(bad.any()):
            rows = sorted({int(row) % data.num_datapoints for row in torch.nonzero(bad).flatten()})
            raise GuideMismatchError(
                f"guide site {name!r} draws NaN or infinite values at datapoints {rows_in_words(rows)}. Look at what "
                "the guide computes from these rows (a logarithm of a negative number, say)"
            )
    return f"{PROBES} draws of {data.num_datapoints} datapoints: finite"


def verify_guide_rows(guide: TracedGuide, head: Data) -> str:
    """The guide's density at fixed values: the same twice, permuted, and alone."""
    order = torch.arange(head.num_datapoints, device=guide.log_joint.like.device).flip(0)
    with pyro_rng(0, "verify-guide"), torch.no_grad():
        values, _ = guide.sample(head)
        together = guide.log_density(head, values)
        again = guide.log_density(head, values)
        _require_same(guide, head, values, (together, again), "between two runs")
        turned = guide.log_density(head.rows(order), guide.rows_of(values, order))
        _require_same(guide, head, values, (together[order], turned), "when the batch is permuted")
        for row in range(head.num_datapoints):
            index = order.new_tensor([row])
            alone = _alone(guide, head, values, index)
            _require_same(guide, head, values, (together[index], alone), "when a datapoint is taken alone")
    return f"twice, permuted, alone: the same on {head.num_datapoints} datapoints"


def _alone(guide: TracedGuide, head: Data, values: Mapping[str, Tensor], index: Tensor) -> Tensor:
    try:
        return guide.log_density(head.rows(index), guide.rows_of(values, index))
    except AmortizeError:
        raise
    except Exception as error:  # the user's own code, on a batch of one
        raise NotIndependentError(
            f"log q(z | x): the guide runs on a batch but not on a single datapoint ({with_line(error)}). A squeeze "
            "takes away the batch where it has size 1: write x.squeeze(-1), not x.squeeze(); batch statistics need "
            f".eval(){_modules_said(guide)}"
        ) from error


def _modules_said(guide: TracedGuide) -> str:
    found = modes_of(guide.log_joint.program).training
    return f". In training mode while the guide runs: {', '.join(found)}: take out the .train() call" if found else ""


def _require_same(
    guide: TracedGuide, head: Data, values: Mapping[str, Tensor], pair: tuple[Tensor, Tensor], when: str
) -> None:
    first, second = pair
    tolerance = 1e-4 if first.dtype == torch.float32 else 1e-8
    if torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True):
        return
    worst = float((first - second).abs().nan_to_num().max())
    changed = _guilty(guide, head, values)
    site = f" (guide site {named(changed)})" if changed else ""
    raise (DynamicStructureError if when == "between two runs" else NotIndependentError)(
        f"log q(z | x) of a datapoint changes by up to {worst:.3g} nats {when}{site}. The guide's rows must be "
        "independent and deterministic: no statistics of the batch (x - x.mean(0), BatchNorm in training), no random "
        f"numbers outside pyro.sample (dropout with training=True){_modules_said(guide)}"
    )


def _guilty(guide: TracedGuide, head: Data, values: Mapping[str, Tensor]) -> list[str]:
    """Guide sites whose density changes between two runs, or when the first datapoint is taken alone."""
    structure = replace(guide.log_joint.structure, plate=guide.plate)
    function = guide.runner.function
    if not set(guide.sites) <= set(values):  # sites that are summed out have no value to hold
        return []
    first, again = (site_terms(function, structure, head, values) for _ in range(2))
    one = values_of_first(guide, values)
    alone = site_terms(function, structure, head.rows(slice(0, 1)), one)
    return list(
        dict.fromkeys(terms_that_differ(first, again) + terms_that_differ({n: t[:1] for n, t in first.items()}, alone))
    )


def values_of_first(guide: TracedGuide, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first row of values by site."""
    return guide.rows_of(values, torch.zeros(1, dtype=torch.long, device=guide.log_joint.like.device))


def verify_guide_supports(log_joint: LogJoint, head: Data) -> str:
    """Probe each support with points spread over the other: the guide must cover the model's support and no more."""
    many, structure = head.fold(PROBES), log_joint.structure
    messages = guide_messages(log_joint.program, many)
    values = {name: messages[name]["value"] for name in structure.sites if name in messages}
    gen = generator(0, "supports", device=log_joint.like.device)
    u = PROBE_SPREAD * torch.randn(many.num_datapoints, log_joint.dim, generator=gen, device=gen.device)
    with pyro_rng(0, "supports"), torch.no_grad():
        model = log_joint.messages(many, values)
        choices = log_joint.draw_prior(many).choices
        probes = log_joint.terms(many, u=u.to(log_joint.like), choices=choices).values
        replayed = log_joint.messages(many, probes, guide=True)
    for name in structure.sites:
        if name not in messages:
            continue
        if isinstance(base_of(messages[name]["fn"]), Delta):
            _point_inside(name, model[name]["fn"], values[name])
        elif structure.sites[name].discrete:
            _compare_atoms(name, model[name]["fn"], messages[name]["fn"])
        else:
            _no_wider(name, model[name]["fn"], messages[name]["fn"], values[name], gen)
            _no_narrower(name, model[name]["fn"], replayed[name]["fn"], probes[name])
    return "the supports are the model's"


def _point_inside(name: str, model: Any, value: Tensor) -> None:
    """A point's own support says nothing: where it stands does."""
    if not bool(model.support.check(value).all()):
        raise GuideMismatchError(
            f"guide site {name!r} is a point outside the model's support, {model.support}. Take it there, as by "
            "torch.distributions.biject_to(support)(network(x))"
        )


def _compare_atoms(name: str, model: Any, guide: Any) -> None:
    if not bool((atoms(model) == atoms(guide)).all()):
        raise GuideMismatchError(
            f"guide site {name!r} takes other values than the model's ({type(base_of(guide)).__name__} against "
            f"{type(base_of(model)).__name__}). Give both the same distribution"
        )


def _no_wider(name: str, model: Any, guide: Any, value: Tensor, gen: torch.Generator) -> None:
    drawn = [value]
    if not isinstance(base_of(guide), TransformedDistribution):  # it may claim more than it covers
        free = biject_to(guide.support).inv(value)
        noise = PROBE_SPREAD * torch.randn(free.shape, generator=gen, device=gen.device).to(free)
        drawn.append(biject_to(guide.support)(free + noise))
    if not all(bool(model.support.check(each).all()) for each in drawn):
        raise GuideMismatchError(
            f"guide site {name!r} can draw values outside the model's support: model {model.support}, guide "
            f"{guide.support}. Take a distribution on the model's support, as the model's own "
            f"dist.{type(base_of(model)).__name__}, or a TransformedDistribution that ends there"
        )


def _no_narrower(name: str, model: Any, guide: Any, probe: Tensor) -> None:
    if not bool(guide.support.check(probe).all()):
        raise GuideMismatchError(
            f"guide site {name!r} covers only a part of the model's support: model {model.support}, guide "
            f"{guide.support}. The posterior may lie beyond it; take a distribution on the whole support"
        )
