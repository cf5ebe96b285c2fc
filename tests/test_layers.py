"""The layers of the package point one way, and what stands beside them needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.layers import MAY_IMPORT, TORCH_FREE, breaches

PACKAGE = Path(__file__).parents[1] / "amortize"

PLANTED = {
    "up, at the top": ("program/x.py", "from amortize.inference.ais import AIS"),
    "up, as a module": ("diagnostics/x.py", "import amortize.report.tree"),
    "up, inside a function": ("errors.py", "def f():\n    from amortize import random"),
    "up, for types only": (
        "report/x.py",
        "import typing\nif typing.TYPE_CHECKING:\n    from amortize.inference.evidence import Evidence",
    ),
    "up, through the public face": ("inference/x.py", "import amortize as am\nam.gaps"),
    "up, by a public verb": ("models/x.py", "from amortize import gaps"),
    "up, by name": ("inference/x.py", "import importlib\nimportlib.import_module('amortize.study.run')"),
    "sideways": ("data/x.py", "from amortize.diagnostics.psis import psis"),
    "to the layer that draws": ("diagnostics/x.py", "from amortize.random import generator"),
    "torch where none is": ("report/x.py", "def f():\n    import torch.nn.functional as F"),
    "pyro where no torch is": ("data/x.py", "from pyro import distributions"),
    "relative": ("models/x.py", "from .vae import BernoulliVAE"),
    "poutine": ("inference/x.py", "from pyro import poutine"),
    "poutine, reached by attribute": ("models/x.py", "import pyro\npyro.poutine.trace(f)"),
    "poutine, renamed": ("study/x.py", "import pyro as p\np.poutine.trace(f)"),
    "the store": ("inference/x.py", "import pyro\npyro.get_param_store().clear()"),
    "the store, imported": ("cli.py", "from pyro import get_param_store"),
    "parameters of Pyro": ("study/x.py", "from pyro.params.param_store import ParamStoreDict"),
    "an ELBO outside inference": ("models/x.py", "from pyro.infer import Trace_ELBO"),
    "a file in no layer": ("utilities.py", "import math"),
}
ALLOWED = {
    "down": ("study/x.py", "from amortize.inference.ais import AIS\nfrom amortize.report import report"),
    "itself": ("program/x.py", "import amortize.program.sites"),
    "the version": ("report/x.py", "from amortize import __version__"),
    "the version, by attribute": ("study/x.py", "import amortize\namortize.__version__"),
    "Pyro's language": (
        "models/x.py",
        "import pyro\nimport pyro.distributions as dist\npyro.sample('z', dist.Normal(0, 1))",
    ),
    "an ELBO in inference": ("inference/x.py", "from pyro.infer import Trace_ELBO"),
    "Pyro's inside in program": ("program/x.py", "from pyro.poutine.messenger import Messenger"),
    "the face itself": ("__init__.py", "from amortize.study.run import run"),
}


def plant(package: Path, name: str, source: str) -> None:
    path = package / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def test_the_package_keeps_its_layers() -> None:
    assert breaches(PACKAGE) == []


def test_every_part_of_the_package_is_in_a_layer() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize(("name", "source"), PLANTED.values(), ids=PLANTED)
def test_a_planted_breach_is_noticed(tmp_path: Path, name: str, source: str) -> None:
    plant(tmp_path, name, source)
    assert any(line.startswith(name) for line in breaches(tmp_path))


@pytest.mark.parametrize(("name", "source"), ALLOWED.values(), ids=ALLOWED)
def test_what_the_layers_allow_passes(tmp_path: Path, name: str, source: str) -> None:
    plant(tmp_path, name, source)
    assert breaches(tmp_path) == []


def test_what_stands_beside_the_layers_imports_without_torch() -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for part in sorted(TORCH_FREE)
        for path in [PACKAGE / f"{part}.py", *sorted((PACKAGE / part).rglob("*.py"))]
        if path.exists()
    ]
    program = "\n".join(
        [
            "import importlib, sys",
            "sys.modules['torch'] = sys.modules['pyro'] = None  # any import of them raises ImportError",
            f"for name in {['amortize', *modules]!r}: importlib.import_module(name)",
            "import amortize as am",
            "am.report, am.to_datatree, am.data, am.__version__",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
