"""The annealing loop by itself: both directions, temperatures per datapoint, and what happens when a run is stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import AmortizeWarning
from amortize.inference.annealing import MOST_NUMBERS, Plan, anneal, make_movers
from amortize.inference.pilot import run_pilot
from amortize.inference.starts import GuideStart, PriorStart
from amortize.random import generator
from tests.problems import CONJUGATE, PROBLEMS, Problem
from tests.statistics import z_value

CHAINS = 2000
FEW = pytest.mark.filterwarnings("ignore:for .* draws carries nearly all:amortize.errors.AmortizeWarning")


def reverse_weights(problem: Problem, method: am.AIS) -> np.ndarray:
    """Log weights (C, N) of chains that begin at independent exact posterior draws and go down to the prior."""
    program = problem.program(guide=True)
    data = program.prepare(problem.data)
    with program.evaluating():
        start = PriorStart(program.log_joint(data))
        plan = run_pilot(start, data, method.budget, seed=0)
        folded = data.fold(CHAINS)
        exact = GuideStart(program.guide_density(data)).draw(folded, 0, "exact")
        movers = make_movers(start, folded, method.kernel, seed=0, backend="fx")
        run = anneal(movers, exact, plan, generator(0, "reverse"), reverse=True)
    return run.log_weights.numpy()


@pytest.mark.parametrize("num_temperatures", [3, 10])
@pytest.mark.parametrize("name", CONJUGATE)
def test_in_reverse_the_mean_inverse_weight_is_one_over_the_evidence(name, num_temperatures):
    problem = PROBLEMS[name]()
    log_weights = reverse_weights(problem, am.AIS(num_temperatures=num_temperatures, kernel=am.HMC(num_leapfrog=4)))
    ratio = np.exp(problem.log_evidence - log_weights)
    error = ratio.std(ddof=1) / np.sqrt(ratio.size)
    assert abs(ratio.mean() - 1) < z_value(2 * len(CONJUGATE)) * error
    assert log_weights.mean() > problem.log_evidence.mean() - 3 * log_weights.std() / np.sqrt(log_weights.size)


def spread_apart() -> tuple[am.Program, torch.Tensor, np.ndarray]:
    """Factor analysis with datapoints of three very different distances from the prior's bulk."""
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=12, seed=2)
    x = torch.tensor(analysis.program().simulate(torch.zeros(12, 12))[1]["x"])
    x = x * torch.tensor([0.2, 1.0, 2.5]).repeat_interleave(4).unsqueeze(1)
    return analysis.program(), x, analysis.log_evidence(x).detach().double().numpy()


@FEW
@pytest.mark.parametrize(
    "schedule", ["linear", "power", "sigmoid", "pilot", "pilot-per-datapoint", (0.0, 0.1, 0.4, 1.0)]
)
def test_weights_are_unbiased_under_every_schedule(schedule):
    program, x, exact = spread_apart()
    steps = 3 if isinstance(schedule, tuple) else 12
    method = am.AIS(num_chains=400, num_temperatures=steps, kernel=am.HMC(num_leapfrog=5), schedule=schedule)
    evidence = am.evidence(program, x[:8], method=method, start="prior", seed=4)
    ratio = np.exp(evidence.log_weights - exact[:8])
    error = ratio.std(0, ddof=1) / np.sqrt(len(ratio))
    assert (np.abs(ratio.mean(0) - 1) < z_value(6 * 8) * error).all()
    assert evidence.path is not None and evidence.path.betas.shape == (steps + 1, 8)


def test_each_datapoint_may_have_temperatures_of_its_own():
    program, x, exact = spread_apart()
    methods = {
        name: am.AIS(num_chains=64, num_temperatures=60, schedule=name) for name in ("pilot", "pilot-per-datapoint")
    }
    runs = {name: am.evidence(program, x, method=method, start="prior") for name, method in methods.items()}
    shared, own = (runs[name].path.betas for name in ("pilot", "pilot-per-datapoint"))
    assert (shared == shared[:, :1]).all() and (own[:, 0] != own[:, -1]).any()
    assert (np.diff(own, axis=0) > 0).all() and (own[0] == 0).all() and (own[-1] == 1).all()
    far = slice(8, 12)  # where the shared schedule is the average of everybody's
    spread = {name: run.log_weights[:, far].var(0, ddof=1).mean() for name, run in runs.items()}
    assert spread["pilot-per-datapoint"] < 1.2 * spread["pilot"]
    error = np.abs(runs["pilot-per-datapoint"].log_evidence - exact)
    assert (error < z_value(12) * runs["pilot-per-datapoint"].se + 0.02).all()


def test_forward_and_reverse_from_the_exact_posterior_agree_to_rounding():
    problem = PROBLEMS["normal-normal"]()
    program = problem.program(guide=True)
    data = program.prepare(problem.data)
    with program.evaluating():
        start = GuideStart(program.guide_density(data))
        folded = data.fold(3)
        movers = make_movers(start, folded, am.HMC(), seed=0, backend="eager")
        num = data.num_datapoints
        plan = Plan(torch.linspace(0, 1, 6), torch.full((5, num), 0.1), torch.ones(5, num, 1, dtype=torch.float64))
        for reverse in (False, True):
            run = anneal(movers, start.draw(folded, 0, "x"), plan, generator(1), reverse=reverse)
            np.testing.assert_allclose(run.log_weights.numpy() - problem.log_evidence, 0, atol=1e-9)
            assert run.acceptance.shape == (5, num) and (run.acceptance > 0.9).all()
            assert run.spread.max() < 1e-9


class Stopped(am.ImportanceSampling):
    """Is interrupted at the third chunk of two datapoints."""

    def chunk_size(self, start):
        return 2

    def estimate(self, start, data, *, seed):
        if int(data.index[0]) == 4:
            raise KeyboardInterrupt
        return super().estimate(start, data, seed=seed)


def test_ctrl_c_keeps_the_datapoints_that_are_done():
    problem = PROBLEMS["normal-normal"]()
    with pytest.warns(AmortizeWarning, match="stopped after 4 of 6 datapoints"):
        evidence = am.evidence(problem.program(guide=True), problem.data, method=Stopped(50))
    assert evidence.interrupted and np.isnan(evidence.log_evidence[4:]).all() and np.isnan(evidence.se[4:]).all()
    np.testing.assert_allclose(evidence.log_evidence[:4], problem.log_evidence[:4], atol=1e-9)
    assert list(evidence.used[4:]) == ["none", "none"] and len(evidence.table) == 6
    assert list(evidence.trusted) == [True] * 4 + [False] * 2
    assert evidence.warnings == ("Ctrl-C stopped the run after 4 of 6 datapoints; the others are NaN.",)


def test_ctrl_c_before_anything_is_done_is_ctrl_c():
    problem = PROBLEMS["normal-normal"]()
    with pytest.raises(KeyboardInterrupt):
        am.evidence(problem.program(guide=True), torch.as_tensor(problem.data)[4:], method=Always(50))


class Always(am.ImportanceSampling):
    """Is interrupted at once."""

    def estimate(self, start, data, *, seed):
        raise KeyboardInterrupt


def test_chunks_are_bounded_by_work_and_by_memory():
    program, x, _ = spread_apart()
    start = PriorStart(program.log_joint(program.prepare(x)))
    short, long = am.AIS(num_temperatures=50), am.AIS(num_temperatures=5000)
    assert short.chunk_size(start) > long.chunk_size(start) >= 2**11 // 16
    wide = am.AIS(num_chains=1, num_temperatures=2**20, kernel=am.HMC(num_leapfrog=1))
    assert wide.chunk_size(start) * 2**20 * 9 <= MOST_NUMBERS


@FEW
def test_gradients_are_counted_with_the_pilot():
    program, x, _ = spread_apart()
    method = am.AIS(num_chains=8, num_temperatures=60, kernel=am.HMC(num_leapfrog=3))
    evidence = am.evidence(program, x, method=method, start="prior")
    assert (evidence.num_gradients == 8 * 60 * 3 + 2 * 4 * 60 * 3).all()
    alone = am.AIS(num_chains=8, num_temperatures=60, kernel=am.HMC(num_leapfrog=3), pilot=False)
    assert (am.evidence(program, x, method=alone, start="prior").num_gradients == 8 * 60 * 3).all()
