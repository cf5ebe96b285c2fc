"""Studies of a few seconds, and what their tests share."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from amortize.study.spec import Study

STAGES = [
    "fit",
    "local mean-field",
    "local full-covariance",
    "guide",
    "evidence",
    "latents",
    "cost",
    "local mean-field from the prior",
    "draws",
]
CLOCK = ("seconds", "seconds_per_datapoint", "training_seconds", "num_datapoints")
"""Variables of a tree that a clock has a part in."""
OUTPUTS = {"report.html", "report.json", "tree.nc", "spec.toml", "stages"}
COMMAND = [sys.executable, "-c", "from amortize.cli import app; app()"]

PROGRAM = """
import torch, pyro, pyro.distributions as dist
import amortize as am

def program(scale=1.0):
    net = torch.nn.Linear(3, 4)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
            loc = torch.cat([z, z.sum(-1, keepdim=True)], -1) * rate.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        loc, size = net(x)[..., :2], net(x)[..., 2:].exp()
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, size).to_event(1))
            pyro.sample("rate", dist.LogNormal(pyro.param("r", torch.tensor(0.0)), 0.5))

    return am.Program(model, guide)

def prior_alone():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    return am.Program(model)

def named():
    net = torch.nn.Linear(2, 4)
    def model(counts, size):
        with pyro.plate("data", counts.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("counts", dist.Normal(z * size.unsqueeze(-1), 1.0).to_event(1), obs=counts)
    def guide(counts, size):
        pyro.module("net", net)
        with pyro.plate("data", counts.shape[0]):
            loc, log_scale = net(counts).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
    return am.Program(model, guide)
"""


def tiny(**changes: Any) -> Study:
    study = Study(
        name="tiny",
        program={"target": "bernoulli-vae", "settings": {"latent_dim": 2, "hidden": [8]}},
        data={"source": "digits", "num_train": 100, "num_evaluated": 6},
        fit={"num_steps": 30, "batch_size": 32, "validate_every": 10},
        local={"num_steps": 60},
        evidence={"num_chains": 4, "num_temperatures": 10, "num_leapfrog": 3, "num_draws": 50},
        ledger={"probes": False},
        report={"num_draws": 20},
    )
    return study.with_values(changes)


def write_inputs(folder: Path) -> None:
    """A user's program and data."""
    rng = np.random.default_rng(0)
    (folder / "mine.py").write_text(PROGRAM)
    np.save(folder / "x.npy", rng.normal(size=(50, 3)))
    np.savez(folder / "two.npz", counts=rng.normal(size=(40, 2)), size=rng.uniform(1.0, 2.0, size=40))


def mine(name: str = "program", source: str = "x.npy", **changes: Any) -> Study:
    return tiny(**{"name": "mine", "program": {"target": f"mine.py:{name}"}, "data": {"source": source}, **changes})


def same_numbers(tree: xr.DataTree, expected: xr.DataTree) -> None:
    """Every number but wall-clock times is bit for bit the same."""
    assert set(tree.groups) == set(expected.groups)
    for group in expected.groups:
        ours, theirs = tree[group].to_dataset(), expected[group].to_dataset()
        xr.testing.assert_equal(ours.drop_vars(CLOCK, errors="ignore"), theirs.drop_vars(CLOCK, errors="ignore"))


def written(out: Path) -> xr.DataTree:
    with xr.open_datatree(out / "tree.nc") as tree:
        return tree.load()


def verbs(stderr: str) -> dict[str, str]:
    """Which stages were kept and which done, by the lines of progress."""
    found = re.findall(r"^ +[\d.]+ s  (\w[\w -]*?) +(kept|done) ", stderr, flags=re.MULTILINE)
    return dict(found)
