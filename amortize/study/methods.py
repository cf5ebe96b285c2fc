"""From the names in a study to the methods of evidence and objectives of training that they stand for.

What a study leaves out takes the default of the method itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amortize.errors import ArgumentError, SpecError
from amortize.inference.ais import AIS
from amortize.inference.auto import Auto
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
from amortize.study.fit_spec import FitSpec

__all__ = ["KERNELS", "METHODS", "method_of", "objective_of"]

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
    given = {"num_particles": spec.num_particles, "num_steps": spec.num_annealing_steps}
    make: Callable[..., Objective] = BOUNDS[spec.objective]
    try:
        return make(**{name: value for name, value in given.items() if value is not None})
    except ArgumentError as error:
        raise SpecError(f"fit: {error}") from None
