r"""Semi-amortized training: the ELBO after K refinement steps from the guide, differentiated through the steps.

.. math:: L(x_n) = E_{q_K}[\log p(x_n, u) - \log q_K(u)] \le \log p(x_n), \qquad
          q_{k+1} = q_k + h \, \tilde\nabla_q \, \mathrm{ELBO}(q_k), \qquad q_0 = q(u | x_n)

The steps are those of ``am.refine``: natural gradients in affine maps of the guide's draws (see ``affine``). They are
taken on S draws of their own, so that the bound, on other draws, is one whatever came of them. Model and guide get the
gradient of the refined bound, that of the gradients inside the steps too: the guide learns to be a good start.

Letters: S draws of the steps, C particles of the bound, N datapoints, D latents, B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import check_count, check_number
from amortize.inference.affine import Affine, Frame, ascent, identity, limited, log_det, moved, push
from amortize.inference.annealed_objectives import require_continuous
from amortize.inference.objective import BatchLoss, Objective, Terms
from amortize.program.data import Data
from amortize.program.guide_runs import frozen_statistics
from amortize.program.handlers import unvalidated
from amortize.program.program import Program
from amortize.program.reach import Reach

__all__ = ["SemiAmortized"]

LONGEST_STEP = 1.0
"""In the frame of the posterior as it stands; a longer one is cut to this, as few draws may ask for very long ones."""
SCALE_DRAWS = 64
"""For the moments of guides that do not state them: what they are off by, the steps are off by."""


@dataclass(frozen=True)
class SemiAmortized(Objective):
    """The ELBO after K natural-gradient steps of each datapoint, a lower bound on each log p(x_n).

    Parameters
    ----------
    num_steps
        K; each costs the gradient of the log joint at S draws, and training differentiates through it.
    step_size
        h: 1 would go to the optimum of an independent Gaussian posterior at once, and overshoots that of others.
    num_draws
        S, draws of the guide on which the steps are taken. Few make steps noisy: where the guide is good already, take
        16 of them, or a smaller step size.
    num_particles
        C, draws on which the bound is measured.

    Notes
    -----
    Use ``am.refine`` on what was trained: the guide alone is only the start. Sources: Kim et al. (2018),
    "Semi-amortized variational autoencoders", https://arxiv.org/abs/1802.02550; the steps there are plain gradients.

    Examples
    --------
    >>> import amortize as am
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.simulate(32)
    >>> fitted = am.fit(analysis.program(), x, objective=am.SemiAmortized(num_steps=2), num_steps=10)
    >>> fitted.bound
    'ELBO after 2 refinement steps'
    """

    name: ClassVar[str] = "semi-amortized"
    num_steps: int = 5
    step_size: float = 0.4
    num_draws: int = 4
    num_particles: int = 1

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_draws", "num_particles"):
            check_count(f"SemiAmortized {name}", getattr(self, name))
        check_number("SemiAmortized step_size", self.step_size, "(0, 1]")

    @property
    def bound(self) -> str:
        """In words."""
        return f"ELBO after {self.num_steps} refinement steps"

    def on(self, program: Program, data: Data, *, seed: int) -> BatchLoss:  # noqa: ARG002 (nothing is drawn yet)
        """The loss on a program."""
        return _Loss(self, program, data)


class _Loss(BatchLoss):
    def __init__(self, settings: SemiAmortized, program: Program, data: Data) -> None:
        super().__init__(program, data, pathwise=True)
        require_continuous(settings.name, self.trained.structure.dim)
        self.settings = settings

    @property
    def rows_per_datapoint(self) -> int:
        return self.settings.num_draws + self.settings.num_particles

    def forward(self, batch: Data) -> Terms:
        trained, settings = self.trained, self.settings
        num, dim = batch.num_datapoints, trained.structure.dim
        with trained.filled(), unvalidated():
            reach = Reach(trained, batch, self.rows_per_datapoint, scale_draws=SCALE_DRAWS)
            frame = Frame(reach.loc, reach.scale)
            inner, outer = reach.u[: settings.num_draws * num], reach.u[settings.num_draws * num :]
            maps = self._refined(frame, batch.fold(settings.num_draws), inner.reshape(-1, num, dim))
            folded = batch.fold(settings.num_particles)
            with frozen_statistics(trained.program.model):
                log_q = reach.log_q(folded, outer, trained.log_joint.terms(folded, u=outer))
            u = push(frame, maps, frame.white(outer.reshape(-1, num, dim))).flatten(0, 1)
            terms = trained.log_joint.terms(folded, u=u)
        bound = (terms.joint - log_q).reshape(-1, num).mean(0) + log_det(maps)
        return self.terms(bound, bound, terms.outside, reach.auxiliary)

    def _refined(self, frame: Frame, folded: Data, u: Tensor) -> Affine:
        """The maps after K steps on the draws u (S, N, D)."""
        white, maps = frame.white(u), identity(frame, full=False)
        for _ in range(self.settings.num_steps):
            slope = self._slope(folded, push(frame, maps, white))
            step = ascent(frame, maps, white, slope)
            size = torch.full_like(frame.loc[:, 0], self.settings.step_size)
            maps = moved(maps, limited(step.times(size), LONGEST_STEP))
        return maps

    def _slope(self, folded: Data, u: Tensor) -> Tensor:
        """The gradient of log p in u (S, N, D), differentiable once more in training; statistics stay as they are."""
        recording, trained = torch.is_grad_enabled(), self.trained
        with torch.enable_grad(), frozen_statistics(trained.program.model):
            u = u if recording and u.requires_grad else u.detach().requires_grad_()
            value = trained.log_joint.terms(folded, u=u.flatten(0, 1)).joint
            (slope,) = torch.autograd.grad(value.sum(), u, create_graph=recording)
        return slope if recording else slope.detach()
