from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import amortize
from amortize.cli import app
from amortize.study.spec import Study
from amortize.study.studies import digits

HEADER = """
import pyro
import pyro.distributions as dist
import torch
import amortize as am

def model(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

def guide(x):
    net = pyro.module("net", make_net())
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(net(x), 0.5).to_event(1))

NETS = []

def make_net():
    if not NETS:
        NETS.append(torch.nn.Linear(2, 2))
    return NETS[0]
"""
GOOD = HEADER + "\nprogram = am.Program(model, guide)\n"
BODY = {  # wrong programs: a file, and the error
    "no plate": (
        """
        def program():
            def model(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(2))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(2), obs=x)
            return am.Program(model)
        """,
        "NoDataPlateError",
        r"pyro\.plate\('data', x\.shape\[0\]\)",
    ),
    "global latent": (
        """
        def program():
            def model(x):
                scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
                with pyro.plate("data", x.shape[0]):
                    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)
            return am.Program(model)
        """,
        "GlobalLatentError",
        r"condition=\{'scale': value\}",
    ),
    "guide misses a site": (
        """
        def program():
            def guide(x):
                with pyro.plate("data", x.shape[0]):
                    pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return am.Program(model, guide)
        """,
        "GuideMismatchError",
        r"misses 'z'.*It must sample exactly the model's latent sites: 'z'",
    ),
    "fails on import": (
        "\nprogram = undefined_name",
        "ArgumentError",
        r"NameError.*\n  line \d+: program = undefined_name",
    ),
    "syntax error": ("\nprogram = (", "ArgumentError", r"SyntaxError: .*\n  line \d+: program = \("),
    "exits": ("\nraise SystemExit(3)", "ArgumentError", r"SystemExit: 3\n  line \d+: raise SystemExit\(3\)"),
    "fails when called": (
        "\ndef program():\n    return 1 / 0",
        "ArgumentError",
        r"make the program \(program\(\)\): ZeroDivisionError: .*\n  line \d+: return 1 / 0",
    ),
    "no such name": (
        "\nprogramme = am.Program(model)",
        "ArgumentError",
        r"has no 'program' \(did you mean programme\?\)",
    ),
    "a model": (
        "\nprogram = model",
        "ArgumentError",
        r"is a function of x; .* program = am\.Program\(model, guide\)",
    ),
    "a number": ("\nprogram = 3", "ArgumentError", r"is a int; expected an am\.Program or a function"),
    "returns nothing": (
        "\ndef program():\n    am.Program(model)",
        "ArgumentError",
        r"returned None; expected an am\.Prog",
    ),
    "fails on data": (
        """
        def program():
            def model(x):
                with pyro.plate("data", x.shape[0]):
                    return no_such_name
            return am.Program(model)
        """,
        "DataError",
        r"NameError: .*\n  line \d+: return no_such_name",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text(GOOD)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)))
    return tmp_path


def amortize_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def expect_error(folder: Path, arguments: list[object], name: str, message: str) -> None:
    before = listing(folder)
    result = amortize_command(*arguments)
    assert result.exit_code == 2, result.output
    title, _, text = result.stderr.partition("\n")
    assert title == name
    assert re.search(message, text), text
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) < 25  # one screen
    assert result.stdout == ""
    assert listing(folder) == before  # nothing written, half or whole


@pytest.mark.parametrize("case", BODY)
def test_wrong_programs(folder: Path, case: str) -> None:
    body, name, message = BODY[case]
    (folder / "wrong.py").write_text(HEADER + textwrap.dedent(body))
    expect_error(folder, ["study", "wrong.py:program", "--data", "x.npy"], name, message)
    if name == "ArgumentError":  # there is no program to check
        expect_error(folder, ["check", "wrong.py:program", "--data", "x.npy"], name, message)
        return
    result = amortize_command("check", "wrong.py:program", "--data", "x.npy")
    assert result.exit_code == 2
    said = " ".join(result.stdout.replace("-> ", "").split())
    assert re.search(rf"fails [^:]*: {'NameError' if name == 'DataError' else name}: ", said)
    assert name == "DataError" or re.search(message.replace("\\.*It", ".*It"), said)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_wrong_data(folder: Path) -> None:
    np.save("wide.npy", np.zeros((40, 3)))
    np.save("nan.npy", np.where(np.eye(40, 2) > 0, np.nan, 1.0))
    np.save("text.npy", np.array(["a", "b"]))
    np.save("one.npy", np.zeros((1, 2)))
    Path("x.txt").write_text("1 2")
    for file, name, message in [
        ("none.npy", "DataError", r"No such file.*none\.npy"),
        ("wide.npy", "DataError", r"at line \d+ of good.py: .*The data are .* \(\d+, 3\), .*Compare the sizes"),
        ("nan.npy", "DataError", r"2 NaN and 0 infinite values, in 2 of 40 rows .*Drop or fill them"),
        ("text.npy", "DataError", r"expected numbers, got dtype <U1"),
        ("one.npy", "DataError", r"expected at least 2 datapoints .*, got 1"),
        ("x.txt", "DataError", r"use one of \.npy, \.npz, \.csv"),
    ]:
        expect_error(folder, ["study", "good.py:program", "--data", file], name, message)


def test_wrong_targets(folder: Path) -> None:
    for arguments, name, message in [
        (["digit"], "SpecError", r"unknown study 'digit' \(did you mean digits\?\)\. Built-in: digits\."),
        (["none.py:program", "--data", "x.npy"], "ArgumentError", r"no such file: .*none\.py"),
        (
            ["good.py", "--data", "x.npy"],
            "ArgumentError",
            r"expected path\.py:name, got 'good\.py'.*good\.py:program",
        ),
        (["good.py:program"], "ArgumentError", r"needs data: add --data FILE"),
        (["none.toml"], "SpecError", r"cannot read the study none\.toml: No such file"),
        (["digits", "--seed", "-1"], "SpecError", r"seed: expected a number >= 0, got -1"),
        (["digits", "--device", "gpu"], "SpecError", r"device: expected cpu, cuda or cuda:1, got 'gpu'"),
        (["digits", "--data", "none.npy"], "DataError", r"No such file.*none\.npy"),
    ]:
        expect_error(folder, ["study", *arguments], name, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# num_chains =", "num_chain = 4", r"unknown key evidence\.num_chain\. Did you mean evidence\.num_chains\?"),
        (
            'target = "bernoulli-vae"',
            'target = "bernouli"',
            r"unknown model 'bernouli' \(did you mean bernoulli-vae\?\)",
        ),
        ("latent_dim", "latent_dims", r"takes no 'latent_dims' \(did you mean latent_dim\?\)"),
        ("latent_dim = 8", "latent_dim = 0", r"latent_dim"),
        ("latent_dim = 8", 'latent_dim = "8"', r"latent_dim: expected an integer of at least 1, got '8'"),
        ("hidden = [128]", "hidden = 128", r"hidden: expected widths or channels, as \(64,\), got 128"),
        (
            "hidden = [128]",
            'hidden = ["128"]',
            r"bernoulli-vae cannot be made with .*hidden = \['128'\] \(Sequence\[int\] \| None\)",
        ),
        ('source = "digits"', 'source = "digit"', r"unknown data set 'digit' \(did you mean digits\?\)"),
        ("num_steps = 3000", "num_steps = 0", r"local\.num_steps: expected a number >= 1, got 0"),
        ("seed = 0\n# cpu", "seed = \n# cpu", r"is not valid TOML: .*line"),
    ],
)
def test_wrong_specs(folder: Path, old: str, new: str, message: str) -> None:
    text = digits().to_toml()
    assert text.count(old) == 1
    Path("study.toml").write_text(text.replace(old, new))
    before = listing(folder)
    result = amortize_command("study", "study.toml")
    assert result.exit_code == 2
    assert re.match(r"(Spec|Argument|Data)Error\n", result.stderr)
    assert re.search(message, result.stderr)
    assert listing(folder) == before


def test_settings_go_to_the_function_that_makes_the_program(folder: Path) -> None:
    Path("made.py").write_text(HEADER + "\ndef program(width, depth=1):\n    return am.Program(model, guide)\n")
    spec = Study(
        name="made",
        program={"target": "made.py:program", "settings": {"widht": 3}},
        data={"source": "x.npy"},
    )
    Path("study.toml").write_text(spec.to_toml())
    expect_error(folder, ["study", "study.toml"], "SpecError", r"takes no 'widht' \(did you mean width\?\)")
    Path("study.toml").write_text(spec.with_values({"program.settings": {"depth": 3}}).to_toml())
    expect_error(folder, ["study", "study.toml"], "ArgumentError", r"is a function of width;")


def test_a_program_without_a_guide_cannot_start_from_it(folder: Path) -> None:
    Path("prior.py").write_text(HEADER + "\nprogram = am.Program(model)\n")
    for key, value in (("evidence.start", "guide"), ("evidence.method", "importance")):
        spec = Study(name="a", program={"target": "prior.py:program"}, data={"source": "x.npy"})
        Path("study.toml").write_text(spec.with_values({key: value}).to_toml())
        expect_error(folder, ["study", "study.toml"], "SpecError", rf"{re.escape(key)}: .*has n(o|one)")


def test_a_device_that_is_not_there(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("asks for a device that is not there")
    expect_error(folder, ["study", "digits", "--device", "cuda"], "ArgumentError", r"'cuda' is not available .*cpu")


def test_an_unrelated_folder_is_not_overwritten(folder: Path) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("precious")
    expect_error(
        folder,
        ["study", "digits", "--out", "thesis"],
        "ArgumentError",
        r"is no run of amortize .*chapter\.tex",
    )
    expect_error(
        folder,
        ["study", "digits", "--out", "x.npy"],
        "ArgumentError",
        r"expected a folder, got the file x\.npy",
    )


def test_resume_and_report_need_a_run(folder: Path) -> None:
    Path("empty").mkdir()
    for command in ("resume", "report"):
        expect_error(folder, [command, "none"], "ArgumentError", r"no such folder: none")
        expect_error(folder, [command, "empty"], "ArgumentError", r"empty holds no run of amortize")


def test_the_traceback_is_shown_on_demand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORTIZE_TRACEBACK", "1")
    result = amortize_command("study", "none.toml")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr


def test_print_spec_prints_a_study_to_start_from(folder: Path) -> None:
    result = amortize_command("study", "digits", "--print-spec", "--seed", 3)
    assert result.exit_code == 0
    assert Study.from_text(result.stdout) == digits(3)
    result = amortize_command("study", "good.py:program", "--data", "x.npy", "--print-spec")
    study = Study.from_text(result.stdout)
    assert (study.name, study.program.target) == ("good", f"{folder.resolve()}/good.py:program")
    assert not Path("runs").exists()


def test_check_describes_a_good_program(folder: Path) -> None:
    result = amortize_command("check", "good.py:program", "--data", "x.npy")
    assert result.exit_code == 0, result.output
    assert "D = 2" in result.stdout
    assert "ok        guide samples the model's sites, and no more: it samples 'z'" in result.stdout
    assert "fails" not in result.stdout and "clauses: all hold" in result.stdout


def test_check_prints_json_for_machines(folder: Path) -> None:
    result = amortize_command("check", "good.py:program", "--data", "x.npy", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"], found["target"]) == (0, True, "good.py:program")
    x = np.load("x.npy")
    x[7, 1] = np.nan
    np.save("nan.npy", x)
    result = amortize_command("check", "good.py:program", "--data", "nan.npy", "--json")
    rows = {row["key"]: row for row in json.loads(result.stdout)["rows"]}
    assert result.exit_code == 2 and rows["data"]["verdict"] == "fails" and "first: 7" in rows["data"]["measured"]
    assert rows["guide-support"]["verdict"] == "ok"


def test_check_takes_a_data_set_by_name(folder: Path) -> None:
    Path("wide.py").write_text(HEADER.replace("Linear(2, 2)", "Linear(64, 2)").replace("zeros(2)", "zeros(64)") + GOOD)
    result = amortize_command("check", "wide.py:program", "--data", "digits")
    assert "data are finite numbers:" in result.stdout and "float32" in result.stdout
    expect_error(folder, ["check", "good.py:program", "--data", "digit"], "DataError", r"digit")


def test_models_and_data_are_listed() -> None:
    assert "bernoulli-vae" in amortize_command("models").stdout
    assert "digits" in amortize_command("data").stdout


def test_data_sets_can_be_read_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = amortize_command("data").stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("mnist "))
    assert re.match(r"mnist +60,000 / - / 10,000 +784 +\w", lines[start])
    described = "    70,000 handwritten digits, 28 x 28 grey values, in the published order; CC"
    # where it is not at hand, the place that it comes from takes a line of its own before that
    assert any(line.startswith(described) for line in lines[start + 1 : start + 3])
    monkeypatch.setenv("COLUMNS", "200")
    assert re.search(r"mnist +60,000 / - / 10,000 +784 .*CC BY-SA", amortize_command("data").stdout)


def test_version_and_help_need_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom amortize.cli import app\n"
        "try:\n    app()\nfinally:\n    assert not {'torch', 'pyro', 'pydantic', 'pandas'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(amortize.__file__).parents[1])}
    for argument, text in (("--version", f"amortize {amortize.__version__}"), ("--help", "study")):
        command = [sys.executable, "-c", program, argument]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout


def test_a_study_of_ones_own_program_from_start_to_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = amortize_command("study", "good.py:program", "--data", "x.npy", "--print-spec")
    spec = Study.from_text(result.stdout).with_values(
        {
            "fit.num_steps": 20,
            "local.num_steps": 50,
            "ledger.probes": False,
            "evidence": {"num_chains": 4, "num_temperatures": 10, "num_draws": 50},
        }
    )
    Path("mine.toml").write_text(spec.to_toml())
    result = amortize_command("study", "mine.toml", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "runs/good/report.html"
    assert "inference_gap" in result.stdout
    assert re.search(r"s  fit +done", result.stderr)
    page, numbers = Path("runs/good/report.html").read_bytes(), Path("runs/good/report.json").read_text()

    monkeypatch.chdir("/")  # the run knows where its program and data are
    run = folder / "runs" / "good"
    result = amortize_command("resume", run, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{run}/report.html\n"
    assert json.loads((run / "report.json").read_text())["summary"] == json.loads(numbers)["summary"]

    (run / "report.html").unlink()
    result = amortize_command("report", run)
    assert result.exit_code == 0, result.output
    assert len((run / "report.html").read_bytes()) == pytest.approx(len(page), rel=0.01)

    (run / "tree.nc").unlink()
    expect_error(
        folder, ["report", run], "ArgumentError", r"isn't finished \(no tree\.nc\)\. Finish it: amortize resume"
    )
    (run / "spec.toml").write_text((run / "spec.toml").read_text().replace("patience", "patient"))
    assert amortize_command("resume", run).exit_code == 0  # a comment alone has changed
    (run / "spec.toml").write_text((run / "spec.toml").read_text().replace("num_steps", "num_step"))
    expect_error(folder, ["resume", run], "SpecError", r"unknown key fit\.num_step\. Did you mean fit\.num_steps\?")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"sandwich": True}, r"AIS from the guide and back from the latents .* mean gap -?\d\.\d{3} \+- "),
        ({"error": "simulated"}, r"On \d+ datapoints simulated from the model .* nats too low on average"),
    ],
)
def test_what_simulated_data_say_of_the_evidence_is_printed(folder: Path, setting: dict, said: str) -> None:
    spec = Study(
        name="checked",
        program={"target": "good.py:program"},
        data={"source": "x.npy", "num_evaluated": 4},
        fit={"num_steps": 5},
        local={"num_steps": 10},
        ledger={"probes": False},
        evidence={"num_temperatures": 60, "num_draws": 50, **setting},
    )
    Path("study.toml").write_text(spec.to_toml())
    for command in (("study", "study.toml"), ("resume", "runs/checked")):
        result = amortize_command(*command)
        assert result.exit_code == 0, result.output
        assert len(re.findall(said, result.stdout)) == 1


def test_a_wrong_option_is_a_usage_error() -> None:
    assert amortize_command("study", "digits", "--sed", "3").exit_code == 2
    assert amortize_command("studdy").exit_code == 2
