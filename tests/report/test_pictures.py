"""Which site a page draws: an image, the steps of a sequence that are one together, or a short vector."""

from __future__ import annotations

import numpy as np
import xarray as xr

from amortize.report.pictures import _find_site, _sequences

NUM = 3


def tree_of(sizes: dict[str, int], *, reconstructed: tuple[str, ...] = ()) -> xr.DataTree:
    """Observed data of sites of some sizes, each site's values its own number."""
    sites = {
        name: (("datapoint", f"dim_{name}"), np.full((NUM, size), float(number)))
        for number, (name, size) in enumerate(sizes.items())
    }
    return xr.DataTree.from_dict(
        {
            "observed_data": xr.Dataset(sites),
            "reconstruction": xr.Dataset({name: sites[name] for name in reconstructed}),
        }
    )


def test_steps_that_are_an_image_together_are_drawn_as_one():
    sizes = {f"x_{t}": 12 for t in (1, 10, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12)}
    site = _find_site(tree_of(sizes, reconstructed=tuple(sizes)), (12, 12))
    assert site is not None and site.shape == (12, 12) and site.reconstruction is not None
    assert site.observed[0].reshape(12, 12)[:, 0].tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9, 1, 10, 11]
    assert _find_site(tree_of(sizes, reconstructed=("x_1",)), (12, 12)).reconstruction is None


def test_an_image_goes_before_vectors_and_vectors_before_nothing():
    sizes = {"a": 3, "picture": 16, "x_1": 5, "x_2": 5}
    assert _find_site(tree_of(sizes), (4, 4)).name == "picture"
    assert _find_site(tree_of(sizes), (9, 9)).name == "a"
    assert _find_site(tree_of({"n": 1}), None) is None
    assert _find_site(tree_of({"x_1": 2, "x_2": 2}), None).shape == ()


def test_sequences_are_steps_in_their_order():
    assert _sequences(["x_2", "x_10", "x_1", "y", "z_1"]) == [["x_1", "x_2", "x_10"]]
