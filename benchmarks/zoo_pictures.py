"""A picture of each model of the zoo: samples, data over reconstructions, and a map of its codes.

    python benchmarks/zoo_pictures.py --cache DIR [--models NAME ...] [--out docs/images/models] [--digits]

Options, models and trained programs are those of ``zoo.py``, so that with the same budget and cache nothing is trained
twice. Samples and reconstructions are means of x, given latents from the prior and from the guide; where x has no mean
in closed form, as with an autoregressive decoder, samples are draws. Data that are no images are shown as a matrix, a
row a datapoint. The map is that of ``zoo_maps.py``. A data set that is one datapoint has responses and latents in their
place. A model that fails is named, and the next one drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import traceback
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from zoo import head, joined, observed
from zoo_maps import latent_map
from zoo_training import Budget, Sample, add_options, asked_for, claimed, load, trained

import amortize as am
from amortize.atomic import replacing
from amortize.errors import AmortizeWarning
from amortize.program.handlers import Record, unvalidated
from amortize.program.simulate import to_front
from amortize.random import pyro_rng

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

COLUMNS, ROWS = 5, 6  # images in a row, rows of a panel
LINES, FEATURES = 40, 160  # of a matrix, where data are no images
LIMIT = 60_000  # bytes of a picture
SIZE = (7.0, 3.1)  # inches at 100 a dot: 700 pixels wide


def draw(name: str, data: Sample, shown: Sample, budget: Budget, options: argparse.Namespace) -> Path:
    """Train or find the model, and write its picture."""
    found = trained(name, data.train, seed=0, budget=budget, cache=options.cache)
    program = found.fitted.program
    num = COLUMNS * ROWS if shown.image_shape else LINES
    x = shown.test if program.whole else head(shown.test, num)
    samples, kind = sampled(program, x)
    figure, axes = plt.subplots(1, 3, figsize=SIZE, width_ratios=(1, 1, 1), layout="constrained")
    truth = observed(x)[1].numpy()
    again = joined(program.reconstruct(x), x) if program.guide is not None else None
    if program.whole:
        responses(axes, program, x, truth, samples)
    else:
        panel(axes[0], f"samples ({kind})", [as_matrix(samples)], shown.image_shape)
        pairs = [as_matrix(truth)] if again is None else [as_matrix(truth), as_matrix(again)]
        where = "below" if shown.image_shape else "beside"
        panel(axes[1], "data" if again is None else f"data, reconstructions {where}", pairs, shown.image_shape)
        latent_map(axes[2], program, shown)
    path = options.out / f"{name.replace(':', '-').replace('=', '-')}.png"
    write(figure, path)
    return path


def sampled(program: am.Program, x: Any) -> tuple[np.ndarray, str]:
    """Means of x at latents from the prior, (N, X), or draws of it where it has none; and which."""
    data = program.prepare(x)
    plate, record = program.structure(data).plate, Record()
    with program.evaluating(), pyro_rng(0, "samples"), unvalidated(), torch.no_grad(), record:
        program.model.unobserved(*data.args, **data.kwargs)
    drawn, means = {}, {}
    for name, message in record.messages.items():
        if name in program.structure(data).observed:
            drawn[name] = to_front(message["value"], message, plate)
            with contextlib.suppress(NotImplementedError, AttributeError):  # draws take its place
                means[name] = to_front(message["fn"].mean.expand_as(message["value"]), message, plate)
    found = joined(means, x)
    return (joined(drawn, x), "draws") if found is None else (found, "means")


def responses(axes: Any, program: am.Program, x: Any, truth: np.ndarray, samples: np.ndarray) -> None:
    """Of a data set that is one datapoint: responses from the prior, fitted ones, and each latent's posterior."""
    again = program.reconstruct(x)["y"].reshape(-1)
    axes[0].hist([truth, samples.reshape(-1)], bins=12, label=["data", "a sample (means)"])
    axes[0].set_title("responses", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    axes[1].scatter(truth, again, s=6)
    axes[1].axline((truth.mean(), truth.mean()), slope=1, color="grey", lw=1)
    axes[1].set_title("data, reconstructions upwards", fontsize=9)
    drawn = am.posterior(program, x, num_draws=400)
    u = np.concatenate([draws.reshape(400, -1) for name, draws in drawn.items() if name not in ("lp", "log_q")], 1)
    axes[2].errorbar(range(u.shape[1]), u.mean(0), yerr=2 * u.std(0), fmt="o", ms=3)
    axes[2].axhline(0, color="grey", lw=1)
    axes[2].set_title("latents, +- 2 sd", fontsize=9)
    for axis in axes:
        axis.tick_params(labelsize=7)


def as_matrix(values: np.ndarray) -> np.ndarray:
    """A row a datapoint."""
    return np.asarray(values, dtype=np.float64).reshape(len(values), -1)


def panel(axis: Any, title: str, parts: list[np.ndarray], image_shape: tuple[int, ...] | None) -> None:
    """Images in rows, those of the parts in turn; or matrices side by side."""
    axis.set_title(title, fontsize=9)
    axis.axis("off")
    if image_shape is None:
        matrices = [np.log1p(np.clip(part[:, :FEATURES], 0, None)) if (part >= 0).all() else part for part in parts]
        gap = np.full((len(matrices[0]), 2), np.nan)
        wide = np.concatenate([piece for part in matrices for piece in (part, gap)][:-1], 1)
        axis.imshow(wide, aspect="auto", cmap="gray_r", interpolation="nearest")
        return
    stacks = [
        np.pad(part.reshape(-1, *image_shape[:2]), ((0, 0), (0, 1), (0, 1)), constant_values=np.nan) for part in parts
    ]
    shown = []
    for first in range(0, COLUMNS * ROWS // len(parts), COLUMNS):
        shown += [np.concatenate(list(stack[first : first + COLUMNS]), 1) for stack in stacks]
        if len(parts) > 1 or first // COLUMNS % 2:
            shown.append(np.full((1, shown[0].shape[1]), np.nan))  # apart from the next pair of rows
    axis.imshow(np.concatenate(shown), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")


def write(figure: Figure, path: Path) -> None:
    """As a PNG with a palette, half of it greys, in as many colours as the limit allows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    whole = Image.open(buffer).convert("RGB")
    for num_colours in (256, 128, 64, 32):
        small = io.BytesIO()
        reduced = whole.quantize(palette=palette(whole, num_colours // 2), dither=Image.Dither.NONE)
        colours = np.array(reduced.getpalette()).reshape(-1, 3)
        colours[reduced.getpixel((0, 0))] = 255  # the corner is white; Pillow takes a grey that is near
        reduced.putpalette(colours.astype(np.uint8).tobytes())
        reduced.save(small, format="png", optimize=True)
        if small.tell() <= LIMIT:
            break
    with replacing(path) as temporary:
        temporary.write_bytes(small.getvalue())


def palette(whole: Image.Image, num: int) -> Image.Image:
    """Greys, evenly, and as many colours from the pixels that are no greys: images keep theirs, the map its own."""
    pixels = np.asarray(whole).reshape(-1, 3)
    coloured = pixels[np.ptp(pixels.astype(int), axis=1) > 8]
    colours = [np.repeat(np.linspace(0, 255, num).round().astype(np.uint8)[:, None], 3, 1)]
    if len(coloured):
        found = Image.fromarray(coloured[None]).quantize(num, method=Image.Quantize.MAXCOVERAGE)
        colours.append(np.array(found.getpalette(), dtype=np.uint8).reshape(-1, 3))
    made = Image.new("P", (1, 1))
    made.putpalette(np.concatenate(colours).tobytes())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget_of = add_options(parser)
    parser.add_argument("--out", type=Path, default=Path("docs/images/models"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", AmortizeWarning)
    options.cache.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    budget = budget_of(options)
    for table, name in asked_for(options):
        with claimed(options.cache / "locks" / f"picture-{name}".replace(":", "-").replace("/", "-")) as mine:
            if not mine:
                continue
            try:
                data = load(table, small=options.digits)
                shown = data if options.digits else load(table, small=False, labels=True)
                path = draw(name, data, shown, budget, options)
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)
            except Exception as error:  # named, and the next one is drawn
                traceback.print_exc()
                print(f"{name}: no picture: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
