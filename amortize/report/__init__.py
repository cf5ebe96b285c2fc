"""The ArviZ tree and the page made from it; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["report"]


def report(tree: xr.DataTree, path: str | Path = "report.html", *, title: str | None = None) -> Path:
    """Write a study's page, and its numbers as JSON beside it.

    The page is one HTML file that needs no network: the verdict and advice first, then the summary, the
    ladder from the guide's ELBO to the evidence, the gaps and k-hat of each datapoint, pictures of the
    datapoints that fail, the training curve, reconstructions and prior samples, diagnostics of the evidence,
    and where each number comes from. A section whose group is absent from the tree is left out. The same tree
    gives the same bytes.

    Parameters
    ----------
    tree : xarray.DataTree
        What :func:`amortize.to_datatree` returns, or ``amortize.report.files.read_tree`` reads. Everything on
        the page comes from it.
    path : path
        The page, a name that ends in ``.html`` in a folder that exists; ``report.html`` goes with
        ``report.json``.
    title : str, optional
        Instead of the tree's own title.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ArgumentError
        If ``tree`` is something else, or ``path`` doesn't end in ``.html``.
    DataError
        If its folder doesn't exist.

    Notes
    -----
    ``report.json`` is strict JSON, every log density in nats per datapoint and every number that isn't finite
    ``null``: ``summary.<name>.mean``, ``.se`` (over datapoints, paired), ``.mc_se`` (Monte Carlo alone) and
    ``.num_failed`` for each column of the ledger, ``datapoints.<column>`` as lists, and everything else that
    the page shows.

    Examples
    --------
    >>> import json, tempfile
    >>> import amortize as am
    >>> tree = am.to_datatree(attrs={"title": "An empty study", "seed": 0})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = am.report(tree, f"{folder}/report.html")
    ...     numbers = json.loads(page.with_suffix(".json").read_text())
    >>> page.name, numbers["title"], numbers["seed"]
    ('report.html', 'An empty study', 0)
    """
    from xarray import DataTree

    from amortize.errors import ArgumentError
    from amortize.report.html import write_report

    if not isinstance(tree, DataTree):
        raise ArgumentError(
            f"tree: expected an xarray.DataTree, got {type(tree).__name__}. Make one of results: am.to_datatree(...)"
        )
    return write_report(tree, path, title=title)
