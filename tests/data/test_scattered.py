"""Scattered crosses: the labels are the counts, and the images are the same on every machine."""

from __future__ import annotations

import numpy as np

from amortize.data import data_hash, load


def test_the_label_is_the_number_of_crosses():
    data = load("scattered-crosses")
    images, counts = data.x_train.reshape(-1, 16, 16), data.y_train
    cross = np.eye(5) + np.eye(5)[::-1] > 0
    windows = np.lib.stride_tricks.sliding_window_view(images, (5, 5), axis=(1, 2))
    hits = (windows == cross).mean((-1, -2)) >= 0.88
    assert (hits.sum((1, 2)) == counts).mean() > 0.8  # some touch, and some are blurred by noise
    assert not images[counts == 0].sum((1, 2)).max() > 12
    assert set(np.unique(images)) == {0.0, 1.0}
    assert len(np.bincount(counts)) == 4
    assert np.bincount(counts).min() > 400


def test_the_images_are_the_same_everywhere():
    data = load("scattered-crosses")
    assert data_hash(data.x_test)[:16] == "afb615b5bb89acd5"
