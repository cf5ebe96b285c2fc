r"""Semi-amortized inference: the guide's posterior of each datapoint, refined by a few steps for that datapoint alone.

.. math:: q_0 = q(u | x_n), \qquad q_k = \text{after } k \text{ steps}, \qquad
          L_k(x_n) = E_{q_k}[\log p(x_n, u) - \log q_k(u)] \le \log p(x_n)

The steps begin at the guide exactly, whatever it is: its draws are mapped by an affine map that begins at the
identity (see ``refining``), or moved by Langevin steps (see ``refining_langevin``). L_0 is the ELBO of the guide, and a
datapoint is left at step 0 where nothing better was found. Letters: R looks, S draws, N datapoints, D latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from amortize.errors import ArgumentError, DiscreteLatentError, check_count
from amortize.inference.affine import Affine, Frame, push
from amortize.inference.chunks import slices
from amortize.inference.refining import MAX_ROWS, Ascent, drawn, log_weights
from amortize.inference.refining_langevin import langevin_path, looks, run_langevin
from amortize.inference.starts import GuideStart, Start
from amortize.program.data import Data
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.program.simulate import constrained
from amortize.random import check_seed, stream_seed

__all__ = ["Refinement", "refine"]

NUM_DRAWS = {"gradient": 32, "svi": 32, "langevin": 64}
METHODS = tuple(NUM_DRAWS)
STRETCHES = ("diagonal", "full")
MEASURED_DRAWS = 500
MEASURED_RUNS = 200  # of Langevin steps, each a gradient


@dataclass(frozen=True)
class Refinement:
    """Refined posteriors, one a datapoint, and how they became better.

    Attributes
    ----------
    method
        "gradient", "svi" or "langevin".
    steps
        (R,) the numbers of steps after which it was measured; the first is 0, the guide itself.
    elbo, elbo_se
        (R, N) nats, on the same fresh draws at each look; of Langevin steps the bound of the annealed run.
    gain, gain_se
        (R, N) what was gained on step 0, and its standard error, paired draw by draw.
    refined
        (N,) whether the datapoint was moved in the end; false where no step was better than the guide beyond noise.
    seconds, num_gradients
        (R,) what it took to get there, all datapoints together, and gradients of the log joint a datapoint (a value
        counts as a third); measuring is left out.
    parameters
        What was found, by name, (N, ...) each: the frame ``loc`` and ``scale``, and the maps or step sizes in it.
    settings
        How it was refined.
    """

    method: str
    steps: np.ndarray
    elbo: np.ndarray
    elbo_se: np.ndarray
    gain: np.ndarray
    gain_se: np.ndarray
    refined: np.ndarray
    seconds: np.ndarray
    num_gradients: np.ndarray
    parameters: dict[str, np.ndarray]
    settings: dict[str, Any]
    program: Program = field(repr=False, compare=False)
    data: Data = field(repr=False, compare=False)

    def __str__(self) -> str:
        gain = self.gain[-1][np.isfinite(self.gain[-1])]
        mean, se = _mean_se(self.gain[-1])
        return (
            f"{self.method}, {self.steps[-1]} steps: mean gain {mean:.3f} +- {se:.3f} nats over {len(gain)} of "
            f"{len(self.refined)} datapoints, {self.refined.sum()} of them moved"
        )

    @property
    def curve(self) -> pd.DataFrame:
        """The mean over datapoints at each look: step, elbo, elbo_se, gain, gain_se, seconds, num_gradients.

        Standard errors are over datapoints, NaN for one alone; datapoints that are not finite are left out.
        """
        columns: dict[str, Any] = {"step": self.steps}
        for name in ("elbo", "gain"):
            pairs = np.array([_mean_se(row) for row in getattr(self, name)])
            columns |= {name: pairs[:, 0], f"{name}_se": pairs[:, 1]}
        return pd.DataFrame(columns | {"seconds": self.seconds, "num_gradients": self.num_gradients})

    def draws(self, num_draws: int = 1000, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws of the refined posteriors by latent site, in the site's own (constrained) space: (draw, N, ...).

        Of Langevin steps they are the ends of fresh runs.
        """
        num_draws, seed = check_count("num_draws", num_draws), stream_seed(check_seed(seed), "refined-draws")
        num = self.data.num_datapoints
        with self.program.evaluating():
            start = GuideStart(self.program.guide_density(self.data))
            latents = drawn(start, self.data, num_draws, seed=seed, stream="draws")
            u = self._moved(start, latents, seed).reshape(num_draws, num, -1)
            choices = latents.choices.reshape(num_draws, num, -1)
            return constrained(start.log_joint, self.data, u, choices, seed=stream_seed(seed, "sites"))

    def _moved(self, start: Start, latents: Any, seed: int) -> Tensor:
        like = latents.u
        parts = {name: torch.as_tensor(array).to(like) for name, array in self.parameters.items()}
        frame = Frame(parts["loc"], parts["scale"])
        if self.method != "langevin":
            maps = Affine(parts["shift"], parts["log_scale"], parts.get("lower"))
            return push(frame, maps, frame.white(like.reshape(-1, *frame.loc.shape)))
        sizes, steps = parts["step_size"], int(self.steps[-1])
        num = self.data.num_datapoints
        most = num * max(1, MAX_ROWS // (num * start.log_joint.num_tiles))
        ends = []
        for rows in slices(len(like), most):
            part, block = type(latents)(like[rows], latents.choices[rows]), stream_seed(seed, "run", rows.start)
            ends.append(run_langevin(start, self.data, frame, sizes, part, num_steps=steps, seed=block).u)
        return torch.cat(ends)


def refine(  # noqa: PLR0913 (the public face)
    program: Program,
    x: Any,
    *,
    num_steps: int = 20,
    method: str = "gradient",
    stretch: str | None = None,
    num_draws: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Refinement:
    """Refine the guide's posterior of each of N datapoints, beginning at the guide exactly.

    Parameters
    ----------
    program, x
        The program, with a guide of any kind, and its data.
    num_steps
        K, the most steps a datapoint takes.
    method
        "gradient" ascends the ELBO on draws that are the same at every step, "svi" on fresh draws each, which costs
        more and overfits less; both keep to the guide's family up to an affine map. "langevin" moves the draws
        themselves by K unadjusted Langevin steps, and may leave the family.
    stretch
        Of "gradient" and "svi": "diagonal" (default) moves and stretches each latent dimension by itself, which keeps a
        mean-field guide mean-field; "full" correlates them too, for guides of full covariance, or to go beyond.
    num_draws
        S, draws of the guide that a step takes, 32 where None; of "langevin", trial runs for each step size, 64.
    seed, device
        Of all draws, and where to run ("cpu", "cuda").

    Returns
    -------
    Refinement
        The ELBO after each step on fresh draws, what was gained, and draws of what came out.

    Raises
    ------
    GuideMismatchError
        If there is no guide.
    DiscreteLatentError
        If there is nothing continuous to refine.
    ArgumentError
        If an argument is off.

    Notes
    -----
    Sources: Kim et al. (2018), "Semi-amortized variational autoencoders", https://arxiv.org/abs/1802.02550; Marino et
    al. (2018), "Iterative amortized inference", https://arxiv.org/abs/1807.09356; Hoffman (2017), "Learning deep latent
    Gaussian models with Markov chain Monte Carlo", https://proceedings.mlr.press/v70/hoffman17a.html.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> refined = am.refine(analysis.program(), analysis.simulate(8, seed=1), num_steps=10)
    >>> refined.elbo.shape, bool((refined.gain[-1] > 0).all())
    ((11, 8), True)
    """
    require_program(program)
    _check(method, stretch)
    num_draws = NUM_DRAWS[method] if num_draws is None else num_draws
    num_steps, num_draws = check_count("num_steps", num_steps), check_count("num_draws", num_draws, 2)
    seed = check_seed(seed)
    data = program.prepare(x, device=device)
    with program.evaluating():
        start = GuideStart(program.guide_density(data))
        _require_continuous(start)
        most = max(1, MAX_ROWS // (num_draws * start.log_joint.num_tiles))
        parts = []
        for rows in slices(data.num_datapoints, most):
            chunk_seed = stream_seed(seed, "refine", method, rows.start)
            piece = (start.rows(rows), data.rows(rows) if most < data.num_datapoints else data)
            if method == "langevin":
                parts.append(_by_langevin(*piece, num_steps, num_draws, seed=chunk_seed))
            else:
                ascent = Ascent(method == "svi", stretch == "full", num_steps, num_draws)
                parts.append(_by_ascent(*piece, ascent, seed=chunk_seed))
    values = np.concatenate([part.log_weights for part in parts], 2)
    elbo, gain = _moments(values), _moments(values - values[:1])
    settings: dict[str, Any] = {"num_steps": num_steps, "num_draws": num_draws, "seed": seed}
    if method != "langevin":
        settings["stretch"] = stretch or "diagonal"
    return Refinement(
        method=method,
        steps=np.array(looks(num_steps) if method == "langevin" else range(num_steps + 1)),
        elbo=elbo[0],
        elbo_se=elbo[1],
        gain=gain[0],
        gain_se=gain[1],
        refined=np.concatenate([part.refined for part in parts]),
        seconds=np.sum([part.seconds for part in parts], axis=0),
        num_gradients=parts[0].num_gradients,
        parameters={name: np.concatenate([p.parameters[name] for p in parts]) for name in parts[0].parameters},
        settings=settings,
        program=program,
        data=data,
    )


class _Part(NamedTuple):
    """What came of some of the datapoints; ``log_weights`` (R, S, N)."""

    log_weights: np.ndarray
    refined: np.ndarray
    seconds: np.ndarray
    num_gradients: np.ndarray
    parameters: dict[str, np.ndarray]


def _by_ascent(start: Start, data: Data, ascent: Ascent, *, seed: int) -> _Part:
    path = ascent.run(start, data, seed=seed)
    last = path.maps[-1]
    tensors = {**path.frame._asdict(), "shift": last.shift, "log_scale": last.log_scale}
    if last.lower is not None:
        tensors["lower"] = last.lower
    values = log_weights(start, data, path, MEASURED_DRAWS, seed=stream_seed(seed, "measured"))
    return _Part(values, (last.square_norm() > 0).cpu().numpy(), path.seconds, path.num_gradients, _numpy(tensors))


def _by_langevin(start: Start, data: Data, num_steps: int, num_draws: int, *, seed: int) -> _Part:
    path = langevin_path(start, data, num_steps, num_draws, MEASURED_RUNS, seed=seed)
    sizes = path.step_sizes[-1]
    parameters = _numpy({**path.frame._asdict(), "step_size": sizes})
    return _Part(path.log_weights, (sizes > 0).cpu().numpy(), path.seconds, path.num_gradients, parameters)


def _numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().cpu().numpy() for name, value in tensors.items()}


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over draws (R, S, N) and its standard error, (R, N) each; not finite where a draw is not."""
    with np.errstate(invalid="ignore"):
        return values.mean(1), values.std(1, ddof=1) / math.sqrt(values.shape[1])


def _mean_se(values: np.ndarray) -> tuple[float, float]:
    good = values[np.isfinite(values)]
    if not len(good):
        return math.nan, math.nan
    return float(good.mean()), float(good.std(ddof=1) / math.sqrt(len(good))) if len(good) > 1 else math.nan


def _check(method: str, stretch: str | None) -> None:
    if method not in METHODS:
        raise ArgumentError(f"method: expected one of {METHODS}, got {method!r}")
    if stretch is not None and stretch not in STRETCHES:
        raise ArgumentError(f"stretch: expected one of {STRETCHES}, got {stretch!r}")
    if stretch is not None and method == "langevin":
        raise ArgumentError(
            f"stretch: method 'langevin' moves draws and has no map, got {stretch!r}; leave it out, or take 'svi'"
        )


def _require_continuous(start: Start) -> None:
    if not start.log_joint.dim:
        raise DiscreteLatentError(
            "the program has no continuous latents, so there is nothing to refine; where its discrete ones are summed "
            "out, am.posterior(program, x) is exact"
        )
