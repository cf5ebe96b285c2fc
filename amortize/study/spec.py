"""What a study is: one frozen table of settings, read from TOML and written back with a comment for each key.

A study is a program (a Pyro model and guide), data, and the budgets of the stages that run over them: fit,
local posteriors, evidence, report. An unknown key or a wrong value is a `SpecError` that names the key.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from amortize.errors import SpecError
from amortize.study.evidence_spec import EvidenceSpec
from amortize.study.fit_spec import FitSpec
from amortize.study.grid_spec import Axis, anchored_value, cells_of, fill_from_grid
from amortize.study.local_spec import LedgerSpec, LocalSpec
from amortize.study.tables import Count, Table, tuple_of
from amortize.study.toml import describe_validation, to_toml

__all__ = [
    "Axis",
    "DataSpec",
    "EvidenceSpec",
    "FitSpec",
    "LedgerSpec",
    "LocalSpec",
    "ProgramSpec",
    "ReportSpec",
    "Study",
]


class ProgramSpec(Table):
    """The Pyro model and guide under study."""

    target: str = Field(
        description="a model of amortize.models, or path.py:name (a Program or a function that returns one)"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments that build the program")

    @field_validator("settings")
    @classmethod
    def _plain_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for key, value in settings.items():
            values = value if isinstance(value, list) else [value]
            if not key.isidentifier() or not all(isinstance(item, (bool, int, float, str)) for item in values):
                raise ValueError(f"{key} = {value!r} is not a named number, string, truth value or list of them")
        return settings


class DataSpec(Table):
    """The datapoints: some train the program, held-out ones are evaluated."""

    source: str = Field(
        description="a data set of amortize.data, a .npy, .npz (arrays passed by name), .csv, .parquet or .h5ad file,"
        " or path.py:name (an array, a dict of arrays passed by name, or a function that returns one)"
    )
    binarise: Literal["grey", "threshold", "static", "dynamic"] | None = Field(
        default=None, description="how a data set's grey values become ones and zeros (not set: the set's own way)"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0,
        description="of the split, of static binarisation and of the choice of datapoints, which the study's own seed"
        " leaves as they are",
    )
    arrays: dict[str, str] = Field(
        default_factory=dict,
        description='arguments of the program and the arrays of a data set that they are given, as xs = "x", ys = "y"'
        " (none: x is the one argument)",
    )
    integer_arrays: Annotated[tuple[str, ...] | None, BeforeValidator(tuple_of)] = Field(
        default=None,
        description="arrays of an .npz that stay integers; other integers become floats (not set: of several arrays,"
        " those with one dimension, such as labels)",
    )
    train_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.8,
        description="share that trains the program (a data set of amortize.data brings its own split)",
    )
    num_train: Count | None = Field(default=None, description="use at most this many of the training part")
    num_evaluated: Count = Field(default=200, description="at most this many held-out datapoints are evaluated")


class ReportSpec(Table):
    """The page."""

    title: str | None = Field(default=None, description="the page's title (not set: the study's name)")
    num_draws: Count = Field(default=200, description="draws a datapoint kept in the tree, from the guide's posterior")
    image_shape: Annotated[tuple[Count, Count] | None, BeforeValidator(tuple_of)] = Field(
        default=None, description="height and width of observed images (not set: what a data set of amortize.data says)"
    )


class Study(Table):
    """Everything that decides a study's numbers.

    Nested tables may be given as dictionaries.

    Raises
    ------
    SpecError
        A key is unknown or missing, or its value is wrong; the message names the key as ``table.key``.

    Examples
    --------
    >>> study = Study(name="pca", program={"target": "factor-analysis"}, data={"source": "digits"})
    >>> study.fit.num_steps
    5000
    >>> Study.from_text(study.to_toml()) == study
    True
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="a name for the run's folder, of letters, digits, dots and dashes"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="the one seed; each stage derives its own from it"
    )
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|mps)$")] = Field(
        default="cpu", description="cpu, cuda or cuda:1"
    )
    num_threads: Count | None = Field(
        default=None, description="CPU threads: the last digits depend on it (not set: torch's own choice)"
    )
    program: ProgramSpec
    data: DataSpec
    fit: FitSpec = FitSpec()
    local: LocalSpec = LocalSpec()
    evidence: EvidenceSpec = EvidenceSpec()
    ledger: LedgerSpec = LedgerSpec()
    report: ReportSpec = ReportSpec()
    grid: Annotated[tuple[Axis, ...], BeforeValidator(tuple_of)] = Field(
        default=(), description="axes of a grid of studies: the study is run at each combination of their values"
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**fill_from_grid(values))
        except ValidationError as error:
            raise SpecError(describe_validation(error, Study)) from None
        if self.grid:
            cells_of(self)  # each is a study, or an error that names it

    @classmethod
    def from_text(cls, text: str, *, origin: str = "the study") -> Self:
        """Read a study from TOML text; ``origin`` is named in errors, those of the chosen methods among them."""
        from amortize.study.methods import require_settings  # needs torch, which a table doesn't

        try:
            study = cls(**tomllib.loads(text))
            for cell in cells_of(study):
                require_settings(cell.study)
            return study
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{origin} is not valid TOML: {error}") from None
        except SpecError as error:
            raise SpecError(f"{origin}: {error}") from None

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a study from a TOML file; paths in it are taken from the file's own folder.

        Raises
        ------
        SpecError
            The file cannot be read, is no TOML, has an unknown key or a wrong value.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SpecError(
                f"cannot read the study {path}: {reason}. `amortize study digits --print-spec` prints one."
            ) from None
        return cls.from_text(text, origin=str(path)).anchored(path.parent)

    def anchored(self, folder: Path) -> Self:
        """The study with absolute paths, relative ones taken from ``folder``."""
        paths = {"program.target": self.program.target, "data.source": self.data.source}
        anchored = {dotted: anchored_value(dotted, value, folder) for dotted, value in paths.items()}
        return self.with_values({**anchored, "grid": [axis.anchored(folder) for axis in self.grid]})

    def with_values(self, values: Mapping[str, object]) -> Self:
        """The study with other values, validated anew; keys are dotted, as ``{"fit.num_steps": 100}``."""
        tables = self.model_dump()
        for dotted, value in values.items():
            *parents, key = dotted.split(".")
            table = tables
            for parent in parents:
                table = table.setdefault(parent, {})
                if not isinstance(table, dict):
                    raise SpecError(f"{dotted}: {parent!r} is no table, so it has no {key!r}; leave .{key} out")
            table[key] = value
        return type(self)(**tables)

    def to_toml(self) -> str:
        """The study as TOML, each key under a comment that says what it is."""
        return to_toml(self)

    def fingerprint(self) -> str:
        """SHA-256 of all settings, in hexadecimal."""
        settings = self.model_dump(mode="json", exclude=None if self.grid else {"grid"})
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
