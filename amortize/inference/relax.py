r"""The ELBO by the score function, with a relaxation of the program itself as control variate.

.. math:: \frac{\partial L}{\partial \alpha} = E\left[ \big( f(b) - c(\tilde z) \big) \,
          \frac{\partial \log q(b)}{\partial \alpha} + \frac{\partial c(z)}{\partial \alpha}
          - \frac{\partial c(\tilde z)}{\partial \alpha} \right], \qquad
          c(z) = \eta f(\sigma_T(z)) + r_\psi(\sigma_T(z), x)

Letters: K particles, N datapoints, M = K * N rows, S stages of the guide; f = log p(x, b) - log q(b | x), nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, OneHotCategorical

from amortize.errors import check_count, check_number
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.inference.relax_draws import BitDraw, HiddenDraw, OneHotDraw
from amortize.inference.relax_soft import require_soft
from amortize.inference.score_baselines import Inputs, check_widths, quiet_network
from amortize.program.data import Data
from amortize.program.guide_runs import GuideRun, frozen_statistics
from amortize.program.handlers import unvalidated
from amortize.program.program import Program
from amortize.program.steered import require_kinds, site_sizes, stages_of, steered
from amortize.random import pyro_rng

__all__ = ["RELAX"]


@dataclass(frozen=True)
class RELAX(Objective):
    r"""The ELBO of a guide of Bernoulli and one-hot sites; ``hidden=None`` is REBAR.

    Parameters
    ----------
    num_particles
        K, draws of the guide for each datapoint.
    temperature
        T, at which training begins; one a site, trained along.
    hidden
        Widths of the hidden layers (tanh) of the free part r of the control variate, or None for none.

    Raises
    ------
    DiscreteLatentError
        When training begins: a site of the guide is neither Bernoulli nor OneHotCategorical, or the model jumps
        between soft values.

    Notes
    -----
    b = H(z) is a function of a continuous z whose law has the logits alpha as a location, and z~ is another draw of z
    given b. Whatever c is, its terms cancel on average, and the estimate is unbiased for the ELBO's gradient; the
    nearer c is to f, the less noise is left. Here c is f itself at soft values, times a learned eta, plus a network r
    that begins at 0 (and reads x, too). T, eta and r take steps against the sum over logits of the estimate's square,
    whose mean is the variance up to a constant: a single-draw gradient of it, by differentiating the estimate once
    more, so that **the model must be twice differentiable and take soft values**: it may not index by a latent.

    Where sites read one another's draws, each is a stage of its own: earlier stages hard, the stage itself relaxed,
    later ones relaxed by the noise of the hard draws. A step runs the model on (1 + 2 S) K rows a datapoint. The
    learning rate is that of all parameters. Sources: Grathwohl et al. (2018), "Backpropagation through the Void",
    https://arxiv.org/abs/1711.00123; Tucker et al. (2017), "REBAR", https://arxiv.org/abs/1703.07370.

    Examples
    --------
    >>> import pyro, torch, amortize as am
    >>> import pyro.distributions as dist
    >>> weights, encoder = torch.nn.Linear(3, 6), torch.nn.Linear(6, 3)
    >>> def model(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
    ...         pyro.sample("x", dist.Bernoulli(logits=weights(z)).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", x.shape[0]):
    ...         pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))
    >>> fitted = am.fit(am.Program(model, guide), torch.eye(6), objective=am.RELAX(hidden=(8,)), num_steps=20)
    >>> fitted.bound, "log_temperatures" in fitted.extra
    ('ELBO', True)
    """

    name: ClassVar[str] = "relax"
    num_particles: int = 1
    temperature: float = 0.5
    hidden: tuple[int, ...] | None = (50,)

    def __post_init__(self) -> None:
        check_count("RELAX num_particles", self.num_particles)
        check_number("RELAX temperature", self.temperature)
        if self.hidden is not None:
            check_widths("RELAX hidden", self.hidden)

    @property
    def bound(self) -> str:
        """In words."""
        return "ELBO"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:
        """The loss on a program, its network begun from the seed."""
        with pyro_rng(seed, "relax"):
            return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: RELAX, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=False)
        self.num_particles = settings.num_particles
        self.kinds = require_kinds(self.trained, data, "RELAX", (Bernoulli, OneHotCategorical))
        require_soft(self.trained, data, self.kinds)
        like = torch.zeros((), dtype=program.dtype, device=data.index.device)
        count = len(self.kinds)
        self.log_temperatures = nn.Parameter(like.new_full((count,), settings.temperature).log())
        self.scales = nn.Parameter(like.new_ones(count))
        self.free: _Free | None = None
        if settings.hidden is not None:
            self.free = _Free(Inputs(data, like), site_sizes(self.trained, self.kinds), settings.hidden)

    @property
    def rows_per_datapoint(self) -> int:
        return self.num_particles * (1 + 2 * len(self.kinds))

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""
        num, trained = batch.num_datapoints, self.trained
        folded = batch.fold(self.num_particles)
        draws: dict[str, HiddenDraw] = {}

        def draw(name: str, logits: Tensor) -> Tensor:
            draws[name] = (BitDraw if self.kinds[name] is Bernoulli else OneHotDraw).of(logits)
            return draws[name].hard

        with trained.filled(), unvalidated():
            run = trained.run_guide(batch)
            drawn = steered(trained, run, folded, draw)
            log_joint, outside = trained.log_joint_at(folded, drawn.values)
            log_weights = (log_joint - drawn.log_q).detach()
            bound, model = (value.reshape(-1, num).mean(0) for value in (log_weights, log_joint))
            if not torch.is_grad_enabled():
                return self.terms(bound, bound, outside, drawn.auxiliary)
            stages = stages_of(run, tuple(self.kinds))
            with frozen_statistics(trained.program):
                control = self._control(batch, run, stages, draws)
        slopes = _slopes(stages, draws, log_weights, control)
        parts = [_in_rows(draws[name].logits * slope.detach()).sum(-1) for name, slope in slopes.items()]
        guide = torch.stack(parts).sum(0).reshape(-1, num).mean(0)
        terms = self.terms(bound, model + guide, outside, drawn.auxiliary)
        return Terms(terms.bound, terms.loss + self._quieter(list(slopes.values())))

    def _control(
        self, batch: Data, run: GuideRun, stages: Sequence[tuple[str, ...]], draws: dict[str, HiddenDraw]
    ) -> Tensor:
        """C at z and at z~, (S, 2, M) nats: a stage relaxed, what comes before it hard, and what comes after soft."""
        count, rows = len(stages), batch.num_datapoints * self.num_particles
        place = {name: i for i, names in enumerate(stages) for name in names}
        temperatures = dict(zip(self.kinds, self.log_temperatures.exp(), strict=True))
        seen: dict[str, Tensor] = {}

        def choose(name: str, logits: Tensor) -> Tensor:
            drawn, stage, temperature = draws[name], place[name], temperatures[name]
            blocks = logits.reshape(count, 2, rows, *logits.shape[1:])
            own = torch.stack([drawn.soft(z, temperature) for z in (drawn.z, drawn.z_given)])
            later = drawn.again(blocks[:stage], temperature)
            before = drawn.hard.expand_as(blocks[stage + 1 :])
            value = torch.cat([later, own.unsqueeze(0), before]).flatten(0, 2)
            seen[name] = _in_rows(value)
            return value

        copies = count * 2 * self.num_particles
        folded = batch.fold(copies)
        soft = steered(self.trained, run, folded, choose)
        log_joint, _ = self.trained.log_joint_at(folded, soft.values)
        scales = torch.stack([self.scales[list(self.kinds).index(names[0])] for names in stages])
        control = scales.reshape(-1, 1, 1) * (log_joint - soft.log_q).reshape(count, 2, rows)
        return control if self.free is None else control + self.free(batch, copies, seen).reshape(control.shape)

    def _quieter(self, slopes: list[Tensor]) -> Tensor:
        """Zero, with the slope of the estimate's mean square in the parameters of the control variate alone."""
        noise = torch.stack([_in_rows(slope.square()).sum(-1).mean() for slope in slopes]).sum()
        own = list(self.own_parameters())
        found = torch.autograd.grad(noise, own, allow_unused=True, materialize_grads=True)
        moved = torch.stack([(slope * parameter).sum() for slope, parameter in zip(found, own, strict=True)]).sum()
        return moved - moved.detach()


class _Free(nn.Module):
    """The part of the control variate that is a network of the draws and the data."""

    def __init__(self, inputs: Inputs, num_values: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.inputs = inputs
        self.network = quiet_network((inputs.width + num_values, *hidden, 1), inputs.loc)

    def forward(self, batch: Data, copies: int, values: dict[str, Tensor]) -> Tensor:
        """Of all rows of the batch folded, (B,) nats."""
        numbers = self.inputs(batch).repeat(copies, 1)
        rows = torch.cat([numbers, *(value - 0.5 for value in values.values())], -1)
        found: Tensor = self.network(rows).squeeze(-1)
        return found


def _slopes(
    stages: Sequence[tuple[str, ...]], draws: dict[str, HiddenDraw], log_weights: Tensor, control: Tensor
) -> dict[str, Tensor]:
    """The estimate in each site's logits, (M, ...), differentiable in the control variate."""
    leaves = [draw.free for draw in draws.values()]
    paths = torch.autograd.grad((control[:, 0] - control[:, 1]).sum(), leaves, create_graph=True)
    through = dict(zip(draws, paths, strict=True))
    slopes = {}
    for stage, names in enumerate(stages):
        left = log_weights - control[stage, 1]
        for name in names:
            score = draws[name].score
            slopes[name] = left.reshape(-1, *[1] * (score.dim() - 1)) * score + through[name]
    return slopes


def _in_rows(value: Tensor) -> Tensor:
    """(M, V) of (M, ...)."""
    return value.reshape(len(value), -1)
