"""Grids: the product of axes, stages shared by content, cells that fail alone, comparisons paired over seeds."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import amortize as am
from amortize.errors import AmortizeError, ArgumentError, SpecError, TrainingError
from amortize.study.code_hash import program_files_hash
from amortize.study.grid_spec import cells_of
from amortize.study.grid_table import CellResult, means_of, paired_of
from amortize.study.spec import Study
from amortize.study.store import RunStore, Stage, read_stages
from tests.study.test_resume import start
from tests.study.tiny import PROGRAM, mine, same_numbers, tiny, verbs, written

SEEDS = {"key": "seed", "values": [0, 1]}
FAMILIES = {"key": "local.families", "values": [["mean-field"], ["mean-field", "laplace"]], "labels": ["one", "two"]}
SMALL: dict[str, Any] = {
    "fit.num_steps": 8,
    "local.num_steps": 10,
    "data.num_evaluated": 4,
    "evidence.num_temperatures": 5,
    "ledger.break_even": False,
}
ONE = {"local.families": ["mean-field"]}


def grid(*axes: dict[str, Any], **changes: Any) -> Study:
    return tiny(**{**SMALL, **changes, "grid": list(axes)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> am.GridResult:
    result = am.run(grid(FAMILIES, SEEDS), out=tmp_path_factory.mktemp("grid") / "run")
    assert isinstance(result, am.GridResult)
    return result


def test_cells_are_the_product_of_the_axes() -> None:
    programs = {
        "name": "program",
        "values": [{"program.target": "factor-analysis", "program.settings": {"latent_dim": 3}}, {"fit.num_steps": 9}],
        "labels": ["linear", "short"],
    }
    cells = cells_of(grid(programs, SEEDS))
    assert [cell.label for cell in cells] == [
        *("program-linear_seed-0", "program-linear_seed-1", "program-short_seed-0", "program-short_seed-1")
    ]
    assert cells[1].coords == {"program": "linear", "seed": "1"}
    assert cells[1].study.program.model_dump() == {"target": "factor-analysis", "settings": {"latent_dim": 3}}
    assert (cells[3].study.fit.num_steps, cells[3].study.seed, cells[3].study.grid) == (9, 1, ())
    assert cells_of(tiny())[0].study == tiny()


def test_a_grid_goes_through_toml_and_its_paths_are_taken_from_the_file(tmp_path: Path) -> None:
    text = """
        name = "a"
        [[grid]]
        key = "program.target"
        values = ["one.py:program", "factor-analysis"]
        [[grid]]
        key = "data"
        values = [{source = "x.npy"}, {source = "digits", num_train = 9}]
        labels = ["x", "digits"]
    """
    (tmp_path / "study.toml").write_text(text)
    study = Study.from_toml(tmp_path / "study.toml")
    assert Study.from_text(study.to_toml()) == study
    last = cells_of(study)[1].study
    assert (last.program.target, last.data.source) == (f"{tmp_path.resolve()}/one.py:program", "digits")
    first = cells_of(study)[0]
    assert (first.study.data.source, first.label) == (f"{tmp_path.resolve()}/x.npy", "target-one.py-program_data-x")
    assert study.fingerprint() != study.with_values({"grid": []}).fingerprint()


def test_the_grids_and_settings_of_the_docs_are_studies() -> None:
    text = (Path(am.__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    settings, axes = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert len(cells_of(Study.from_text(axes))) == 12
    study = Study.from_text(f'name = "a"\n[program]\ntarget = "a.py:p"\n[data]\nsource = "x.npz"\n{settings}')
    assert (study.local.settings, study.ledger.num_train) == ({"low-rank": {"rank": 2}}, 200)


WRONG = {
    "unknown setting": ({"key": "fit.num_step", "values": [1]}, r"grid, at num_step 1: unknown key fit\.num_step"),
    "wrong value": ({"key": "seed", "values": [0, -1]}, r"grid, at seed -1: seed: expected a number >= 0"),
    "no key": ({"values": [1]}, r"grid\.0: an axis needs a key"),
    "unknown key": ({"keys": "seed", "values": [1]}, r"unknown key grid\.0\.keys\. Did you mean grid\.0\.key\?"),
    "alike": ({"key": "seed", "values": [1, 1]}, r"grid\.0: values: expected different ones, got 1, 1"),
    "alike in short": (
        {"key": "program", "values": ["a/p", "b/p"]},
        r"values: .* short names differ, got p, p; name them",
    ),
    "alike labels": ({**SEEDS, "labels": ["a", "a"]}, r"grid\.0: labels: expected different words, .* got a, a"),
    "no values": ({"key": "seed", "values": []}, r"grid\.0\.values: expected at least 1"),
    "tables without names": ({"key": "program", "values": [{"target": "a"}]}, r"values that are tables need names"),
    "labels": ({**SEEDS, "labels": ["a"]}, r"labels: expected 2 of them, one a value, got 1"),
    "the name": ({"key": "name", "values": ["b"]}, r"name is the same for all cells"),
    "no tables": ({"name": "a", "values": [1]}, r"an axis without a key takes tables of settings"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_axis_is_an_error_that_names_it(case: str) -> None:
    axis, message = WRONG[case]
    with pytest.raises(SpecError, match=message):
        grid(axis)
    with pytest.raises(SpecError, match="two axes are called alike"):
        grid(SEEDS, SEEDS)


def test_each_cell_is_the_study_that_it_would_be_alone(finished: am.GridResult) -> None:
    alone = am.run(tiny(**SMALL, seed=1, **{"local.families": ["mean-field", "laplace"]}))
    cell = finished.cell({"families": "two", "seed": 1})
    same_numbers(cell.tree, alone.tree)
    with pytest.raises(ArgumentError, match=r"expected a value of each axis - families \(one, two\), seed \(0, 1\)"):
        finished.cell({"seed": 1})


def test_cells_share_the_stages_that_are_the_same(finished: am.GridResult) -> None:
    assert finished.out is not None
    names = [stage.stage for stage in read_stages(finished.out)]
    assert {name: names.count(name) for name in names} == {
        **dict.fromkeys(["fit", "local mean-field", "guide", "evidence", "latents", "cost", "draws"], 2),
        "local laplace": 2,
    }


def test_the_tables_hold_every_cell_and_the_ledgers_numbers(finished: am.GridResult) -> None:
    assert list(finished.table.index) == [f"families-{name}_seed-{seed}" for name in ("one", "two") for seed in (0, 1)]
    for cell in finished.cells:
        assert cell.result is not None
        row, summary = finished.table.loc[cell.label], cell.result.ledger.summary
        for name in ("log_evidence", "inference_gap", "amortization_gap"):
            assert (row[name], row[f"{name}_se"]) == (summary["mean"][name], summary["se"][name])
    assert list(finished.means["num_seeds"]) == [2, 2]
    one = finished.table[finished.table["families"] == "one"]["inference_gap"]
    assert finished.means["inference_gap"][0] == pytest.approx(one.mean())
    assert finished.means["inference_gap_se"][0] == pytest.approx(one.std() / np.sqrt(2))
    row = finished.paired.set_index("quantity").loc["inference_gap"]
    assert (row["axis"], row["a"], row["b"], row["difference"], row["num_seeds"]) == ("families", "one", "two", 0.0, 2)
    with_csv = pd.read_csv(finished.out / "table.csv", index_col="cell")
    np.testing.assert_allclose(with_csv["log_evidence"], finished.table["log_evidence"])


def test_a_grid_writes_a_page_of_all_and_one_of_each(finished: am.GridResult) -> None:
    assert finished.out is not None
    page = (finished.out / "report.html").read_text(encoding="utf-8")
    numbers = json.loads((finished.out / "report.json").read_text(encoding="utf-8"))
    assert [cell["label"] for cell in numbers["cells"]] == [cell.label for cell in finished.cells]
    for cell in finished.cells:
        assert f'href="cells/{cell.label}/report.html"' in page
        folder = finished.out / "cells" / cell.label
        assert {path.name for path in folder.iterdir()} == {"report.html", "report.json", "tree.nc", "spec.toml"}
        same_numbers(written(folder), cell.result.tree)  # type: ignore[union-attr]
    assert Study.from_toml(finished.out / "spec.toml") == grid(FAMILIES, SEEDS)


def test_a_changed_grid_computes_only_what_depends_on_the_change(folder: Path, capsys: Any) -> None:
    am.run(grid(SEEDS, **ONE), out="run")
    capsys.readouterr()
    more = {**SEEDS, "values": [0, 1, 2]}
    am.run(grid(more, **ONE, **{"local.num_steps": 11}), out="run", resume=True, progress=True)
    parts = capsys.readouterr().err.split("cell ")[1:]
    for part in parts[:2]:
        assert {name for name, verb in verbs(part).items() if verb == "done"} == {"local mean-field"}
    assert set(verbs(parts[2]).values()) == {"done"}
    am.run(
        grid({**SEEDS, "values": [1]}, **ONE), out="run", resume=True, progress=True
    )  # what it was before is still there
    assert set(verbs(capsys.readouterr().err).values()) == {"kept"}
    assert [path.name for path in Path("run/cells").iterdir()] == ["seed-1"]


def test_a_killed_grid_resumes_to_the_same_numbers(folder: Path, finished: am.GridResult) -> None:
    Path("grid.toml").write_text(grid(SEEDS, **ONE).to_toml())
    with start("study", "grid.toml", "--out", "run", cwd=folder) as process:
        limit = time.monotonic() + 120
        while len(read_stages(folder / "run")) < 8 and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not Path("run/report.html").exists()
    result = am.run(grid(SEEDS, **ONE), out="run", resume=True)
    assert isinstance(result, am.GridResult)
    for ours, theirs in zip(result.cells, finished.cells[:2], strict=True):
        same_numbers(ours.result.tree, theirs.result.tree)  # type: ignore[union-attr]


def test_ctrl_c_keeps_finished_cells_and_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import amortize.study.grid as module

    real, calls = module.collect, []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "collect", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"\(1 of 2 cells are done\)\. Go on with: amortize resume run"):
        am.run(grid(SEEDS, **ONE), out="run")


def test_a_cell_that_fails_is_marked_and_spoils_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import amortize.study.grid as module

    real = module.collect

    def failing(pipeline: Any, out: Any) -> Any:
        if pipeline.study.seed == 0:
            raise TrainingError("the loss stays non-finite")
        return real(pipeline, out)

    monkeypatch.setattr(module, "collect", failing)
    result = am.run(grid(SEEDS, **ONE), out="run")
    assert isinstance(result, am.GridResult)
    assert [cell.error for cell in result.cells] == ["TrainingError: the loss stays non-finite", None]
    assert result.table["error"].tolist() == ["TrainingError: the loss stays non-finite", ""]
    assert np.isnan(result.table["inference_gap"].iloc[0]) and np.isfinite(result.table["inference_gap"].iloc[1])
    assert "the loss stays non-finite" in Path("run/report.html").read_text(encoding="utf-8")
    with pytest.raises(ArgumentError, match="the cell seed-0 failed: TrainingError"):
        result.cell({"seed": 0})


def test_every_cell_is_checked_before_anything_is_written(folder: Path) -> None:
    study = mine(grid=[{"key": "program.settings.scale", "values": [1.0, -1.0]}])
    with pytest.raises(AmortizeError, match=r"in the cell at scale -1\.0: "):
        am.run(study, out="run")
    assert not Path("run").exists()


def fake(shift: float, noise: float, seed: int, *, rows: int = 40, data: str = "x") -> am.StudyResult:
    """A result whose gap is a datapoint's own difficulty, a seed's luck, a shift and a little noise."""
    rng = np.random.default_rng(seed)
    hard, luck = np.random.default_rng(99).gamma(2.0, 3.0, rows), np.random.default_rng([7, seed]).normal()
    table = pd.DataFrame({"inference_gap": hard + luck + shift + noise * rng.normal(size=rows)})
    tree = xr.DataTree(xr.Dataset(attrs={"data_hash": data}))
    return SimpleNamespace(ledger=SimpleNamespace(table=table), tree=tree)  # type: ignore[return-value]


def test_comparisons_are_paired_over_seeds_and_datapoints() -> None:
    axes = {"family": ("a", "b"), "seed": ("0", "1", "2", "3")}
    cells = [
        CellResult("", {"family": family, "seed": str(seed)}, fake(shift, 0.2, seed + offset), None)
        for family, shift, offset in (("a", 0.0, 0), ("b", 0.5, 0))
        for seed in range(4)
    ]
    row = paired_of(cells, axes, ("seed",)).iloc[0]
    assert row["difference"] == pytest.approx(0.5)  # the same noise in both: nothing but the shift is left
    assert row["se"] == pytest.approx(0.0, abs=1e-12)
    cells[4:] = [CellResult("", {"family": "b", "seed": str(seed)}, _with_luck_of(seed), None) for seed in range(4)]
    row = paired_of(cells, axes, ("seed",)).iloc[0]
    gaps = [cell.result.ledger.table["inference_gap"].to_numpy() for cell in cells]  # type: ignore[union-attr]
    by_seed = np.array([(b - a).mean() for a, b in zip(gaps[:4], gaps[4:], strict=True)])
    by_row = np.mean([b - a for a, b in zip(gaps[:4], gaps[4:], strict=True)], axis=0)
    assert row["difference"] == pytest.approx(by_seed.mean())
    assert row["se"] == pytest.approx(by_seed.std(ddof=1) / 2)
    assert row["t"] == pytest.approx(row["difference"] / row["se"])
    assert row["datapoint_se"] == pytest.approx(by_row.std(ddof=1) / np.sqrt(40))
    assert row["se"] < 0.1 < np.std([gap.mean() for gap in gaps[:4]], ddof=1)  # luck, common to both, has gone
    cells[7] = CellResult("", {"family": "b", "seed": "3"}, fake(0.5, 0.2, 3, data="y"), None)
    row = paired_of(cells, axes, ("seed",)).iloc[0]
    assert np.isnan(row["datapoint_se"]) and row["num_seeds"] == 4
    cells[7] = CellResult("", {"family": "b", "seed": "3"}, None, "failed")
    assert paired_of(cells, axes, ("seed",)).iloc[0]["num_seeds"] == 3


def _with_luck_of(seed: int) -> am.StudyResult:
    made = fake(0.5, 0.0, seed)
    made.ledger.table["inference_gap"] += 0.2 * np.random.default_rng(seed + 100).normal(size=40)
    return made


def test_means_over_seeds_leave_out_cells_that_failed() -> None:
    table = pd.DataFrame(
        {"family": ["a"] * 3, "seed": ["0", "1", "2"], "gap": [1.0, 3.0, np.nan], "gap_se": 0.1, "error": ["", "", "x"]}
    )
    row = means_of(table, {"family": ("a",), "seed": ("0", "1", "2")}, ("seed",)).iloc[0]
    assert (row["gap"], row["gap_se"], row["num_seeds"]) == (2.0, pytest.approx(1.0), 2)
    assert means_of(table, {"family": ("a",)}, ()).empty


def test_a_shared_store_keeps_every_result_of_a_stage(tmp_path: Path) -> None:
    for shared, found in ((True, [b"a", b"b"]), (False, [None, b"b"])):
        folder = tmp_path / str(shared)
        with RunStore(folder, fresh=True, shared=shared) as store:
            for key in ("a", "b"):
                stage = Stage("fit", key, store.file_name("fit", key, ".pt"), "", 0.0)
                store.save(stage, lambda path, key=key: path.write_bytes(key.encode()) and None)  # type: ignore[misc]
        with RunStore(folder, fresh=False, shared=shared) as store:
            stages = [store.find("fit", key) for key in ("a", "b")]
            assert [None if stage is None else store.path(stage).read_bytes() for stage in stages] == found


def test_a_programs_hash_follows_what_it_imports_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import numpy\nfrom parts.nets import net\n" + PROGRAM)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "nets.py").write_text("from . import sizes\nnet = 1\n")
    (tmp_path / "parts" / "sizes.py").write_text("import mine\n")
    hashes = [program_files_hash(tmp_path / "mine.py")]
    (tmp_path / "other.py").write_text("x = 1")
    assert program_files_hash(tmp_path / "mine.py") == hashes[0]
    for name in ("parts/nets.py", "parts/sizes.py", "parts/__init__.py", "mine.py"):
        path = tmp_path / name
        path.write_text(path.read_text() + "\nnew = 2\n")
        hashes.append(program_files_hash(tmp_path / "mine.py"))
    assert len(set(hashes)) == 5


def test_the_command_line_runs_a_grid_and_writes_its_page_anew(folder: Path) -> None:
    from tests.test_cli import amortize_command

    Path("grid.toml").write_text(grid(SEEDS, **ONE).to_toml())
    result = amortize_command("study", "grid.toml", "--out", "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "run/report.html"
    assert re.search(r"^0 .*\+-.*\n1 .*\+-", result.stdout, flags=re.MULTILINE)
    page = Path("run/report.html").read_bytes()
    Path("run/report.html").unlink()
    assert amortize_command("report", "run").exit_code == 0
    assert len(Path("run/report.html").read_bytes()) == pytest.approx(len(page), rel=0.01)
    compared = amortize_command("compare", "run/cells/seed-0", "run/cells/seed-1", "--out", "d.csv")
    assert compared.exit_code == 0, compared.output
    assert "inference_gap" in compared.stdout
    assert len(pd.read_csv("d.csv")) == 4
    refused = amortize_command("resume", "run/cells/seed-0")
    assert refused.exit_code == 2
    assert "is a cell of the grid run. Finish that: amortize resume run" in refused.stderr
