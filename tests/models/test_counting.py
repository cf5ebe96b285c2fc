"""Counting objects: quadrature over places, counts of images whose number is known, and every order of the objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.models import Counting
from tests.statistics import z_value


def tiny():
    """One object at most on 4 x 4 pixels, float64, and images of it."""
    stream = torch.Generator().manual_seed(0)
    x = (torch.rand(5, 16, generator=stream) < 0.3).double()
    counting = Counting.from_data(x, 1, object_size=2, channels=2).double()
    with torch.no_grad():
        counting.scene.shape.copy_(torch.tensor([[1.5, 0.5], [-1.0, 2.0]]))
        counting.scene.background.fill_(-1.0)
        counting.count_logits.logits.copy_(torch.tensor([0.3, -0.2]))
    return counting, x


def by_quadrature(counting, x):
    """Log p(x, count), (N, 2), places on a fine lattice of ten standard deviations, to some 1e-4."""
    scene = counting.scene
    nodes = torch.linspace(-5, 5, 301, dtype=torch.float64)
    step = float(nodes[1] - nodes[0])
    lattice = torch.cartesian_prod(nodes, nodes)
    log_weight = -0.5 * lattice.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(step)
    where = scene.middle + lattice * scene.log_spread.exp()
    total = []
    for count in (0, 1):
        likelihood = scene(torch.tensor(count), [where])
        total.append(torch.stack([(likelihood.log_prob(row) + log_weight).logsumexp(0) for row in x]))
    return (torch.stack(total, 1) + counting.count_logits().log_softmax(0)).detach()


def test_the_evidence_and_the_count_are_those_of_quadrature():
    counting, x = tiny()
    joint = by_quadrature(counting, x)
    exact = joint.logsumexp(1)
    found = am.evidence(counting.program(), x, method=am.ImportanceSampling(2000), seed=0)
    assert (np.abs(found.log_evidence - exact.numpy()) < z_value(len(x)) * found.se + 2e-3).all()
    share = counting.counted(x, num_draws=1000)
    torch.testing.assert_close(share, joint.softmax(1), atol=0.04, rtol=0)
    assert float(joint.softmax(1).std(0).max()) > 0.05  # the images tell them apart


def test_an_object_is_drawn_where_it_is():
    scene = tiny()[0].scene
    with torch.no_grad():
        scene.shape.fill_(20.0)
        middle, between = (
            scene.ink(torch.tensor(at, dtype=torch.float64)).reshape(4, 4) for at in ([0.0, 0], [0.5, 0])
        )
        outside = scene.ink(torch.tensor([40.0, 0.0], dtype=torch.float64))
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[1:3, 1:3] = 0.999
    torch.testing.assert_close(middle, expected)
    torch.testing.assert_close(between[:, 1], 0.999 * torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64))
    assert not outside.any()


@pytest.fixture(scope="module")
def trained():
    """On scattered crosses, two at most, and images held out with their counts."""
    data = am.data.load("scattered-crosses")
    few = data.y_train <= 2
    counting = Counting.from_data(data.x_train[few], 2, channels=8)
    how = am.Training(learning_rate=1e-2, batch_size=20, schedule="cosine", progress=False)
    am.fit(counting.program(), data.x_train[few], objective=counting.objective, num_steps=90, training=how)
    held_out = data.y_test <= 2
    return counting, torch.as_tensor(data.x_test[held_out][:100]), torch.as_tensor(data.y_test[held_out][:100])


def test_the_count_is_found_where_it_is_known(trained):
    """Nine images in ten; without its shape, or guessing the most frequent count, it can't."""
    counting, x, count = trained
    right = float((counting.counted(x, num_draws=20).argmax(1) == count).double().mean())
    assert right > 0.9
    assert float(torch.bincount(count).max()) / len(count) < 0.5
    shape = counting.scene.shape.detach().clone()
    with torch.no_grad():
        counting.scene.shape.fill_(-20.0)
        broken = float((counting.counted(x, num_draws=20).argmax(1) == count).double().mean())
        counting.scene.shape.copy_(shape)
    assert broken < 0.6


def test_its_shape_is_the_cross(trained):
    shape = trained[0].scene.shape.detach().sigmoid()
    cross = torch.eye(5).maximum(torch.eye(5).flip(0)).bool()
    assert float(shape[cross].min()) > 0.6 > 0.3 > float(shape[~cross].max())


def test_the_guide_covers_every_order(trained):
    """Of two crosses either is the first one looked at."""
    counting, x, count = trained
    two = x[count == 2]
    draws = am.posterior(counting.program(), two, num_draws=50)
    first, second = draws["where_1"], draws["where_2"]
    apart = np.abs(first - second).max(-1) > 2  # not the same one twice
    assert apart.mean() > 0.8
    middle = (first + second).mean(0) / 2
    axis = np.abs(first - second).mean(0).argmax(-1)
    side = np.take_along_axis(first - middle, np.broadcast_to(axis[None, :, None], (*first.shape[:2], 1)), 2)[..., 0]
    share = (side > 0).mean(0)
    assert np.median(np.minimum(share, 1 - share)) > 0.1


def test_the_contract_holds_on_digits():
    x = torch.as_tensor(am.data.load("digits").x_train[:30])
    counting = Counting.from_data(x, channels=4)
    report = counting.program().check(x[:10])
    assert report.ok, str(report)
    assert counting.program().dim(x) == 6


def test_what_is_refused():
    x = torch.eye(16)
    with pytest.raises(ArgumentError, match="object_size: expected at most the images' side, 4"):
        Counting.from_data(x)
    with pytest.raises(ArgumentError, match="max_objects"):
        Counting.from_data(x, 0, object_size=2)
    with pytest.raises(DataError, match="square images, got rows of 6 pixels"):
        Counting.from_data(torch.eye(6))
    with pytest.raises(DataError, match="zeros and ones"):
        Counting.from_data(x / 2)
    with pytest.raises(DataError, match="ink"):
        Counting.from_data(torch.zeros(3, 16), object_size=2)
    counting = Counting.from_data(x, object_size=2)
    with pytest.raises(DataError, match="shape"):
        counting.counted(torch.zeros(2, 9))
    with pytest.raises(ArgumentError, match="num_draws"):
        counting.counted(x, num_draws=0)
