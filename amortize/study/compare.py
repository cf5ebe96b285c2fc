r"""Two runs, datapoint by datapoint: what changed in log p(x), the ELBOs and the gaps, and whether it is but noise.

.. math:: d_n = b_n - a_n, \qquad z = \bar d \,/\, \frac{sd(d)}{\sqrt N}

An easy datapoint is easy for both, so the difference of two means is known far better than either. N datapoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from amortize.errors import AmortizeWarning, ArgumentError, ComparisonError
from amortize.report.attrs import decode_attrs
from amortize.report.files import read_tree
from amortize.study.store import CELLS

__all__ = ["Comparison", "compare"]

UNLIKE = ("khat", "ess")
"""Columns of the ledger that aren't nats: their differences mean little."""
FEW = 3  # standard errors that a difference is from 0 to be called one


@dataclass(frozen=True, eq=False)
class Comparison:
    """The differences between two runs: the second less the first.

    Attributes
    ----------
    names
        What both runs are called.
    table
        A row a datapoint: the difference of each quantity that both ledgers have, nats, and its Monte Carlo standard
        error ``<quantity>_se``, that of independent draws.
    summary
        A row a quantity: the means ``a`` and ``b`` over datapoints that are finite in both, their ``difference``, its
        ``se`` over datapoints, each compared with itself, ``mc_se`` (Monte Carlo alone, and part of ``se``), ``z`` =
        difference / se (NaN where se is 0 or unknown), ``num`` and ``num_failed`` datapoints.
    """

    names: tuple[str, str]
    table: pd.DataFrame
    summary: pd.DataFrame

    def __str__(self) -> str:
        head = f"b - a, nats a datapoint; a: {self.names[0]}, b: {self.names[1]}"
        return f"{head}\n{self.summary.round(3).to_string()}\n" + "\n".join(self.sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What differs by more than three standard errors, in words; or that nothing does."""
        found = tuple(
            f"{str(name).replace('_', ' ')}: {abs(row['difference']):.3g} +- {row['se']:.2g}"
            f" {'higher' if row['difference'] > 0 else 'lower'} in b"
            for name, row in self.summary.iterrows()
            if abs(row["z"]) > FEW
        )
        return found or ("Nothing differs by more than three standard errors.",)


def compare(run_a: Any, run_b: Any) -> Comparison:
    """Compare two runs on the same datapoints: paired differences of log p(x), of the ELBOs and of the gaps.

    Parameters
    ----------
    run_a, run_b
        The folder of a run, or of a grid's cell; its tree; or what ``am.run`` returned.

    Returns
    -------
    Comparison
        The second less the first, datapoint by datapoint, and their means with paired standard errors.

    Raises
    ------
    ComparisonError
        The runs are of other data, or evaluated other datapoints of it.
    ArgumentError
        An argument is no finished run.

    Warns
    -----
    AmortizeWarning
        The programs observe other values of the same data: then densities are of different things.

    Examples
    --------
    >>> import amortize as am
    >>> study = am.Study(
    ...     name="tiny",
    ...     program={"target": "factor-analysis", "settings": {"latent_dim": 2}},
    ...     data={"source": "digits", "num_train": 64, "num_evaluated": 4},
    ...     fit={"num_steps": 20},
    ...     local={"num_steps": 20},
    ...     evidence={"num_chains": 2, "num_temperatures": 5, "num_leapfrog": 2, "num_draws": 20},
    ... )
    >>> longer = study.with_values({"fit.num_steps": 200})
    >>> compared = am.compare(am.run(study), am.run(longer))
    >>> bool(compared.summary.loc["elbo_guide", "difference"] > 0)
    True
    """
    one, two = _read(run_a, "run_a"), _read(run_b, "run_b")
    _require_same(one, two)
    tables = [run.gaps for run in (one, two)]
    names = [str(name) for name in tables[0].columns if name in tables[1].columns and name not in UNLIKE]
    shared = [name for name in names if not name.endswith("_se")]
    table: dict[str, NDArray[np.float64]] = {}
    rows = {}
    for name in shared:
        a, b = (frame[name].to_numpy(dtype=np.float64) for frame in tables)
        errors = np.hypot(*(_errors(frame, name) for frame in tables))
        with np.errstate(invalid="ignore"):  # -inf less -inf is unknown
            table[name], table[f"{name}_se"] = b - a, errors
        rows[name] = _summary(a, b, errors)
    frame = pd.DataFrame(table, index=tables[0].index)
    columns = ["a", "b", "difference", "se", "mc_se", "z", "num", "num_failed"]
    summary = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return Comparison((one.name, two.name), frame, summary.astype({"num": int, "num_failed": int}))


@dataclass(frozen=True, eq=False)
class _Run:
    name: str
    gaps: pd.DataFrame
    attrs: dict[str, Any]
    observed: Mapping[str, NDArray[Any]]


def _read(run: Any, argument: str) -> _Run:
    tree, name = _tree_of(run, argument)
    attrs = decode_attrs(tree.attrs)
    if "gaps" not in tree.children:
        raise ArgumentError(f"{argument}: expected a run of a study, got a tree without /gaps")
    gaps = tree["gaps"].to_dataset()
    columns = [str(name) for name in gaps.data_vars if gaps[name].dims == ("datapoint",)]
    frame = pd.DataFrame({column: gaps[column].values for column in columns}, index=gaps["datapoint"].values)
    observed = tree["observed_data"].to_dataset() if "observed_data" in tree.children else xr.Dataset()
    values = {str(site): observed[site].values for site in observed.data_vars}
    return _Run(name or str(attrs.get("title", argument)), frame.rename_axis("datapoint"), attrs, values)


def _tree_of(run: Any, argument: str) -> tuple[xr.DataTree, str]:
    if isinstance(run, xr.DataTree):
        return run, ""
    if isinstance(run, (str, Path)):
        folder = Path(run)
        if (folder / "tree.nc").is_file():
            return read_tree(folder / "tree.nc"), str(run)
        raise ArgumentError(f"{argument}: {_no_tree(folder)}")
    tree = getattr(run, "tree", None)
    if not isinstance(tree, xr.DataTree):
        raise ArgumentError(
            f"{argument}: expected the folder of a run, or what am.run returned for one study, got {type(run).__name__}"
        )
    return tree, ""


def _no_tree(folder: Path) -> str:
    cells = sorted(path.parent for path in (folder / CELLS).glob("*/tree.nc"))
    if cells:
        return f"{folder} is a grid; name one of its cells, as {cells[0]}"
    if (folder / "spec.toml").is_file():
        return f"{folder} isn't finished (no tree.nc). Finish it: amortize resume {folder}"
    return f"{folder} holds no run of amortize (no tree.nc)" if folder.exists() else f"no such folder: {folder}"


def _require_same(one: _Run, two: _Run) -> None:
    """Refuse runs of other data or datapoints.

    Raises
    ------
    ComparisonError
        The message says what differs, and how to run the studies so that it doesn't.
    """
    hashes = [str(run.attrs.get("data_hash", "")) for run in (one, two)]
    if "" in hashes:
        raise ComparisonError("the runs don't say what data they are of (no data_hash); only those of studies do")
    if hashes[0] != hashes[1]:
        raise ComparisonError(
            f"the runs are of different data: {one.name} has the hash {hashes[0][:12]}, {two.name} {hashes[1][:12]}."
            " Compare studies of one source, binarised in one way with one data.seed"
        )
    index = [run.gaps.index for run in (one, two)]
    if not index[0].equals(index[1]):
        raise ComparisonError(
            f"the runs evaluated different datapoints: {len(index[0])} and {len(index[1])}, of which"
            f" {len(index[0].intersection(index[1]))} are in both. Run both with one data.num_evaluated and data.seed"
        )
    if not _observe_the_same(one.observed, two.observed):
        warnings.warn(
            f"{one.name} and {two.name} observe different values of the same data, so their log densities are of"
            " different things: only the gaps can be compared",
            AmortizeWarning,
            stacklevel=3,
        )


def _observe_the_same(one: Mapping[str, NDArray[Any]], two: Mapping[str, NDArray[Any]]) -> bool:
    """Whether both observe the same numbers, however the sites are named and shaped."""
    first, second = (
        sorted(np.asarray(array, dtype=np.float32).tobytes() for array in arrays.values()) for arrays in (one, two)
    )
    return first == second


def _errors(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    column = f"{name}_se"
    return frame[column].to_numpy(dtype=np.float64) if column in frame else np.full(len(frame), np.nan)


def _summary(a: NDArray[np.float64], b: NDArray[np.float64], errors: NDArray[np.float64]) -> tuple[float, ...]:
    finite = np.isfinite(a) & np.isfinite(b)
    num = int(finite.sum())
    if not num:
        return (*[np.nan] * 6, 0, len(a))
    difference = b[finite] - a[finite]
    se = difference.std(ddof=1) / np.sqrt(num) if num > 1 else np.nan
    mean = difference.mean()
    mc_se = np.sqrt(np.square(errors[finite]).sum()) / num
    z = mean / se if se > 0 else np.nan
    return a[finite].mean(), b[finite].mean(), mean, se, mc_se, z, num, len(a) - num
