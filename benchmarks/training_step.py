"""A step of training: what `am.fit` costs against a hand-written PyTorch loop of the same arithmetic.

    python benchmarks/training_step.py [--rounds 15] [--steps 40] [--threads 1 2]

Prints a markdown table: milliseconds a step, and ratios to the loops by hand. The program is a Bernoulli VAE,
784-200-200-50 with tanh, its mirrored decoder, float32, 100 images a step, objective "elbo" with one draw. By hand:
the same networks, ``z = loc + scale * eps``, ``binary_cross_entropy_with_logits`` summed over pixels, log p(z) and
log q(z | x) of the draw by their formulas, ``torch.optim.Adam`` as it comes and with ``fused=True``, and the loss read
at each step, as a loop does that shows its progress. `am.fit` (fused Adam, too) keeps beside that the norm of the
gradient and the history, and skips steps that are not finite.

Rounds are interleaved: each runs every variant for ``--steps`` steps, one after another, so that what else the machine
does falls on all alike; a round's number is its median step, a ratio is the median over rounds of the ratio within a
round. With one thread it is CPU time of that thread; with more it is time on the wall.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import amortize as am

NUM_IMAGES, BATCH, LATENT_DIM, HIDDEN = 2000, 100, 50, (200, 200)
LOG_2PI = float(np.log(2 * np.pi))
WARM = 5  # steps that are not counted

Clock = Callable[[], float]


def images() -> Tensor:
    """Black and white noise, (N, 784): the arithmetic does not hang on what is in them."""
    return (torch.rand(NUM_IMAGES, 784, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def network() -> am.models.BernoulliVAE:
    """The networks, and the program of Pyro that states them."""
    return am.models.BernoulliVAE(784, LATENT_DIM, hidden=HIDDEN)


def batches(x: Tensor) -> Iterator[Tensor]:
    """Without replacement, epoch by epoch."""
    while True:
        order = torch.randperm(len(x))
        for first in range(0, len(x), BATCH):
            yield x[order[first : first + BATCH]]


def negative_elbo(vae: am.models.BernoulliVAE, x: Tensor) -> Tensor:
    """By hand, one draw a datapoint."""
    loc, log_scale = vae.encoder.network(x).chunk(2, dim=-1)
    scale = log_scale.exp()
    z = loc + scale * torch.randn_like(loc)
    log_q = (-0.5 * ((z - loc) / scale).square() - log_scale - 0.5 * LOG_2PI).sum(-1)
    log_prior = (-0.5 * z.square() - 0.5 * LOG_2PI).sum(-1)
    costs = nn.functional.binary_cross_entropy_with_logits(vae.decoder(z), x, reduction="none").sum(-1)
    return (costs + log_q - log_prior).mean()


def by_hand(x: Tensor, num_steps: int, clock: Clock, *, fused: bool) -> np.ndarray:
    """Seconds of each step."""
    vae = network()
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=fused)
    source, times, losses = batches(x), [], []
    for _ in range(num_steps):
        times.append(clock())
        optimiser.zero_grad(set_to_none=True)
        loss = negative_elbo(vae, next(source))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return np.diff(times)


def by_fit(x: Tensor, num_steps: int, clock: Clock) -> np.ndarray:
    """Seconds of each step: the clock is read where a batch is handed over."""
    times: list[float] = []

    def redraw(batch: Any, _: torch.Generator) -> Any:
        times.append(clock())
        return batch

    training = am.Training(batch_size=BATCH, progress=False, redraw=redraw)
    am.fit(network().program(), x, objective="elbo", num_steps=num_steps, training=training)
    return np.diff(times)


VARIANTS: dict[str, Callable[[Tensor, int, Clock], np.ndarray]] = {
    "by hand, Adam as it comes": lambda x, steps, clock: by_hand(x, steps, clock, fused=False),
    "by hand, fused Adam": lambda x, steps, clock: by_hand(x, steps, clock, fused=True),
    "am.fit": by_fit,
}


def table(num_threads: int, num_rounds: int, num_steps: int) -> str:
    """A markdown table of one number of threads."""
    torch.set_num_threads(num_threads)
    clock = time.thread_time if num_threads == 1 else time.perf_counter
    x = images()

    def one_round() -> list[float]:
        return [float(np.median(run(x, WARM + num_steps, clock)[WARM:])) for run in VARIANTS.values()]

    each = np.array([one_round() for _ in range(num_rounds)])
    ratios = [np.median(each / each[:, [column]], axis=0) for column in range(2)]
    spread = np.quantile(each[:, 2] / each[:, 1], [0.25, 0.75])
    lines = [
        f"| {num_threads} thread{'s' * (num_threads > 1)} | ms a step | to plain Adam | to fused Adam |",
        "| --- |" + " ---: |" * 3,
    ]
    for place, name in enumerate(VARIANTS):
        lines.append(
            f"| {name} | {1e3 * np.median(each[:, place]):.2f} | {ratios[0][place]:.3f} | {ratios[1][place]:.3f} |"
        )
    lines += [
        "",
        f"am.fit to fused Adam by hand, middle half of {num_rounds} rounds: {spread[0]:.3f} to {spread[1]:.3f}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    print(f"torch {torch.__version__}\n")
    for num_threads in given.threads:
        print(table(num_threads, given.rounds, given.steps) + "\n")


if __name__ == "__main__":
    main()
