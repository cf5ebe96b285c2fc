"""How an automatic guide samples a discrete site: probabilities given the data and the discrete sites before.

Letters: B rows, M variables of a site, K values of each, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import DiscreteLatentError
from amortize.program.auto_guide_encoder import Network
from amortize.program.auto_guide_sites import Layout
from amortize.program.handlers import base_of, choices_of

__all__ = ["ChoiceSite"]

KINDS = (dist.Categorical, dist.Bernoulli, dist.OneHotCategorical)


class ChoiceSite(nn.Module):
    """A discrete site.

    Parameters
    ----------
    layout
        Of the site.
    fn
        The model's distribution there.
    num_features, hidden
        F, and the sizes of the hidden layers.

    Raises
    ------
    DiscreteLatentError
        If it is of another kind than Categorical, Bernoulli and OneHotCategorical.
    """

    def __init__(self, layout: Layout, fn: Any, num_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layout = layout
        site, base = layout.site, base_of(fn)
        kind = next((kind for kind in KINDS if isinstance(base, kind)), None)
        if kind is None:
            raise DiscreteLatentError(
                f"auto_guide: the latent {site.name!r} ({type(base).__name__}) is sampled, and an automatic guide has "
                "only Categorical, Bernoulli and OneHotCategorical. Have it summed out, am.Program(model, "
                "discrete='enumerate'), or write the guide by hand"
            )
        self.kind = kind
        self.num_values = 1 if kind is dist.Bernoulli else site.cardinality
        self.network = Network(num_features, hidden, site.num_variables * self.num_values)

    @property
    def num_written(self) -> int:
        """Columns that `written` gives."""
        return self.layout.site.num_variables * self.layout.site.cardinality

    def forward(self, rows: Tensor) -> Any:
        """The site's distribution given rows (B, F)."""
        site = self.layout.site
        logits = self.network(rows)[0].reshape(len(rows), *site.variables, self.num_values).movedim(0, site.front)
        fn: Any = self.kind(logits=logits.squeeze(-1) if self.kind is dist.Bernoulli else logits)
        event = len(site.variables) + 1 - site.batch_ndim
        return fn.to_event(event) if event else fn

    def written(self, fn: Any, value: Tensor) -> Tensor:
        """A value one-hot, (B, M * K)."""
        index = choices_of(self.layout.site, fn, value)
        rows = torch.nn.functional.one_hot(index, self.layout.site.cardinality).flatten(1)
        return rows.to(self.network.last.weight)
