"""Discrete codes on MNIST: the bound of the discrete graph under each estimator of its gradient, at one budget.

    python benchmarks/discrete_latents.py --cache DIR [--runs bits-concrete ...] [--seed 0]
    python benchmarks/discrete_latents.py --cache DIR --table

Static binarised MNIST (the published binarisation and split) or, with ``--binarise dynamic`` in a cache of its own,
pixels of the training images drawn anew at each step, and those of validation and test images once. 50 000 images to
train on, batches of 100, Adam whose rate falls to 0 by a cosine; at most ``--steps`` steps and ``--seconds`` seconds of
the processor, one thread: where time is short, rate and temperature follow the time. The discrete ELBO of the 10 000
validation images is measured every 20 epochs; the state that is best there is the one tested. A run is saved every
minute, and goes on where it was if it is killed and started again, by another budget too (the table says so); several
may run beside each other in one ``--cache``. On all 10 000 test images, always of the discrete program:

ELBO            Mean over ``--draws`` draws an image.
bound of K      The importance-weighted bound of the same K draws, a lower bound on log p(x) that more draws tighten.
package         The ELBO of the first 100 images by ``am.evidence`` less that of those draws: whether both score the
                same program (paired; standard error over images).
relaxed         What training saw, mean over the last 5000 steps: no bound of the discrete program.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import amortize as am
from amortize.inference.objective import BatchLoss, Objective
from amortize.models import ConcreteVAE
from amortize.program.handlers import unvalidated
from amortize.random import generator, pyro_rng

BATCH, EPOCH = 100, 500  # images a step, steps an epoch
VALIDATE_EVERY, SAVE_EVERY = 20 * EPOCH, 60.0  # steps, seconds
BLOCK, COMPARED = 100, 100


@dataclass(frozen=True)
class Run:
    """A model, what it is trained by, and the figures published for something alike (-bound, nats)."""

    words: str
    model: dict[str, Any]
    objective: Objective
    learning_rate: float = 3e-3
    published: str = ""


BITS: dict[str, Any] = {"latent_dim": 200, "hidden": (400,)}
CATEGORIES: dict[str, Any] = {"latent_dim": 20, "categories": 10, "hidden": (200,)}
RELAXED = am.ConcreteELBO(temperature=0.5, final_temperature=0.1, anneal=0.5)
HARD = am.ConcreteELBO(temperature=0.5, straight_through=True)
RUNS = {
    "bits-concrete": Run("200 bits, Concrete", BITS, RELAXED, published="105.0 (Jang)"),
    "categories-concrete": Run("20 x 10, Concrete", CATEGORIES, RELAXED, published="101.5 (Jang)"),
    "deep-concrete": Run(
        "200H~784V, Concrete",
        {"latent_dim": 200, "hidden": (200, 200)},
        RELAXED,
        2e-3,
        published="92.1 (Maddison, NLL, m = 1)",
    ),
    "bits-straight-through": Run("200 bits, straight-through", BITS, HARD, published="111.5 (Jang)"),
    "bits-nvil": Run("200 bits, REINFORCE (NVIL)", BITS, am.NVIL(), 1e-3, published="112.2 (Jang)"),
    "linear-concrete": Run(
        "200H-784V (linear), Concrete",
        {"latent_dim": 200, "hidden": ()},
        RELAXED,
        published="107.3 (Maddison, NLL)",
    ),
    "categories-straight-through": Run("20 x 10, straight-through", CATEGORIES, HARD),
    "categories-nvil": Run("20 x 10, REINFORCE (NVIL)", CATEGORIES, am.NVIL(), 1e-3),
}


@dataclass
class State:
    """Of a training: what a checkpoint holds beside parameters."""

    step: int = 0
    seconds: float = 0.0  # of the processor
    progress: float = 0.0
    best: float = -math.inf


class Training:
    """One run, from its checkpoint on.

    Parameters
    ----------
    name, seed
        Of the run.
    options
        Cache, steps and seconds.
    """

    def __init__(self, name: str, seed: int, options: argparse.Namespace) -> None:
        self.run, self.seed, self.options = RUNS[name], seed, options
        self.path = options.cache / f"{name}-{seed}.pt"
        self.state, self.recent, self.history = State(), [], []  # type: ignore[var-annotated]
        self.best: dict[str, Tensor] = {}
        self.changes: list[Any] = []  # of the budget: until which step it was another
        self.order: Tensor | None = None

    def train(self, train: Tensor, valid: Tensor, grey: Tensor | None) -> ConcreteVAE:
        """The model in the state that was best on validation images; from ``grey`` ones, pixels are drawn anew."""
        model = ConcreteVAE.from_data(train, **self.run.model, objective=self.run.objective, seed=self.seed)
        program = model.program()
        data, held_out = program.prepare(train), program.prepare(valid)
        loss = self.run.objective.on(program, data, seed=self.seed)
        parameters = [*(p for p in program.parameters() if p.requires_grad), *loss.own_parameters()]
        optimiser = torch.optim.Adam(parameters, lr=self.run.learning_rate, fused=True)
        with pyro_rng(self.seed, "discrete latents"), unvalidated():
            if self.path.exists():
                self._resume(model, loss, optimiser)
            begin, spent, saved = time.process_time(), self.state.seconds, time.monotonic()
            while self.state.progress < 1:
                rows = self._rows(len(train))
                batch = data.rows(rows) if grey is None else program.prepare(torch.bernoulli(grey[rows]))
                self._step(loss, optimiser, batch)
                self.state.seconds = spent + time.process_time() - begin
                self.state.progress = self._progress()
                if self.state.step % VALIDATE_EVERY == 0 or self.state.progress >= 1:
                    self._validate(model, loss, held_out)
                if time.monotonic() - saved > SAVE_EVERY or self.state.progress >= 1:
                    self._save(model, loss, optimiser)
                    saved = time.monotonic()
        model.load_state_dict(self.best)
        return model

    def _progress(self) -> float:
        """Share of the budget that is spent, of steps or of seconds, whichever is more."""
        return max(self.state.step / self.options.steps, self.state.seconds / self.options.seconds)

    def _rows(self, num: int) -> Tensor:
        """Of a step: each epoch has an order of its own."""
        epoch, at = divmod(self.state.step, num // BATCH)
        if at == 0 or self.order is None:
            self.order = torch.randperm(num, generator=generator(self.seed, "epoch", epoch))
        return self.order[at * BATCH : (at + 1) * BATCH]

    def _step(self, loss: BatchLoss, optimiser: torch.optim.Optimizer, batch: Any) -> None:
        progress = self.state.progress
        optimiser.param_groups[0]["lr"] = self.run.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        loss.progress = progress
        optimiser.zero_grad(set_to_none=True)
        terms = loss(batch)
        terms.loss.backward()
        optimiser.step()
        self.state.step += 1
        self.recent = [*self.recent[-4999:], float(terms.bound.mean())]

    def _validate(self, model: ConcreteVAE, loss: BatchLoss, valid: Any) -> None:
        model.eval()
        elbo = float(loss.measured(valid, 1, seed=self.seed).mean())
        model.train()
        state, relaxed = self.state, float(np.mean(self.recent))
        self.history.append((state.step, state.seconds, relaxed, elbo))
        said = f"step {state.step}, {state.seconds:.0f} s, training {relaxed:.2f}, validation {elbo:.2f}"
        print(f"{self.path.stem}: {said}", flush=True)
        if elbo > self.state.best:
            self.state.best = elbo
            self.best = {name: value.clone() for name, value in model.state_dict().items()}

    def _save(self, model: ConcreteVAE, loss: BatchLoss, optimiser: torch.optim.Optimizer) -> None:
        """Whole or not at all."""
        held = {"state": asdict(self.state), "recent": self.recent, "history": self.history, "best": self.best}
        held |= {"model": model.state_dict(), "own": loss.own_state(), "optimiser": optimiser.state_dict()}
        held |= {"random": torch.get_rng_state(), "settings": settings(self.run, self.options)}
        held |= {"changes": self.changes}
        part = self.path.with_suffix(".part")
        torch.save(held, part)
        part.replace(self.path)

    def _resume(self, model: ConcreteVAE, loss: BatchLoss, optimiser: torch.optim.Optimizer) -> None:
        held = torch.load(self.path, weights_only=True)
        if without_budget(held["settings"]) != without_budget(settings(self.run, self.options)):
            raise SystemExit(f"{self.path} is of other settings: {held['settings']}; give another --cache")
        self.changes = held.get("changes", [])
        if held["settings"] != settings(self.run, self.options):
            self.changes = [*self.changes, [held["state"]["step"], held["settings"]]]
        self.state, self.recent = State(**held["state"]), held["recent"]
        self.state.progress = self._progress()  # of the budget that it has now
        self.history, self.best = held["history"], held["best"]
        model.load_state_dict(held["model"])
        loss.load_state_dict(held["own"])
        optimiser.load_state_dict(held["optimiser"])
        torch.set_rng_state(held["random"])


def settings(run: Run, options: argparse.Namespace) -> str:
    """Of a run, all but its seed, which its file is named after."""
    said = {"model": run.model, "objective": run.objective.settings(), "learning_rate": run.learning_rate}
    said |= {} if options.binarise == "static" else {"binarise": options.binarise}
    return json.dumps(said | {"steps": options.steps, "seconds": options.seconds}, sort_keys=True)


def without_budget(said: str) -> dict[str, Any]:
    """Settings that can't change while a run goes on; more or less time may be given to it."""
    return {name: value for name, value in json.loads(said).items() if name not in ("steps", "seconds")}


@torch.no_grad()
def log_weights(model: ConcreteVAE, x: Tensor, num_draws: int) -> Tensor:
    """Log p(x, z) - log q(z | x) of draws of the guide, (K, N) nats."""
    guide = model.encoder(x)
    z = guide.sample((num_draws,))
    weights: Tensor = model.prior().log_prob(z) + model.decoder(z).log_prob(x) - guide.log_prob(z)
    return weights


def measured(model: ConcreteVAE, test: Tensor, num_draws: int, seed: int) -> dict[str, float]:
    """On test images: the discrete ELBO, the bound of K draws, and whether the package's verbs say the same."""
    model.eval()
    elbos, bounds = [], []
    with pyro_rng(seed, "test"), unvalidated():
        for x in test.split(BLOCK):
            weights = log_weights(model, x, num_draws).double()
            elbos.append(weights.mean(0))
            bounds.append(weights.logsumexp(0) - math.log(num_draws))
    elbo, bound = torch.cat(elbos), torch.cat(bounds)
    method = am.ImportanceSampling(num_draws=num_draws)
    said = am.evidence(model.program(), test[:COMPARED], method=method, seed=seed)
    away = said.log_weights.mean(0) - elbo[:COMPARED].numpy()
    row = {"package": float(away.mean()), "package_se": float(away.std(ddof=1) / COMPARED**0.5)}
    for name, values in (("elbo", elbo), ("bound", bound)):
        row |= {name: float(values.mean()), f"{name}_se": float(values.std() / len(values) ** 0.5)}
    return row


def images(binarise: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Training, validation and test images of zeros and ones, and the grey values of the first for dynamic ones."""
    if binarise == "static":
        data = am.data.load("binarized-mnist")
        train, valid, test = (torch.as_tensor(part).float() for part in (data.x_train, data.x_valid, data.x_test))
        return train, valid, test, None
    data = am.data.load("mnist", binarise="dynamic", validation=1 / 6)
    grey, valid, test = (torch.as_tensor(part).float() for part in (data.x_train, data.x_valid, data.x_test))
    return torch.as_tensor(am.data.redraw(data.x_train, seed=0, epoch=0)), valid, test, grey


def done(name: str, options: argparse.Namespace) -> None:
    """Train a run and measure it, unless that was done."""
    result = options.cache / f"{name}-{options.seed}.json"
    if result.exists():
        return
    train, valid, test, grey = images(options.binarise)
    training = Training(name, options.seed, options)
    model = training.train(train, valid, grey)
    row = {"run": name, "seed": options.seed, "validation": training.state.best, "history": training.history}
    row |= {"steps": training.state.step, "seconds": training.state.seconds, "relaxed": float(np.mean(training.recent))}
    row |= {"changes": training.changes, "settings": settings(training.run, options)}
    row |= {"draws": options.draws} | measured(model, test, options.draws, options.seed)
    result.write_text(json.dumps(row), encoding="utf-8")
    print(f"{name}: ELBO {row['elbo']:.2f}, bound {row['bound']:.2f}", flush=True)


def print_table(options: argparse.Namespace) -> None:
    """Of the runs that are done, in the catalogue's order."""
    print(
        "| | steps | processor, s | training | validation ELBO | K | test ELBO | bound of K | package "
        "| published, -bound |"
    )
    print("| --- " * 10 + "|")
    changed: list[str] = []
    for name, run in RUNS.items():
        for path in sorted(options.cache.glob(f"{name}-[0-9]*.json")):
            row = json.loads(path.read_text(encoding="utf-8"))
            pairs = " | ".join(f"{row[key]:.2f} +- {row[f'{key}_se']:.2f}" for key in ("elbo", "bound", "package"))
            print(
                f"| {run.words} | {row['steps']:,} | {row['seconds']:.0f} | {row['relaxed']:.2f} "
                f"| {row['validation']:.2f} | {row.get('draws', 1000)} | {pairs} | {run.published} |"
            )
            for step, budget in row.get("changes", []):
                changed.append(
                    f"- {run.words}: until step {step:,} the budget was {json.loads(budget)['seconds']:.0f} s"
                )
    print("\n".join(["", *changed]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--binarise", choices=("static", "dynamic"), default="static")
    parser.add_argument("--table", action="store_true", help="print what is done, and train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for name in options.runs:
            done(name, options)
    print_table(options)


if __name__ == "__main__":
    main()
