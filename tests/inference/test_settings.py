"""Every numeric setting of methods, kernels and objectives refuses what is no such number, by its own name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, check_number

SETTINGS = (
    *(am.AIS, am.SMC, am.Langevin, am.Diffusion, am.Auto, am.ImportanceSampling, am.HMC, am.MALA),
    *(am.IWAE, am.WakeSleep, am.LMCVAE, am.AMCVAE, am.DAIS, am.MCD, am.Training),
)
NUMBERS = [
    (kind, item.name)
    for kind in SETTINGS
    for item in fields(kind())
    if type(getattr(kind(), item.name)) in (int, float)
]
WRONG: tuple[Any, ...] = (True, None, "3", -1, float("nan"), [], object(), am.HMC, torch.ones(2))


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=[f"{kind.__name__}-{name}" for kind, name in NUMBERS])
def test_what_is_no_number_is_refused_by_name(kind: Any, name: str) -> None:
    for value in WRONG:
        with pytest.raises(ArgumentError, match=f"{kind.__name__} {name}: expected .*, got"):
            kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), [(am.Langevin, "target_acceptance"), (am.Training, "clip_norm")])
def test_a_number_that_may_be_none_is_a_number(kind: Any, name: str) -> None:
    assert getattr(kind(**{name: None}), name) is None
    with pytest.raises(ArgumentError, match=f"{kind.__name__} {name}: expected"):
        kind(**{name: "0.5"})


@pytest.mark.parametrize("value", ["yes", 1, 0.0])
def test_progress_is_true_false_or_none(value: Any) -> None:
    with pytest.raises(ArgumentError, match="Training progress: expected True or False"):
        am.Training(progress=value)


@pytest.mark.parametrize("kind", [am.AIS, am.Langevin])
@pytest.mark.parametrize("schedule", [10**400, None, "quick", (0.0, 0.5), [0.0, float("nan"), 1.0]])
def test_a_schedule_is_a_name_or_temperatures(kind: Any, schedule: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{kind.__name__} schedule: expected"):
        kind(num_temperatures=2, schedule=schedule)


def test_an_interval_holds_the_ends_that_its_brackets_say() -> None:
    assert check_number("a", 0, "[0, 1)") == 0
    assert check_number("a", 1, "(0, 1]") == 1
    assert check_number("a", torch.ones(1).numpy()[0]) == 1
    for value, interval in ((0, "(0, 1]"), (1, "[0, 1)"), (10**400, "(0, inf)"), (float("inf"), "(0, inf)")):
        with pytest.raises(ArgumentError, match="a: expected a"):
            check_number("a", value, interval)


@pytest.mark.parametrize("kind", [am.AIS, am.SMC, am.Auto])
def test_a_class_is_told_from_an_object_of_it(kind: Any) -> None:
    with pytest.raises(ArgumentError, match=r"kernel: .* got the class MALA; make an object of it, MALA\(...\)"):
        kind(kernel=am.MALA)
    program = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0).program()
    with pytest.raises(ArgumentError, match=f"method: .* got the class {kind.__name__}; make an object of it"):
        am.evidence(program, torch.zeros(2, 4), method=kind)
    with pytest.raises(ArgumentError, match=r"objective: .* got the class IWAE; make an object of it"):
        am.fit(program, torch.zeros(2, 4), objective=am.IWAE)  # type: ignore[arg-type]
