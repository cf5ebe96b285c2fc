"""Sequences: a state space over time in a Python loop, packed batches in the guide, an LSTM decoder."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.cases.case import NUM, Case, built, draws

__all__ = ["SEQUENCES"]


def bits(*shape: int) -> torch.Tensor:
    return (draws(*shape) > 0).float()


class Sequences(nn.Module):
    """A state space over time in a Python loop, ragged by masks; the guide reads packed sequences backwards."""

    def __init__(self, flow: bool = False) -> None:
        super().__init__()
        self.transition, self.emitter = nn.GRUCell(2, 2), nn.Linear(2, 3)
        self.rnn, self.combiner = nn.GRU(3, 4, batch_first=True), nn.Linear(4 + 2, 4)
        self.start = nn.Parameter(torch.zeros(2))
        self.flow = transforms.affine_autoregressive(2, hidden_dims=[5]) if flow else None

    def model(self, x, backwards, seen, lengths):
        pyro.module("sequences", self)
        z = self.start.expand(x.shape[0], 2)
        with pyro.plate("data", x.shape[0]):
            for t in range(x.shape[1]):
                with pyro.poutine.mask(mask=seen[:, t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(self.transition(z, z), 1.0).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emitter(z)).to_event(1), obs=x[:, t])

    def guide(self, x, backwards, seen, lengths):
        pyro.module("sequences", self)
        hidden, _ = pad_packed_sequence(self.rnn(backwards)[0], batch_first=True, total_length=x.shape[1])
        z = self.start.expand(x.shape[0], 2)
        with pyro.plate("data", x.shape[0]):
            for t in range(x.shape[1]):
                loc, log_scale = self.combiner(torch.cat([hidden[:, t], z], -1)).chunk(2, -1)
                fn = dist.Normal(loc, log_scale.exp())
                fn = fn.to_event(1) if self.flow is None else dist.TransformedDistribution(fn, [self.flow])
                with pyro.poutine.mask(mask=seen[:, t]):
                    z = pyro.sample(f"z_{t}", fn)


def ragged(num: int = NUM, steps: int = 4):
    x = bits(num, steps, 3)
    lengths = torch.tensor([4, 1, 3, 2, 4])[:num]
    seen = torch.arange(steps) < lengths.unsqueeze(-1)
    packed = pack_padded_sequence(x.flip(1), lengths, batch_first=True, enforce_sorted=False)
    return x, packed, seen, lengths


def _packed_row(data, n):
    x, _, seen, lengths = (part if part is data[1] else part[n : n + 1] for part in data)
    return (x, pack_padded_sequence(x.flip(1), lengths, batch_first=True), seen, lengths), {}


def state_space() -> Case:
    network = built(Sequences)
    return Case(network.model, ragged(), network.guide, row=_packed_row)


def state_space_with_a_flow_guide() -> Case:
    network = built(lambda: Sequences(flow=True))
    return Case(network.model, ragged(), network.guide, row=_packed_row)


def whole_length(packed, rows):
    """Sequences padded to their common length: one alone is then as long as among others."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    return pack_padded_sequence(padded[rows], lengths.max().expand(len(rows)), batch_first=True, enforce_sorted=False)


def state_space_by_hook() -> Case:
    """The guide unpacks to the longest sequence there, which a short one alone does not reach."""

    class Unpadded(Sequences):
        def guide(self, x, backwards, seen, lengths):
            pyro.module("sequences", self)
            hidden, _ = pad_packed_sequence(self.rnn(backwards)[0], batch_first=True)
            with pyro.plate("data", x.shape[0]):
                for t in range(x.shape[1]):
                    loc = self.combiner(torch.cat([hidden[:, t], x[:, t, :2]], -1))[..., :2]
                    pyro.sample(f"z_{t}", dist.Normal(loc, 0.5).to_event(1))

    def row(data, n):
        (x, _, seen, lengths), _ = _packed_row(data, n)
        return (x, whole_length(data[1], torch.tensor([n])), seen, lengths), {}

    network = built(Unpadded)
    return Case(network.model, ragged(), network.guide, options={"fold": {"backwards": whole_length}}, row=row)


def recurrent_decoder() -> Case:
    lstm, head = built(lambda: nn.LSTM(2, 4, batch_first=True)), built(lambda: nn.Linear(4, 1), 1)

    def model(x):
        pyro.module("lstm", lstm)
        pyro.module("head", head)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1).expand([x.shape[0]]))
            hidden, _ = lstm(z.unsqueeze(1).repeat(1, x.shape[1], 1))
            pyro.sample("x", dist.Normal(head(hidden).squeeze(-1), 0.5).to_event(1), obs=x)

    return Case(model, draws(NUM, 4))


SEQUENCES = {
    "state space, packed guide": state_space,
    "state space, flow guide": state_space_with_a_flow_guide,
    "state space, packed by hook": state_space_by_hook,
    "LSTM decoder": recurrent_decoder,
}
