"""What the README shows runs: its Python as it stands, and its commands with the options it gives them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from amortize.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = blocks(page, "python")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in source:
        exec(compile(block, str(page), "exec"), namespace)
    promised = re.findall(r'"([\w.]+\.html)"', "".join(source))
    assert [path.name for path in tmp_path.glob("*.html")] == promised


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    command = typer.main.get_command(app)
    for line in "".join(blocks(page, "sh")).splitlines():
        program, *words = shlex.split(line.partition(">")[0], comments=True)
        if program == "make":
            assert words[0] in targets
        elif program == "amortize":
            subcommand = command.commands[words[0]]  # type: ignore[attr-defined]
            subcommand.make_context(words[0], words[1:])  # parses the options, runs nothing
        elif program == "python":
            assert (ROOT / words[0]).is_file()
        else:
            pytest.fail(f"{page.name}: {line!r} is none of make, amortize and python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == []
