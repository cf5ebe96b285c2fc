from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amortize.errors import AmortizeError, ArgumentError
from amortize.study.store import (
    RunStore,
    Stage,
    StoreError,
    atomic_path,
    hash_json,
    is_run,
    read_manifest,
)


def stage(name: str = "fit", key: str = "k") -> Stage:
    return Stage(stage=name, key=key, file=f"{name}.bin", sha256="", seconds=0.5)


def saved(folder: Path, *names: str) -> None:
    with RunStore(folder, fresh=False) as store:
        for name in names:
            store.save(stage(name), lambda path, name=name: write_bytes(path, name.encode() * 100))


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_finished_stage_is_found_by_its_key_in_a_later_process(tmp_path: Path) -> None:
    saved(tmp_path / "run", "fit", "evidence")
    with RunStore(tmp_path / "run", fresh=False) as store:
        found = store.find("fit", "k")
        assert found is not None
        assert store.path(found).read_bytes() == b"fit" * 100
        assert found.seconds == 0.5
        assert store.find("fit", "other key") is None
        assert store.find("other stage", "k") is None
        assert store.finished == ["fit", "evidence"]


CORRUPTIONS = {
    "one byte changed": lambda path: write_bytes(path, b"X" + path.read_bytes()[1:]),
    "cut short": lambda path: write_bytes(path, path.read_bytes()[:-1]),
    "emptied": lambda path: write_bytes(path, b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupted_stage_is_not_reused(tmp_path: Path, corruption: str) -> None:
    saved(tmp_path, "fit", "evidence")
    CORRUPTIONS[corruption](tmp_path / "stages" / "fit.bin")
    with RunStore(tmp_path, fresh=False) as store:
        assert store.find("fit", "k") is None
        assert store.find("evidence", "k") is not None


@pytest.mark.parametrize("line", ['{"stage": "fit"', "{}", '{"stage": "fit", "unknown": 1}', "\0\0\0"])
def test_a_damaged_line_of_the_manifest_costs_only_its_stage(tmp_path: Path, line: str) -> None:
    saved(tmp_path, "fit", "evidence")
    manifest = tmp_path / "stages" / "manifest.jsonl"
    header, _, second = manifest.read_text().splitlines()
    manifest.write_text("\n".join([header, line, second]))
    assert list(read_manifest(tmp_path)) == ["evidence"]


def test_fresh_forgets_an_earlier_run_and_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    saved(tmp_path, "fit")
    for name in ("report.html", "tree.nc", "notes.txt"):
        (tmp_path / name).write_text("old")
    with RunStore(tmp_path, fresh=True) as store:
        assert store.find("fit", "k") is None
    assert files(tmp_path) == {"notes.txt", "stages/manifest.jsonl"}


def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (True, False):
        with pytest.raises(ArgumentError, match=r"isn't empty and is no run of amortize \(it holds thesis\.tex\)"):
            RunStore(tmp_path, fresh=fresh)
    assert files(tmp_path) == {"thesis.tex"}


def test_a_file_is_refused_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArgumentError, match="expected a folder, got the file"):
        RunStore(tmp_path / "out", fresh=True)


def test_a_run_killed_before_its_first_line_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / ".lock").touch()
    (tmp_path / "stages" / ".manifest.jsonl.123.part").write_text("{")
    assert not is_run(tmp_path)
    saved(tmp_path, "fit")
    assert files(tmp_path) == {"stages/manifest.jsonl", "stages/fit.bin"}


def test_a_folder_that_cannot_be_made_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AmortizeError), RunStore(tmp_path / "file" / "run", fresh=True):
        pass


def test_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text(path, "old")

    def fail(error: type[BaseException]) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the ne")
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert path.read_text() == "old"
    assert files(tmp_path) == {"report.html"}


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    saved(tmp_path, "fit")
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        if call == "write":
            full()

    with RunStore(tmp_path, fresh=False) as store, monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.save(stage("evidence"), write)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_real_full_device_is_a_named_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StoreError, match="No space left on device"), atomic_path(tmp_path / "tree.nc"):
        Path("/dev/full").write_bytes(b"x" * 100)
    assert files(tmp_path) == set()


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    with RunStore(tmp_path, fresh=False):
        second = RunStore(tmp_path, fresh=False)
        with pytest.raises(StoreError, match="another process works on"):
            second.__enter__()
    saved(tmp_path, "fit")


KILLED = """
import sys, time
from pathlib import Path
from amortize.study.store import RunStore, Stage

def slowly(path):
    with path.open("wb") as file:
        file.write(b"half")
        file.flush()
        print("writing", flush=True)
        time.sleep(60)

with RunStore(Path(sys.argv[1]), fresh=False) as store:
    store.save(Stage("fit", "k", "fit.bin", "", 0.5), lambda path: path.write_bytes(b"fit") and None)
    store.save(Stage("evidence", "k", "evidence.bin", "", 0.5), slowly)
"""


def test_sigkill_while_writing_keeps_what_was_finished(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "stages" / "evidence.bin").exists()
    with RunStore(tmp_path, fresh=False) as store:  # the lock of a dead process does not hold
        assert store.find("fit", "k") is not None
        assert store.find("evidence", "k") is None
    assert files(tmp_path) == {"stages/manifest.jsonl", "stages/fit.bin"}


def test_replacing_a_file_again_and_again_never_shows_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    code = (
        "import sys\nfrom pathlib import Path\nfrom amortize.study.store import atomic_path\n"
        "for letter in 'ab' * 2000:\n"
        "    with atomic_path(Path(sys.argv[1])) as path:\n        path.write_text(letter * 100_000)"
    )
    write_text(path, "a" * 100_000)
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_text() in ("a" * 100_000, "b" * 100_000)


def test_hash_json_does_not_depend_on_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1}) != hash_json({"a": 1, "b": 2})
