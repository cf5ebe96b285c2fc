"""What an interruption leaves of Pyro's global state."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

import amortize as am
from amortize.errors import AmortizeWarning
from amortize.program.runtime import undisturbed


def interrupted_between_plate_and_body() -> None:
    plate = pyro.plate("data", 3)
    plate.__enter__()
    raise KeyboardInterrupt


def test_plates_and_handlers_are_put_back():
    with pytest.raises(KeyboardInterrupt), undisturbed():
        interrupted_between_plate_and_body()
    assert not _PYRO_STACK and not _DIM_ALLOCATOR._stack


def test_what_was_entered_before_stays():
    with pyro.plate("outer", 2):
        with pytest.raises(KeyboardInterrupt), undisturbed():
            interrupted_between_plate_and_body()
        assert _DIM_ALLOCATOR._stack == ["outer"] and len(_PYRO_STACK) == 1


class Model:
    """Is interrupted between a plate and its body at its hundredth run."""

    def __init__(self):
        self.runs = 0

    def __call__(self, x):
        self.runs += 1
        if self.runs == 100:
            interrupted_between_plate_and_body()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_after_ctrl_c_in_training_the_same_program_runs_again():
    program = am.Program(Model(), guide)
    with pytest.warns(AmortizeWarning, match="interrupted"):
        fitted = am.fit(program, torch.zeros(3), num_steps=500)
    assert fitted.interrupted
    assert am.evidence(program, torch.zeros(3), method=am.ImportanceSampling(100)).log_evidence.shape == (3,)
