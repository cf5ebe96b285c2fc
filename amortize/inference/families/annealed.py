r"""Annealed posteriors: where chains end that start from Gaussians and were trained for one datapoint, each its own.

.. math:: \log w = \log \frac{p(x_n, u_K) \prod_t B_t(u_{t-1} | u_t)}{q_0(u_0) \prod_t F_t(u_t | u_{t-1})}, \qquad
          E[\log w] \le \log p(x_n)

A mixture of Gaussians is fitted first, and cuts the posterior into soft parts (``annealed_parts``). For each part the
Gaussian q0, temperatures, step sizes and the backward kernels' score are then fitted, by Adam on the bound E[log w]
(``bridge`` has the kinds and their sources). The ELBO reported is the bound of all parts together, on fresh chains;
draws are the chains' ends, whose density nobody knows.

Letters: S draws, N datapoints, D latents, K steps, M parts, J = N * M rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_count
from amortize.inference.bridge import KINDS
from amortize.inference.chunks import slices
from amortize.inference.families.annealed_fit import AnnealedFit
from amortize.inference.families.annealed_parts import Parts, best_weights, weighed
from amortize.inference.families.family import Family, Fit, Implicit, Parameters, Problem, Trace
from amortize.inference.families.gaussian import FullCovariance
from amortize.inference.families.mixture import Mixture
from amortize.inference.families.watch import chained
from amortize.random import generator, stream_seed

__all__ = ["Annealed"]

CHOICE_DRAWS, FINAL_DRAWS = 500, 1000
MAX_ROWS = 2**15
LITTLE = 1e-3
"""Weight of a part below which it may fail to converge."""
PARTS = "part_"
"""Before the names of the parameters of the mixture that cuts the posterior."""


@dataclass(frozen=True)
class Annealed(Implicit):
    """Ends of trained chains. Parameters (N, M, ...): of the parts, of the Gaussians, and of the chains.

    Attributes
    ----------
    kind
        "ula", "mcd" (the default), "uha", "ldvi" or "dais", as for ``am.Diffusion``.
    num_steps
        K.
    num_parts
        M; with 1, chains start from the full-covariance posterior.
    train_draws
        S, chains of a part at each training step.
    hidden
        Hidden units of each part's score network, in "mcd" and "ldvi".

    Examples
    --------
    >>> import amortize as am
    >>> from amortize.inference.families.annealed import Annealed
    >>> analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    >>> x = analysis.simulate(4, seed=1)
    >>> family = Annealed(kind="ula", num_steps=2, num_parts=1)
    >>> am.fit_local(analysis.program(), x, family=family, num_steps=50).elbo.shape
    (4,)
    """

    name: ClassVar[str] = "annealed"
    kind: str = "mcd"
    num_steps: int = 8
    num_parts: int = 4
    train_draws: int = 16
    hidden: int = 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"Annealed kind: expected one of {KINDS}, got {self.kind!r}")
        for name in ("num_steps", "num_parts", "train_draws", "hidden"):
            check_count(f"Annealed {name}", getattr(self, name))

    def fit(self, problem: Problem) -> Fit:
        """The best chains for each datapoint."""
        family: Family = FullCovariance() if self.num_parts == 1 else Mixture(self.num_parts)
        first = family.fit(problem)
        parts = Parts.of({name: value.detach() for name, value in first.parameters.items()})
        run = self._run(problem, parts)
        trained = run.fit(parts.loc.flatten(0, 1), parts.scale_tril.flatten(0, 1))
        chains = trained.parameters
        log_omega = best_weights(run.bound(chains, "choice", CHOICE_DRAWS)[0].reshape(-1, parts.count))
        means, errors = (value.reshape(-1, parts.count) for value in run.bound(chains, "final", FINAL_DRAWS))
        whole = weighed(log_omega, means, errors)
        stopped = trained.stopped.reshape(-1, parts.count) | (log_omega.exp() < LITTLE)
        assert trained.trace is not None
        return Fit(
            parameters=_joined(log_omega.to(parts.loc), parts, chains),
            stopped=stopped.all(-1) & first.stopped,
            num_steps=first.num_steps + trained.num_steps.reshape(-1, parts.count).amax(-1),
            num_gradients=first.num_gradients + trained.num_gradients.reshape(-1, parts.count).sum(-1),
            elbo=whole.bound,
            elbo_se=whole.se,
            trace=_trace(first.trace, trained.trace, parts.count),
        )

    def draw(self, parameters: Parameters, problem: Problem) -> Tensor:
        """Ends of fresh chains, (S, N, D), of the parts by their weights."""
        log_omega = parameters["log_weights"]
        parts = Parts.of({name.removeprefix(PARTS): parameters[name] for name in parameters if name.startswith(PARTS)})
        chains = {
            name: value.flatten(0, 1)
            for name, value in parameters.items()
            if name != "log_weights" and not name.startswith(PARTS)
        }
        size = max(1, MAX_ROWS // (log_omega.numel() * problem.log_joint.num_tiles))
        ends = []
        for block in slices(problem.num_draws, size):
            run = self._run(replace(problem, seed=stream_seed(problem.seed, "ends", block.start)), parts)
            ends.append(run.ends(chains, block.stop - block.start))
        every = torch.cat(ends).unflatten(1, log_omega.shape)  # type: ignore[no-untyped-call]
        gen = generator(problem.seed, "parts", device=log_omega.device)
        known = torch.isfinite(log_omega).any(-1, keepdim=True)
        shares = torch.where(known, log_omega.exp(), 1.0)
        which = torch.multinomial(shares, problem.num_draws, replacement=True, generator=gen).T
        own = which[..., None, None].expand(-1, -1, 1, every.shape[-1])
        ended: Tensor = every.gather(2, own).squeeze(2)
        return ended

    def _run(self, problem: Problem, parts: Parts) -> AnnealedFit:
        """The chains of J rows."""
        rows = torch.arange(len(parts.loc), device=parts.loc.device).repeat_interleave(parts.count)
        return AnnealedFit(
            self.kind, self.num_steps, self.hidden, replace(problem.rows(rows), num_draws=self.train_draws), parts
        )


def _joined(log_omega: Tensor, parts: Parts, chains: Parameters) -> Parameters:
    own = {name: value.reshape(-1, parts.count, *value.shape[1:]) for name, value in chains.items()}
    return {"log_weights": log_omega, **own, **{PARTS + name: value for name, value in vars(parts).items()}}


def _trace(first: Trace | None, trained: Trace, count: int) -> Trace | None:
    """One bound a datapoint: that of its parts together, at the weights that are best for them."""
    elbo = torch.as_tensor(trained.elbo).reshape(len(trained.elbo), -1, count).logsumexp(-1).numpy()
    whole = trained._replace(num_gradients=count * trained.num_gradients, elbo=elbo)
    return whole if first is None else chained(first, whole)
