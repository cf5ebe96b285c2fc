"""A program: a Pyro model and (optionally) its guide, adopted so that their parameters live here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from amortize.errors import AmortizeWarning, ArgumentError, ContractError, GuideDataError, check_count
from amortize.program.adopt import LOCK, Adopted, ParameterScope
from amortize.program.adoption import adopt
from amortize.program.arguments import Arguments
from amortize.program.auto_guide import EncoderGuide
from amortize.program.autoguide import bound_density
from amortize.program.bound import Bound
from amortize.program.check import CheckReport, check_program, verify_guide, verify_independent
from amortize.program.data import Data
from amortize.program.density import FoldedLogJoint, LogJoint, require_guide
from amortize.program.describe import describe
from amortize.program.device import checked_device
from amortize.program.discover import HEAD, discover, run_recorded
from amortize.program.discrete import check_mode, resolve_discrete
from amortize.program.enumerate import Runner
from amortize.program.explain import explained
from amortize.program.guide import GuideDensity, TracedGuide
from amortize.program.hidden import hidden_sites
from amortize.program.joint import CompiledLogJoint
from amortize.program.names import refuse_shared_names
from amortize.program.options import check_callable, check_flag, check_givens, read_condition
from amortize.program.relaxing import Twins
from amortize.program.runtime import undisturbed
from amortize.program.scales import common_scale
from amortize.program.simulate import reconstruct, simulate
from amortize.program.simulated import Simulated, replaced, simulated
from amortize.program.sites import Structure
from amortize.program.whole import WholeLogJoint, discover_whole
from amortize.program.whole_guide import WholeGuide

__all__ = ["Program"]


class Program(nn.Module):
    """A Pyro model and its guide, owning their parameters; Pyro's global store is never written.

    Parameters
    ----------
    model, guide
        Functions, bound methods, ``nn.Module`` or ``PyroModule`` objects that take the same data; the guide may be
        left out.
    plate
        Name of the data plate, where it cannot be told from the model.
    condition
        Values for global latent sites, which become givens.
    allow_nan
        Let NaN in the data pass: the model handles missing values itself.
    shared
        Names or positions of arguments that all datapoints share, where the first size of one could be taken for N.
    fold
        For an argument whose rows are not its first index (a list of sequences, a graph): a dict from its name or
        position to a function ``(argument, rows) -> argument``; ``rows`` is a long tensor of any length, with repeats.
    discrete
        "enumerate" sums every discrete latent out, "sample" draws them (Gibbs moves inside annealing). None goes by
        ``infer={"enumerate": ...}`` and by cost.
    replace
        How simulated observations are put into the data, where that can't be found out: a function
        ``(observed, x) -> x`` of the observed sites' values (a dict of tensors, as the model sees them) and the data.
    whole
        Take the whole data set as one datapoint, to which every latent is local, in plates or not: the evidence of a
        regression or a hierarchical model. Results then have one entry, N = 1.

    Examples
    --------
    >>> import pyro, torch, amortize as am
    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> program = am.Program(model)
    >>> program.dim(torch.zeros(3))
    1
    """

    def __init__(  # noqa: PLR0913 (the public face)
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        *,
        plate: str | None = None,
        condition: Mapping[str, Any] | None = None,
        allow_nan: bool = False,
        discrete: str | None = None,
        shared: Iterable[int | str] = (),
        fold: Mapping[int | str, Callable[[Any, Tensor], Any]] | None = None,
        replace: Callable[[dict[str, Tensor], Any], Any] | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__()
        check_callable("model", model)
        if guide is not None:
            check_callable("guide", guide)
        if replace is not None:
            check_callable("replace", replace)
        check_flag("allow_nan", allow_nan)
        check_flag("whole", whole)
        check_mode(discrete)
        self.plate, self.allow_nan, self.discrete, self.whole = plate, allow_nan, discrete, whole
        self.replace = replace
        self.arguments = Arguments.of(model, shared, {} if fold is None else fold)
        self.condition = read_condition(condition)
        scope = ParameterScope()
        self.model = Adopted(model, scope)
        auto = isinstance(guide, AutoGuide)  # it runs the model, and so makes the model's parameters
        made = isinstance(guide, EncoderGuide)  # it may run the model, to see its supports and masks
        own = isinstance(guide, nn.Module) and not auto and not made  # names in a module are its own; functions share
        self.guide = None if guide is None else Adopted(guide, ParameterScope() if own else scope)
        self.model.condition = self.condition
        if self.guide is not None:
            self.guide.condition, self.guide.hides_condition = self.condition, True
        self.bound = Bound(self.guide) if auto and self.guide is not None else None
        if (auto or made) and self.guide is not None:  # all the datapoints at each step, whatever a plate takes
            self.model.fills_plates = self.guide.fills_plates = True
        if whole and plate is not None:
            raise ArgumentError(f"plate: expected none where whole=True (no plate indexes datapoints), got {plate!r}")
        self.objective: Any = None  # what am.fit's "auto" is, where whoever made the program knows better
        self._adopted = False
        self._givens: tuple[str, ...] = ()
        self._fitting: set[str] = set()  # names in condition whose values fit their sites
        self._treatments: dict[Any, Structure] = {}

    def describe(self, x: Any) -> str:
        """Plate, latent sites with supports and sizes, and observed sites, as a table in text."""
        data = self.prepare(x)
        return describe(self, self.structure(data), data)

    def check(self, x: Any) -> CheckReport:
        """Try the contract of a program on data: a verdict and a remedy for each clause."""
        return check_program(self, x)

    def dim(self, x: Any) -> int:
        """D, the number of unconstrained latent dimensions of a datapoint."""
        return self.structure(self.prepare(x)).dim

    def simulate(self, x: Any, *, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Draw latents and observations from the prior, shaped like ``x``: two dicts of arrays (N, ...)."""
        data = self.prepare(x)
        with self.evaluating():
            return simulate(self, data, seed=seed)

    def reconstruct(self, x: Any, *, num_draws: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
        """Mean of each observed site's distribution over draws of the guide, a dict of arrays (N, ...).

        Sites whose distribution has no mean (Categorical and what is made of it) are left out.
        """
        data = self.prepare(x)
        with self.evaluating():
            return reconstruct(self.guide_density(data, points=True), data, num_draws=num_draws, seed=seed)

    def compiled(self, x: Any, *, num_chains: int = 1, backend: str = "auto", num_calls: int = 0) -> CompiledLogJoint:
        """The log joint of ``x`` as compiled functions of the unconstrained latents, with its gradient, in nats.

        ``backend`` is "fx", "inductor", "eager" or "auto", which decides by ``num_calls``, the calls to come.
        """
        num_chains = check_count("num_chains", num_chains)
        data = self.prepare(x)
        with self.evaluating():
            return CompiledLogJoint(self.log_joint(data), data, num_chains, backend=backend, num_calls=num_calls)

    def param(self, name: str) -> np.ndarray:
        """The value of a ``pyro.param`` statement, in its own (constrained) space.

        Raises
        ------
        ArgumentError
            If the program has no such statement, or has not run yet.
        """
        known: dict[str, Adopted] = {}
        for part in (self.guide, self.model):
            if part is not None:
                known |= dict.fromkeys(part.scope.names, part)
        if name not in known:
            raise ArgumentError(
                f"name: the program has no pyro.param {name!r}; it has {', '.join(sorted(known)) or 'none'}"
            )
        return known[name].scope.value(name).cpu().numpy()

    # What algorithms use

    def prepare(self, x: Any, *, device: str | torch.device | None = None) -> Data:
        """Read data, move to ``device``, and adopt the parameters that the program creates on its first run."""
        data = self.read(x, device=device)
        if not self._adopted:
            with self.evaluating():
                self._adopt(data)
        return data

    def read(self, x: Any, *, device: str | torch.device | None = None) -> Data:
        """Read data and move them, and the program, to ``device``; runs nothing.

        Raises
        ------
        ArgumentError
            If there is no such device.
        """
        if device is not None:
            self.to(checked_device(device))
        place = next((p.device for p in self.parameters()), None) if device is None else torch.device(device)
        data = Data.of(x, dtype=self.dtype, device=place, allow_nan=self.allow_nan, arguments=self.arguments)
        return data.as_one() if self.whole else data

    def structure(self, data: Data) -> Structure:
        """What discovery reads off the model."""
        if self.model.per_datapoint and not self.whole:
            raise ContractError(
                f"parameter {self.model.per_datapoint[0]!r} of the model has an entry a datapoint, so it belongs to "
                "these data only and no datapoint can be looked at alone. Make it a latent, or a function of the data"
            )
        with self.evaluating():
            structure = self._discovered(data)
            if structure.common_scale != 1.0:
                self._divide_out(structure, data)
                structure = self._discovered(data)
        unknown = sorted(set(self.condition) - {*structure.outside, *structure.observed})
        if unknown:
            raise ArgumentError(f"condition: the model has no site named {', '.join(map(repr, unknown))}")
        self._check_condition(structure, data)
        self._givens = tuple(name for name in self.condition if self.whole or name in structure.outside)
        if self.guide is not None and self.bound is None and isinstance(self.guide.twins, Twins | None):
            self.guide.twins = Twins(structure.discrete) if structure.discrete else None
        structure = self._with_discrete(structure, data) if structure.discrete else structure
        return self._with_hidden(structure, data) if structure.hidden else structure

    @property
    def trained_model(self) -> Callable[..., Any]:
        """The model as training sees it: a value given to a global latent has no density in the objective."""
        model: Callable[..., Any] = poutine.block(self.model, hide=list(self._givens)) if self._givens else self.model
        return model

    def log_joint(self, data: Data) -> LogJoint:
        """The log joint, checked for independent rows on a few datapoints."""
        log_joint = self.unverified_log_joint(data, self.structure(data))
        with explained("the model", data):
            verify_independent(log_joint, data)
        return log_joint

    def replaced(self, data: Data, observed: Mapping[str, Tensor]) -> Data:
        """The data with other values of the observed sites in place, verified."""
        return replaced(self, data, observed)

    def simulated(self, data: Data, *, seed: int) -> Simulated:
        """Data drawn from the model, put into its arguments, with the latents behind them."""
        return simulated(self, data, seed=seed)

    def unverified_log_joint(self, data: Data, structure: Structure) -> LogJoint:
        """The log joint, for those who try the contract themselves."""
        like = torch.zeros((), dtype=structure.dtype, device=data.index.device)
        return WholeLogJoint(self, structure, like, data) if self.whole else FoldedLogJoint(self, structure, like)

    def guide_density(self, data: Data, *, points: bool = False) -> GuideDensity:
        """The guide's sampler and density, checked against the model's sites; ``points`` have none."""
        require_guide(self)
        log_joint = self.log_joint(data)
        if self.bound is not None:
            return bound_density(self.bound, log_joint, data)
        if isinstance(log_joint, WholeLogJoint):
            return WholeGuide(log_joint, data)
        if self.guide is not None and self.guide.per_datapoint:
            raise GuideDataError(
                f"parameter {self.guide.per_datapoint[0]!r} of the guide has an entry a datapoint: the guide is not "
                "amortized, and knows these data only. am.fit trains it on all of them at once; for its densities use "
                "pyro.infer.autoguide.AutoNormal, or am.fit_local, which fits a posterior for each datapoint"
            )
        plate, drawn = verify_guide(log_joint, data, points=points)
        return TracedGuide(log_joint, plate, data, drawn)

    def bind(self, data: Data) -> None:
        """Make an AutoGuide's parameters on these data, or see that they were made on them; other guides need none.

        Raises
        ------
        GuideDataError
            If they belong to other data.
        """
        if self.bound is not None and self.guide is not None:
            with self.evaluating():
                self.bound.bind(self.guide, data)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters, torch's default where there are none."""
        floating = (p.dtype for p in self.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside (BatchNorm and dropout fixed); each module's own mode is put back afterwards.

        Pyro's handlers and store are the process's: one thread at a time is inside.
        """
        with LOCK:
            flags = {module: module.training for module in self.modules()}
            self.eval()
            try:
                with undisturbed():
                    yield
            finally:
                for module, flag in flags.items():
                    module.training = flag

    @contextmanager
    def treating(self, discrete: str | None) -> Iterator[None]:
        """Treat discrete latents in another way inside; None leaves the program's own."""
        check_mode(discrete)
        own = self.discrete
        self.discrete = own if discrete is None else discrete
        try:
            yield
        finally:
            self.discrete = own

    @contextmanager
    def relaxing(self, relax: Messenger) -> Iterator[None]:
        """Inside, ``relax`` stands between the guide's discrete sites and what runs it: for training alone."""
        assert self.guide is not None
        twins, self.guide.twins = self.guide.twins, relax
        try:
            yield
        finally:
            self.guide.twins = twins

    def state(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers by name."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` gave; parameters that the program creates later get their value then.

        Raises
        ------
        ArgumentError
            If names or shapes are not this program's.
        """
        own = self.state_dict()
        lazy = {name: value for name, value in state.items() if name not in own and ".scope.params." in f".{name}"}
        claimed = {} if self.bound is None else self.bound.not_made(state, own)
        wrong = [name for name in state if name not in own and name not in lazy and name not in claimed]
        wrong += [name for name in own if name not in state or own[name].shape != state[name].shape]
        if wrong:
            raise ArgumentError(
                f"state: expected the parameters of this program, but {', '.join(sorted(wrong)[:5])} do not match. "
                "Load it into a program made in the same way"
            )
        self.load_state_dict({name: value for name, value in state.items() if name in own})
        if self.bound is not None:
            self.bound.restore_later(claimed)
        for name, value in lazy.items():
            self._scope(name).restore_later(name.rsplit(".", 1)[1], value)

    def _check_condition(self, structure: Structure, data: Data) -> None:
        """Values of global latents have their site's shape and lie in its support; looked at once."""
        places = {*structure.outside, *(structure.observed if self.whole else ())} - self._fitting
        names = [name for name in self.condition if name in places]
        if not names:
            return
        with self.evaluating():
            check_givens(names, self.condition, run_recorded(self.model, data.head(HEAD)))
        self._fitting.update(names)

    def _with_hidden(self, structure: Structure, data: Data) -> Structure:
        """Which masked latents are truly hidden; contraction takes none for hidden."""
        if self.whole or structure.summation == "contraction":
            return replace(structure, hidden=())
        like = torch.zeros((), dtype=structure.dtype, device=data.index.device)
        runner = Runner(self.model, structure.sites, structure.plate, like, structure.batch_ndim)
        with self.evaluating():
            return replace(structure, hidden=hidden_sites(runner, structure, data))

    def _with_discrete(self, structure: Structure, data: Data) -> Structure:
        """How discrete sites are treated; tried once for each shape of the program."""
        key = (self.discrete, structure.plate, *structure.sites.values())
        if key not in self._treatments:
            like = torch.zeros((), dtype=structure.dtype, device=data.index.device)
            runner = Runner(self.model, structure.sites, structure.plate, like, structure.batch_ndim)
            with self.evaluating():
                self._treatments[key] = resolve_discrete(runner, structure, data, self.discrete)
        known = self._treatments[key]
        return replace(structure, sampled=known.sampled, summation=known.summation, reason=known.reason)

    def _discovered(self, data: Data) -> Structure:
        return discover_whole(self.model, data) if self.whole else discover(self.model, data, plate=self.plate)

    def _divide_out(self, structure: Structure, data: Data) -> None:
        """Take a scale off that stands over the whole model, and off the guide where it is there too."""
        self.model.scale = structure.common_scale
        if self.guide is not None:
            self.guide.scale = common_scale(run_recorded(self.guide, data.head(HEAD)), structure.plate)
        warnings.warn(
            f"every site of the model stands under poutine.scale({structure.common_scale:.6g}); it is divided out, so "
            "that densities and ELBOs are in nats a datapoint",
            AmortizeWarning,
            stacklevel=4,
        )

    def _scope(self, name: str) -> ParameterScope:
        part = self.guide if name.startswith("guide.") else self.model
        assert part is not None
        return part.scope

    def _adopt(self, data: Data) -> None:
        parts = [self.model] if self.guide is None or self.bound is not None else [self.model, self.guide]
        adopt(parts, data)
        refuse_shared_names(parts, data)
        self._adopted = True
