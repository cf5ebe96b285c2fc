"""A study that is stopped in any way goes on to the same numbers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import amortize as am
from amortize.study.store import StoreError, read_manifest
from tests.study.tiny import COMMAND, OUTPUTS, PROGRAM, STAGES, mine, same_numbers, tiny, verbs, written


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[am.StudyResult, Path]:
    """The tiny study, never interrupted, and its folder."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return am.run(tiny(), out=out), out


@pytest.fixture
def reference(finished: tuple[am.StudyResult, Path]) -> am.StudyResult:
    return finished[0]


@pytest.fixture
def run_folder(folder: Path, finished: tuple[am.StudyResult, Path]) -> Path:
    """A copy of the finished run, as ``run`` in the current folder."""
    return Path(shutil.copytree(finished[1], "run"))


def test_resume_keeps_every_finished_stage(run_folder: Path, reference: am.StudyResult, capsys: Any) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in Path("run/stages").iterdir()}
    result = am.run(tiny(), out="run", resume=True, progress=True)
    assert verbs(capsys.readouterr().err) == dict.fromkeys(STAGES, "kept")
    del before["manifest.jsonl"], before[".lock"]
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in Path("run/stages").iterdir()}.items()
    same_numbers(result.tree, reference.tree)
    assert result.fitted is not None
    assert reference.fitted is not None
    pd.testing.assert_frame_equal(
        result.fitted.history.drop(columns="seconds"), reference.fitted.history.drop(columns="seconds")
    )


@pytest.mark.parametrize("name", ["fit.pt", "local-mean-field.npz", "evidence.npz", "draws.npz"])
def test_a_corrupted_stage_is_computed_again_to_the_same_numbers(
    run_folder: Path, reference: am.StudyResult, capsys: Any, name: str
) -> None:
    path = Path("run/stages") / name
    path.write_bytes(path.read_bytes()[:-10])
    result = am.run(tiny(), out="run", resume=True, progress=True)
    stage = path.stem.replace("-", " ", 1)
    assert verbs(capsys.readouterr().err) == {**dict.fromkeys(STAGES, "kept"), stage: "done"}
    same_numbers(result.tree, reference.tree)


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "chains": ({"evidence.num_chains": 5}, {"evidence"}),
    "draws of the guide": ({"evidence.num_draws": 40}, {"guide"}),
    "local steps": ({"local.num_steps": 70}, {name for name in STAGES if name.startswith("local")}),
    "another family": (
        {"local.families": ["mean-field", "full-covariance", "laplace"]},
        {"local laplace"},
    ),
    "settings of a family": (
        {"local.families": ["mean-field", "full-covariance", "low-rank"], "local.settings": {"low-rank": {"rank": 1}}},
        {"local low-rank"},
    ),
    "no break-even": ({"ledger.break_even": False}, set()),
    "evaluated datapoints": ({"data.num_evaluated": 5}, set(STAGES) - {"fit"}),
    "training": ({"fit.num_steps": 31}, set(STAGES)),
    "the seed": ({"seed": 5}, set(STAGES)),
    "the title": ({"report.title": "another"}, set()),
    "kept draws": ({"report.num_draws": 30}, {"draws"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_spec_computes_what_depends_on_it(run_folder: Path, capsys: Any, change: str) -> None:
    values, stages = CHANGES[change]
    result = am.run(tiny(**values), out="run", resume=True, progress=True)
    assert {name for name, verb in verbs(capsys.readouterr().err).items() if verb == "done"} == stages
    if change in ("training", "chains"):
        same_numbers(result.tree, am.run(tiny(**values)).tree)


def test_a_changed_program_file_or_data_computes_everything(folder: Path, capsys: Any) -> None:
    for change in ("nothing", "program", "data"):
        if change == "program":
            Path("mine.py").write_text(PROGRAM.replace("scale=1.0", "scale=2.0"))
        if change == "data":
            np.save("x.npy", np.random.default_rng(1).normal(size=(50, 3)))
        am.run(mine(), out="run", resume=True, progress=True)
        assert set(verbs(capsys.readouterr().err).values()) == {"done"}, change


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(am.__file__).parents[1])}
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def stop_after(stage: str, process: subprocess.Popen[str], out: Path, how: signal.Signals) -> str:
    """Send a signal as soon as a stage is in the manifest; give what was said on stderr."""
    limit = time.monotonic() + 120
    while stage not in read_manifest(out) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    process.send_signal(how)
    return process.communicate()[1]


@pytest.mark.parametrize("stage", ["fit", "local full-covariance"])
def test_a_killed_study_resumes_to_the_same_numbers(folder: Path, reference: am.StudyResult, stage: str) -> None:
    Path("tiny.toml").write_text(tiny().to_toml())
    with start("study", "tiny.toml", "--out", "run", cwd=folder) as process:
        stop_after(stage, process, folder / "run", signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not Path("run/tree.nc").exists()
    finished = list(read_manifest(folder / "run"))
    assert stage in finished
    with start("resume", "run", cwd=folder) as process:
        stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    assert {name for name, verb in verbs(stderr).items() if verb == "kept"} == set(finished)
    assert {path.name for path in Path("run").iterdir()} == OUTPUTS
    same_numbers(written(folder / "run"), reference.tree)


def test_ctrl_c_keeps_finished_stages_and_says_how_to_go_on(folder: Path, reference: am.StudyResult) -> None:
    Path("tiny.toml").write_text(tiny(**{"local.num_steps": 60}).to_toml())
    with start("study", "tiny.toml", "--out", "run", cwd=folder) as process:
        stderr = stop_after("fit", process, folder / "run", signal.SIGINT)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert re.search(r"Stopped\nFinished stages are kept \(fit.*\)\. Go on with: amortize resume run\n", stderr)
    same_numbers(am.run(tiny(), out="run", resume=True).tree, reference.tree)


def test_ctrl_c_in_training_leaves_no_half_trained_stage(folder: Path) -> None:
    Path("long.toml").write_text(tiny(name="long", **{"fit.num_steps": 10**6}).to_toml())
    with start("study", "long.toml", "--out", "run", cwd=folder) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "fit" in line
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate()[1]
    assert process.returncode == 130, stderr
    assert "Finished stages are kept (none yet)" in stderr
    assert read_manifest(folder / "run") == {}


def test_a_full_disk_stops_the_study_with_a_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reference: am.StudyResult
) -> None:
    import amortize.study.stages as stages

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "_savez", full)
        with pytest.raises(StoreError, match=r"No space left on device.*Go on with: amortize resume run"):
            am.run(tiny(), out="run")
    assert list(read_manifest(folder / "run")) == ["fit"]
    assert {path.name for path in Path("run/stages").iterdir()} == {"fit.pt", "manifest.jsonl", ".lock"}
    same_numbers(am.run(tiny(), out="run", resume=True).tree, reference.tree)
