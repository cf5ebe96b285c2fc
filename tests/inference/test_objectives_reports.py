"""How training by a bound of each datapoint reports itself: history, extra parameters, seeds, Ctrl-C, settings."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError
from amortize.inference.objectives import BOUNDS
from tests.inference.test_objectives import ANY
from tests.problems import linear_vae


@pytest.mark.parametrize("name", ANY)
def test_the_history_says_which_bound_it_holds(name, tmp_path):
    analysis, x = linear_vae()
    training = am.Training(batch_size=16, validation=x[:20], validate_every=5)
    fitted = am.fit(analysis.program(), x, objective=name, num_steps=10, training=training)
    assert fitted.objective == name and fitted.bound == BOUNDS[name]().bound
    assert fitted.settings["objective"]["name"] == name
    history = fitted.history
    assert history.elbo.notna().all() and history.validation_elbo.notna().sum() == 2
    assert (history.validation_elbo_se.dropna() > 0).all() and (history.gradient_norm > 0).all()
    again = am.load(fitted.save(tmp_path / "fitted.pt"), analysis.program())
    assert again.bound == fitted.bound and list(again.extra) == list(fitted.extra)
    assert all(torch.equal(again.extra[key], fitted.extra[key]) for key in fitted.extra)


@pytest.mark.parametrize("name", ANY)
def test_the_same_seed_gives_the_same_numbers_beside_another_program(name):
    runs = []
    for seed in (0, 0, 1):
        other, y = linear_vae(30)
        am.fit(other.program(), y, objective="iwae", num_steps=2, seed=5)
        analysis, x = linear_vae()
        torch.rand(3 + seed)
        runs.append(
            am.fit(
                analysis.program(), x, objective=name, num_steps=4, seed=seed, training=am.Training(batch_size=16)
            ).history.elbo
        )
    assert runs[0].equals(runs[1]) and not runs[0].equals(runs[2])


def test_the_parameters_of_an_objective_are_trained_and_go_back_with_the_best():
    analysis, x = linear_vae()
    training = am.Training(learning_rate=0.05, validation=x[30:], validate_every=5, patience=2)
    fitted = am.fit(analysis.program(), x[:30], objective=am.LMCVAE(num_steps=3), num_steps=300, training=training)
    assert fitted.stopped_early
    assert float((fitted.extra["steps.log_step_sizes"] - np.log(0.1)).abs().max()) > 0.01


def test_ctrl_c_keeps_what_was_learned():
    analysis, x = linear_vae()
    program = analysis.program()
    am.fit(program, x, num_steps=1)
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.warns(AmortizeWarning, match="interrupted"):
        fitted = am.fit(program, x, objective="iwae", num_steps=10**6)
    assert fitted.interrupted and 0 < len(fitted.history) < 10**6


@pytest.mark.parametrize(
    "make",
    [
        lambda: am.IWAE(num_particles=0),
        lambda: am.IWAE(gradient="score"),
        lambda: am.WakeSleep(sleep=1.5),
        lambda: am.WakeSleep(num_particles=2.5),
        lambda: am.LMCVAE(num_steps=0),
        lambda: am.LMCVAE(step_size=-1.0),
        lambda: am.AMCVAE(num_chains=1),
        lambda: am.AMCVAE(target_acceptance=1.0),
        lambda: am.DAIS(persistence=1.0),
        lambda: am.MCD(hidden=[64]),
        lambda: am.MCD(hidden=(0,)),
    ],
)
def test_settings_are_checked(make):
    with pytest.raises(ArgumentError, match=r"(IWAE|WakeSleep|LMCVAE|AMCVAE|DAIS|MCD) \w+: expected"):
        make()


def test_names_are_listed_where_one_is_wrong():
    analysis, x = linear_vae()
    with pytest.raises(ArgumentError, match=r"'iwae', 'wake-sleep'.*am\.IWAE"):
        am.fit(analysis.program(), x, objective="importance")
