"""Runs whose fault is known because it was put there: each must be named, and a good run left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from amortize.diagnostics import effective_sample_size, log_evidence_se, log_mean_exp, psis
from amortize.diagnostics.trust import CAUSES, HARMLESS, Trust, assess

NUM = 40


@dataclass(frozen=True)
class Path:
    betas: np.ndarray
    acceptance: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Run:
    log_weights: np.ndarray
    acceptance: np.ndarray
    num_nonfinite: np.ndarray
    path: Path | None
    khat: np.ndarray
    log_evidence: np.ndarray
    se: np.ndarray
    ess: np.ndarray


def run_of(log_weights: np.ndarray, path: Path | None = None, num_nonfinite: int = 0) -> Run:
    """A run with the numbers that ``evidence`` computes of its weights."""
    num = log_weights.shape[1]
    return Run(
        log_weights,
        np.full(num, np.nan) if path is None else path.acceptance.mean(0),
        np.full(num, num_nonfinite),
        path,
        psis(log_weights).khat,
        log_mean_exp(log_weights),
        log_evidence_se(log_weights),
        effective_sample_size(log_weights),
    )


def annealed(
    *, spread: np.ndarray, memory: float = 0.0, chains: int = 16, acceptance: float = 0.8, num: int = NUM
) -> Run:
    """Chains whose log ratio at each temperature has this spread, and whose next one remembers so much of it."""
    rng = np.random.default_rng(0)
    steps = len(spread) - 1
    noise = rng.normal(size=(chains, num))
    log_weights = np.full((chains, num), -50.0)
    for t in range(steps):
        log_weights += spread[t] / steps * noise
        noise = memory * noise + np.sqrt(1 - memory**2) * rng.normal(size=noise.shape)
    betas = np.repeat(np.linspace(0, 1, steps + 1)[:, None], num, axis=1)
    path = Path(betas, np.full((steps, num), acceptance), np.repeat(spread[:, None], num, axis=1))
    return run_of(log_weights, path)


def good() -> Run:
    return annealed(spread=np.linspace(8, 2, 101), memory=0.3)


def too_short() -> Run:
    return annealed(spread=np.full(13, 30.0))


def frozen() -> Run:
    return annealed(spread=np.full(101, 6.0), memory=1.0, acceptance=0.01)


def slow() -> Run:
    return annealed(spread=np.full(101, 6.0), memory=0.999, acceptance=0.99)


def one_jump() -> Run:
    spread = np.full(101, 2.0)
    spread[40] = 400.0
    return annealed(spread=spread)


def heavy() -> Run:
    return run_of(np.random.default_rng(0).exponential(1.1, size=(1000, NUM)))  # w is Pareto, its true k 1.1


def collapsed() -> Run:
    return run_of(np.random.default_rng(0).normal(0, 9.0, (16, NUM)))


RUNS = {
    "": good,
    "short": too_short,
    "frozen": frozen,
    "slow": slow,
    "jump": one_jump,
    "heavy": heavy,
    "collapsed": collapsed,
}


def share(trust: Trust, cause: str) -> float:
    return float(np.mean(trust.causes == cause))


@pytest.mark.parametrize("cause", RUNS)
def test_each_fault_is_named_for_what_it_is(cause):
    trust = assess(RUNS[cause]())
    near = ("short", "collapsed") if cause in ("short", "collapsed") else (cause,)
    assert sum(share(trust, name) for name in near) > 0.8
    assert trust.trusted.all() if cause == "" else not trust.trusted[trust.causes == cause].any()


@pytest.mark.parametrize(
    ("cause", "words"),
    {
        "short": "anneal more slowly",
        "frozen": "frozen",
        "slow": "larger steps",
        "jump": "schedule=",
        "heavy": "k-hat",
        "collapsed": "more than half of the weight",
    }.items(),
)
def test_warnings_count_and_give_a_remedy(cause, words):
    trust = assess(RUNS[cause]())
    said = [text for text in trust.warnings if words in text]
    assert said
    assert all(text.split()[2:4] == ["40", "datapoints:"] and text.endswith(".") for text in trust.warnings)
    assert sum(int(text.split()[0]) for text in trust.warnings) == np.sum(trust.causes != "")


def test_a_good_run_is_left_alone():
    assert assess(good()) == Trust(pytest.approx(np.ones(NUM)), pytest.approx(np.full(NUM, "")), ())


def test_a_jump_is_placed_on_the_path():
    assert "(beta from 0.39 to 0.41)" in assess(one_jump()).warnings[0]


def test_frozen_chains_do_no_harm_where_nothing_is_left_to_do():
    still = annealed(spread=np.full(101, 0.01), memory=1.0, acceptance=0.0)
    assert assess(still).trusted.all()


def test_a_stall_is_told_but_trusted():
    run = good()
    run.path.acceptance[60:80] = 0.02
    trust = assess(run)
    assert trust.trusted.all()
    assert share(trust, "stalled") == 1
    assert "beta from 0.6 to 0.8" in trust.warnings[0]


def test_weights_near_zero_do_no_harm():
    log_weights = np.random.default_rng(0).normal(0, 0.3, (200, NUM))
    log_weights[::2] -= 80.0
    log_weights[::4] = -np.inf
    assert assess(run_of(log_weights)).trusted.all()


def test_failures_and_exact_values():
    run = good()
    run.log_weights[3, 5] = np.nan
    run = run_of(run.log_weights, run.path)
    assert assess(run).causes[5] == "failed"
    exact = replace(run_of(np.zeros((1, 3))), ess=np.full(3, np.inf), se=np.zeros(3))
    assert assess(exact).trusted.all()


def test_a_datapoint_is_judged_by_itself():
    runs = [RUNS[cause]() for cause in ("", "frozen", "slow", "jump")]
    joined = Run(
        *(np.concatenate([getattr(run, name) for run in runs], -1) for name in ("log_weights", "acceptance")),
        np.concatenate([run.num_nonfinite for run in runs]),
        Path(*(np.concatenate([getattr(run.path, name) for run in runs], -1) for name in vars(runs[0].path))),
        *(np.concatenate([getattr(run, name) for run in runs]) for name in ("khat", "log_evidence", "se", "ess")),
    )
    np.testing.assert_array_equal(assess(joined).causes, np.concatenate([assess(run).causes for run in runs]))


@pytest.mark.parametrize(("chains", "cause"), [(1, "few"), (4, "few"), (5, "")])
def test_chains_too_few_to_tell(chains, cause):
    trust = assess(annealed(spread=np.full(101, 2.0), chains=chains))
    assert set(trust.causes) == {cause}


def test_nonfinite_proposals_are_told_but_trusted():
    run = replace(good(), num_nonfinite=np.full(NUM, 17))  # of 1600
    assert set(assess(run).causes) == {"nonfinite"}
    assert set(assess(replace(run, num_nonfinite=np.full(NUM, 15))).causes) == {""}


def test_a_path_padded_with_nan_is_read_as_the_shorter_one():
    run = good()
    pad = np.full((50, NUM), np.nan)
    padded = Path(*(np.concatenate([array, pad]) for array in (run.path.betas, run.path.acceptance, run.path.spread)))
    assert assess(replace(run, path=padded)).trusted.all()


def test_methods_that_reject_nothing_are_not_called_frozen():
    run = frozen()
    silent = Path(run.path.betas, np.full_like(run.path.acceptance, np.nan), run.path.spread)
    trust = assess(replace(run, path=silent, acceptance=np.full(NUM, np.nan)))
    assert "frozen" not in trust.causes


def test_the_remedy_is_one_that_the_method_has():
    run = collapsed()
    assert "anneal (am.AIS)" in assess(run).warnings[0]
    assert "max_gradients" in assess(replace(run, acceptance=np.full(NUM, 0.8))).warnings[0]  # annealed, path unknown
    assert "temperatures)" in assess(too_short()).warnings[0]


def test_every_cause_is_reached_and_said():
    assert {*RUNS, "failed", "few", *HARMLESS} == {"", *CAUSES}
