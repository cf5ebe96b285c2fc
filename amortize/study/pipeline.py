"""The stages of a study: fit, local posteriors, the guide's draws, evidence, gaps, and what the page shows.

Each stage draws from a stream of its own below the study's seed, so that a stage that is resumed gives what it would
have given, whatever ran before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray

from amortize.data import data_hash
from amortize.errors import AmortizeWarning
from amortize.inference.bdmc import bdmc
from amortize.inference.evidence import Evidence, evidence
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
from amortize.study.gaps import Ledger, guide_treatment, ledger_from
from amortize.study.guide_family import guide_family
from amortize.study.methods import method_of, objective_of
from amortize.study.prepare import Prepared, observed
from amortize.study.spec import Study
from amortize.study.stages import Codec, Stages, arrays_codec, dataclass_codec

__all__ = ["Pipeline"]

NESTED = {"path": AnnealingPath, "simulated": SimulatedError, "simulated.sandwich": Sandwich}
SIMULATED = (None,)  # simulated data aren't kept: the seed gives them again


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

    @property
    def families(self) -> tuple[str, ...]:
        """The families to fit: none where all is discrete; one in one dimension, where full covariance is no other."""
        families = tuple(self.study.local.families) if self.program.dim(self.data) > 0 else ()
        return ("mean-field",) if "mean-field" in families and self._one_dimensional else families

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
        training = Training(
            learning_rate=spec.learning_rate,
            batch_size=spec.batch_size,
            schedule=spec.schedule,
            clip_norm=spec.clip_norm,
            validation=self.prepared.validation,
            validate_every=spec.validate_every,
            patience=spec.patience,
            progress=False if self.progress is False else None,
            redraw=None if self.prepared.split.dynamic is None else redrawing(*self.prepared.split.dynamic),
        )

        def train() -> Fitted:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "training was interrupted", AmortizeWarning)
                fitted = fit(
                    self.program,
                    self.prepared.train,
                    objective=objective_of(spec),
                    num_steps=spec.num_steps,
                    seed=self._seed("fit"),
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
            "data": [None if part is None else _hash(part) for part in parts],
        }
        if self.prepared.split.dynamic is not None:
            inputs["dynamic"] = data_hash(self.prepared.split.dynamic[1])
        return self.stages.run("fit", self._seeded("fit", inputs), codec, train)

    def local(self, family: str) -> LocalPosterior:
        """Posteriors of one family, fitted to each evaluated datapoint by itself."""
        spec = self.study.local
        name = f"local {family}"
        codec = dataclass_codec(LocalPosterior, live={"program": self.program, "data": self.data})
        return self.stages.run(
            name,
            self._evaluating(name, {"num_draws": spec.num_draws, "num_steps": spec.num_steps}),
            codec,
            lambda: fit_local(
                self.program,
                self.data,
                family=family,
                num_draws=spec.num_draws,
                num_steps=spec.num_steps,
                seed=self._seed(name),
                device=self.study.device,
            ),
        )

    def importance(self) -> Evidence | None:
        """Importance weights of the guide's draws: its ELBO, k-hat and effective sample size; None without a guide."""
        if self.program.guide is None:
            return None
        method = ImportanceSampling(self.study.evidence.num_draws)
        return self._measure("guide", method, "guide", discrete=guide_treatment(self.program, self.data))

    def evidence(self, importance: Evidence | None) -> Evidence:
        """Log p(x) of each evaluated datapoint, as the spec says."""
        spec = self.study.evidence
        same = spec.method == "importance" and spec.error == "monte-carlo" and spec.start != "prior"
        if same and guide_treatment(self.program, self.data) is None:
            assert importance is not None  # prepare refuses importance sampling without a guide
            return importance
        return self._measure("evidence", method_of(spec), spec.start, error=spec.error)

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
                seed=self._seed("sandwich"),
                device=self.study.device,
            )
            if sides.interrupted:
                raise KeyboardInterrupt
            return sides

        settings = {"method": type(method).__name__, **method.settings(), "start": spec.start}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "stopped after", AmortizeWarning)
            codec = dataclass_codec(Sandwich, live={"data": SIMULATED})
            return self.stages.run("sandwich", self._evaluating("sandwich", settings), codec, compute)

    def _measure(self, name: str, method: Method, start: str | None, **options: Any) -> Evidence:
        settings = {"method": type(method).__name__, **method.settings(), "start": start, **options}

        def compute() -> Evidence:
            measured = evidence(
                self.program,
                self.data,
                method=method,
                start=start,
                seed=self._seed(name),
                device=self.study.device,
                **options,
            )
            if measured.interrupted:  # a part of the datapoints is not what the spec asks for
                raise KeyboardInterrupt
            return measured

        codec = dataclass_codec(Evidence, nested=NESTED, live={"simulated.sandwich.data": SIMULATED})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "stopped after", AmortizeWarning)
            return self.stages.run(name, self._evaluating(name, settings), codec, compute)

    def ledger(self, measured: Evidence, importance: Evidence | None, local: Mapping[str, LocalPosterior]) -> Ledger:
        """The gaps, its rows named by the datapoints' places in the source."""
        method = method_of(self.study.evidence)
        settings = {
            "method": {"name": type(method).__name__, **method.settings()},
            "num_draws": self.study.evidence.num_draws,
            "seed": self.study.seed,
            "device": self.study.device,
        }
        if 0 < len(local) < len(self.study.local.families):
            settings["left_out"] = "full-covariance, in one dimension the same as mean-field"
        family = None if importance is None or not local else guide_family(self.program, self.data)
        if family is not None and family not in local and self._one_dimensional and "mean-field" in local:
            family = "mean-field" if family == "full-covariance" else family
        ledger = ledger_from(
            measured,
            importance,
            local,
            guide_family=family,
            settings=settings,
            all_discrete=not self.program.dim(self.data),
        )
        return replace(ledger, table=ledger.table.set_axis(self.prepared.split.rows, axis=0).rename_axis("datapoint"))

    def draws(self, local: Mapping[str, LocalPosterior]) -> dict[str, NDArray[Any]]:
        """What the page and ArviZ show, as ``group/site``: posterior draws, reconstructions, draws of the model."""
        num_draws = self.study.report.num_draws

        def compute() -> dict[str, NDArray[Any]]:
            seed, device = self._seed("draws"), self.study.device
            if self.program.guide is None:  # the richest of the fitted posteriors stands in for it
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

        source = self.study.local.model_dump() if self.program.guide is None else "guide"
        inputs = self._evaluating("draws", {"num_draws": num_draws, "source": source})
        return self.stages.run("draws", inputs, arrays_codec(), compute)

    def _seed(self, name: str) -> int:
        """The stage's own seed."""
        return stream_seed(self.study.seed, "study", name)

    def _seeded(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the stage depends on, with its seed."""
        return {**inputs, "seed": self._seed(name)}

    def _evaluating(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a stage on the evaluated datapoints depends on: also the data, and the parameters as they now are."""
        state = {key: value.numpy() for key, value in self.program.state().items()}
        return {
            **self._seeded(name, inputs),
            "data": _hash(self.data),
            "parameters": data_hash(state) if state else None,
        }


def _hash(data: Data) -> str:
    leaves = zip(data.keys, data.leaves, strict=True)
    return data_hash({str(key): leaf.cpu().numpy() if isinstance(leaf, torch.Tensor) else leaf for key, leaf in leaves})


def _done(_: object) -> None:
    return
