"""The verdict of `amortize check` in the terminal: a line a clause, and under it what to do."""

from __future__ import annotations

from collections import Counter

from rich.table import Table
from rich.text import Text

from amortize.program.check import CheckReport, CheckRow

__all__ = ["summary_of", "table_of"]

STYLES = {"ok": "green", "note": "cyan", "warn": "yellow", "fails": "bold red", "not tried": "dim"}
PLURAL = {"fails": "clauses fail", "warn": "warnings", "note": "notes", "not tried": "not tried"}
SINGULAR = {"fails": "clause fails", "warn": "warning", "note": "note", "not tried": "not tried"}


def table_of(report: CheckReport) -> Table:
    """Verdict, clause and what was measured; the remedy on a line of its own."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, min_width=max(map(len, STYLES)))
    table.add_column(overflow="fold")
    for row in report.rows:
        table.add_row(Text(row.verdict, STYLES[row.verdict]), _words(row))
    return table


def _words(row: CheckRow) -> Text:
    found = f"{row.error}: {row.measured}" if row.error else row.measured
    words = Text(row.clause, "" if row.verdict in ("ok", "not tried") else "bold")
    if found:
        words.append(f": {found}", "dim" if row.verdict in ("ok", "not tried") else "not bold")
    if row.remedy:
        words.append(f"\n-> {row.remedy}", "not bold")
    return words


def summary_of(report: CheckReport) -> str:
    """How many clauses fail, and how much else there is to read."""
    counts = Counter(row.verdict for row in report.rows)
    parts = [f"{counts[key]} {(SINGULAR if counts[key] == 1 else PLURAL)[key]}" for key in PLURAL if counts[key]]
    tried = len(report.rows)
    return f"{tried} clauses: {', '.join(parts)}" if parts else f"{tried} clauses: all hold"
