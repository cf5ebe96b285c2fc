"""Pyro's own example programs, unchanged: log weights and gradients of each datapoint, folded against looped.

    python benchmarks/pyro_examples.py --examples PYRO/examples

PYRO is a checkout of https://github.com/pyro-ppl/pyro. Only the classes of models and guides are imported from it; data
are made up, sizes small. Third parties that the scripts import for their data or plots alone are replaced by stubs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.contrib.cevae import Guide as CEVAEGuide
from pyro.contrib.cevae import Model as CEVAEModel
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import amortize as am
from amortize.random import pyro_rng

NUM, DRAWS = 5, 8
STUBS = ("data", "matplotlib", "observations", "scanpy", "torchvision", "utils", "visdom")


@dataclass(frozen=True)
class Example:
    """A program as Pyro's example makes it, made-up data for it, and what ``am.Program`` is told."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Any
    options: dict[str, Any] = field(default_factory=dict)


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for modules that are not there and that no model needs."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002 (the import system's)
        if fullname.partition(".")[0] not in STUBS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _anything  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """``folder`` first on the path, stubs last; what was imported meanwhile is forgotten again."""
    before, finder = set(sys.modules), _Stubs()
    sys.path.insert(0, str(folder))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in (*STUBS, "modules", "util"):
                del sys.modules[name]


def script(path: Path) -> Any:
    """The module in a file."""
    with importing_from(path.parent):
        spec = importlib.util.spec_from_file_location(f"pyro_example_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def notebook(path: Path, *words: str) -> Any:
    """The definitions in those cells of a notebook that hold one of ``words``."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    chosen = "\n".join(text for text in code if any(word in text for word in words))
    names: dict[str, Any] = {}
    header = "import math, torch, pyro\nimport torch.nn as nn\nimport torch.nn.functional as F\n"
    exec(header + "import pyro.distributions as dist\n" + chosen, names)  # noqa: S102 (the user's own checkout)
    return types.SimpleNamespace(**names)


def bits(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


def vae(folder: Path) -> Example:
    program = script(folder / "vae" / "vae.py").VAE(z_dim=6, hidden_dim=16)
    return Example(program.model, program.guide, bits(NUM, 1, 28, 28))


def semi_supervised(folder: Path, *, labels: bool) -> Example:
    program = script(folder / "vae" / "ss_vae_M2.py").SSVAE(z_dim=5, hidden_layers=[16], config_enum="parallel")
    ys = torch.eye(10)[torch.arange(NUM)]
    return Example(program.model, program.guide, (bits(NUM, 784), ys) if labels else bits(NUM, 784))


def cvae(folder: Path) -> Example:
    baseline = script(folder / "cvae" / "baseline.py").BaselineNet(16, 16)
    program = script(folder / "cvae" / "cvae.py").CVAE(6, 16, 16, baseline)
    whole = bits(NUM, 28, 28)
    seen = torch.full_like(whole, -1.0)
    seen[:, 14:, :14] = whole[:, 14:, :14]  # one quadrant is given
    return Example(program.model, program.guide, (seen, whole))


def whole_length(packed: PackedSequence, rows: Tensor) -> PackedSequence:
    """Sequences of a packed batch padded to their common length, so that one alone is as long as among others."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    return pack_padded_sequence(padded[rows], lengths.max().expand(len(rows)), batch_first=True, enforce_sorted=False)


def deep_markov(folder: Path, *, num_iafs: int = 0) -> Example:
    path = folder / "dmm.py"
    program = script(path if path.exists() else folder / "dmm" / "dmm.py").DMM(
        z_dim=4, emission_dim=8, transition_dim=8, rnn_dim=8, num_iafs=num_iafs, iaf_dim=8
    )
    lengths = torch.tensor([4, 3, 3, 2, 1])
    mask = (torch.arange(4) < lengths.unsqueeze(-1)).float()
    x = bits(NUM, 4, 88) * mask.unsqueeze(-1)
    turned = torch.zeros_like(x)
    for n, length in enumerate(lengths.tolist()):
        turned[n, :length] = x[n, :length].flip(0)
    packed = pack_padded_sequence(turned, lengths, batch_first=True)
    options = {"fold": {"mini_batch_reversed": whole_length}}
    return Example(program.model, program.guide, (x, packed, mask.bool(), lengths), options)


def scanvi(folder: Path, *, labels: bool) -> Example:
    program = script(folder / "scanvi" / "scanvi.py").SCANVI(
        num_genes=12, num_labels=4, l_loc=2.0, l_scale=0.5, latent_dim=3, scale_factor=1.0 / (NUM * 12)
    )
    counts = torch.poisson(torch.full((NUM, 12), 3.0))
    y = torch.eye(4)[torch.arange(NUM) % 4]
    return Example(program.model, program.guide, (counts, y) if labels else counts)


def air(folder: Path) -> Example:
    program = script(folder / "air" / "air.py").AIR(
        num_steps=2, x_size=12, window_size=6, z_what_size=4, rnn_hidden_size=8, encoder_net=[8], decoder_net=[8]
    )
    return Example(program.model, program.guide, (torch.rand(NUM, 12, 12), 3))


def cevae(folder: Path) -> Example:  # noqa: ARG001 (it is part of Pyro itself)
    config = {"feature_dim": 4, "latent_dim": 3, "hidden_dim": 8, "num_layers": 2, "outcome_dist": "bernoulli"}
    return Example(CEVAEModel(config), CEVAEGuide(config), (torch.randn(NUM, 4), bits(NUM), bits(NUM)))


def prodlda(folder: Path) -> Example:
    path = folder.parent / "tutorial" / "source" / "prodlda.ipynb"
    if path.exists():
        module = notebook(path, "class Encoder", "class ProdLDA")
    else:
        module = script(folder / "prodlda" / "prodlda.py")
    program = module.ProdLDA(vocab_size=10, num_topics=3, hidden=8, dropout=0.2)
    return Example(program.model, program.guide, torch.poisson(torch.full((NUM, 10), 2.0)))


EXAMPLES: dict[str, Callable[[Path], Example]] = {
    "vae": vae,
    "ss_vae_M2, labels": lambda folder: semi_supervised(folder, labels=True),
    "ss_vae_M2": lambda folder: semi_supervised(folder, labels=False),
    "cvae": cvae,
    "dmm": deep_markov,
    "dmm, IAF": lambda folder: deep_markov(folder, num_iafs=2),
    "scanvi, labels": lambda folder: scanvi(folder, labels=True),
    "scanvi": lambda folder: scanvi(folder, labels=False),
    "air": air,
    "cevae": cevae,
    "prodlda": prodlda,
}


@dataclass(frozen=True)
class Row:
    """What was seen of a program: D, how discrete sites are treated, and whether all is well."""

    dim: int
    discrete: str
    weights: bool
    gradients: bool
    difference: float
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all is finite, and folding equals looping."""
        return self.weights and self.gradients and self.difference < 1e-4


def measure(example: Example) -> Row:
    """Log weights of draws from the guide, gradients there, and folded densities against looped ones."""
    begin = time.perf_counter()
    program = am.Program(example.model, example.guide, **example.options)
    data = program.prepare(example.data)
    with program.evaluating():
        guide = program.guide_density(data)
        structure = guide.log_joint.structure
        folded = data.fold(DRAWS)
        with pyro_rng(0, "examples"), torch.no_grad():
            latents, log_p, log_q = guide.draw(folded)
        u = latents.u.requires_grad_()
        terms = guide.log_joint.terms(folded, u=u, choices=latents.choices)
        (gradient,) = torch.autograd.grad(terms.joint.sum(), u)
        looped = torch.cat([
            guide.log_joint.terms(data.rows(torch.tensor([row % NUM])), u=u[row : row + 1],
                                  choices=latents.choices[row : row + 1]).joint
            for row in range(DRAWS * NUM)
        ])  # fmt: skip
    scale = looped.abs().clamp_min(1.0)
    kind = f"{structure.summation}" if structure.discrete else "-"
    kind += f", {len(structure.sampled)} drawn" if structure.sampled else ""
    return Row(
        dim=structure.dim,
        discrete=kind,
        weights=bool(torch.isfinite(log_p - log_q).all()),
        gradients=bool(torch.isfinite(gradient).all()),
        difference=float(((terms.joint - looped).abs() / scale).max().detach()),
        seconds=time.perf_counter() - begin,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=Path, required=True, help="the folder `examples` of a checkout of Pyro")
    parser.add_argument("--only", help="run the examples whose name starts so")
    options = parser.parse_args()
    failed = 0
    print(f"{'program':<18} {'D':>4} {'discrete':<14} {'weights':<8} {'gradients':<10} {'fold - loop':>11} {'s':>6}")
    for name, make in EXAMPLES.items():
        if options.only and not name.startswith(options.only):
            continue
        torch.manual_seed(0)
        warnings.simplefilter("ignore")
        try:
            row = measure(make(options.examples))
        except Exception as error:  # the next program is of interest all the same
            print(f"{name:<18} {type(error).__name__}: {' '.join(str(error).split())}")
            failed += 1
            continue
        finite = ["finite" if good else "NOT" for good in (row.weights, row.gradients)]
        print(
            f"{name:<18} {row.dim:>4} {row.discrete:<14} {finite[0]:<8} {finite[1]:<10} {row.difference:>11.1e} "
            f"{row.seconds:>6.1f}"
        )
        failed += not row.ok
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
