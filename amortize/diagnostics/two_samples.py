r"""The classifier two-sample test: how well draws can be told from other draws by someone who may learn how.

A classifier is trained to tell the two samples apart and judged on draws that it has not seen. Its accuracy is 1/2
where the distributions are the same, 1 where they hardly overlap, and in general at most
:math:`\tfrac12 (1 + \mathrm{TV})` with TV the total variation distance; for two Gaussians that differ by a shift of d
standard deviations that is :math:`\Phi(d / 2)` (Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests",
https://arxiv.org/abs/1610.06545).

The classifier is a logistic regression with a ridge on the whitened numbers, their squares and products (with which
any two Gaussians are told apart as well as they can be) and random waves of three lengths (for what is not Gaussian).
It is convex, so there is no training to go wrong. Of five parts of the draws, each in turn is the test; the next one
chooses the ridge, the other three train. Draws go into parts in their order, so that neighbours in a chain stay
together.

Letters: S draws a sample, D numbers, P features, R ridges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError, check_count

__all__ = ["TwoSamples", "c2st"]

Array = NDArray[np.float64]

NUM_PARTS = 5
FEWEST_DRAWS = 20
MOST_PRODUCTS = 12
"""Most dimensions for which products of different ones are features: 66 of them."""
NUM_WAVES = 48
FREQUENCIES = (0.7, 1.5, 3.0)  # radians a standard deviation
RIDGES = (1e-3, 1e-2, 1e-1)
NUM_STEPS = 60
FARTHEST = 10.0  # standard deviations, beyond which a draw is looked at as if it were there


class TwoSamples(NamedTuple):
    """``accuracy`` on draws not trained on, and its standard error ``se`` by their number."""

    accuracy: float
    se: float


def c2st(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> TwoSamples:
    """Share of draws that a classifier assigns to the right sample.

    Parameters
    ----------
    first, second : array_like
        (S, D) each, near-independent draws of as many rows.
    seed
        Of the random waves.

    Returns
    -------
    TwoSamples
        About 1/2 where nothing tells them apart (it may fall below by chance), 1 where everything does; NaN where a
        draw is not finite.

    Raises
    ------
    ArgumentError
        If the shapes differ, or there are fewer than twenty draws.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> c2st(rng.normal(size=(500, 2)), rng.normal(size=(500, 2)) + 5).accuracy > 0.99
    True
    """
    one, two = (np.asarray(value, dtype=np.float64) for value in (first, second))
    if one.shape != two.shape or one.ndim != 2 or len(one) < FEWEST_DRAWS or not one.shape[1]:
        raise ArgumentError(
            f"first, second: expected two samples of the same shape (S, D), at least {FEWEST_DRAWS} draws, got "
            f"{one.shape} and {two.shape}"
        )
    rng = np.random.default_rng(check_count("seed", seed, 0))
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        return TwoSamples(np.nan, np.nan)
    design = _features(_whitened(np.concatenate([one, two])), rng)
    labels = np.repeat([1.0, -1.0], len(one))
    parts = np.tile(np.arange(len(one)) * NUM_PARTS // len(one), 2)
    right = np.zeros(len(labels))
    for test in range(NUM_PARTS):
        held, chooser = parts == test, parts == (test + 1) % NUM_PARTS
        train = ~(held | chooser)
        weights = _fitted(design[train], labels[train])
        loss = np.logaddexp(0.0, -labels[chooser, None] * (design[chooser] @ weights)).mean(0)
        score = design[held] @ weights[:, loss.argmin()]
        right[held] = np.where(score == 0, 0.5, np.sign(score) == labels[held])
    accuracy = float(right.mean())
    return TwoSamples(accuracy, float(np.sqrt(max(accuracy * (1 - accuracy), 0.25 / len(right)) / len(right))))


def _whitened(draws: Array) -> Array:
    """By mean and covariance of both samples together, which tell nothing of which is which."""
    centred = draws - draws.mean(0)
    scale = centred.std(0)
    unit = centred / np.where(scale > 0, scale, 1.0)
    values, axes = np.linalg.eigh(np.cov(unit, rowvar=False, ddof=0).reshape(unit.shape[1], -1))
    lengths = np.sqrt(np.where(values > 1e-10 * values.max(), values, np.inf))  # directions without spread are dropped
    return np.asarray(np.clip(unit @ axes / lengths, -FARTHEST, FARTHEST))


def _features(white: Array, rng: np.random.Generator) -> Array:
    """(2 S, P), standardised, a constant first."""
    dim = white.shape[1]
    columns = [white, white**2]
    if 1 < dim <= MOST_PRODUCTS:
        row, column = np.triu_indices(dim, 1)
        columns.append(white[:, row] * white[:, column])
    direction = rng.normal(size=(dim, NUM_WAVES))
    direction *= np.resize(FREQUENCIES, NUM_WAVES) / np.linalg.norm(direction, axis=0)
    columns.append(np.cos(white @ direction + rng.uniform(0, 2 * np.pi, NUM_WAVES)))
    design = np.concatenate(columns, 1)
    scale = design.std(0)
    return np.concatenate([np.ones((len(design), 1)), (design - design.mean(0)) / np.where(scale > 0, scale, 1.0)], 1)


def _fitted(design: Array, labels: Array) -> Array:
    """Weights (P, R) of logistic regressions under each ridge.

    By minorisation: the Hessian is at most a quarter of the features' second moments, whose inverse is taken once, and
    each step goes uphill (Boehning and Lindsay 1988).
    """
    second = design.T @ design / (4 * len(design))
    ridges = np.asarray(RIDGES)
    inverses = np.linalg.inv(second + ridges[:, None, None] * np.eye(len(second)))  # (R, P, P)
    weights = np.zeros((len(second), len(ridges)))
    for _ in range(NUM_STEPS):
        chance = 0.5 * (1 + np.tanh(-0.5 * labels[:, None] * (design @ weights)))  # of being wrong
        slope = design.T @ (labels[:, None] * chance) / len(design) - ridges * weights
        weights = weights + np.einsum("rpq,qr->pr", inverses, slope)
    return weights
