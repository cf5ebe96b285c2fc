"""How sharp quantised models are: samples and reconstructions against data, in features of a classifier trained here.

    python benchmarks/sharpness.py --cache DIR [--models NAME ...] [--seconds 480] [--seeds 1] [--pictures DIR]
    python benchmarks/sharpness.py --cache DIR --train 2000 --compared 1000 --seconds 30      # a look, in minutes

Grey MNIST, 28 x 28, values from 0 to 1. All models have codes of 128 vectors, a normal likelihood with one learned
scale, and a transformer as prior; they are trained on the 60,000 training images (the first ``--train`` of them) by
Adam at a rate that falls along a cosine, for as many steps as fit into ``--seconds`` of the processor, and kept in the
cache. "4 x 4" and "7 x 7" are the grids of their codes; a VQ-GAN has the networks of the VQ-VAE with the same grid.

The classifier has two convolutions and 64 features before its last layer; it is trained on the training images and
their labels for ``--epochs`` epochs, and its accuracy on the test images is printed. The test images are divided at
random (seed 0) into two sets of ``--compared``, A and B. What is measured is the squared Frechet distance in the 64
features from B: of A itself, which is what two sets of real images are apart; of reconstructions of A; and of as many
samples, codes from the prior and the mean of x there, without the normal's noise. Beside it, the gradient energy, the
sum of squared differences of neighbouring pixels, as a ratio to that of B: below 1 for what is blurred. An error is
that of the finite number of images, by the delta method (Frechet) or plain (energy); it knows nothing of the seed of
the training. The last columns are of reconstructions: root mean squared error, and how often the classifier is right.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import amortize as am
from amortize.diagnostics.frechet import FrechetDistance, frechet_distance
from amortize.models.quantised import Quantised
from amortize.models.vq_gan import VQGAN
from amortize.models.vq_vae import VQVAE
from amortize.models.vq_vae_2 import VQVAE2
from amortize.program.handlers import Record, unvalidated
from amortize.random import generator, pyro_rng

ALIKE: dict[str, Any] = {"num_codes": 128, "decoder": "normal", "prior": "transformer"}
COARSE, FINE = (32, 32, 64), (32, 32)  # channels of each step that halves the side
MODELS: dict[str, tuple[type[Quantised], dict[str, Any]]] = {
    "vq-vae-4x4": (VQVAE, {"channels": COARSE}),
    "vq-gan-4x4": (VQGAN, {"channels": COARSE}),
    "vq-vae-7x7": (VQVAE, {"channels": FINE}),
    "vq-gan-7x7": (VQGAN, {"channels": FINE}),
    "vq-vae-2-4x4-7x7": (VQVAE2, {"channels": (FINE, COARSE[2:])}),
}
PROBED, STARTING = 22, 2  # steps that are timed, to see how many a budget allows, and those that are passed over
NUM_FEATURES, SIDE = 64, 28
AT_ONCE = 500  # images a pass
GRID = (6, 10)  # images of a picture


class Classifier(nn.Module):
    """Images (N, 784) to the logits of ten digits; ``features`` (N, 64) are what its last layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(-1, (1, SIDE, SIDE)),
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(32 * 7 * 7, NUM_FEATURES), nn.SiLU(),
        )  # fmt: skip
        self.last = nn.Linear(NUM_FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.last(self.body(x))
        return logits

    @torch.no_grad()
    def features(self, x: Tensor) -> np.ndarray:
        """(N, 64)."""
        return torch.cat([self.body(part) for part in x.split(AT_ONCE)]).double().numpy()

    @torch.no_grad()
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of the images that it names rightly."""
        said = torch.cat([self(part).argmax(-1) for part in x.split(AT_ONCE)])
        return float((said == labels).double().mean())


class Images(NamedTuple):
    """Training images, and two sets of test images that no model has seen, A and B, with the labels of A."""

    train: Tensor
    first: Tensor
    second: Tensor
    labels: Tensor


class Measured(NamedTuple):
    """A set of images against B: squared distance, and the ratio of gradient energies with its error."""

    distance: FrechetDistance
    energy: float
    energy_se: float

    def __str__(self) -> str:
        distance = f"{self.distance.squared:.3f} +- {self.distance.se:.3f}"
        return f"{distance} | {self.energy:.3f} +- {self.energy_se:.3f}"


def classifier(loaded: Any, *, epochs: int, path: Path) -> Classifier:
    """From the cache, or trained on all training images: Adam, 128 images a step, a rate from 2e-3 along a cosine."""
    with pyro_rng(0, "classifier"):
        network = Classifier()
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    x, y = torch.as_tensor(loaded.x_train).float(), torch.as_tensor(loaded.y_train).long()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    num_steps = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    stream = generator(0, "classifier")
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=stream).split(128)[: len(x) // 128]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    torch.save(network.state_dict(), path)
    return network.eval()


def divided(loaded: Any, *, num_train: int, num_compared: int) -> Images:
    """Training images, and two sets of test images."""
    test, labels = torch.as_tensor(loaded.x_test).float(), torch.as_tensor(loaded.y_test).long()
    first, second = torch.randperm(len(test), generator=generator(0, "halves"))[: 2 * num_compared].chunk(2)
    return Images(torch.as_tensor(loaded.x_train[:num_train]).float(), test[first], test[second], labels[first])


def energy(images: Tensor) -> np.ndarray:
    """Gradient energy of each image (N,): squared differences of neighbours, summed."""
    grid = images.double().reshape(-1, SIDE, SIDE)
    return (grid.diff(dim=1).square().sum((1, 2)) + grid.diff(dim=2).square().sum((1, 2))).numpy()


def measured(images: Tensor, reference: Tensor, network: Classifier) -> Measured:
    """A set of images against B."""
    distance = frechet_distance(network.features(images), network.features(reference))
    ours, theirs = energy(images), energy(reference)
    ratio = ours.mean() / theirs.mean()
    errors = [each.std(ddof=1) / math.sqrt(len(each)) / each.mean() for each in (ours, theirs)]
    return Measured(distance, float(ratio), float(ratio * math.hypot(*errors)))


def samples(program: am.Program, like: Tensor) -> Tensor:
    """Means of x at codes drawn from the prior, as many as ``like`` (N, X) has rows."""
    parts = []
    with program.evaluating(), pyro_rng(0, "samples"), unvalidated(), torch.no_grad():
        for part in like.split(AT_ONCE):
            with Record() as record:
                data = program.prepare(part)
                program.model.unobserved(*data.args, **data.kwargs)
            parts.append(record.messages["x"]["fn"].mean)
    return torch.cat(parts)


def reconstructions(program: am.Program, x: Tensor) -> Tensor:
    """Means of x at the nearest codes."""
    return torch.cat([torch.as_tensor(program.reconstruct(part, num_draws=1)["x"]) for part in x.split(AT_ONCE)])


def picture(path: Path, rows: dict[str, Tensor]) -> None:
    """Images of each set below each other, under its name, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(3.2 * len(rows), 2.1), layout="constrained", squeeze=False)
    for axis, (name, images) in zip(axes[0], rows.items(), strict=True):
        grid = images[: math.prod(GRID)].reshape(*GRID, SIDE, SIDE).permute(0, 2, 1, 3)
        axis.imshow(grid.reshape(GRID[0] * SIDE, -1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=8)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


class Trained(NamedTuple):
    """A fit, and the seconds of the processor that it took."""

    fitted: am.Fitted
    seconds: float


def trained(name: str, x: Tensor, *, seed: int, options: argparse.Namespace) -> Trained:
    """From the cache, or trained and put there."""
    kept = options.cache / f"{name}-{seed}-{len(x)}-{options.seconds:g}-{options.batch}-{options.learning_rate:g}.pt"
    took = kept.with_suffix(".seconds")
    if took.exists():
        return Trained(am.load(kept, made(name, x, seed)), float(took.read_text(encoding="ascii")))
    spent = [fit(name, x, num_steps=num, seed=seed, options=options).seconds for num in (STARTING, PROBED)]
    each = max(spent[1] - spent[0], 1e-6) / (PROBED - STARTING)
    found = fit(name, x, num_steps=max(1, int(options.seconds / each)), seed=seed, options=options)
    found.fitted.save(kept)
    took.write_text(str(found.seconds), encoding="ascii")
    return found


def made(name: str, x: Tensor, seed: int) -> am.Program:
    """A program at its start."""
    constructor, settings = MODELS[name]
    return constructor.from_data(x, **ALIKE, **settings, seed=seed).program()


def fit(name: str, x: Tensor, *, num_steps: int, seed: int, options: argparse.Namespace) -> Trained:
    """So many steps."""
    program = made(name, x, seed)
    how = am.Training(
        learning_rate=options.learning_rate, schedule="cosine", batch_size=options.batch, progress=options.progress
    )
    begin = time.process_time()  # not the clock's, which other work on the machine makes longer
    fitted = am.fit(program, x, num_steps=num_steps, seed=seed, training=how)
    return Trained(fitted, time.process_time() - begin)


def row(name: str, found: Trained, images: Images, network: Classifier) -> tuple[str, dict[str, Tensor]]:
    """A line of the table, and the images that it is of."""
    program = found.fitted.program
    again, drawn = reconstructions(program, images.first), samples(program, images.first)
    error = float((again - images.first).square().mean().sqrt())
    cells = [
        name, str(len(found.fitted.history)), f"{found.seconds:.0f}",
        str(measured(drawn, images.second, network)), str(measured(again, images.second, network)),
        f"{error:.4f}", f"{network.accuracy(again, images.labels):.4f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |", {f"{name}, samples": drawn, f"{name}, reconstructions": again}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=480.0, help="of training a model, of the processor, at most")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--compared", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=5, help="of the classifier")
    parser.add_argument("--pictures", type=Path, default=None, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.cache.mkdir(parents=True, exist_ok=True)
    loaded = am.data.load("mnist", binarise="grey")
    network = classifier(loaded, epochs=options.epochs, path=options.cache / f"classifier-{options.epochs}.pt")
    images = divided(loaded, num_train=options.train, num_compared=options.compared)
    real = measured(images.first, images.second, network)
    right = network.accuracy(torch.as_tensor(loaded.x_test).float(), torch.as_tensor(loaded.y_test).long())
    print(f"classifier: {right:.4f} of the test images; {options.compared} images a set")
    print(
        "| model | steps | training, s | samples: Frechet | energy | reconstructions: Frechet | energy | rmse | right |"
    )
    print("| --- " + "| ---: " * 8 + "|")
    print(f"| other images of the data | | | {real} | {real} | | {network.accuracy(images.first, images.labels):.4f} |")
    for seed in range(options.seeds):
        for name in options.models:
            line, shown = row(name, trained(name, images.train, seed=seed, options=options), images, network)
            print(line, flush=True)
            if options.pictures is not None:
                picture(options.pictures / f"{name}-{seed}.png", {"data": images.first, **shown})


if __name__ == "__main__":
    main()
