r"""The ledger of a program on data: measure, fit, split the guide's loss, and look for its cause.

What the ledger holds, and how it is made of its parts, is in `amortize.study.ledger`. Letters: N datapoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from amortize.errors import ArgumentError, check_count
from amortize.inference.ais import AIS
from amortize.inference.auto import Auto
from amortize.inference.evidence import evidence as measure_evidence
from amortize.inference.families.family import Family
from amortize.inference.families.low_rank import LowRank
from amortize.inference.families.registry import family_of, make_family
from amortize.inference.fitted import Fitted
from amortize.inference.importance import ImportanceSampling
from amortize.inference.local import fit_local
from amortize.inference.method import Method
from amortize.program.data import Data
from amortize.program.density import require_guide
from amortize.program.discover import run_recorded
from amortize.program.operands import require_program
from amortize.program.points import has_density
from amortize.program.program import Program
from amortize.random import check_seed, generator
from amortize.study.arguments import read_training_data, require_fit_of
from amortize.study.cost import TrainingCost
from amortize.study.guide_family import GuideFamily, read_guide_family
from amortize.study.latents import latents
from amortize.study.ledger import BOUNDLESS, POINT, Extras, Ledger, ledger_from, summarise
from amortize.study.probes import probe
from amortize.study.second_start import beginning, measure_twice
from amortize.study.splits import read_labels
from amortize.study.tower import by_richness

__all__ = ["Ledger", "gaps", "guide_treatment", "ledger_from", "summarise", "training_rows", "unaided_family"]

FAMILIES = ("mean-field", "full-covariance")


def gaps(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    families: Sequence[str | Family] | None = None,
    x_train: Any = None,
    labels: Any = None,
    fitted: Fitted | None = None,
    method: Method | str | None = None,
    num_draws: int = 1000,
    seed: int = 0,
    device: str | None = None,
) -> Ledger:
    """Split the guide's loss into gaps that each have a remedy, datapoint by datapoint, and name its cause.

    Parameters
    ----------
    program
        A program with a guide. One that is a point has no ELBO: then there is the evidence, and what the fitted
        families lose.
    x
        Data, N datapoints, which the guide should not have been trained on.
    families
        Families to fit to each datapoint by itself, names or settings; without the guide's own, the best of them
        stands in for it. None takes mean field and full covariance, and low rank for a guide of that family;
        "low-rank" by name takes the guide's rank.
    x_train
        What the guide was trained on. The gaps are measured on as many of these datapoints too (drawn by the seed),
        and where an encoder is to blame a copy of the guide is trained on for a while: the program stays as it is.
    labels
        (N,) labels or a covariate, for ``ledger.by()``.
    fitted
        What ``am.fit`` gave of this program, for the cost of training and the break-even.
    method
        How to measure log p(x), as in ``am.evidence``: ``am.AIS(...)`` (the default), "auto", and so on.
    num_draws
        S, draws of the guide behind its ELBO, k-hat and effective sample size.
    seed, device
        Of all stages; each draws from a stream of its own.

    Raises
    ------
    ContractError
        The program breaks the contract, or has no guide.
    ArgumentError
        An argument is wrong.

    Examples
    --------
    >>> import amortize as am
    >>> model = am.models.FactorAnalysis.random(latent_dim=2, data_dim=3)
    >>> x = model.simulate(4)
    >>> method = am.AIS(num_chains=16, num_temperatures=30)
    >>> ledger = am.gaps(model.program(), x, families=("mean-field",), method=method, num_draws=50)
    >>> ledger.guide_family, ledger.table.shape, ledger.tower["upper"].tolist()
    ('mean-field', (4, 14), ['mean-field', 'log_evidence'])
    """
    require_program(program)
    require_guide(program)
    run = _Run(program, _families(families), _method(method), check_count("num_draws", num_draws, 2), seed, device)
    data = program.prepare(x, device=device)
    if fitted is not None:
        require_fit_of(program, fitted)
    if labels is not None:
        read_labels(labels, data.num_datapoints)
    train_data = None if x_train is None else read_training_data(program, x_train, data, device=device)
    train = None
    if train_data is not None:
        train = run.ledger(train_data.rows(training_rows(train_data, data.num_datapoints, seed=seed)), Extras())
    ledger = run.ledger(data, Extras(train=train, labels=labels), fitted)
    return ledger.with_clues(probe(ledger, program, data, x_train=train_data, seed=seed))


@dataclass(frozen=True)
class _Run:
    """How a ledger is measured."""

    program: Program
    families: dict[str, Family] | None
    method: Method
    num_draws: int
    seed: int
    device: str | None

    def ledger(self, data: Data, extras: Extras, fitted: Fitted | None = None) -> Ledger:
        """The ledger of these data, without the clues of probes."""
        program = self.program
        options: dict[str, Any] = {"seed": self.seed, "device": self.device}
        guided = has_density(program, data)
        own = read_guide_family(program, data) if guided else GuideFamily(POINT)
        importance = None
        if guided:
            importance = measure_evidence(
                program,
                data,
                method=ImportanceSampling(self.num_draws),
                start="guide",
                discrete=guide_treatment(program, data),
                **options,
            )
        all_discrete = not program.structure(data).has_families
        families = {} if all_discrete else _with_rank(self.families, own)  # there is none to fit
        local = {name: fit_local(program, data, family=family, **options) for name, family in families.items()}
        start = beginning(program, data, local)
        measured, multimodal = measure_twice(program, data, method=self.method, start=start, **options)
        extras = replace(
            extras,
            latents=latents(program, data, seed=self.seed),
            multimodal=multimodal,
            training=TrainingCost.of(fitted, program, data, seed=self.seed),
        )
        settings = {
            "method": {"name": type(self.method).__name__, **self.method.settings()},
            "num_draws": self.num_draws,
            **options,
        }
        ledger = ledger_from(
            measured,
            importance,
            local,
            guide_family=own.name,
            settings=settings,
            all_discrete=all_discrete,
            extras=extras,
        )
        return ledger if fitted is None else self._with_unaided(ledger, data)

    def _with_unaided(self, ledger: Ledger, data: Data) -> Ledger:
        """The ledger with a break-even: a fit that begins at the prior, so that no training stands behind it."""
        name = unaided_family(ledger)
        if name is None:
            return ledger
        family = ledger.local[name].family_settings
        fit = fit_local(
            self.program, data, family=family_of(name, family), init="prior", seed=self.seed, device=self.device
        )
        return ledger.with_unaided({name: fit})


def unaided_family(ledger: Ledger) -> str | None:
    """The family to fit from the prior for the break-even: the guide's own, else the poorest that is as good as it.

    None where there is none such, or no guide with an ELBO.
    """
    if "guide" not in ledger.cost.index:
        return None
    if ledger.guide_family in ledger.local:
        return ledger.guide_family
    return next((name for name in ledger.families if ledger.cost.elbo[name] >= ledger.cost.elbo["guide"]), None)


def training_rows(data: Data, num: int, *, seed: int) -> torch.Tensor:
    """Which training datapoints stand beside ``num`` others: as many, drawn without repeats, in their order."""
    order = torch.randperm(data.num_datapoints, generator=generator(check_seed(seed), "training rows"))
    return order[:num].sort().values.to(data.index.device)


def guide_treatment(program: Program, data: Data) -> str | None:
    """How to treat discrete latents where a guide is judged: "sample" where they are all it draws, else as ever.

    With every latent summed out, the evidence is exact and nothing is left of the guide.
    """
    structure = program.structure(data)
    if structure.dim or program.guide is None:
        return None
    drawn = run_recorded(program.guide, data.rows(slice(0, 2)))
    return "sample" if set(structure.discrete) <= set(drawn) else None


def _method(method: Method | str | None) -> Method:
    made = AIS() if method is None else Auto() if isinstance(method, str) and method == "auto" else method
    if not isinstance(made, Method):
        raise ArgumentError(f"method: expected 'auto', am.AIS(...) or the settings of another method, got {method!r}")
    return made


def _with_rank(families: dict[str, Family] | None, own: GuideFamily) -> dict[str, Family]:
    """Those to fit, low rank with the guide's rank where none was asked for."""
    chosen = {name: make_family(name) for name in FAMILIES} if families is None else families
    if own.rank is not None and (families is None or chosen.get("low-rank") == LowRank()):
        chosen = {**chosen, "low-rank": LowRank(rank=own.rank)}
    return {name: chosen[name] for name in by_richness(chosen)}


def _families(families: Sequence[str | Family] | None) -> dict[str, Family] | None:
    """Settings by name.

    Raises
    ------
    ArgumentError
        If there is none of that name, two have the same, or one has no ELBO.
    """
    if families is None:
        return None
    if not isinstance(families, (tuple, list)):
        raise ArgumentError(f"families: expected a tuple of different names, as in ('mean-field',), got {families!r}")
    made = [make_family(family, argument="families") for family in families]
    names = [family.name for family in made]
    if len(set(names)) != len(names):
        raise ArgumentError(f"families: expected a tuple of different names, as in ('mean-field',), got {families!r}")
    for name in names:
        if name in BOUNDLESS:
            raise ArgumentError(
                f"families: {name!r} posteriors have no density, hence no ELBO to compare; leave them out, and look at "
                f"am.fit_local(..., family={name!r}) by itself"
            )
    return dict(zip(names, made, strict=True))
