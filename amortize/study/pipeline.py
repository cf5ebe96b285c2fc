"""The stages of a study: fit, local posteriors, the guide's draws, evidence, gaps, and what the page shows.

Each stage draws from a stream of its own below the study's seed, so that a stage that is resumed gives what it would
have given, whatever ran before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from amortize.data import data_hash
from amortize.errors import AmortizeWarning
from amortize.inference.aggressive import Aggressive
from amortize.inference.bdmc import bdmc
from amortize.inference.evidence import Evidence, evidence
from amortize.inference.families.family import Family
from amortize.inference.fitted import Fitted, load
from amortize.inference.importance import ImportanceSampling
from amortize.inference.local import LocalPosterior, fit_local
from amortize.inference.method import AnnealingPath, Method
from amortize.inference.posterior import posterior
from amortize.inference.sandwich import Sandwich
from amortize.inference.simulated_error import SimulatedError
from amortize.inference.svi import Training, fit
from amortize.program.data import Data
from amortize.random import stream_seed
from amortize.study.dynamic import redrawing
from amortize.study.gaps import guide_treatment
from amortize.study.methods import families_of, method_of, objective_of
from amortize.study.prepare import Prepared, observed
from amortize.study.spec import Study
from amortize.study.stages import Codec, Stages, arrays_codec, dataclass_codec

__all__ = ["Part", "Pipeline", "data_hash_of"]

NESTED = {"path": AnnealingPath, "simulated": SimulatedError, "simulated.sandwich": Sandwich}
SAME_IN_ONE_DIMENSION = ("low-rank", "full-covariance")
SIMULATED = (None,)  # simulated data aren't kept: the seed gives them again


class Part(NamedTuple):
    """Datapoints that stages run on, and the beginning of those stages' names."""

    prefix: str
    data: Data


class Pipeline:
    """The stages of one study, each kept or computed.

    Parameters
    ----------
    study, prepared
        What to do, and on what.
    stages
        Where finished stages are kept.
    progress
        Whether training shows a bar.
    """

    def __init__(self, study: Study, prepared: Prepared, stages: Stages, progress: bool | None) -> None:
        self.study, self.prepared, self.stages, self.progress = study, prepared, stages, progress
        self.program, self.data = prepared.program, prepared.evaluated
        self.evaluated = Part("", prepared.evaluated)

    @property
    def families(self) -> dict[str, Family]:
        """The families to fit, from poor to rich: none where codes are drawn; in one dimension each Gaussian once."""
        families = families_of(self.study.local) if self.program.structure(self.data).has_families else {}
        return {name: family for name, family in families.items() if name not in self.left_out}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Families that are no other than mean-field in one dimension."""
        if not self._one_dimensional or "mean-field" not in self.study.local.families:
            return ()
        return tuple(name for name in self.study.local.families if name in SAME_IN_ONE_DIMENSION)

    @property
    def _one_dimensional(self) -> bool:
        return self.program.dim(self.data) == 1

    @property
    def num_untrained(self) -> int:
        """How many numbers of the model could be trained, but weren't for want of a guide."""
        if self.program.guide is not None:
            return 0
        return sum(parameter.numel() for parameter in self.program.parameters() if parameter.requires_grad)

    def fit(self) -> Fitted | None:
        """Train the program in place; None where there is nothing to train."""
        if self.program.guide is None or not any(p.requires_grad for p in self.program.parameters()):
            return None
        spec = self.study.fit
        own = self.program.objective if spec.objective == "auto" else None
        objective = objective_of(spec) if own is None else own
        training = Training(
            learning_rate=spec.learning_rate,
            batch_size=spec.batch_size,
            schedule=spec.schedule,
            clip_norm=spec.clip_norm,
            validation=self.prepared.validation,
            validate_every=spec.validate_every,
            patience=spec.patience,
            aggressive=Aggressive() if spec.aggressive else None,
            progress=False if self.progress is False else None,
            redraw=None if self.prepared.split.dynamic is None else redrawing(*self.prepared.split.dynamic),
        )

        def train() -> Fitted:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "training was interrupted", AmortizeWarning)
                fitted = fit(
                    self.program,
                    self.prepared.train,
                    objective=objective,
                    num_steps=spec.num_steps,
                    seed=self.seed("fit"),
                    device=self.study.device,
                    training=training,
                )
            if fitted.interrupted:  # a part of the training is not what the spec asks for: it is done again
                raise KeyboardInterrupt
            return fitted

        codec: Codec[Fitted] = Codec(
            ".pt", lambda fitted, path: _done(fitted.save(path)), lambda path: load(path, self.program)
        )
        parts = (self.prepared.train, self.prepared.validation)
        inputs: dict[str, Any] = {
            "fit": spec.model_dump(),
            "objective": objective if isinstance(objective, str) else objective.settings(),
            "data": [None if part is None else data_hash_of(part) for part in parts],
        }
        if self.prepared.split.dynamic is not None:
            inputs["dynamic"] = data_hash(self.prepared.split.dynamic[1])
        return self.stages.run("fit", self._seeded("fit", inputs), codec, train)

    def local(self, family: Family, part: Part | None = None, *, init: str | None = None) -> LocalPosterior:
        """Posteriors of one family, fitted to each datapoint of a part (the evaluated one) by itself."""
        part, spec = part or self.evaluated, self.study.local
        name = f"{part.prefix}local {family.name}{'' if init is None else f' from the {init}'}"
        codec = dataclass_codec(LocalPosterior, live={"program": self.program, "data": part.data})
        inputs: dict[str, Any] = {"num_draws": spec.num_draws, "num_steps": spec.num_steps}
        return self.stages.run(
            name,
            self.depends(name, {**inputs, "family": family.settings(), "init": init}, part),
            codec,
            lambda: fit_local(
                self.program,
                part.data,
                family=family,
                init=init,
                **inputs,
                seed=self.seed(name),
                device=self.study.device,
            ),
        )

    def importance(self, part: Part | None = None) -> Evidence | None:
        """Importance weights of the guide's draws: its ELBO, k-hat, effective sample size. None without a density."""
        if not self.prepared.guided:
            return None
        method = ImportanceSampling(self.study.evidence.num_draws)
        discrete = guide_treatment(self.program, self.data)
        return self._measure("guide", method, "guide", part or self.evaluated, discrete=discrete)

    def evidence(
        self, importance: Evidence | None, part: Part | None = None, *, start: LocalPosterior | None = None
    ) -> Evidence:
        """Log p(x) of each datapoint of a part (the evaluated one), as the spec says; else from ``start``."""
        spec = self.study.evidence
        same = spec.method == "importance" and spec.error == "monte-carlo" and spec.start != "prior"
        if same and guide_treatment(self.program, self.data) is None:
            assert importance is not None  # prepare refuses importance sampling without a guide to draw from
            return importance
        begin = spec.start or start
        return self._measure("evidence", method_of(spec), begin, part or self.evaluated, error=spec.error)

    def sandwich(self) -> Sandwich | None:
        """Both sides of log p(x) on data simulated from the model in the shape of those evaluated, if asked for."""
        spec = self.study.evidence
        if not spec.sandwich:
            return None
        method = method_of(spec)

        def compute() -> Sandwich:
            sides = bdmc(
                self.program,
                self.data,
                method=method,
                start=spec.start,
                seed=self.seed("sandwich"),
                device=self.study.device,
            )
            if sides.interrupted:
                raise KeyboardInterrupt
            return sides

        settings = {"method": type(method).__name__, **method.settings(), "start": spec.start}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "stopped after", AmortizeWarning)
            codec = dataclass_codec(Sandwich, live={"data": SIMULATED})
            return self.stages.run("sandwich", self.depends("sandwich", settings), codec, compute)

    def _measure(
        self, name: str, method: Method, start: str | LocalPosterior | None, part: Part, **options: Any
    ) -> Evidence:
        begin = start.settings | start.family_settings if isinstance(start, LocalPosterior) else start
        settings = {"method": type(method).__name__, **method.settings(), "start": begin, **options}
        name = f"{part.prefix}{name}"

        def compute() -> Evidence:
            measured = evidence(
                self.program,
                part.data,
                method=method,
                start=start,
                seed=self.seed(name),
                device=self.study.device,
                **options,
            )
            if measured.interrupted:  # a part of the datapoints is not what the spec asks for
                raise KeyboardInterrupt
            return measured

        codec = dataclass_codec(Evidence, nested=NESTED, live={"simulated.sandwich.data": SIMULATED})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "stopped after", AmortizeWarning)
            return self.stages.run(name, self.depends(name, settings, part), codec, compute)

    def draws(self, local: Mapping[str, LocalPosterior]) -> dict[str, NDArray[Any]]:
        """What the page and ArviZ show, as ``group/site``: posterior draws, reconstructions, draws of the model."""
        num_draws = self.study.report.num_draws

        def compute() -> dict[str, NDArray[Any]]:
            seed, device = self.seed("draws"), self.study.device
            if not self.prepared.guided:  # the richest of the fitted posteriors stands in for it
                own = list(local.values())[-1].draws(num_draws, seed=seed)
            else:
                own = posterior(self.program, self.data, num_draws=num_draws, seed=seed, device=device)
            latents, simulated = self.program.simulate(self.data, seed=seed)
            groups = {
                "posterior": own,
                "observed_data": observed(self.program, self.data),
                "prior": {site: array[None] for site, array in latents.items()},
                "prior_predictive": {site: array[None] for site, array in simulated.items()},
            }
            if self.program.guide is not None:
                groups["reconstruction"] = self.program.reconstruct(self.data, seed=seed)
            return {f"{group}/{site}": array for group, sites in groups.items() for site, array in sites.items()}

        source: Any = "guide"
        if not self.prepared.guided:
            source = {name: part.settings | part.family_settings for name, part in local.items()}
        inputs = self.depends("draws", {"num_draws": num_draws, "source": source})
        return self.stages.run("draws", inputs, arrays_codec(), compute)

    def seed(self, name: str) -> int:
        """The stage's own seed."""
        return stream_seed(self.study.seed, "study", name)

    def _seeded(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the stage depends on, with its seed."""
        return {**inputs, "seed": self.seed(name)}

    def depends(self, name: str, inputs: Mapping[str, Any], part: Part | None = None) -> dict[str, Any]:
        """What a stage on a part of the data (the evaluated one) depends on: also these, and the parameters now."""
        state = {key: value.numpy() for key, value in self.program.state().items()}
        return {
            **self._seeded(name, inputs),
            "data": data_hash_of((part or self.evaluated).data),
            "parameters": data_hash(state) if state else None,
        }


def data_hash_of(data: Data) -> str:
    """SHA-256 of a program's data."""
    leaves = zip(data.keys, data.leaves, strict=True)
    return data_hash({str(key): leaf.cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf for key, leaf in leaves})


def _done(_: object) -> None:
    return
