"""Value and gradient of a log joint: what a Pyro program costs, compiled and not, against hand-written PyTorch.

    python benchmarks/log_joint.py [--rounds 40] [--no-inductor]

Prints a markdown table of ratios to hand-written autograd of value and gradient. One thread, CPU time of that thread;
each round runs every variant once, one after another, and a ratio is the median over rounds of the ratio within a
round, so that what else the machine does falls on all alike.

The model: z ~ N(0, I), x | z ~ Bernoulli(logits = decoder(z)), the decoder a tanh network, float32, written as a plain
Pyro program. By hand: the same network with its parameters frozen, ``binary_cross_entropy_with_logits`` summed over
pixels, the normal density, and ``torch.autograd.grad``, eager; once more with ``x * logits - softplus(logits)``. Both
call ``nn.Linear``, hence MKL. Compiled graphs take oneDNN for large products; "MKL" are those that were kept from it.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import amortize as am

ROUND_SECONDS = 0.02  # of each variant, at least


class Job(NamedTuple):
    """A decoder's sizes, N datapoints and C chains."""

    sizes: tuple[int, ...]
    num: int
    chains: int

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}, {self.num * self.chains} rows"


JOBS = (
    Job((50, 200, 200, 784), 100, 16),
    Job((50, 200, 200, 784), 40, 1),
    Job((2, 20, 20, 20), 100, 16),
)
HAND = "by hand"
ROWS = (
    HAND, "by hand, separable form", "poutine.trace at each call", "the package's handler, eager",
    "compiled: FX graph", "compiled: FX graph, MKL", "compiled: Inductor",
    "gradient only: FX graph", "gradient only: FX graph, MKL", "gradient only: Inductor",
)  # fmt: skip
BACKENDS = {"FX graph": "fx", "FX graph, MKL": "fx", "Inductor": "inductor"}


def decoder(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in pairwise(sizes):
        layers += [nn.Linear(num_inputs, num_outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def pyro_model(network: nn.Module, dim: int) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        pyro.module("decoder", network)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=network(z)).to_event(1), obs=x)

    return model


def with_gradient(log_joint: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def both(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        value = log_joint(u)
        (slope,) = torch.autograd.grad(value.sum(), u)
        return value.detach(), slope

    return both


def by_hand(network: nn.Module, x: Tensor, separable: bool) -> Callable[[Tensor], Tensor]:
    constant = 0.5 * math.log(2 * math.pi)

    def log_joint(u: Tensor) -> Tensor:
        logits = network(u)
        if separable:
            likelihood = (x * logits - softplus(logits)).sum(-1)
        else:
            likelihood = -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        return likelihood - 0.5 * u.square().sum(-1) - constant * u.shape[-1]

    return log_joint


def by_poutine(model: Callable[[Tensor], None], x: Tensor) -> Callable[[Tensor], Tensor]:
    def log_joint(u: Tensor) -> Tensor:
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(model, data={"z": u})).get_trace(x)
            trace.compute_log_prob()
        total: Tensor = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
        return total

    return log_joint


def variants(job: Job, *, inductor: bool) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What to time, and the seconds that compiling took."""
    torch.manual_seed(0)
    network = decoder(job.sizes)
    frozen = decoder(job.sizes).requires_grad_(False)
    frozen.load_state_dict(network.state_dict())
    x = torch.bernoulli(torch.full((job.num, job.sizes[-1]), 0.3))
    tiled = x.repeat(job.chains, 1)
    u = torch.randn(job.chains, job.num, job.sizes[0])
    flat = u.flatten(0, 1)
    model = pyro_model(network, job.sizes[0])
    program = am.Program(model)
    plain = with_gradient(by_hand(frozen, tiled, separable=False))
    separable = with_gradient(by_hand(frozen, tiled, separable=True))
    traced = with_gradient(by_poutine(model, tiled))
    eager = program.compiled(x, num_chains=job.chains, backend="eager")
    found: dict[str, Callable[[], object]] = {
        HAND: lambda: plain(flat),
        ROWS[1]: lambda: separable(flat),
        ROWS[2]: lambda: traced(flat),
        ROWS[3]: lambda: eager.value_and_grad(u),
    }
    seconds: dict[str, float] = {}
    for name, backend in BACKENDS.items():
        if backend == "inductor" and not inductor:
            continue
        begin = time.perf_counter()
        with onednn("MKL" not in name):
            compiled = program.compiled(x, num_chains=job.chains, backend=backend)
        seconds[name] = time.perf_counter() - begin
        assert compiled.describe().endswith(", equal to eager"), compiled.describe()
        found[f"compiled: {name}"] = lambda compiled=compiled: compiled.value_and_grad(u)  # type: ignore[misc]
        found[f"gradient only: {name}"] = lambda compiled=compiled: compiled.grad_only(u)  # type: ignore[misc]
        truth, ours = plain(flat), compiled.value_and_grad(u)
        for right, left in zip(truth, ours, strict=True):
            torch.testing.assert_close(left.reshape(right.shape), right, rtol=1e-4, atol=1e-3)
    return found, seconds


@contextmanager
def onednn(wanted: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Intel's GPUs, whatever is asked for
        with torch.backends.mkldnn.flags(enabled=wanted):
            yield


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    begin = time.thread_time()
    for _ in range(repeats):
        function()
    return (time.thread_time() - begin) / repeats * 1e3


def measured(found: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each variant in each round, after one round to warm up."""
    repeats = {name: max(1, math.ceil(1e3 * ROUND_SECONDS / milliseconds(run, 2))) for name, run in found.items()}
    turns = [{name: milliseconds(run, repeats[name]) for name, run in found.items()} for _ in range(rounds)]
    return {name: np.array([turn[name] for turn in turns]) for name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-inductor", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells: dict[str, list[str]] = {name: [] for name in ROWS}
    notes = []
    with tempfile.TemporaryDirectory() as cache:  # Inductor starts cold
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for job in JOBS:
            found, seconds = variants(job, inductor=not options.no_inductor)
            times = measured(found, options.rounds)
            for name in ROWS:
                ratio = f"{np.median(times[name] / times[HAND]):.2f}" if name in times else "-"
                cells[name].append(f"{ratio} ({np.median(times[name]):.2f} ms)" if name == HAND else ratio)
            notes.append(f"{job}: " + ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items()))
    print("| | " + " | ".join(map(str, JOBS)) + " |\n|" + " --- |" * (len(JOBS) + 1))
    for name, row in cells.items():
        if set(row) != {"-"}:
            print(f"| {name} | {' | '.join(row)} |")
    print("\nseconds to trace, compile and check both functions, on the wall: " + "; ".join(notes))
    print(f"torch {torch.__version__}, pyro {pyro.__version__}, {options.rounds} rounds, one thread")


if __name__ == "__main__":
    main()
