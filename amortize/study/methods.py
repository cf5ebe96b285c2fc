"""From the names in a study to the methods of evidence and objectives of training that they stand for.

What a study leaves out takes the default of the method itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from amortize.errors import ArgumentError, SpecError
from amortize.inference.ais import AIS
from amortize.inference.auto import Auto
from amortize.inference.families.family import Family
from amortize.inference.families.registry import make_family
from amortize.inference.hmc import HMC
from amortize.inference.importance import ImportanceSampling
from amortize.inference.kernels import Kernel
from amortize.inference.langevin import Langevin
from amortize.inference.mala import MALA
from amortize.inference.method import Method
from amortize.inference.objective import Objective
from amortize.inference.objectives import BOUNDS
from amortize.inference.smc import SMC
from amortize.inference.ula import ULA
from amortize.study.evidence_spec import TAKES, EvidenceSpec
from amortize.study.fit_spec import TAKES as TRAINED_WITH
from amortize.study.fit_spec import FitSpec
from amortize.study.local_spec import LocalSpec
from amortize.study.toml import near_matches
from amortize.study.tower import by_richness

if TYPE_CHECKING:
    from amortize.study.spec import Study

__all__ = ["KERNELS", "METHODS", "families_of", "method_of", "objective_of", "require_settings"]

METHODS: dict[str, Callable[..., Method]] = {
    "ais": AIS,
    "smc": SMC,
    "langevin": Langevin,
    "importance": ImportanceSampling,
    "auto": Auto,
}
"""By the names of ``evidence.method``; adding one is adding a line, and one to ``evidence_spec.TAKES``."""
KERNELS: dict[str, Callable[..., Kernel]] = {"hmc": HMC, "mala": MALA, "ula": ULA}
"""By the names of ``evidence.kernel``."""
_DRAWS = ("importance", "auto")  # these take num_draws, too


def method_of(spec: EvidenceSpec) -> Method:
    """The method of evidence that a study asks for.

    Raises
    ------
    SpecError
        The method refuses a setting.

    Examples
    --------
    >>> method_of(EvidenceSpec(method="langevin", num_temperatures=200)).settings()["num_temperatures"]
    200
    """
    given: dict[str, Any] = {name: getattr(spec, name) for name in TAKES[spec.method]}
    kernel, num_leapfrog = given.pop("kernel", None), given.pop("num_leapfrog", None)
    settings = {name: value for name, value in given.items() if value is not None}
    if num_leapfrog is not None:
        settings["kernel"] = HMC(num_leapfrog)
    elif kernel is not None and kernel != "hmc":
        settings["kernel"] = KERNELS[kernel]()
    if spec.method in _DRAWS:
        settings["num_draws"] = spec.num_draws
    try:
        return METHODS[spec.method](**settings)
    except ArgumentError as error:
        raise SpecError(f"evidence: {error}") from None


_STEPS = ("num_annealing_steps", "num_refinement_steps")


def objective_of(spec: FitSpec) -> str | Objective:
    """The objective of training that a study asks for: one of Pyro's by its name, or the settings of a tighter bound.

    Raises
    ------
    SpecError
        The objective refuses a setting.

    Examples
    --------
    >>> objective_of(FitSpec(objective="iwae", num_particles=10)).num_particles
    10
    """
    if spec.objective not in BOUNDS:
        return spec.objective
    steps = spec.num_annealing_steps if spec.num_refinement_steps is None else spec.num_refinement_steps
    named = {name for names in TRAINED_WITH.values() for name in names}.difference(_STEPS)
    given = {"num_steps": steps} | {name: getattr(spec, name) for name in sorted(named)}
    make: Callable[..., Objective] = BOUNDS[spec.objective]
    try:
        return make(**{name: value for name, value in given.items() if value is not None})
    except ArgumentError as error:
        raise SpecError(f"fit: {error}") from None


def families_of(spec: LocalSpec) -> dict[str, Family]:
    """Settings of the families of local posteriors that a study asks for, from poor to rich.

    Raises
    ------
    SpecError
        A family takes no such setting, or refuses its value.

    Examples
    --------
    >>> families_of(LocalSpec(families=("full-covariance", "low-rank"), settings={"low-rank": {"rank": 3}}))
    {'low-rank': LowRank(rank=3), 'full-covariance': FullCovariance()}
    """
    made = {}
    for name in by_richness(spec.families):
        given = spec.settings.get(name, {})
        family = make_family(name)
        known = [field.name for field in fields(family)]
        for key in given:
            if key not in known:
                raise SpecError(
                    f"local.settings.{name}: no setting {key!r}{near_matches(key, known)}."
                    f" It takes: {', '.join(known) or 'nothing'}"
                )
        try:
            made[name] = type(family).of({**family.settings(), **given})
        except ArgumentError as error:
            raise SpecError(f"local.settings.{name}: {error}") from None
    return made


def require_settings(study: Study) -> None:
    """Make what a study names, so that settings that are refused are known before anything is loaded.

    Raises
    ------
    SpecError
        A method, an objective or a family refuses a setting.
    """
    method_of(study.evidence)
    objective_of(study.fit)
    families_of(study.local)
