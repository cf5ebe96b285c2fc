"""Results as one xarray DataTree on ArviZ's schema.

=================  ==================================  =================================================
group              dims                                variables
=================  ==================================  =================================================
``/posterior``     chain, draw, datapoint, site dims   the latent sites, one chain for one fit
``/sample_stats``  chain, draw, datapoint              lp, log_q, log_weight = lp - log_q
``/evidence``      method, datapoint                   log_evidence, se, ess, khat, acceptance,
                                                       num_nonfinite, and lower, upper where a method
                                                       bounds it; num_weights (method)
``/gaps``          datapoint; quantity, statistic      the ledger's columns; summary (quantity, statistic)
``/local``         family, datapoint                   elbo, elbo_se, converged, num_steps, num_gradients
``/tower``         step                                lower, upper, gain, se, mc_se, num, num_failed
``/splits``        row                                 quantity, train, test, difference, errors, counts
``/labels``        group                               label, num, the gaps, difference, z, worse
``/latents``       dimension                           site, index, kl, kl_se, kind, activity, active
``/cost``          row                                 used, seconds, gradients, elbo, training
``/break_even``    row                                 used, and from how many datapoints on to amortize
``/curve``         look                                method, seconds, gradients, elbo, se: quality with time
``/codebooks``     row                                 site, num_codes, perplexity, num_dead, information, ...
``/codes``         row                                 site, code, share: the most used first
``/training``      step                                the history's columns
others             [chain, draw,] datapoint, ...       observed_data, reconstruction, prior, ...
=================  ==================================  =================================================

A site ``x`` has dims ``x_dim_0, x_dim_1, ...`` after ``datapoint``, the same in every group; a slash in its
name is written as a dot, because netCDF can't hold it. One method of evidence is
``tree["evidence"].ds.loc[{"method": "AIS"}]`` (in ``sel``, ``method=`` is an option of xarray's own). Attributes
that are nested are JSON strings (:func:`~amortize.report.attrs.decode_attrs`). The tree holds what was
computed and nothing of when it was written: the same results give the same tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from amortize.errors import ArgumentError, shown
from amortize.report.attrs import encode_attrs
from amortize.report.frames import code_frames, ledger_frames
from amortize.report.measured import SANDWICH_FACTS, SIDES, annealing_variables, evidence_variables, facts_of
from amortize.report.sources import EvidenceLike, LedgerLike, LocalLike, SandwichLike, UsageLike

__all__ = ["to_datatree"]

_DENSITIES = ("lp", "log_q")
_SAMPLED = ("prior", "posterior")  # groups named so, or with such a beginning, have draws

Evidences = EvidenceLike | Mapping[str, EvidenceLike]


def to_datatree(  # noqa: PLR0913 (the public face)
    posterior: Mapping[str, ArrayLike] | None = None,
    *,
    evidence: Evidences | None = None,
    sandwich: SandwichLike | None = None,
    ledger: LedgerLike | None = None,
    history: pd.DataFrame | None = None,
    codes: Mapping[str, UsageLike] | None = None,
    groups: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Collect results in one tree that ArviZ, xarray and :func:`amortize.report` read.

    Parameters
    ----------
    posterior : mapping, optional
        (draw, N, ...) arrays by latent site, with the log densities "lp" and "log_q" (draw, N) in nats, as
        ``am.posterior`` returns them.
    evidence : Evidence or mapping of str to Evidence, optional
        One estimate of the evidence, or several by name. Without it, that of ``ledger`` is stored.
    sandwich : Sandwich, optional
        What ``am.bdmc`` returns: both sides of log p(x), most often of datapoints simulated from the model. Without
        it, those of the one evidence that was measured with ``error="simulated"``.
    ledger : Ledger, optional
        What ``am.gaps`` returns; its index names the datapoints of the whole tree.
    history : DataFrame, optional
        ``Fitted.history``, with a column "step".
    codes : mapping, optional
        What ``am.code_usage`` returns: how often each code was used, by site.
    groups : mapping, optional
        More groups, as arrays by site: (draw, N, ...) in those whose name begins with "prior" or "posterior",
        (N, ...) in others.
    attrs : mapping, optional
        JSON-able facts for the root: title, seed, settings, versions, data_hash, spec_hash, image_shape,
        created, command. ``labels`` (N,) becomes a coordinate of the datapoints.

    Returns
    -------
    xarray.DataTree
        Groups without results are left out.

    Raises
    ------
    ArgumentError
        If sizes disagree, a group name is taken, or an attribute isn't JSON-able.

    Examples
    --------
    >>> tree = to_datatree({"z": np.zeros((100, 3, 2)), "lp": np.zeros((100, 3)), "log_q": np.ones((100, 3))})
    >>> dict(tree["posterior"].sizes)
    {'chain': 1, 'draw': 100, 'datapoint': 3, 'z_dim_0': 2}
    >>> float(tree["sample_stats"]["log_weight"].mean())
    -1.0
    """
    _require_ledger(ledger)
    root = dict(attrs or {})
    builder = _Builder(_datapoint_index(ledger), root.pop("labels", None))
    if posterior is not None:
        if not isinstance(posterior, Mapping):
            raise ArgumentError(
                "posterior: expected a dict of arrays (draw, N, ...) by latent site, as am.posterior returns, got "
                f"{type(posterior).__name__}"
            )
        builder.add_posterior(posterior)
    if evidence is None and ledger is not None:
        evidence = ledger.evidence
    if evidence is not None:
        builder.add_evidence(evidence)
    if sandwich is None:
        sandwich = _simulated_sides(evidence)
    if sandwich is not None:
        builder.add_sandwich(sandwich)
    if ledger is not None:
        builder.add_gaps(ledger)
        builder.add_local(ledger.local)
        for name, frame, dim in ledger_frames(ledger):
            builder.add_frame(name, frame, dim)
    for name, frame, dim in code_frames(codes or {}):
        builder.add_frame(name, frame, dim)
    if history is not None:
        builder.add_training(history)
    for name, arrays in (groups or {}).items():
        builder.add_group(name, arrays)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=encode_attrs(root)), **builder.datasets})


def _require_ledger(ledger: object) -> None:
    tables = (getattr(ledger, "table", None), getattr(ledger, "summary", None))
    if ledger is not None and not all(isinstance(table, pd.DataFrame) for table in tables):
        raise ArgumentError(f"ledger: expected the Ledger that am.gaps(...) returns, got {shown(ledger)}")


def _simulated_sides(evidence: Evidences | None) -> SandwichLike | None:
    """Both sides that came with an evidence, where there is one such."""
    several = list(evidence.values()) if isinstance(evidence, Mapping) else [] if evidence is None else [evidence]
    found = [one.simulated.sandwich for one in several if one.simulated is not None]
    return found[0] if len(found) == 1 else None


def _datapoint_index(ledger: LedgerLike | None) -> np.ndarray | None:
    return None if ledger is None else np.asarray(ledger.table.index)


class _Builder:
    """Datasets by group that agree on the datapoints; the first group seen settles how many there are."""

    def __init__(self, index: np.ndarray | None, labels: Sequence[Any] | None) -> None:
        self.datasets: dict[str, xr.Dataset] = {}
        self._index = index
        self._labels = None if labels is None else np.asarray(labels)
        if index is not None:
            self._check_labels(len(index))

    def add_posterior(self, posterior: Mapping[str, ArrayLike]) -> None:
        stats = {name: np.asarray(posterior[name]) for name in _DENSITIES if name in posterior}
        if len(stats) == len(_DENSITIES):
            stats["log_weight"] = stats["lp"] - stats["log_q"]
        self.add_group("posterior", {name: draws for name, draws in posterior.items() if name not in _DENSITIES})
        if stats:
            self._add_draws("sample_stats", stats)

    def add_evidence(self, evidence: Evidences) -> None:
        by_name = dict(evidence) if isinstance(evidence, Mapping) else {evidence.method: evidence}
        dataset = self._dataset(evidence_variables(by_name), "evidence").assign_coords(method=list(by_name))
        runs = {name: facts_of(one) for name, one in by_name.items()}
        self._add("evidence", dataset.assign_attrs(encode_attrs({"runs": runs}, where="evidence")))
        annealing = annealing_variables(by_name)
        if annealing is not None:
            variables, coords = annealing
            self._add("annealing", self._dataset(variables, "evidence.path").assign_coords(coords))

    def add_sandwich(self, sandwich: SandwichLike) -> None:
        sides = {name: ("simulated", np.asarray(getattr(sandwich, name), dtype=np.float64)) for name in SIDES}
        facts = {name: getattr(sandwich, name) for name in SANDWICH_FACTS}
        self._add("sandwich", xr.Dataset(sides, attrs=encode_attrs(facts, where="sandwich")))

    def add_gaps(self, ledger: LedgerLike) -> None:
        columns = {str(name): ("datapoint", column.to_numpy()) for name, column in ledger.table.items()}
        dataset = self._dataset(columns, "ledger")
        dataset["summary"] = (("quantity", "statistic"), ledger.summary.to_numpy(dtype=np.float64))
        dataset = dataset.assign_coords(
            quantity=[str(name) for name in ledger.summary.index],
            statistic=[str(name) for name in ledger.summary.columns],
        )
        facts = {
            "advice": ledger.advice,
            "cause": ledger.cause,
            "clues": ledger.clues,
            "guide_family": ledger.guide_family,
            "families": list(ledger.families),
            "settings": dict(ledger.settings),
        }
        self._add("gaps", dataset.assign_attrs(encode_attrs(facts, where="ledger")))

    def add_local(self, local: Mapping[str, LocalLike]) -> None:
        if not local:
            return
        rows = {
            field: (
                ("family", "datapoint"),
                np.stack([np.asarray(getattr(one, field)) for one in local.values()]),
            )
            for field in ("elbo", "elbo_se", "converged", "num_steps", "num_gradients")
        }
        fits = {
            name: {"settings": {**one.settings, **one.family_settings}, "seconds": one.seconds}
            for name, one in local.items()
        }
        dataset = self._dataset(rows, "ledger.local").assign_coords(family=list(local))
        self._add("local", dataset.assign_attrs(encode_attrs({"fits": fits}, where="ledger.local")))

    def add_frame(self, name: str, frame: pd.DataFrame, dim: str) -> None:
        """A table whose rows aren't datapoints."""
        columns = {str(column): values.to_numpy() for column, values in frame.items()}
        plain = {column: array.astype(str) if array.dtype == object else array for column, array in columns.items()}
        dataset = xr.Dataset({column: (dim, array) for column, array in plain.items()})
        self._add(name, dataset.assign_coords({dim: np.arange(len(frame))}))

    def add_training(self, history: pd.DataFrame) -> None:
        if "step" not in history.columns:
            raise ArgumentError(f'history: expected a column "step", got {list(map(str, history.columns))}')
        columns = {str(name): ("step", column.to_numpy()) for name, column in history.items()}
        self._add("training", xr.Dataset(columns))

    def add_group(self, name: str, arrays: Mapping[str, ArrayLike]) -> None:
        if name.startswith(_SAMPLED):
            self._add_draws(name, arrays)
        else:
            variables = {
                site: (_dims(site, values, ("datapoint",)), np.asarray(values)) for site, values in arrays.items()
            }
            self._add(name, self._dataset(variables, name))

    def _add_draws(self, name: str, arrays: Mapping[str, ArrayLike]) -> None:
        variables = {
            _variable(site): (
                ("chain", *_dims(site, values, ("draw", "datapoint"))),
                np.asarray(values)[None],
            )
            for site, values in arrays.items()
        }
        self._add(name, self._dataset(variables, name))

    def _dataset(self, variables: Mapping[str, tuple[Any, Any]], where: str) -> xr.Dataset:
        """Dataset with integer coordinates on every dim, and the tree's datapoints."""
        try:
            dataset = xr.Dataset(dict(variables))
        except ValueError as error:
            raise ArgumentError(f"{where}: arrays whose sizes disagree: {error}") from error
        num_datapoints = dataset.sizes.get("datapoint", 0)
        if self._index is None:
            self._index = np.arange(num_datapoints)
            self._check_labels(num_datapoints)
        if num_datapoints != len(self._index):
            raise ArgumentError(f"{where}: expected {len(self._index)} datapoints as in the rest, got {num_datapoints}")
        coords: dict[str, Any] = {str(dim): np.arange(size) for dim, size in dataset.sizes.items()}
        coords["datapoint"] = self._index
        if self._labels is not None:
            coords["label"] = ("datapoint", self._labels)
        return dataset.assign_coords(coords)

    def _check_labels(self, num_datapoints: int) -> None:
        if self._labels is not None and self._labels.shape != (num_datapoints,):
            raise ArgumentError(
                f"attrs['labels']: expected one for each of {num_datapoints} datapoints, got shape {self._labels.shape}"
            )

    def _add(self, name: str, dataset: xr.Dataset) -> None:
        if name in self.datasets or "/" in name:
            raise ArgumentError(f"groups: {name!r} is taken or holds a slash; choose another name")
        self.datasets[name] = dataset.assign_attrs(inference_library="amortize")


def _variable(site: str) -> str:
    return site.replace("/", ".")


def _dims(site: str, values: ArrayLike, leading: tuple[str, ...]) -> tuple[str, ...]:
    """Name the dims of one site's array as ArviZ does."""
    num_dims = np.ndim(values)
    if num_dims < len(leading):
        raise ArgumentError(f"{site}: expected an array ({', '.join(leading)}, ...), got shape {np.shape(values)}")
    return (*leading, *(f"{_variable(site)}_dim_{index}" for index in range(num_dims - len(leading))))
