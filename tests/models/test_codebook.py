"""Codebooks: rounding and its gradients, moving averages as k-means, dead codes that start again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from amortize.diagnostics import codebook_usage
from amortize.errors import ArgumentError
from amortize.models.codebook import Codebook, certain
from amortize.random import generator, pyro_rng

K, D = 5, 3


def rows(num: int, name: str = "rows") -> torch.Tensor:
    return torch.randn(num, D, generator=generator(0, name), dtype=torch.float64)


def book(**settings) -> Codebook:
    made = Codebook(K, D, **settings).double()
    made.start(rows(K, "codes"), generator=generator(0, "start"))
    return made


# Rounding


@pytest.mark.parametrize("normalised", [False, True])
def test_the_nearest_code_is_the_nearest(normalised):
    made, vectors = book(normalised=normalised), rows(50).reshape(5, 10, D)
    codes = made.vectors / made.vectors.norm(dim=-1, keepdim=True) if normalised else made.vectors
    placed = vectors / vectors.norm(dim=-1, keepdim=True) if normalised else vectors
    expected = (placed.unsqueeze(-2) - codes).norm(dim=-1).argmin(-1)
    assert torch.equal(made.nearest(vectors), expected)
    torch.testing.assert_close(made.embed(expected), codes[expected])
    found = made.quantise(vectors)
    assert torch.equal(found.codes, expected)
    assert torch.equal(found.vectors, made.embed(expected))
    torch.testing.assert_close(found.commitment, (placed - codes[expected]).square().sum((-1, -2)))
    torch.testing.assert_close(found.fit, found.commitment)


def test_gradients_pass_the_rounding_and_stop_where_they_should():
    made, vectors = book(ema=None), rows(12).reshape(4, 3, D).requires_grad_()
    weights = rows(12, "weights").reshape(4, 3, D)
    found = made.quantise(vectors)
    straight = torch.autograd.grad((found.vectors * weights).sum(), [vectors, made.vectors], allow_unused=True)
    torch.testing.assert_close(straight[0], weights)
    assert straight[1] is None
    committed = torch.autograd.grad(found.commitment.sum(), [vectors, made.vectors], allow_unused=True)
    torch.testing.assert_close(committed[0], 2 * (vectors - found.vectors).detach())
    assert committed[1] is None
    fitted = torch.autograd.grad(found.fit.sum(), [vectors, made.vectors], allow_unused=True)
    assert fitted[0] is None
    pulled = torch.zeros(K, D, dtype=torch.float64)
    pulled.index_add_(0, found.codes.flatten(), 2 * (found.vectors - vectors).detach().reshape(-1, D))
    torch.testing.assert_close(fitted[1], pulled)


def test_sure_codes():
    codes = torch.tensor([[0, 2], [1, 1]])
    sure = certain(codes, 3)
    assert torch.equal(sure.sample((4,)), codes.expand(4, 2, 2))
    assert torch.equal(sure.log_prob(codes), torch.zeros(2))
    assert torch.equal(sure.log_prob(torch.tensor([[0, 2], [1, 0]])), torch.tensor([0.0, -torch.inf]))
    assert sure.event_shape == (2,)


# Learning


def test_without_memory_a_step_is_one_of_k_means():
    made, vectors = book(ema=0.0, restarts=0.0), rows(200)
    begun = made.vectors.clone().numpy()
    for _ in range(4):
        made.learn(vectors)
    truth = KMeans(K, init=begun, n_init=1, max_iter=4, tol=0.0).fit(vectors.numpy())
    np.testing.assert_allclose(made.vectors.numpy(), truth.cluster_centers_, rtol=1e-9)


def test_with_memory_codes_are_weighted_means_of_what_was_assigned():
    memory, made = 0.7, book(ema=0.7, restarts=0.0)
    totals, shares = made.vectors.numpy() / K, np.full(K, 1 / K)
    for number in range(6):
        batch = rows(40, f"batch {number}")
        codes = made.nearest(batch).numpy()
        hits = np.eye(K)[codes]
        totals = memory * totals + (1 - memory) * hits.T @ batch.numpy() / 40
        shares = memory * shares + (1 - memory) * hits.mean(0)
        made.learn(batch.reshape(8, 5, D))
        np.testing.assert_allclose(made.usage.numpy(), shares, rtol=1e-12)
        np.testing.assert_allclose(made.vectors.numpy(), totals / shares[:, None], rtol=1e-12)


def test_a_codebook_learned_by_gradient_is_left_to_it():
    made = book(ema=None, restarts=0.0)
    before = made.vectors.detach().clone()
    made.learn(rows(30))
    assert torch.equal(made.vectors, before)
    assert isinstance(made.vectors, torch.nn.Parameter)
    assert not list(book().parameters())


def clusters() -> torch.Tensor:
    """200 vectors around five far places."""
    centres = 10 * rows(K, "centres")
    return centres.repeat(40, 1) + 0.1 * rows(200, "spread")


@pytest.mark.parametrize("ema", [0.9, None])
@pytest.mark.parametrize("restarts", [0.1, 0.0])
def test_dead_codes_start_again_where_vectors_are_far_from_theirs(ema, restarts):
    made, vectors = book(ema=ema, restarts=restarts), clusters()
    with torch.no_grad():  # one code in reach, four nowhere near
        made.vectors[:] = 1000.0 + rows(K, "away")
        made.vectors[0] = vectors.mean(0)
    with pyro_rng(0, "training"):
        for _ in range(400):
            made.learn(vectors)
    usage = codebook_usage(made.nearest(vectors).numpy(), K)
    distance = made.quantise(vectors).commitment / len(vectors)
    if restarts:
        assert usage.num_dead == 0
        if ema is not None:  # else nothing moves them from where they started again
            assert float(distance) < 0.5
    else:
        assert usage.num_dead == K - 1
        assert float(distance) > 10


def test_a_dead_code_starts_again_at_a_vector_in_proportion_to_its_squared_distance():
    """Of a place with a code and few vectors far from any, it is the latter that get one; codes in use stay."""
    made, vectors = book(ema=0.9, restarts=0.1), torch.zeros(50, D, dtype=torch.float64)
    vectors[-2:] = 10 * rows(2, "far")
    with torch.no_grad():
        made.vectors[:], made.usage[:] = 1000.0, 1.0
        made.vectors[0], made.sums[0], made.usage[1] = 0.0, 0.0, 0.0
    with pyro_rng(0, "training"):
        made.learn(vectors)
    assert (made.vectors[1] == vectors[-2:]).all(-1).any()
    assert float(made.usage[1]) == pytest.approx(1 / K)
    torch.testing.assert_close(made.sums[1] / made.usage[1], made.vectors[1])
    assert bool((made.vectors[2:] == 1000.0).all())


def test_a_code_that_vanished_is_no_nan():
    made = book(restarts=0.0)
    made.vectors[1] = 1000.0
    made.usage[1], made.sums[1] = 0.0, 0.0  # where a long time without a hit ends
    made.learn(rows(30))
    assert bool(made.vectors.isfinite().all())
    assert torch.equal(made.vectors[1], torch.full((D,), 1000.0, dtype=torch.float64))


def test_looking_learns_nothing():
    made = book()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.train()
    made.quantise(rows(20))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_it_stays_on_the_unit_sphere():
    made = book(normalised=True)
    with pyro_rng(0, "training"):
        for _ in range(20):
            made.learn(rows(40))
    torch.testing.assert_close(made.codes.norm(dim=-1), torch.ones(K, dtype=torch.float64))


# The start


def test_codes_begin_apart():
    made, vectors = Codebook(K, D).double(), clusters()
    state = torch.get_rng_state()
    made.start(vectors, generator=generator(1, "start"))
    assert torch.equal(state, torch.get_rng_state())
    assert codebook_usage(made.nearest(vectors).numpy(), K).num_dead == 0
    again = Codebook(K, D).double()
    again.start(vectors, generator=generator(1, "start"))
    assert torch.equal(made.vectors, again.vectors)


def test_codes_begin_apart_where_vectors_are_few():
    made = Codebook(K, D)
    made.start(torch.eye(D)[:2].repeat(10, 1), generator=generator(0, "start"))
    apart = torch.cdist(made.vectors, made.vectors) + torch.eye(K)
    assert float(apart.detach().min()) > 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"ema": 1.0}, "ema"), ({"restarts": -0.1}, "restarts"), ({"num_codes": 1}, "num_codes"), ({"dim": 0}, "dim")],
)
def test_what_it_refuses(settings, named):
    with pytest.raises(ArgumentError, match=named):
        Codebook(**{"num_codes": K, "dim": D, **settings})


def test_vectors_of_another_size_are_refused():
    with pytest.raises(ArgumentError, match="vectors: expected 3 numbers"):
        book().nearest(torch.zeros(4, 2, dtype=torch.float64))
