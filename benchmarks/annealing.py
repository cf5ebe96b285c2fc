"""Annealing a variational autoencoder: how far from the speed of its matrix products, and how fast to a tight bound.

    python benchmarks/annealing.py [--threads 1] [--rounds 5] [--temperatures 100] [--gap]

The job: a Bernoulli decoder 50-200-200-784 as a plain Pyro program, N = 100 datapoints, C = 16 chains, L = 10 leapfrog
steps a temperature, float32. Every round measures the limit and each variant, one after another, the limit again
between them; a ratio is the median over rounds of a variant's time over the mean of the limits before and after it.
With one thread the clock is the CPU time of that thread, with more it is the wall's.

**The limit** is the forward and backward floating-point work of L gradients a temperature and nothing else: the six
matrix products of one gradient in z (three layers forward, three back; 4 x 206 800 operations a row) on 1600 rows, each
by the fastest of MKL, oneDNN and oneDNN with packed weights, as timed in the same round. No biases, no
non-linearities, no momentum, no energies. "At peak" counts the same operations at the rate of the fastest of the six.

**The peer** is a loop written anew after what published code for evaluating decoders does (lxuechen/BDMC; Wu et al.
2017): L + 1 gradients a temperature by eager ``autograd.grad`` and four further forward passes (two for the weight, two
for the energies), binary cross-entropy with logits, step sizes adapted inside the weighted run, a fixed schedule. Its
network is frozen and its further passes track no gradients, which is kinder than what is published.

**The gap** (``--gap``): upper bound in reverse from exact simulated draws, minus lower bound forward, mean over
datapoints; for each method the seconds, by the run's clock, of both directions at which the gap is 0.5 nats, by a line
between runs in log gap and log seconds. Ours counts its pilot run and tracing; from local posteriors (mean-field, one a
datapoint) it is given with their fitting and without, which is what a trained guide saves.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyro
import torch
from log_joint import onednn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import amortize as am
from amortize.diagnostics.weights import log_mean_exp
from amortize.inference.annealing import anneal, make_movers
from amortize.inference.evidence import make_start
from amortize.inference.pilot import run_pilot
from amortize.inference.schedule import FIXED
from amortize.program.density import Latents
from amortize.random import generator

SIZES = (50, 200, 200, 784)
NUM, CHAINS, LEAPFROGS = 100, 16, 10
LOOP_TEMPERATURES = {"ours": 20, "peer": 5}
TARGET_GAP = 0.5
CLOCK: dict[bool, Callable[[], float]] = {True: time.thread_time, False: time.perf_counter}
LINEAR = torch.ops.mkldnn._linear_pointwise.default
PACK = torch.ops.mkldnn._reorder_linear_weight


class Clock(NamedTuple):
    """Reads seconds."""

    read: Callable[[], float]

    def seconds(self, function: Callable[[], object], repeats: int = 1) -> float:
        """Of one call, on average."""
        begin = self.read()
        for _ in range(repeats):
            function()
        return (self.read() - begin) / repeats


# The limit


class Limit(NamedTuple):
    """Seconds of L gradients' products: each at its own best rate, all at the best rate of any, and by MKL."""

    shapes: float
    peak: float
    mkl: float


def product_calls(rows: int) -> list[dict[str, Callable[[], Tensor]]]:
    """The six products of a gradient, each by every library."""
    forward = list(pairwise(SIZES))
    calls = []
    for inputs, outputs in [*forward, *((b, a) for a, b in reversed(forward))]:
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        turned, out, packed = weight.t().contiguous(), torch.empty(rows, outputs), PACK(weight, rows)
        calls.append(
            {
                "MKL": lambda x=x, w=turned, out=out: torch.mm(x, w, out=out),
                "oneDNN": lambda x=x, w=weight: LINEAR(x, w, None, "none", [], ""),
                "oneDNN, packed": lambda x=x, w=packed: LINEAR(x, w, None, "none", [], ""),
            }
        )
    return calls


def measure_limit(calls: list[dict[str, Callable[[], Tensor]]], clock: Clock, rows: int) -> Limit:
    forward = list(pairwise(SIZES))
    work = [2.0 * rows * a * b for a, b in [*forward, *reversed(forward)]]
    times = [{name: clock.seconds(call, 4) for name, call in product.items()} for product in calls]
    best = [min(product.values()) for product in times]
    peak = max(flops / seconds for flops, seconds in zip(work, best, strict=True))
    return Limit(
        LEAPFROGS * sum(best), LEAPFROGS * sum(work) / peak, LEAPFROGS * sum(product["MKL"] for product in times)
    )


# Ours


def random_vae() -> am.models.BernoulliVAE:
    """Weights as of a trained decoder: images that hang on z, on a dark ground."""
    vae = am.models.BernoulliVAE(SIZES[-1], SIZES[0], hidden=SIZES[1:-1])
    gen = generator(0, "weights")
    with torch.no_grad():
        for layer in vae.decoder.layers:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(generator=gen).mul_(1.5 / math.sqrt(layer.in_features))
                layer.bias.normal_(generator=gen).mul_(0.1)
        vae.decoder.last_bias.sub_(1.0)
    return vae


def simulate(vae: am.models.BernoulliVAE, num: int) -> tuple[Tensor, Tensor]:
    """Exact pairs: z (N, D) and x (N, X)."""
    gen = generator(0, "simulated")
    z = torch.randn(num, SIZES[0], generator=gen)
    with torch.no_grad():
        return z, torch.bernoulli(torch.sigmoid(vae.decoder(z)), generator=gen)


def our_loop(program: am.Program, x: Tensor, num_temperatures: int, backend: str) -> Callable[[], object]:
    """The annealed run by itself: compiled, its plan made."""
    data = program.prepare(x)
    settings = am.AIS(num_chains=CHAINS, num_temperatures=num_temperatures, pilot=False, backend=backend)
    with program.evaluating():
        start = make_start(program, data, "prior")
        plan = run_pilot(start, data, settings.budget, seed=0)
        folded = data.fold(CHAINS)
        movers = make_movers(start, folded, settings.kernel, seed=0, backend=backend)
        latents = start.draw(folded, 0, "chains")
    assert "equal to eager" in movers.path.description, movers.path.description
    return lambda: anneal(movers, latents, plan, generator(0, "noise"))


# The peer


class Peer:
    """Annealing as published: chains of N datapoints, C each, as B rows."""

    def __init__(self, vae: am.models.BernoulliVAE, x: Tensor, seed: int) -> None:
        self.network = nn.Sequential(*vae.decoder.layers).requires_grad_(False)
        self.x, self.num = x.repeat(CHAINS, 1), len(x)
        self.gen = generator(seed, "peer")

    def log_density(self, z: Tensor, beta: float) -> Tensor:
        """Tempered log joint, (B,)."""
        likelihood = -binary_cross_entropy_with_logits(self.network(z), self.x, reduction="none").sum(-1)
        prior = -0.5 * z.square().sum(-1) - 0.5 * math.log(2 * math.pi) * z.shape[-1]
        return prior + beta * likelihood

    def gradient(self, z: Tensor, beta: float) -> Tensor:
        """Of the tempered log joint, (B, D)."""
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.log_density(z, beta).sum(), z)
        return slope

    def run(self, z: Tensor, betas: list[float]) -> Tensor:
        """Log weights (C, N) of moving z (B, D) along ``betas``, in either direction."""
        log_weights = z.new_zeros(len(z))
        step = z.new_full((self.num,), 0.01)
        for before, beta in pairwise(betas):
            with torch.no_grad():
                log_weights += self.log_density(z, beta) - self.log_density(z, before)
            z, accepted = self.move(z, beta, step.repeat(CHAINS).unsqueeze(-1))
            rate = accepted.reshape(CHAINS, -1).mean(0)
            step = (step * torch.where(rate > 0.65, 1.02, 0.98)).clamp(1e-4, 0.5)
        return log_weights.reshape(CHAINS, -1)

    def move(self, z: Tensor, beta: float, step: Tensor) -> tuple[Tensor, Tensor]:
        """A Hamiltonian transition, and which rows accepted."""
        velocity = torch.randn(z.shape, generator=self.gen)
        with torch.no_grad():
            before = self.log_density(z, beta) - 0.5 * velocity.square().sum(-1)
        moved, velocity = z, velocity + 0.5 * step * self.gradient(z, beta)
        for number in range(LEAPFROGS):
            moved = moved + step * velocity
            share = 0.5 if number == LEAPFROGS - 1 else 1.0
            velocity = velocity + share * step * self.gradient(moved, beta)
        with torch.no_grad():
            after = self.log_density(moved, beta) - 0.5 * velocity.square().sum(-1)
        accepted = (torch.rand(len(z), generator=self.gen).log() < after - before).float()
        column = accepted.unsqueeze(-1)
        return column * moved + (1 - column) * z, accepted


# Speed


def variants(num_temperatures: int, *, inductor: bool) -> dict[str, tuple[Callable[[], object], int]]:
    """What to time, and how many temperatures each call anneals over."""
    vae = random_vae()
    program = am.Program(vae.model)
    _, x = simulate(vae, NUM)
    count = LOOP_TEMPERATURES["ours"]
    peer, few = Peer(vae, x, 0), LOOP_TEMPERATURES["peer"]
    start, betas = torch.randn(NUM * CHAINS, SIZES[0]), np.linspace(0, 1, few + 1).tolist()
    method = am.AIS(num_chains=CHAINS, num_temperatures=num_temperatures)
    found: dict[str, tuple[Callable[[], object], int]] = {
        "ours, the annealed run": (our_loop(program, x, count, "fx"), count),
        f"ours, all of am.evidence, T = {num_temperatures}": (
            lambda: am.evidence(program, x, method=method, start="prior"), num_temperatures,
        ),
        "the peer's loop": (lambda: peer.run(start, betas), few),
    }  # fmt: skip
    with onednn(False):
        found["ours, the annealed run, by MKL"] = (our_loop(program, x, count, "fx"), count)
    if inductor:
        found["ours, the annealed run, Inductor"] = (our_loop(program, x, count, "inductor"), count)
    return found


def speed(options: argparse.Namespace, clock: Clock) -> None:
    rows = NUM * CHAINS
    calls = product_calls(rows)
    found = variants(options.temperatures, inductor=options.inductor)
    for run, _ in found.values():
        run()
    times: dict[str, list[tuple[float, Limit]]] = {name: [] for name in found}
    for _ in range(options.rounds):
        before = measure_limit(calls, clock, rows)
        for name, (run, count) in found.items():
            took = clock.seconds(run) / count
            after = measure_limit(calls, clock, rows)
            times[name].append((took, Limit(*(0.5 * (a + b) for a, b in zip(before, after, strict=True)))))
            before = after
    limits = [limit for row in times.values() for _, limit in row]
    shapes = np.median([limit.shapes for limit in limits])
    print(f"\n| {options.threads} thread(s) | ns a row and leapfrog | x limit | x limit at peak | x products by MKL |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| the limit | {nanoseconds(shapes)} | 1 | {np.median([x.shapes / x.peak for x in limits]):.2f} | - |")
    for name, row in times.items():
        ratios = [np.median([took / getattr(limit, kind) for took, limit in row]) for kind in Limit._fields]
        print(
            f"| {name} | {nanoseconds(np.median([t for t, _ in row]))} | "
            + " | ".join(f"{r:.2f}" for r in ratios)
            + " |"
        )
    ours, whole, peer = ([took for took, _ in times[name]] for name in list(found)[:3])
    against = [np.median(np.array(peer) / np.array(other)) for other in (ours, whole)]
    print(f"\nthe peer takes {against[0]:.2f} x as long as our annealed run, {against[1]:.2f} x as all of am.evidence")


def nanoseconds(seconds: float) -> str:
    return f"{1e9 * seconds / (NUM * CHAINS * LEAPFROGS):.0f}"


# The gap


class Gap(NamedTuple):
    """Mean over datapoints of upper - lower, its standard error, and what it took."""

    num_temperatures: int
    mean: float
    se: float
    seconds: float


def gap_of(lower: np.ndarray, upper: np.ndarray) -> tuple[float, float]:
    difference = -log_mean_exp(-upper) - log_mean_exp(lower)
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def our_gap(
    program: am.Program,
    start: str | am.LocalPosterior,
    pairs: tuple[Tensor, Tensor],
    num_temperatures: int,
    clock: Clock,
) -> Gap:
    z, x = pairs
    settings = am.AIS(num_chains=CHAINS, num_temperatures=num_temperatures)
    begin = clock.read()
    data = program.prepare(x)
    with program.evaluating():
        origin = make_start(program, data, start)
        plan = run_pilot(origin, data, settings.budget, seed=0)
        folded = data.fold(CHAINS)
        movers = make_movers(origin, folded, settings.kernel, seed=0)
        lower = anneal(movers, origin.draw(folded, 0, "chains"), plan, generator(0, "forward")).log_weights
        exact = Latents(z.repeat(CHAINS, 1), torch.zeros(CHAINS * len(x), 0, dtype=torch.long))
        upper = anneal(movers, exact, plan, generator(0, "reverse"), reverse=True).log_weights
    took = clock.read() - begin
    return Gap(num_temperatures, *gap_of(lower.double().numpy(), upper.double().numpy()), took)


def peer_gap(
    vae: am.models.BernoulliVAE, schedule: str, pairs: tuple[Tensor, Tensor], num_temperatures: int, pace: float
) -> Gap:
    """The gap on these pairs, and the time of a run at ``pace`` seconds a temperature in each direction."""
    z, x = pairs
    betas = FIXED[schedule](num_temperatures).tolist()
    first = torch.randn(CHAINS * len(x), SIZES[0], generator=generator(0, "peer-start"))
    lower = Peer(vae, x, 0).run(first, betas)
    upper = -Peer(vae, x, 1).run(z.repeat(CHAINS, 1), betas[::-1])
    return Gap(num_temperatures, *gap_of(lower.double().numpy(), upper.double().numpy()), 2 * num_temperatures * pace)


def peer_pace(vae: am.models.BernoulliVAE, x: Tensor, clock: Clock) -> float:
    """Seconds a temperature, whatever the schedule: the median of five runs of a few."""
    few = LOOP_TEMPERATURES["peer"]
    start, betas = torch.randn(CHAINS * len(x), SIZES[0]), np.linspace(0, 1, few + 1).tolist()
    peer = Peer(vae, x, 0)
    return float(np.median([clock.seconds(lambda: peer.run(start, betas)) / few for _ in range(5)]))


def seconds_to(target: float, runs: list[Gap]) -> tuple[float, str]:
    """Seconds at which the gap is ``target``, by a line in log gap and log seconds through the two runs nearest."""
    passed = next((i for i, run in enumerate(runs) if run.mean <= target), len(runs) - 1)
    if passed == 0:
        return runs[0].seconds, "at most "
    first, second = runs[passed - 1], runs[passed]
    below = max(second.mean, 0.05 * target)  # a gap may come out negative
    slope = (math.log(second.seconds) - math.log(first.seconds)) / (math.log(below) - math.log(first.mean))
    seconds = first.seconds * math.exp(slope * (math.log(target) - math.log(first.mean)))
    return seconds, "" if second.mean <= target else "extrapolated, "


def our_gaps(pairs: tuple[Tensor, Tensor], program: am.Program, clock: Clock) -> dict[str, list[Gap]]:
    begin = clock.read()
    local = am.fit_local(program, pairs[1], init="prior", family="mean-field")
    fitting = clock.read() - begin
    near = [our_gap(program, local, pairs, count, clock) for count in (4, 8, 16, 32, 64)]
    return {
        "ours, prior": [our_gap(program, "prior", pairs, count, clock) for count in (50, 100, 200)],
        "ours, local posteriors": near,
        "ours, local posteriors and their fitting": [run._replace(seconds=run.seconds + fitting) for run in near],
    }


def gaps(options: argparse.Namespace, clock: Clock) -> None:
    vae = random_vae()
    pairs = simulate(vae, options.datapoints)
    pace = peer_pace(vae, pairs[1], clock)
    some = (pairs[0][: options.peer_datapoints], pairs[1][: options.peer_datapoints])
    found = {
        f"peer, {schedule}": [peer_gap(vae, schedule, some, count, pace) for count in options.peer_temperatures]
        for schedule in ("linear", "sigmoid")
    }
    found |= our_gaps(pairs, am.Program(vae.model), clock)
    print(f"\n| {options.datapoints} datapoints | T: gap, nats (seconds) | seconds to {TARGET_GAP} nats |")
    print("| --- | --- | --- |")
    for name, runs in found.items():
        cells = "; ".join(f"{r.num_temperatures}: {r.mean:.2f} +- {r.se:.2f} ({r.seconds:.1f})" for r in runs)
        seconds, how = seconds_to(TARGET_GAP, runs)
        print(f"| {name} | {cells} | {how}{seconds:.1f} |")
    needed = {name: seconds_to(TARGET_GAP, runs)[0] for name, runs in found.items()}
    print("\n| as long as ours, times | prior | local posteriors | local posteriors and their fitting |")
    print("| --- | --- | --- | --- |")
    for name in list(found)[:2]:
        ratios = (f"{needed[name] / seconds:.1f}" for ours, seconds in needed.items() if ours.startswith("ours"))
        print(f"| {name} | {' | '.join(ratios)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperatures", type=int, default=100)
    parser.add_argument("--inductor", action="store_true", help="also the loop as machine code")
    parser.add_argument("--gap", action="store_true", help="the time to a gap, in place of the speed")
    parser.add_argument("--datapoints", type=int, default=100, help="for the gap")
    parser.add_argument("--peer-datapoints", type=int, default=20, help="on which the peer's gap is measured")
    parser.add_argument("--peer-temperatures", type=int, nargs="+", default=[100, 300, 1000])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", am.errors.AmortizeWarning)  # of weights, at few temperatures
    clock = Clock(CLOCK[options.threads == 1])
    (gaps if options.gap else speed)(options, clock)
    print(f"torch {torch.__version__}, pyro {pyro.__version__}, {options.rounds} rounds, {options.threads} thread(s)")


if __name__ == "__main__":
    main()
