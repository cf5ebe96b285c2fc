"""The map of a zoo picture: where the guide puts test data, in the way that suits the latents.

Continuous latents are shown by their posterior means, coloured by the data's labels where there are some: in two
dimensions as they are, in more by their first two principal components; so are many discrete latents without a grid.
One discrete latent is a table of its values by label; a chain of them a row of colours a datapoint; and a grid of codes
is its codebook: for each code the mean of the reconstructions where test data are given it, most used first.

Letters: N datapoints, S draws, P positions of K codes, X = H * W pixels.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from zoo import codes, head, joined
from zoo_training import Sample

import amortize as am
from amortize.program.sites import Site

__all__ = ["latent_map"]

MAPPED, DRAWS = 1000, 20  # codes in the map, and draws of a discrete posterior
PATHS, TILES = 120, 144  # rows of a map of chains, codes of a codebook


def latent_map(axis: Any, program: am.Program, shown: Sample) -> None:
    """What the guide says of test data, in two dimensions."""
    axis.set_xticks([])
    axis.set_yticks([])
    if program.guide is None:
        axis.axis("off")
        return
    sites = program.structure(program.prepare(head(shown.test, 2))).sites
    discrete = [site for site in sites.values() if site.discrete]
    single = [site for site in discrete if site.num_variables == 1]
    grids = [site for site in discrete if cell_of(site, shown) is not None]
    if len(single) > 1:
        paths(axis, program, shown, single)
    elif single:
        components(axis, program, shown, single[0])
    elif grids:
        codebook(axis, program, shown, max(grids, key=lambda site: site.num_variables))
    elif discrete and len(discrete) == len(sites):
        scatter(axis, bit_means(program, shown, discrete), shown)
    else:
        scatter(axis, codes(program, head(shown.test, MAPPED)), shown)


def cell_of(site: Site, shown: Sample) -> int | None:
    """Pixels along a side of the part of an image that belongs to a position, where the site is a grid of codes."""
    side = math.isqrt(site.num_variables)
    if shown.image_shape is None or site.cardinality < 3 or side < 2 or side * side != site.num_variables:
        return None
    height, width = shown.image_shape[:2]
    return height // side if height == width and height % side == 0 else None


def values_of(program: am.Program, x: Any, site: Site, num_draws: int) -> np.ndarray:
    """Draws of a discrete site as indices of its values, (S, N, M), from the guide or the exact posterior."""
    drawn = am.posterior(program, x, num_draws=num_draws)[site.name]
    one_hot = drawn.shape[2:] == (*site.variables, site.cardinality)
    index = drawn.argmax(-1) if one_hot else drawn
    return index.reshape(*drawn.shape[:2], -1).astype(int)


def components(axis: Any, program: am.Program, shown: Sample, site: Site) -> None:
    """How often each label's data are drawn to each value of a latent."""
    values = values_of(program, head(shown.test, MAPPED), site, DRAWS)[..., 0]
    labels = labels_of(shown, values.shape[1])
    names = np.unique(labels)
    share = [np.bincount(values[:, labels == name].ravel(), minlength=site.cardinality) for name in names]
    axis.imshow(np.array([counts / counts.sum() for counts in share]), cmap="gray_r", vmin=0, vmax=1)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_title(f"{'component' if site.name == 'k' else site.name} by label", fontsize=9)


def paths(axis: Any, program: am.Program, shown: Sample, sites: list[Site]) -> None:
    """The most frequent value of each latent of a chain, a row a datapoint, those of a label together."""
    num = min(PATHS, len(shown.test))
    order = np.argsort(labels_of(shown, num), kind="stable")
    drawn = am.posterior(program, head(shown.test, num), num_draws=DRAWS)
    path = []
    for site in sites:
        values = drawn[site.name].astype(int)
        path.append(np.stack([(values == value).sum(0) for value in range(site.cardinality)]).argmax(0))
    most = max(site.cardinality for site in sites)
    colours = mpl.colormaps["tab10" if most <= 10 else "tab20"]
    shades = colours(np.stack(path, 1)[order] % colours.N)
    axis.imshow(shades, aspect="auto", interpolation="nearest")
    names, first = np.unique(labels_of(shown, num)[order], return_index=True)
    if len(names) > 1:
        axis.set_yticks(first, names, fontsize=6)
    axis.set_title("states, step by step", fontsize=9)


def codebook(axis: Any, program: am.Program, shown: Sample, site: Site) -> None:
    """What each code stands for: the mean of the reconstructions around the positions that have it."""
    x = head(shown.test, MAPPED)
    again = joined(program.reconstruct(x, num_draws=4), x)
    found = values_of(program, x, site, 1)[0]
    cell = cell_of(site, shown)
    assert cell is not None and shown.image_shape is not None
    images = np.asarray(x if again is None else again, dtype=np.float64).reshape(len(found), *shown.image_shape[:2])
    patches = around(images, cell)
    counts = np.bincount(found.ravel(), minlength=site.cardinality)
    order = np.argsort(-counts, kind="stable")[:TILES]
    rows = found.ravel()
    means = [patches[rows == code].mean(0) if counts[code] else np.full(patches.shape[1:], np.nan) for code in order]
    axis.imshow(tiled(np.array(means)), cmap=blank_is_coloured(), vmin=0, vmax=max(1e-9, float(np.nanmax(means))))
    axis.axis("off")
    usage = am.diagnostics.codebook_usage(found, site.cardinality)
    size = f"{site.cardinality} codes" if site.cardinality <= TILES else f"the {TILES} most used of {site.cardinality}"
    axis.set_title(f"{size}, perplexity {usage.perplexity:.0f}, {usage.num_dead} unused", fontsize=9)


def around(images: np.ndarray, cell: int) -> np.ndarray:
    """The part of an image that belongs to each position, and half as much on every side, (N P, 2 cell, 2 cell)."""
    margin = cell // 2
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (cell + 2 * margin,) * 2, axis=(1, 2))
    each = windows[:, ::cell, ::cell]
    return each.reshape(-1, *each.shape[3:])


def tiled(tiles: np.ndarray) -> np.ndarray:
    """Tiles (K, h, w) in rows, a line between them."""
    columns = math.ceil(math.sqrt(len(tiles)))
    missing = -len(tiles) % columns
    whole = np.concatenate([tiles, np.full((missing, *tiles.shape[1:]), np.nan)])
    lined = np.pad(whole, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    rows = lined.reshape(-1, columns, *lined.shape[1:])
    return np.concatenate([np.concatenate(list(row), 1) for row in rows])


def blank_is_coloured() -> mpl.colors.Colormap:
    """Greys, and another colour for lines and for codes that are not used."""
    return mpl.colormaps["gray_r"].with_extremes(bad="#f3d9b1")


def bit_means(program: am.Program, shown: Sample, sites: list[Site]) -> np.ndarray:
    """Posterior means of discrete latents side by side, (N, D), a column a value of those with more than two."""
    drawn = am.posterior(program, head(shown.test, MAPPED), num_draws=DRAWS)
    found = [drawn[site.name].astype(np.float64).mean(0) for site in sites]
    return np.concatenate([mean.reshape(len(mean), -1) for mean in found], 1)


def labels_of(shown: Sample, num: int) -> np.ndarray:
    """Of the first data; zeros where there are none."""
    return np.zeros(num, int) if shown.labels is None else shown.labels[:num]


def scatter(axis: Any, found: np.ndarray, shown: Sample) -> None:
    """Codes (N, D) in two dimensions, with one colour a label."""
    flat, how = plane(found)
    labels = None if shown.labels is None else shown.labels[: len(flat)]
    kinds = np.zeros(len(flat), int) if labels is None else np.unique(labels, return_inverse=True)[1]
    axis.set_title(f"codes{how}", fontsize=9)
    colours = mpl.colormaps["tab10" if kinds.max() < 10 else "tab20"]
    axis.scatter(*flat.T, s=6, c=kinds, cmap=colours, vmin=-0.5, vmax=colours.N - 0.5, linewidths=0)
    if labels is not None and kinds.max() < 10:
        for kind, label in enumerate(np.unique(labels)):
            middle = np.median(flat[kinds == kind], 0)
            axis.text(*middle, str(label), fontsize=8, weight="bold", ha="center", va="center",
                      bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": colours(kind), "lw": 1})  # fmt: skip


def plane(found: np.ndarray) -> tuple[np.ndarray, str]:
    """Codes (N, D) in two dimensions (N, 2), and how they got there."""
    if found.shape[1] == 1:
        return np.column_stack([found[:, 0], np.random.default_rng(0).random(len(found))]), ", one dimension"
    if found.shape[1] == 2:
        return found, ""
    centred = found - found.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    share = np.square(centred @ axes.T).sum() / max(np.square(centred).sum(), 1e-30)
    return centred @ axes.T, f", {share:.0%} of the variance of {found.shape[1]}"
