"""The zoo in one table: the evidence of every model, what its guide loses, and what it cost, at one budget.

    python benchmarks/zoo.py --cache DIR --latent-dim 50 --hidden 200 200 [--tables binary] [--seeds 0 1 2]
    python benchmarks/zoo.py --cache DIR --digits --steps 500 --models bernoulli-vae gaussian-vae:network=conv

Tables, which must not be compared with each other: models of binary data on static binarised MNIST; densities (of
grey values from 0 to 1, or of any numbers) on grey MNIST, in nats of a density; counts on STARmap; labelled data. A
model is trained for ``--steps`` steps of Adam, or for as many as fit into ``--seconds``, and measured on images drawn
at random (a permutation of the test images, seed 0; they are sorted by digit in the file), the same for every row:

evidence        AIS (16 chains, 100 temperatures) from the guide, or, where the guide is a point and has no density,
                from a mean-field posterior of each image; in parts of 20 images (the first of 5) until ``--images`` are
                done, or another part would take more than ``--evidence-seconds``. Its error is over images. Where
                more discrete values are to be tried in a Gibbs sweep than `SWEEP`, as with grids of codes, the row has
                the guide's ELBO alone (50 draws), which is that of the discrete model.
exact           The mean of log p(x) in closed form, where the model has one.
gap             Evidence less the guide's ELBO (500 draws), image by image.
active          Latent dimensions whose posterior mean moves with the data.
reconstruction  Root mean squared error of a feature.
training, s     Seconds of the processor, all threads together; evidence's likewise.

Rows are kept in ``--cache`` as JSON lines (rows.jsonl), and done rows are not done again; a row that failed in part
says so and is tried again. Several processes may share a cache: each takes rows that no other is at.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zoo_training import Budget, Sample, Trained, add_options, asked_for, claimed, load, trained

import amortize as am
from amortize.errors import AmortizeWarning
from amortize.program.points import has_density
from amortize.random import pyro_rng, stream_seed
from amortize.study.latents import ACTIVE, latents

FIRST, PART, LOOKED_AT, DRAWS, FEW = 5, 20, 500, 500, 50
SWEEP = 64  # values that a Gibbs sweep of a datapoint may try, for annealing to be worth its time
METHOD = am.AIS(backend="fx")
COLUMNS = {
    "model, seed": lambda row: f"{row['model']}, {row['seed']}",
    "D": lambda row: shown(row, "latent_dim", ".0f"),
    "parameters": lambda row: shown(row, "num_parameters", ",.0f"),
    "steps": lambda row: shown(row, "num_steps", ".0f"),
    "training, s": lambda row: shown(row, "training_seconds", ".0f"),
    "log p(x) by AIS": lambda row: pair(row, "evidence"),
    "exact": lambda row: shown(row, "exact", ".2f"),
    "minus the first row's": lambda row: pair(row, "difference"),
    "trusted": lambda row: f"{row['trusted']} of {row['num_images']}" if "trusted" in row else "",
    "guide's ELBO": lambda row: pair(row, "elbo"),
    "inference gap": lambda row: pair(row, "gap"),
    "active": lambda row: shown(row, "active", ".0f"),
    "reconstruction": lambda row: shown(row, "reconstruction", ".4f"),
    "evidence, s": lambda row: shown(row, "evidence_seconds", ".0f"),
}
Row = dict[str, Any]


def measure(table: str, name: str, seed: int, budget: Budget, options: argparse.Namespace) -> Row:
    """A row; whatever fails is named in ``failed``, and the rest is measured all the same."""
    row: Row = key_of(table, name, seed, budget, options) | {"failed": {}}
    done: dict[str, Any] = {}

    def attempt(part: str, make: Callable[[], Any]) -> None:
        try:
            done[part] = make()
        except Exception as error:  # a row says what failed, and the next one is run
            row["failed"][part] = f"{type(error).__name__}: {error}"
            traceback.print_exc()

    data = load(table, small=options.digits)
    attempt("training", lambda: trained(name, data.train, seed=seed, budget=budget, cache=options.cache))
    if "training" not in done:
        return row
    found: Trained = done["training"]
    parts: dict[str, Callable[[], Row]] = {
        "size": lambda: size(found, data),
        "reconstruction": lambda: {"reconstruction": reconstruction(found.fitted.program, data)},
        "active": lambda: {"active": active(found.fitted.program, data)},
        "evidence": lambda: evidence(found, data, seed, options),
    }
    for part, make in parts.items():
        attempt(part, make)
        row |= done.get(part, {})
    return row


def size(found: Trained, data: Sample) -> Row:
    """Of the model and its training."""
    program = found.fitted.program
    return {
        "latent_dim": program.dim(head(data.test, 2)),
        "num_parameters": sum(parameter.numel() for parameter in program.parameters()),
        "num_steps": len(found.fitted.history),
        "training_seconds": found.seconds,
        "bound": found.fitted.bound,
    }


def reconstruction(program: am.Program, data: Sample) -> float | None:
    """Root mean squared error of a feature, over features and datapoints; None where x has no mean."""
    x = head(data.test, LOOKED_AT)
    mean, target = joined(program.reconstruct(x), x), observed(x)[1]
    return None if mean is None else float(np.sqrt(np.mean(np.square(mean.reshape(target.shape) - target.numpy()))))


def observed(x: Any) -> tuple[str, torch.Tensor]:
    """What is modelled of data: the response, or all of them."""
    return ("y", x["y"]) if isinstance(x, dict) else ("x", x)


def joined(sites: dict[str, np.ndarray], x: Any) -> np.ndarray | None:
    """Values of what is observed of data, (N, ...), from those of each site; steps of a sequence one after another."""
    name, target = observed(x)
    if name in sites:
        return sites[name]
    steps = [sites[f"{name}_{number}"] for number in range(1, len(sites) + 1) if f"{name}_{number}" in sites]
    together = flat(steps) if steps else np.empty((0, 0))
    return together if together.shape == target.reshape(len(target), -1).shape else None


def active(program: am.Program, data: Sample) -> int | None:
    """Latent dimensions whose posterior mean moves with the data by more than 1 % of the prior's variance."""
    x = head(data.test, LOOKED_AT)
    prepared = program.prepare(x)
    if has_density(program, prepared):
        table = latents(program, x)
        return None if table is None else int(table["active"].sum())
    moved = codes(program, x).var(0, ddof=1)
    prior = flat(program.simulate(head(data.train, 2000))[0].values()).var(0, ddof=1)
    return int((moved > ACTIVE * prior).sum())


def codes(program: am.Program, x: Any, *, num_draws: int = 8) -> np.ndarray:
    """Mean over draws of the guide, all sites side by side, (N, D); a point's are all the same."""
    data = program.prepare(x)
    with program.evaluating(), torch.no_grad(), pyro_rng(0, "codes"):
        guide = program.guide_density(data, points=True)
        sites = guide.log_joint.structure.sites
        draws = [guide.sample(data)[0] for _ in range(num_draws)]
    means = {name: torch.stack([draw[name].double() for draw in draws]).mean(0) for name in draws[0]}
    return flat([means[name].movedim(sites[name].front, 0).numpy() for name in means])


def flat(arrays: Any) -> np.ndarray:
    """Sites (N, ...) side by side."""
    return np.concatenate([np.asarray(array).reshape(len(array), -1) for array in arrays], 1)


def evidence(found: Trained, data: Sample, seed: int, options: argparse.Namespace) -> Row:
    """Log p(x), the guide's ELBO and its gap, part by part, until all images are done or time is up."""
    program, begin = found.fitted.program, time.process_time()
    start = "guide" if has_density(program, program.prepare(head(data.test, 2))) else "mean-field posterior"
    annealed = sweep(program, head(data.test, 2)) <= SWEEP
    num = 1 if program.whole else min(options.images, program.prepare(data.test).num_datapoints)
    values: dict[str, list[float]] = {name: [] for name in ("log_evidence", "se", "trusted", "elbo")}
    last = 0
    while last < num and (not last or time_for(last, begin, options.evidence_seconds)):
        first, last = last, min(last + PART if last else FIRST, num)
        x = data.test if program.whole else rows(data.test, first, last)
        part_seed = stream_seed(seed, "zoo", first)
        found_here = measured(program, x, start, part_seed) if annealed else {"elbo": bound(program, x, part_seed, FEW)}
        for name, part in found_here.items():
            values[name] += part
    row: Row = {"start": start, "num_images": last}
    if annealed:
        row |= {"trusted": int(sum(values["trusted"])), "log_evidence_se": values["se"]}
        row |= {"log_evidence": values["log_evidence"]} | of("evidence", np.array(values["log_evidence"]))
    if values["elbo"]:
        row |= of("elbo", np.array(values["elbo"]))
    if annealed and values["elbo"]:
        row |= of("gap", np.array(values["log_evidence"]) - np.array(values["elbo"]))
    if callable(exact := getattr(found.model, "log_evidence", None)):
        values_at = exact(data.test if program.whole else head(data.test, last))
        row["exact"] = float(torch.as_tensor(values_at).detach().mean())
    return row | {"evidence_seconds": time.process_time() - begin}


def time_for(done: int, begin: float, seconds: float) -> bool:
    """Whether another part is over in time (the processor's), at the pace of those that are done."""
    spent = time.process_time() - begin
    return spent * (done + PART) / done <= seconds


def measured(program: am.Program, x: Any, start: str, seed: int) -> dict[str, list[float]]:
    """Of each image of a part."""
    origin = None if start == "guide" else am.fit_local(program, x, family="mean-field", seed=seed)
    found = am.evidence(program, x, method=METHOD, start=origin, seed=seed)
    values = {"log_evidence": found.log_evidence, "se": found.se, "trusted": found.trusted.astype(float)}
    if start == "guide":
        values["elbo"] = np.array(bound(program, x, seed))
    return {name: [float(value) for value in column] for name, column in values.items()}


def bound(program: am.Program, x: Any, seed: int, num_draws: int = DRAWS) -> list[float]:
    """The guide's ELBO of each image."""
    found = am.evidence(program, x, method=am.ImportanceSampling(num_draws), seed=seed)
    return [float(value) for value in found.log_weights.mean(0)]


def sweep(program: am.Program, x: Any) -> int:
    """Values that a Gibbs sweep over the discrete latents of a datapoint tries, those that are summed out left out."""
    structure = program.structure(program.prepare(x))
    return sum(structure.sites[name].num_variables * structure.sites[name].cardinality for name in structure.sampled)


def of(name: str, values: np.ndarray) -> Row:
    """Mean over images and its standard error."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {name: float(values.mean()), f"{name}_se": float(error)}


def head(x: Any, num: int) -> Any:
    """The first rows."""
    return rows(x, 0, num)


def rows(x: Any, first: int, last: int) -> Any:
    """Some rows of data or of each of its parts."""
    return {name: part[first:last] for name, part in x.items()} if isinstance(x, dict) else x[first:last]


def key_of(table: str, name: str, seed: int, budget: Budget, options: argparse.Namespace) -> Row:
    """What makes two rows the same."""
    measured = {"images": options.images, "evidence_seconds_at_most": options.evidence_seconds}
    key = {"table": table, "model": name, "seed": seed, "digits": options.digits, "threads": options.threads}
    return key | {"budget": asdict(budget), "measured": measured}


def same(row: Row, key: Row) -> bool:
    """Whether a row has this key; tuples are lists in JSON."""
    return all(json.dumps(row.get(name)) == json.dumps(value) for name, value in key.items())


def stored(path: Path) -> list[Row]:
    """Rows of the cache; a line that a killed process left unfinished is none."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        if not line:
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: passed over an unfinished line", flush=True)
    return found


def keep(path: Path, row: Row) -> None:
    """One write at the end of the file, so that lines of several processes do not mix."""
    line = "\n" + json.dumps(row) + "\n"  # after a line that a killed process left unfinished, too
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def shown(row: Row, name: str, how: str) -> str:
    value = row.get(name)
    return "" if value is None else format(value, how)


def pair(row: Row, name: str) -> str:
    """A mean and its standard error over images."""
    return f"{row[name]:.2f} +- {row[f'{name}_se']:.2f}" if name in row else ""


def against(row: Row, reference: Row) -> Row:
    """The evidence less that of another row, on the images that both have."""
    if "log_evidence" not in row or "log_evidence" not in reference or row is reference:
        return {}
    num = min(row["num_images"], reference["num_images"])
    return of("difference", np.array(row["log_evidence"][:num]) - np.array(reference["log_evidence"][:num]))


def print_tables(found: list[Row]) -> None:
    """A table for each kind of data, and what failed."""
    for table in dict.fromkeys(row["table"] for row in found):
        mine = [row for row in found if row["table"] == table]
        print(f"\n{table}: {mine[0]['protocol']}\n\n| {' | '.join(COLUMNS)} |\n" + "| --- " * len(COLUMNS) + "|")
        for row in mine:
            whole = row | against(row, mine[0])
            print("| " + " | ".join(column(whole) for column in COLUMNS.values()) + " |")
        points = [row["model"] for row in mine if row.get("start") not in (None, "guide")]
        if points:
            print(f"\nEvidence from a mean-field posterior of each image: {', '.join(points)}.")
        for row in mine:
            for part, why in row["failed"].items():
                print(f"\n{row['model']}, {row['seed']}: {part} failed: {why.splitlines()[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget_of = add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--evidence-seconds", type=float, default=240.0, help="no part is begun that would end later")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", AmortizeWarning)  # what they say is in the column "trusted"
    options.cache.mkdir(parents=True, exist_ok=True)
    budget, path = budget_of(options), options.cache / "rows.jsonl"
    keys = [key_of(table, name, seed, budget, options) for table, name in asked_for(options) for seed in options.seeds]
    for key in keys:
        lock = options.cache / "locks" / f"{key['model']}-{key['seed']}".replace(":", "-").replace("/", "-")
        with claimed(lock) as mine:
            if not mine or any(same(row, key) and not row["failed"] for row in stored(path)):
                continue
            begin = time.perf_counter()
            row = measure(key["table"], key["model"], key["seed"], budget, options)
            row["protocol"] = load(key["table"], small=options.digits).protocol
            keep(path, row | {"total_seconds": time.perf_counter() - begin})
            said = pair(row, "evidence") or "no evidence"
            print(f"{row['model']}, {row['seed']}: {said}, {time.perf_counter() - begin:.0f} s", flush=True)
    done = [[row for row in stored(path) if same(row, key)] for key in keys]
    print_tables([rows_of_key[-1] for rows_of_key in done if rows_of_key])


if __name__ == "__main__":
    main()
