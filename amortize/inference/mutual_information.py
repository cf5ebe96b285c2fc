r"""How much a guide's draws tell of the datapoint that they were made for.

.. math:: I_q = \frac1N \sum_n E_{q(z | x_n)}\left[\log q(z | x_n) - \log \frac1N \sum_m q(z | x_m)\right]
          \in [0, \log N]

in nats, estimated with one draw a datapoint (Hoffman and Johnson 2016, "ELBO surgery"; it is near 0 where the posterior
has collapsed to one for all data). Letters: N datapoints, B = pairs of them.
"""

from __future__ import annotations

import math

import torch

from amortize.inference.chunks import slices
from amortize.program.data import Data
from amortize.program.guide import GuideDensity
from amortize.random import pyro_rng

__all__ = ["mutual_information"]

MAX_ROWS = 2**15


@torch.no_grad()
def mutual_information(guide: GuideDensity, data: Data, *, seed: int) -> float:
    """I_q over the N datapoints, nats; the same draws at every call. It can't show more than log N.

    Every draw is weighed by the guide of every datapoint, N^2 rows of the guide.
    """
    num = data.num_datapoints
    with pyro_rng(seed, "mutual-information"):
        values, log_q = guide.sample(data)
    total = 0.0
    for block in slices(num, max(1, MAX_ROWS // num)):
        drawn = torch.arange(block.start, block.stop, device=log_q.device)
        pairs = guide.rows_of(values, drawn.repeat_interleave(num))
        cross = guide.log_density(data.fold(len(drawn)), pairs).reshape(len(drawn), num).double()
        mixture = cross.logsumexp(1) - math.log(num)
        total += float((log_q[drawn].double() - mixture).sum())
    return total / num
