r"""The ELBO by pairs of antithetic draws of binary latents, their coupling integrated out.

.. math:: b_i = 1[u_i > \sigma(-\alpha_i)], \quad \tilde b_i = 1[1 - u_i > \sigma(-\alpha_i)], \qquad
          \frac{\partial L}{\partial \alpha_i} = \frac12 \big( f(b) - f(\tilde b) \big) (b_i - \tilde b_i) \,
          \sigma(|\alpha_i|)

Letters: P pairs, N datapoints, T stages of the guide, R = T + 1 branches of a pair, M = P * N rows of a branch;
f = log p(x, b) - log q(b | x), nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from amortize.errors import check_count
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.program.program import Program
from amortize.program.steered import require_kinds, stages_of, steered

__all__ = ["DisARM"]


@dataclass(frozen=True)
class DisARM(Objective):
    r"""The ELBO of a guide whose every site is Bernoulli. It has nothing to tune or to learn.

    Parameters
    ----------
    num_pairs
        P, antithetic pairs for each datapoint: the model is run on 2 P rows of it, on (T + 1) P where the guide's T
        sites read each other's draws.

    Raises
    ------
    DiscreteLatentError
        When training begins: a site of the guide is not Bernoulli.

    Notes
    -----
    .. math:: g_i = \frac12 \big( f(b) - f(\tilde b) \big) (b_i - \tilde b_i) \, \sigma(|\alpha_i|), \qquad
              \nabla_\phi L = E \sum_i g_i \nabla_\phi \alpha_i

    is unbiased for the ELBO's gradient in the guide: given where the two draws differ, which of them has the one is a
    fair coin, and the share of the noise that says more is integrated out. Where sites read one another's draws - two
    stochastic layers -, a pair is made at each stage by itself: with the first branch of a pair as it is, branch t
    shares its draws before stage t, has the antithetic one at t, and goes on with draws of its own, so that both ends
    are draws of the rest given the stage. Branches all are draws of the guide: the bound and the model's gradient are
    means over them. Sources: Dong, Mnih and Tucker (2020), "DisARM: an antithetic gradient estimator for binary latent
    variables", https://arxiv.org/abs/2006.10680; Yin et al. (2020), "Probabilistic best subset selection via
    gradient-based optimization" (the same estimator, U2G), https://arxiv.org/abs/2006.06448.

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
    >>> fitted = am.fit(am.Program(model, guide), torch.eye(6), objective=am.DisARM(), num_steps=20)
    >>> fitted.objective, fitted.bound
    ('disarm', 'ELBO')
    """

    name: ClassVar[str] = "disarm"
    num_pairs: int = 1

    def __post_init__(self) -> None:
        check_count("DisARM num_pairs", self.num_pairs)

    @property
    def bound(self) -> str:
        """In words."""
        return "ELBO"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(program, data, self.num_pairs)


class _Loss(BatchLoss):
    def __init__(self, program: Program, data: Data, num_pairs: int) -> None:
        super().__init__(program, data, pathwise=False)
        self.num_pairs = num_pairs
        self.names = tuple(require_kinds(self.trained, data, "DisARM", (Bernoulli,)))

    @property
    def rows_per_datapoint(self) -> int:
        return self.num_pairs * (len(self.names) + 1)

    def forward(self, batch: Data) -> Terms:
        """Draws from the global generators of torch."""
        num = batch.num_datapoints
        with self.trained.filled(), unvalidated():
            run = self.trained.run_guide(batch)
            pairs = _Pairs(stages_of(run, self.names), self.num_pairs * num)
            copies = pairs.num_branches * self.num_pairs
            folded = batch.fold(copies)
            drawn = steered(self.trained, run, folded, pairs.choose)
            log_joint, outside = self.trained.log_joint_at(folded, drawn.values)
        log_weights = (log_joint - drawn.log_q).detach()
        bound, model = (value.reshape(copies, num).mean(0) for value in (log_weights, log_joint))
        guide = pairs.ascended(log_weights.reshape(pairs.num_branches, -1)).reshape(self.num_pairs, num).mean(0)
        return self.terms(bound, model + guide, outside, drawn.auxiliary)


class _Pairs:
    """The branches (R, M, ...) of draws: the first one, and for each stage one that is antithetic there."""

    def __init__(self, stages: tuple[tuple[str, ...], ...], num_rows: int) -> None:
        self.place = {name: place for place, names in enumerate(stages) for name in names}
        self.num_branches, self.num_rows = len(stages) + 1, num_rows
        self.slopes: list[tuple[int, Tensor, Tensor]] = []  # of each site: stage, logits (M, V), slopes in them

    def choose(self, name: str, logits: Tensor) -> Tensor:
        """Zeros and ones of all branches, (R * M, ...)."""
        stage, rows = self.place[name], logits.reshape(self.num_branches, self.num_rows, -1)
        first = rows[0]
        uniform = torch.rand_like(rows)
        ones = uniform > torch.sigmoid(-rows)
        ones[stage + 1] = 1 - uniform[0] > torch.sigmoid(-first.detach())
        ones[stage + 2 :] = ones[0]  # these part from the first branch later on
        value = ones.to(logits)
        sign = value[0] - value[stage + 1]
        self.slopes.append((stage, first, 0.5 * sign * torch.sigmoid(first.detach().abs())))
        return value.reshape(logits.shape)

    def ascended(self, log_weights: Tensor) -> Tensor:
        """What has the guide's gradient, (M,), given f of each branch (R, M)."""
        total = torch.zeros_like(log_weights[0])
        for stage, logits, slopes in self.slopes:
            differs = slopes != 0  # where both agree an infinite logit has no slope
            each = torch.where(differs, logits, 0.0) * slopes
            total = total + (log_weights[0] - log_weights[stage + 1]) * each.sum(-1)
        return total
