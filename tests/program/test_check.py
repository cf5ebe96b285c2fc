"""The doctor: each breach is refused by name and found by the report; healthy programs raise no false alarm."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import amortize as am
from amortize import errors
from amortize.errors import AmortizeError, AmortizeWarning
from amortize.program.check import CLAUSES
from tests.breaches import BREACHES, WARNINGS, X
from tests.guide_breaches import GUIDE_BREACHES
from tests.problems import PROBLEMS
from tests.programs import PROGRAMS

REFUSED = {**BREACHES, **GUIDE_BREACHES}
ALL = {**REFUSED, **WARNINGS}
FEW_STEPS = am.AIS(num_chains=2, num_temperatures=2)
MOST_SECONDS = 10


@pytest.mark.parametrize("name", ALL)
def test_the_report_marks_the_clause_names_the_site_and_says_the_way_out(name):
    breach = ALL[name]()
    start = time.process_time()
    report = breach.program().check(breach.data)
    assert time.process_time() - start < MOST_SECONDS
    row = report[breach.clause]
    assert row.verdict == breach.verdict, str(report)
    assert row.error == (breach.error.__name__ if breach.error else "")
    assert [word for word in breach.names if word not in row.text] == []
    assert [word for word in breach.remedy if word not in row.remedy] == []
    assert report.ok == (breach.verdict != "fails" and all(row.verdict != "fails" for row in report.rows))


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name]().verb != "check"])
def test_verbs_refuse_by_name_and_name_the_site(name):
    breach = REFUSED[name]()
    with pytest.raises(breach.error) as caught:
        _verb(breach.verb, breach.program(), breach.data)
    assert type(caught.value) is breach.error
    assert [word for word in breach.names if word not in " ".join(str(caught.value).split())] == []


def _verb(verb, program, data):
    if verb == "evidence":
        return am.evidence(program, data, method=FEW_STEPS)
    return am.posterior(program, data, num_draws=2)


@pytest.mark.parametrize("name", ["no-plate", "global-latent", "centred-over-the-batch", "guide-misses-a-site"])
def test_the_other_verbs_refuse_alike(name):
    breach = REFUSED[name]()
    verbs = [lambda p: am.gaps(p, breach.data), lambda p: am.fit_local(p, breach.data, init="prior")]
    for verb in verbs[:1] if breach.guide else verbs:
        with pytest.raises(AmortizeError):
            verb(breach.program())


@pytest.mark.parametrize("name", ["guide-misses-a-site", "guide-samples-one-more", "guide-observes"])
def test_training_refuses_a_guide_of_other_sites(name):
    """Pyro would draw what the guide leaves out from the prior, with a warning at most."""
    breach = REFUSED[name]()

    def guide(x):
        pyro.param("loc", torch.tensor(0.0))
        breach.guide(x)

    with pytest.raises(breach.error, match="the guide"):
        am.fit(am.Program(breach.model, guide), breach.data, num_steps=2)


@pytest.mark.parametrize("name", PROBLEMS)
def test_conjugate_programs_pass(name):
    problem = PROBLEMS[name]()
    report = problem.program(guide=problem.guide is not None).check(problem.data)
    assert {row.key: row.text for row in report.rows if row.verdict != "ok"} == {}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_contract_suite_raises_no_false_alarm(name):
    case = PROGRAMS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AmortizeWarning)
        report = case.program().check(case.data)
    alarms = {row.key: row.text for row in report.rows if row.verdict in ("fails", "warn", "not tried")}
    assert set(alarms) <= ({"scales"} if case.warns else set()), alarms


def test_a_failed_clause_hides_none_that_can_be_tried():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(0), 1.0), obs=x)
        pyro.factor("penalty", -z.square().sum())

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.factor("extra", torch.tensor(0.0))

    x = X.clone()
    x[6] = float("nan")
    report = am.Program(model, guide).check(x)
    failing = {row.key for row in report.rows if row.verdict == "fails"}
    assert failing == {"data", "independent", "outside", "guide-sites"}
    untried = report["guide-support"]
    assert (untried.verdict, untried.measured) == ("not tried", "needs a guide with a density")


def test_the_report_is_plain_data_and_an_aligned_table():
    report = BREACHES["global-latent"]().program().check(X)
    found = json.loads(json.dumps(report.to_dict()))
    assert not found["ok"] and {row["verdict"] for row in found["rows"]} == {"ok", "fails", "not tried"}
    local = next(row for row in found["rows"] if row["key"] == "local")
    assert local["error"] == "GlobalLatentError" and "condition={'w': value}" in local["remedy"]
    lines = str(report).splitlines()
    width = max(len(row.clause) for row in report.rows)
    assert len(lines) == len(report.rows) and all(line[width : width + 2] == "  " for line in lines)


def test_checking_leaves_the_program_as_it_was():
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1))

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            net.train()
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)

    program = am.Program(model)
    program.prepare(X)
    before, noise = program.state(), torch.get_rng_state()
    program.check(X)
    after = program.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.dtype == torch.float32 for parameter in program.parameters())
    assert torch.get_default_dtype() == torch.float32 and net.training
    assert torch.equal(noise, torch.get_rng_state())


def test_float32_is_measured_against_float64_site_by_site():
    def model(offset):
        def run(x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
                pyro.sample("y", dist.Normal(z, 1.0), obs=x)
                pyro.sample("x", dist.Normal(z + offset, 0.1), obs=x + offset)

        return am.Program(run)

    assert model(0.0).check(X)["precision"].verdict == "ok"
    row = model(1e6).check(X)["precision"]
    assert row.verdict == "warn" and "'x'" in row.measured and "'y'" not in row.measured
    assert model(1e6).check(X.double())["precision"].verdict == "ok"


def test_discrete_and_given_latents_and_whole_data_sets_are_tried():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(w + k, 1.0), obs=x)

    report = am.Program(model, condition={"w": 0.3}).check(X)
    assert report.ok and "'k' summed out by tiling" in report["densities"].measured
    assert "given: 'w'" in report["local"].measured

    def regression(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    report = am.Program(regression, whole=True).check(X)
    assert {row.key: row.text for row in report.rows if row.verdict not in ("ok", "note")} == {}


@pytest.mark.parametrize("name", ["typed-in-tensor-size", "guide-support-too-wide"])
def test_the_command_takes_seconds(name, tmp_path):
    """CPU seconds of the whole process, imports and all: other processes don't count."""
    breach = REFUSED[name]()
    np.save(tmp_path / "x.npy", breach.data)
    (tmp_path / "made.py").write_text(
        "from tests.breaches import BREACHES\nfrom tests.guide_breaches import GUIDE_BREACHES\n"
        f"def program():\n    return (BREACHES | GUIDE_BREACHES)[{name!r}]().program()\n"
    )
    command = [sys.executable, "-c", "from amortize.cli import app; app()", "check", "made.py:program"]
    environment = {**os.environ, "PYTHONPATH": str(Path(am.__file__).parents[1])}
    before = _seconds_of_children()
    done = subprocess.run(
        [*command, "--data", "x.npy", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert _seconds_of_children() - before < MOST_SECONDS
    assert (done.returncode, done.stderr) == (2, "")
    rows = {row["key"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows[breach.clause]["error"] == breach.error.__name__


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_page_on_the_contract_knows_every_clause_and_error():
    page = (Path(__file__).parents[2] / "docs" / "contract.md").read_text()
    listed = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(clause.key for clause in CLAUSES if clause.kind != "other")
    named = set(re.findall(r"`([A-Za-z]+Error)`", page)) - {"ValueError"}
    assert named <= set(errors.__all__)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.__name__ for kind in kinds if issubclass(kind, errors.ContractError)} <= named
