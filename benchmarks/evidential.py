"""Does evidence keep a codebook in use? The evidential discrete VAE beside the discrete VAE, at several prices.

    python benchmarks/evidential.py [--images 10000] [--steps 600] [--seeds 1] [--data mnist] [--cache DIR]

Static binarised MNIST (or Fashion-MNIST at one half), the same networks for both (channels 8-16-16, a grid of 4 x 4
codes of 64 vectors of 16 numbers), Adam at 0.005 falling to 0 by a cosine, batches of 50, temperature from 1 to 1/16
over three quarters of the steps. The price of a nat of the rate is not the same thing in both - that of the discrete
VAE is the rate of its codes, the other's that of its Dirichlets - so each is trained at every one of its own prices.
A row: -log p(x | k) at the most probable codes, perplexity, dead codes and what the codes tell of their image, on 2000
test images, means over seeds; the ELBO of the discrete model with exact rates and one draw of the codes.

The claim is held against two readings, printed below the table. *Tuned*: each model at the price that reconstructs
1000 validation images best. *Dominated*: for each price of the evidential VAE, the most varied discrete VAE among
those that reconstruct as well or better.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch

import amortize as am
from amortize.models import DVAE, EdVAE
from amortize.random import generator, pyro_rng

CODES, CHANNELS = 64, (8, 16, 16)
PRICES: dict[str, tuple[float, ...]] = {
    "dvae": (0.0, 0.1, 0.3, 1.0),
    "edvae": (1e-3, 3e-3, 3e-4, 1e-2),
}
FORMS: dict[str, type[Any]] = {"dvae": DVAE, "edvae": EdVAE}
TESTED, VALIDATED = 2000, 1000


class Row(NamedTuple):
    """A model at a price, means over seeds; ``validation`` and ``distortion`` are -log p(x | k), nats an image."""

    form: str
    price: float
    validation: float
    distortion: float
    distortion_se: float
    perplexity: float
    perplexity_se: float
    dead: float
    information: float
    elbo: float


def main() -> None:
    """Print the table and the two readings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["mnist", "fashion-mnist"], default="mnist")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="a folder where finished trainings are kept")
    options = parser.parse_args()
    parts = images(options.data, options.images)
    print("| model | price | -log p(x given k) | perplexity of 64 | dead | codes tell, nats | ELBO |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for form, prices in PRICES.items():
        for price in prices:
            found = [measured(form, price, seed, parts, options) for seed in range(options.seeds)]
            rows.append(mean_of(form, price, found))
            print(line(rows[-1]), flush=True)
    print("\n" + "\n".join(readings(rows)))


def images(name: str, num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """To train on, to choose the price by, and to test on: random choices, the same at every call."""
    found = am.data.load(name, binarise="static" if name == "mnist" else "threshold")
    train, test = (torch.as_tensor(part).float() for part in (found.x_train, found.x_test))
    order, tested = (torch.randperm(len(part), generator=generator(0, name)) for part in (train, test))
    num = min(num, len(train) - VALIDATED)
    return train[order[:num]], train[order[-VALIDATED:]], test[tested[:TESTED]]


def measured(form: str, price: float, seed: int, parts: tuple[torch.Tensor, ...], options: Any) -> dict[str, float]:
    """Train, or find in the cache, and measure."""
    path = None
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        path = options.cache / f"{options.data}-{form}-{price:g}-{options.images}-{options.steps}-{seed}.json"
        if path.exists():
            kept: dict[str, float] = json.loads(path.read_text(encoding="ascii"))
            return kept
    train, valid, test = parts
    model = FORMS[form].from_data(train, CODES, channels=CHANNELS, beta=price, seed=seed)
    training = am.Training(learning_rate=5e-3, schedule="cosine", batch_size=50, progress=False)
    am.fit(model.program(), train, num_steps=options.steps, seed=seed, training=training)
    numbers = numbers_of(model, valid, test)
    if path is not None:
        path.write_text(json.dumps(numbers), encoding="ascii")
    return numbers


@torch.no_grad()
def numbers_of(model: DVAE | EdVAE, valid: torch.Tensor, test: torch.Tensor) -> dict[str, float]:
    """What a row is made of; an evidential model is measured with its probabilities summed out, the same model."""
    model.eval()
    discrete = model if isinstance(model, DVAE) else model.collapsed()
    usage = am.code_usage(discrete.program(), test)["codes"]
    log_q = discrete.encoder(test).log_softmax(-1)
    with pyro_rng(0, "codes"):
        drawn = pyro.distributions.OneHotCategorical(logits=log_q)()
    rate = (log_q.exp() * log_q).sum((-1, -2)) + log_q.shape[1] * math.log(CODES)
    distortion = distortions(discrete, test)
    return {
        "validation": float(distortions(discrete, valid).mean()),
        "distortion": float(distortion.mean()),
        "distortion_se": float(distortion.std() / math.sqrt(len(test))),
        "perplexity": usage.perplexity,
        "perplexity_se": usage.perplexity_se,
        "dead": float(usage.num_dead),
        "information": float(usage.information.sum()),
        "elbo": float((discrete.decoder(drawn).log_prob(test) - rate).mean()),
    }


def distortions(discrete: DVAE, x: torch.Tensor) -> torch.Tensor:
    """-log p(x | k) at the most probable codes, (N,) nats."""
    codes = torch.nn.functional.one_hot(discrete.codes(x), CODES).to(x)
    found: torch.Tensor = -discrete.decoder(codes).log_prob(x)
    return found


def mean_of(form: str, price: float, found: list[dict[str, float]]) -> Row:
    """Means over seeds; errors are those of one seed's images."""
    return Row(form, price, **{key: float(np.mean([one[key] for one in found])) for key in found[0]})


def line(row: Row) -> str:
    """A row of the table in markdown."""
    return (
        f"| {row.form} | {row.price:g} | {row.distortion:.2f} +- {row.distortion_se:.2f} | {row.perplexity:.1f} +- "
        f"{row.perplexity_se:.1f} | {row.dead:.1f} | {row.information:.1f} | {row.elbo:.1f} |"
    )


def readings(rows: list[Row]) -> Iterator[str]:
    """The claim, twice: 1.2 times the perplexity at a reconstruction that is no worse."""
    best = {form: min((row for row in rows if row.form == form), key=lambda row: row.validation) for form in FORMS}
    plain, evidential = best["dvae"], best["edvae"]
    yield (
        f"Tuned: dvae at {plain.price:g}, {plain.distortion:.2f} nats, perplexity {plain.perplexity:.1f}; edvae at "
        f"{evidential.price:g}, {evidential.distortion:.2f} nats, perplexity {evidential.perplexity:.1f}: "
        f"{evidential.perplexity / plain.perplexity:.2f} times."
    )
    for row in (row for row in rows if row.form == "edvae"):
        others = [other for other in rows if other.form == "dvae" and other.distortion <= row.distortion]
        if not others:
            yield f"Dominated: no dvae reconstructs as well as edvae at {row.price:g} ({row.distortion:.2f} nats)."
            continue
        rival = max(others, key=lambda other: other.perplexity)
        yield (
            f"Dominated: edvae at {row.price:g} has {row.perplexity / rival.perplexity:.2f} times the perplexity of "
            f"dvae at {rival.price:g}; reconstructions {row.distortion:.2f} and {rival.distortion:.2f} nats."
        )


if __name__ == "__main__":
    main()
