"""Amortized inference for Pyro programs, with evidence you can trust.

The public verbs live here and are loaded on first use, so that ``import amortize.report`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from amortize.report import report  # bound first: importing the subpackage later must not shadow the verb

__version__ = "0.1.0"

if TYPE_CHECKING:
    from amortize import data as data
    from amortize import models as models
    from amortize.inference.adversarial import Adversary as Adversary
    from amortize.inference.aggressive import Aggressive as Aggressive
    from amortize.inference.ais import AIS as AIS
    from amortize.inference.amcvae import AMCVAE as AMCVAE
    from amortize.inference.annealed_objectives import DAIS as DAIS
    from amortize.inference.annealed_objectives import LMCVAE as LMCVAE
    from amortize.inference.annealed_objectives import MCD as MCD
    from amortize.inference.auto import Auto as Auto
    from amortize.inference.auto_guide import auto_guide as auto_guide
    from amortize.inference.bdmc import bdmc as bdmc
    from amortize.inference.beta import BetaELBO as BetaELBO
    from amortize.inference.code_usage import code_usage as code_usage
    from amortize.inference.concrete import ConcreteELBO as ConcreteELBO
    from amortize.inference.contraction import Contraction as Contraction
    from amortize.inference.diffusion import Diffusion as Diffusion
    from amortize.inference.disarm import DisARM as DisARM
    from amortize.inference.evidence import Evidence as Evidence
    from amortize.inference.evidence import evidence as evidence
    from amortize.inference.exact_elbo import ExactELBO as ExactELBO
    from amortize.inference.families.annealed import Annealed as Annealed
    from amortize.inference.families.flow import IAF as IAF
    from amortize.inference.families.flow import Coupling as Coupling
    from amortize.inference.families.flow import Flow as Flow
    from amortize.inference.families.flow import Spline as Spline
    from amortize.inference.families.low_rank import LowRank as LowRank
    from amortize.inference.families.mixture import Mixture as Mixture
    from amortize.inference.fitted import Fitted as Fitted
    from amortize.inference.fitted import load as load
    from amortize.inference.gold import GoldStandard as GoldStandard
    from amortize.inference.gold import gold_standard as gold_standard
    from amortize.inference.gradient_ladder import GradientLadder as GradientLadder
    from amortize.inference.gradient_ladder import gradient_ladder as gradient_ladder
    from amortize.inference.hmc import HMC as HMC
    from amortize.inference.importance import ImportanceSampling as ImportanceSampling
    from amortize.inference.iwae import IWAE as IWAE
    from amortize.inference.langevin import Langevin as Langevin
    from amortize.inference.leave_one_out import LeaveOneOut as LeaveOneOut
    from amortize.inference.local import LocalPosterior as LocalPosterior
    from amortize.inference.local import fit_local as fit_local
    from amortize.inference.mala import MALA as MALA
    from amortize.inference.mmd import MMD as MMD
    from amortize.inference.nvil import NVIL as NVIL
    from amortize.inference.posterior import posterior as posterior
    from amortize.inference.refinement import Refinement as Refinement
    from amortize.inference.refinement import refine as refine
    from amortize.inference.reinforce import Reinforce as Reinforce
    from amortize.inference.relax import RELAX as RELAX
    from amortize.inference.sandwich import Sandwich as Sandwich
    from amortize.inference.semi_amortized import SemiAmortized as SemiAmortized
    from amortize.inference.smc import SMC as SMC
    from amortize.inference.svi import Training as Training
    from amortize.inference.svi import fit as fit
    from amortize.inference.ula import ULA as ULA
    from amortize.inference.vimco import VIMCO as VIMCO
    from amortize.inference.wake_sleep import WakeSleep as WakeSleep
    from amortize.program.program import Program as Program
    from amortize.program.relaxed import RelaxedBernoulli as RelaxedBernoulli
    from amortize.program.relaxed import RelaxedOneHotCategorical as RelaxedOneHotCategorical
    from amortize.report.tree import to_datatree as to_datatree
    from amortize.study.compare import Comparison as Comparison
    from amortize.study.compare import compare as compare
    from amortize.study.gaps import Ledger as Ledger
    from amortize.study.gaps import gaps as gaps
    from amortize.study.grid import GridResult as GridResult
    from amortize.study.run import StudyResult as StudyResult
    from amortize.study.run import run as run
    from amortize.study.spec import Study as Study

_HOMES = {
    "AIS": "amortize.inference.ais",
    "AMCVAE": "amortize.inference.amcvae",
    "Adversary": "amortize.inference.adversarial",
    "Aggressive": "amortize.inference.aggressive",
    "Comparison": "amortize.study.compare",
    "Contraction": "amortize.inference.contraction",
    "Coupling": "amortize.inference.families.flow",
    "DAIS": "amortize.inference.annealed_objectives",
    "Diffusion": "amortize.inference.diffusion",
    "Annealed": "amortize.inference.families.annealed",
    "Auto": "amortize.inference.auto",
    "DisARM": "amortize.inference.disarm",
    "Evidence": "amortize.inference.evidence",
    "ExactELBO": "amortize.inference.exact_elbo",
    "Fitted": "amortize.inference.fitted",
    "Flow": "amortize.inference.families.flow",
    "GridResult": "amortize.study.grid",
    "GoldStandard": "amortize.inference.gold",
    "GradientLadder": "amortize.inference.gradient_ladder",
    "HMC": "amortize.inference.hmc",
    "IAF": "amortize.inference.families.flow",
    "BetaELBO": "amortize.inference.beta",
    "RelaxedOneHotCategorical": "amortize.program.relaxed",
    "RelaxedBernoulli": "amortize.program.relaxed",
    "ConcreteELBO": "amortize.inference.concrete",
    "IWAE": "amortize.inference.iwae",
    "ImportanceSampling": "amortize.inference.importance",
    "LMCVAE": "amortize.inference.annealed_objectives",
    "Langevin": "amortize.inference.langevin",
    "LeaveOneOut": "amortize.inference.leave_one_out",
    "Ledger": "amortize.study.gaps",
    "LocalPosterior": "amortize.inference.local",
    "LowRank": "amortize.inference.families.low_rank",
    "MALA": "amortize.inference.mala",
    "MCD": "amortize.inference.annealed_objectives",
    "MMD": "amortize.inference.mmd",
    "Mixture": "amortize.inference.families.mixture",
    "NVIL": "amortize.inference.nvil",
    "Program": "amortize.program.program",
    "Refinement": "amortize.inference.refinement",
    "Reinforce": "amortize.inference.reinforce",
    "RELAX": "amortize.inference.relax",
    "SMC": "amortize.inference.smc",
    "Sandwich": "amortize.inference.sandwich",
    "SemiAmortized": "amortize.inference.semi_amortized",
    "Spline": "amortize.inference.families.flow",
    "Study": "amortize.study.spec",
    "StudyResult": "amortize.study.run",
    "Training": "amortize.inference.svi",
    "ULA": "amortize.inference.ula",
    "VIMCO": "amortize.inference.vimco",
    "WakeSleep": "amortize.inference.wake_sleep",
    "auto_guide": "amortize.inference.auto_guide",
    "bdmc": "amortize.inference.bdmc",
    "code_usage": "amortize.inference.code_usage",
    "compare": "amortize.study.compare",
    "evidence": "amortize.inference.evidence",
    "fit": "amortize.inference.svi",
    "fit_local": "amortize.inference.local",
    "gaps": "amortize.study.gaps",
    "gold_standard": "amortize.inference.gold",
    "gradient_ladder": "amortize.inference.gradient_ladder",
    "load": "amortize.inference.fitted",
    "posterior": "amortize.inference.posterior",
    "refine": "amortize.inference.refinement",
    "run": "amortize.study.run",
    "to_datatree": "amortize.report.tree",
}
_SUBMODULES = ("data", "diagnostics", "errors", "inference", "models", "program", "study")

__all__ = [
    "AIS",
    "AMCVAE",
    "DAIS",
    "HMC",
    "IAF",
    "IWAE",
    "LMCVAE",
    "MALA",
    "MCD",
    "MMD",
    "NVIL",
    "RELAX",
    "SMC",
    "ULA",
    "VIMCO",
    "Adversary",
    "Aggressive",
    "Annealed",
    "Auto",
    "BetaELBO",
    "Comparison",
    "ConcreteELBO",
    "Contraction",
    "Coupling",
    "Diffusion",
    "DisARM",
    "Evidence",
    "ExactELBO",
    "Fitted",
    "Flow",
    "GoldStandard",
    "GradientLadder",
    "GridResult",
    "ImportanceSampling",
    "Langevin",
    "LeaveOneOut",
    "Ledger",
    "LocalPosterior",
    "LowRank",
    "Mixture",
    "Program",
    "Refinement",
    "Reinforce",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "Sandwich",
    "SemiAmortized",
    "Spline",
    "Study",
    "StudyResult",
    "Training",
    "WakeSleep",
    "__version__",
    "auto_guide",
    "bdmc",
    "code_usage",
    "compare",
    "data",
    "evidence",
    "fit",
    "fit_local",
    "gaps",
    "gold_standard",
    "gradient_ladder",
    "load",
    "models",
    "posterior",
    "refine",
    "report",
    "run",
    "to_datatree",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"amortize.{name}")
    raise AttributeError(f"module 'amortize' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
