r"""The gold standard: long chains on the exact posterior of a few datapoints, and what they say of themselves.

Variational posteriors are judged by their ELBO, which says how far off they are in all but not where: too narrow, or
beside the mark? Chains that run long enough are the posterior itself, to within a Monte Carlo error that they tell.
Where they can't (chains that disagree, too few effective draws, divergences) the datapoint is not ``trusted``, and says
why.

Letters: C chains, S draws a chain, N datapoints, D continuous latents (u, unconstrained).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from amortize.diagnostics.chains import Mixing, doubts, mixing
from amortize.errors import AmortizeWarning, ArgumentError, DiscreteLatentError, check_count, check_number, shown
from amortize.inference.against_gold import Posterior, against
from amortize.inference.long_hmc import LEAST_WARMUP, Budget, LongRun, long_hmc
from amortize.inference.one_nuts import one_nuts
from amortize.inference.starts import GuideStart, PriorStart, Start
from amortize.program.data import Data
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.program.sites import Structure
from amortize.random import check_seed, stream_seed

__all__ = ["GoldStandard", "gold_standard"]

KERNELS: dict[str, Callable[..., LongRun]] = {"hmc": long_hmc, "nuts": one_nuts}
STARTS = ("prior", "guide")


@dataclass(frozen=True)
class GoldStandard:
    """Draws from the posteriors of N datapoints by long chains, in the data's order.

    Attributes
    ----------
    draws
        Latent sites in their own space, (C, S, N, ...); discrete ones that are summed out come from their exact
        conditional.
    u
        (C, S, N, D) the continuous latents, unconstrained.
    lp
        (C, S, N) log p(x, u) in nats, up to nothing.
    rhat, ess_bulk, ess_tail
        (N, D + 1) rank-normalised split R-hat and effective sample sizes of each entry of u, and last of ``lp``.
    divergences
        (N,) transitions, of C S, that lost more than 1000 nats of energy.
    acceptance, jump_rate
        (N,) mean acceptance; and of the jumps between modes the share that was made, 0 where there was one place only.
    step_size, num_gradients
        (N,) leapfrog step in whitened coordinates (of "nuts", the mean over chains), and all gradients taken.
    doubts
        (N,) why the draws of a datapoint are not to be trusted, in words; empty where they are.
    kernel, settings, seed, seconds
        How they came about.
    """

    draws: dict[str, np.ndarray] = field(repr=False)
    u: np.ndarray = field(repr=False)
    lp: np.ndarray = field(repr=False)
    rhat: np.ndarray = field(repr=False)
    ess_bulk: np.ndarray = field(repr=False)
    ess_tail: np.ndarray = field(repr=False)
    divergences: np.ndarray
    acceptance: np.ndarray
    jump_rate: np.ndarray
    step_size: np.ndarray
    num_gradients: np.ndarray
    doubts: np.ndarray
    kernel: str
    settings: dict[str, Any]
    seed: int
    seconds: float
    program: Program | None = field(default=None, repr=False, compare=False)
    data: Data | None = field(default=None, repr=False, compare=False)

    @property
    def trusted(self) -> np.ndarray:
        """(N,) whether chains agree, are long enough, and diverged next to nowhere."""
        return np.array([not words for words in self.doubts], dtype=bool)

    @property
    def table(self) -> pd.DataFrame:
        """A row a datapoint, with the worst of its latents."""
        columns = {
            "rhat": self.rhat.max(1),
            "ess_bulk": self.ess_bulk.min(1),
            "ess_tail": self.ess_tail.min(1),
            "divergences": self.divergences,
            "acceptance": self.acceptance,
            "jump_rate": self.jump_rate,
            "num_gradients": self.num_gradients,
            "trusted": self.trusted,
            "doubts": self.doubts,
        }
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self.doubts), name="datapoint"))

    def __str__(self) -> str:
        chains, draws = self.u.shape[:2]
        good = self.trusted
        return (
            f"gold standard by {self.kernel}: {chains} chains of {draws} draws for {len(good)} datapoints, "
            f"{good.sum()} of them trusted"
        )

    def compare(self, posteriors: Mapping[str, Posterior], *, num_draws: int = 4000, seed: int = 0) -> pd.DataFrame:
        """Other posteriors of the same datapoints against these draws.

        Parameters
        ----------
        posteriors
            By a name of yours: a ``Program`` (its guide), a ``LocalPosterior``, what ``am.refine`` gave, or a dict of
            independent draws by latent site, (K, N, ...) each in the site's own space.
        num_draws
            K, draws of each guide, local posterior and refinement.
        seed
            Of all draws, and of the classifier.

        Returns
        -------
        DataFrame
            A row a (posterior, datapoint, latent), where a latent is one number of a continuous site in its own space.
            ``bias`` is the mean of q minus the posterior's, in the posterior's sds, ``sd_ratio`` the sd of q by the
            posterior's, each with its standard error (``bias_se``, ``sd_ratio_se``); ``wasserstein`` the Wasserstein-1
            distance in the posterior's sds, with its error ``wasserstein_se`` and the size ``wasserstein_noise`` that
            it would have were there no difference. ``c2st`` and ``c2st_se`` are of the datapoint, in u: how often a
            classifier tells a draw of q from one of the posterior, from 0.5 (it can't) to 1 (always); NaN where there
            are fewer than 100 effective draws. ``trusted`` is of these draws, not of q.

        Raises
        ------
        ArgumentError
            If a posterior has other latents or datapoints, or this gold standard knows neither program nor data.
        """
        if self.program is None or self.data is None:
            raise ArgumentError("compare: this gold standard was made from arrays alone, and knows no program or data")
        num_draws = check_count("num_draws", num_draws, 100)
        with self.program.evaluating():
            return against(self, self.program.log_joint(self.data), posteriors, num_draws=num_draws, seed=seed)


def gold_standard(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    kernel: str = "hmc",
    num_chains: int = 4,
    num_warmup: int = 1000,
    num_draws: int = 1000,
    start: str = "prior",
    target_acceptance: float = 0.8,
    seed: int = 0,
    device: str | None = None,
) -> GoldStandard:
    """Draw from the exact posterior of each of a few datapoints, by long chains.

    Parameters
    ----------
    program, x
        The program and N datapoints; a few, as it takes thousands of gradients for each.
    kernel
        "hmc": Hamiltonian Monte Carlo, vectorised over chains and datapoints, which jumps between modes where a pool of
        chains found several. "nuts": Pyro's No-U-Turn sampler, a datapoint and a chain at a time; it does not jump.
    num_chains, num_draws
        C and S: chains that count, and draws of each.
    num_warmup
        Transitions in which step sizes and scales are learned; thrown away.
    start
        Where chains begin, over-dispersed: at draws of the "prior", or of the "guide", twice as far from their mean.
    target_acceptance
        What step sizes are tuned for; higher where trajectories diverge.
    seed, device
        Of all draws, and where to run ("cpu", "cuda").

    Returns
    -------
    GoldStandard
        Draws with R-hat, effective sample sizes, divergences, and whether to trust them.

    Raises
    ------
    ContractError, ArgumentError
        Where the program breaks the contract or an argument is off.

    Warns
    -----
    AmortizeWarning
        Where datapoints are not to be trusted: how many, and why.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.simulate(2, seed=1)
    >>> gold = am.gold_standard(analysis.program(), x, num_warmup=300, num_draws=500)
    >>> gold.trusted, gold.draws["z"].shape
    (array([ True,  True]), (4, 500, 2, 2))
    >>> table = gold.compare({"guide": analysis.program("exact")}, num_draws=500)
    >>> bool(table["c2st"].max() < 0.6)
    True
    """
    require_program(program)
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise ArgumentError(f"kernel: expected one of {tuple(KERNELS)}, got {shown(kernel)}")
    budget = Budget(
        check_count("num_chains", num_chains, 2),
        check_count("num_warmup", num_warmup, LEAST_WARMUP),
        check_count("num_draws", num_draws, 4),
        check_number("target_acceptance", target_acceptance, "(0, 1)"),
    )
    seed, begin = check_seed(seed), time.perf_counter()
    data = program.prepare(x, device=device)
    with program.evaluating():
        origin = _start(program, data, start)
        run = KERNELS[kernel](origin, data, budget, seed=stream_seed(seed, "gold"))
        draws = constrained(origin.log_joint, data, run.u.flatten(0, 1), seed=stream_seed(seed, "gold-sites"))
    result = _result(run, {name: array.reshape(*run.u.shape[:2], *array.shape[1:]) for name, array in draws.items()})
    settings = {**budget._asdict(), "start": start}
    gold = GoldStandard(
        **result,
        kernel=kernel,
        settings=settings,
        seed=seed,
        seconds=time.perf_counter() - begin,
        program=program,
        data=data,
    )
    _warn(gold)
    return gold


def _result(run: LongRun, draws: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is known of the run, as numpy."""
    u, lp = run.u.cpu().numpy(), run.log_joint.cpu().numpy()
    found: Mixing = mixing(np.concatenate([u, lp[..., None]], -1))
    divergences = run.divergences.long().cpu().numpy()
    chains, count = u.shape[:2]
    names = ("acceptance", "jump_rate", "step_size", "num_gradients")
    return {
        "draws": draws,
        "u": u,
        "lp": lp,
        **found._asdict(),
        "divergences": divergences,
        **{name: getattr(run, name).double().cpu().numpy() for name in names},
        "doubts": doubts(found, divergences / (chains * count), num_chains=chains),
    }


def _start(program: Program, data: Data, start: str) -> Start:
    if not isinstance(start, str) or start not in STARTS:
        raise ArgumentError(f"start: expected one of {STARTS}, got {shown(start)}")
    origin: Start
    origin = GuideStart(program.guide_density(data)) if start == "guide" else PriorStart(program.log_joint(data))
    _require_continuous(origin.log_joint.structure)
    return origin


def _require_continuous(structure: Structure) -> None:
    """Chains move in u, and leave alone what is not in it."""
    if structure.sampled:
        names = ", ".join(map(repr, structure.sampled))
        raise DiscreteLatentError(
            f"the gold standard moves continuous latents, but the discrete ones {names} are sampled "
            f"({structure.reason}). Where they can be summed out: am.Program(..., discrete='enumerate')"
        )
    if not structure.dim:
        raise DiscreteLatentError(
            "the program has no continuous latents, so there is nothing for chains to move in; its discrete ones are "
            "summed out, and am.posterior(program, x) draws from the exact posterior"
        )


def _warn(gold: GoldStandard) -> None:
    bad = [words for words in gold.doubts if words]
    if bad:
        warnings.warn(
            f"{len(bad)} of {len(gold.doubts)} datapoints are not to be trusted (.doubts says why; the first: "
            f"{bad[0]}). Take more draws (num_draws, num_warmup), a higher target_acceptance where trajectories "
            "diverge, or another start",
            AmortizeWarning,
            stacklevel=3,
        )
