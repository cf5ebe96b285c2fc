r"""How much of its codebook a guide uses, read off the program: any site whose distribution is categorical.

The code of a datapoint is the guide's most probable one, and what it tells is the mutual information

.. math:: I_p = H\left( \frac1N \sum_n q(k_p | x_n) \right) - \frac1N \sum_n H(q(k_p | x_n)).

Draws of the guide are not counted: those of a guide that knows nothing are spread over all codes. Letters: S draws of
the guide, N datapoints, P positions (variables of a site), K codes.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Categorical, OneHotCategorical
from torch import Tensor

from amortize.diagnostics.codebooks import CodebookUsage, codebook_usage
from amortize.errors import ArgumentError, check_count
from amortize.inference.chunks import slices
from amortize.program.data import Data
from amortize.program.density import require_guide
from amortize.program.discover import run_recorded
from amortize.program.handlers import base_of
from amortize.program.operands import require_program
from amortize.program.program import Program
from amortize.random import check_seed, stream_seed

__all__ = ["code_sites", "code_usage", "columns_of", "looked_up", "usage_of"]

MAX_ROWS = 1024
"""Datapoints a run of the guide: it keeps P K numbers of each."""


def code_usage(
    program: Program, x: Any, *, num_draws: int = 8, seed: int = 0, device: str | None = None
) -> dict[str, CodebookUsage]:
    """Count the codes that a guide gives N datapoints.

    Parameters
    ----------
    program, x
        The program, with a guide, and N datapoints.
    num_draws
        S, where the guide's probabilities hang on other latents that it draws: their mean over S runs is taken.
    seed, device
        Of those runs, and where to run ("cpu", "cuda").

    Returns
    -------
    dict
        `amortize.diagnostics.CodebookUsage` by latent site, of those that the guide draws from a Categorical or
        OneHotCategorical.

    Raises
    ------
    ArgumentError
        If there is no such site.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(16)
    >>> dvae = am.models.DVAE.from_data(x, num_codes=4, channels=(4, 4))
    >>> usage = am.code_usage(dvae.program(), x)["codes"]
    >>> usage.counts.shape, 1 <= usage.perplexity <= 4
    ((1, 4), True)
    """
    require_program(program)
    require_guide(program)
    num_draws, seed = check_count("num_draws", num_draws), check_seed(seed)
    data = program.prepare(x, device=device)
    names = code_sites(program, data)
    if not names:
        raise ArgumentError(
            "program: expected a guide that draws a site from a Categorical or OneHotCategorical, and this one has "
            "none. Latents that the guide leaves out are drawn by am.posterior; count them by "
            "amortize.diagnostics.codebook_usage"
        )
    return usage_of(program, data, names, num_draws=num_draws, seed=seed)


def code_sites(program: Program, data: Data) -> tuple[str, ...]:
    """Names of the latents that the guide draws from a categorical distribution; none without a guide."""
    if program.guide is None or program.bound is not None or program.whole:
        return ()
    structure = program.structure(data)
    if not structure.discrete:
        return ()
    with program.evaluating():
        messages = run_recorded(program.guide, data.head(1), stream="codes")
    return tuple(name for name in structure.discrete if name in messages and _is_categorical(messages[name]["fn"]))


def usage_of(
    program: Program, data: Data, names: tuple[str, ...], *, num_draws: int = 8, seed: int = 0
) -> dict[str, CodebookUsage]:
    """The usage of some sites; see `code_usage`."""
    counted = {name: _Count() for name in names}
    sites = program.structure(data).sites
    with program.evaluating():
        for rows in slices(data.num_datapoints, MAX_ROWS):
            batch = data if data.num_datapoints <= MAX_ROWS else data.rows(rows)
            for name, probabilities in _means(program, batch, names, num_draws, seed).items():
                front = probabilities.movedim(sites[name].front, 0)
                counted[name].add(front.reshape(len(front), -1, front.shape[-1]))
    return {name: count.usage() for name, count in counted.items()}


def columns_of(names: tuple[str, ...]) -> list[str]:
    """What a training's history holds of these sites where it is validated.

    Examples
    --------
    >>> columns_of(("codes",))
    ['codes_perplexity', 'codes_num_dead', 'codes_information']
    """
    return [f"{name}_{what}" for name in names for what in ("perplexity", "num_dead", "information")]


def looked_up(program: Program, data: Data, names: tuple[str, ...]) -> dict[str, float]:
    """The values of `columns_of`: the information, in nats, is that of all positions added up."""
    usage = usage_of(program, data, names) if names else {}
    values = [number for each in usage.values() for number in (each.perplexity, each.num_dead, each.information.sum())]
    return dict(zip(columns_of(tuple(usage)), map(float, values), strict=True))


class _Count:
    """Adds up batches of probabilities (N, P, K)."""

    def __init__(self) -> None:
        self.codes: list[Tensor] = []
        self.total = self.entropy = torch.zeros(())

    def add(self, probabilities: Tensor) -> None:
        self.codes.append(probabilities.argmax(-1))
        self.total = self.total + probabilities.sum(0)
        self.entropy = self.entropy + _entropy(probabilities).sum(0)

    def usage(self) -> CodebookUsage:
        codes = torch.cat(self.codes)
        told = _entropy(self.total / len(codes)) - self.entropy / len(codes)
        return codebook_usage(codes.cpu().numpy(), self.total.shape[-1], information=told.cpu().numpy())


def _means(program: Program, batch: Data, names: tuple[str, ...], num_draws: int, seed: int) -> dict[str, Tensor]:
    """Probabilities of the sites, mean over runs of the guide; two runs do where they are the same in both."""
    stream = str(stream_seed(seed, "code-usage"))
    runs: list[dict[str, Tensor]] = []
    for draw in range(num_draws):
        messages = run_recorded(program.guide, batch, draw, stream=stream)  # type: ignore[arg-type]
        runs.append({name: base_of(messages[name]["fn"]).probs.double() for name in names})
        if draw == 1 and all(torch.equal(runs[0][name], runs[1][name]) for name in names):
            return runs[0]
    return {name: torch.stack([run[name] for run in runs]).mean(0) for name in names}


def _is_categorical(fn: Any) -> bool:
    return isinstance(base_of(fn), (Categorical, OneHotCategorical))


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy
