"""Programs that people bring, each small, with data: the contract suite runs over all of them.

Adding a program is adding a line to the dict of its theme in ``tests/cases``.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.cases.arguments import ARGUMENTS
from tests.cases.case import Case
from tests.cases.networks import NETWORKS
from tests.cases.plates import PLATES
from tests.cases.published import PUBLISHED
from tests.cases.sequences import SEQUENCES
from tests.cases.supports import SUPPORTS

__all__ = ["PROGRAMS"]

PROGRAMS: dict[str, Callable[[], Case]] = {**ARGUMENTS, **PLATES, **SUPPORTS, **NETWORKS, **SEQUENCES, **PUBLISHED}
