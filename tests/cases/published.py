"""Mechanisms of programs published with Pyro: partial labels, conditional images, presence, auxiliary terms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn

from tests.cases.case import NUM, Case, built, draws

__all__ = ["PUBLISHED"]


def bits(*shape: int) -> torch.Tensor:
    return (draws(*shape) > 0).float()


class SemiSupervised(nn.Module):
    """A one-hot label that is given or not, and a style; an auxiliary loss in the guide where it is given."""

    def __init__(self, *, scale: float = 1.0, auxiliary: bool = False) -> None:
        super().__init__()
        self.scale, self.auxiliary = scale, auxiliary
        self.decoder, self.classifier, self.encoder = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(9, 4)

    def model(self, xs, ys=None):
        pyro.module("semi", self)
        with pyro.plate("data"), pyro.poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(len(xs), 3) / 3), obs=ys)
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            both = torch.cat([z.expand((*shape, -1)), y.expand((*shape, -1))], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        pyro.module("semi", self)
        with pyro.plate("data"), pyro.poutine.scale(scale=self.scale):
            label = dist.OneHotCategorical(logits=self.classifier(xs))
            if ys is None:
                ys = pyro.sample("y", label)
            elif self.auxiliary:
                pyro.factor("classification loss", -0.1 * label.log_prob(ys), has_rsample=False)
            both = torch.cat([xs.expand((*ys.shape[:-1], -1)), ys], -1)
            loc, log_scale = self.encoder(both).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def with_labels() -> Case:
    network = built(SemiSupervised)
    return Case(network.model, (bits(NUM, 6), torch.eye(3)[torch.tensor([0, 2, 1, 1, 0])]), network.guide)


def without_labels() -> Case:
    network = built(SemiSupervised)
    return Case(network.model, bits(NUM, 6), network.guide, choices={"y": list(torch.eye(3).unsqueeze(1))})


def with_labels_scaled_and_an_auxiliary_loss() -> Case:
    network = built(lambda: SemiSupervised(scale=1 / 30, auxiliary=True))
    return Case(
        network.model,
        (bits(NUM, 6), torch.eye(3)[torch.tensor([0, 2, 1, 1, 0])]),
        network.guide,
        warns="divided out",
    )


def conditional_image() -> Case:
    """One part of an image is given, the other observed, by boolean indexing; the prior comes from a frozen network."""
    baseline, prior, decoder = (
        built(lambda sizes=sizes: nn.Linear(*sizes), seed) for seed, sizes in enumerate([(8, 8), (8, 4), (2, 8)])
    )

    def model(xs, ys):
        pyro.module("prior", prior)
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            with torch.no_grad():
                filled = xs.clone()
                filled[xs == -1] = baseline(xs)[xs == -1]
            loc, log_scale = prior(filled).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            logits = decoder(z)[xs == -1].view(len(xs), -1)
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=ys[xs == -1].view(len(xs), -1))

    ys = bits(NUM, 8)
    xs = ys.clone()
    xs[:, 3:] = -1.0
    return Case(model, (xs, ys))


class Presence(nn.Module):
    """Objects that are there or not, one after another, with masks on what is not; an LSTM cell in the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.decode, self.rnn, self.head = nn.Linear(2, 4), nn.LSTMCell(4 + 2 + 1, 5), nn.Linear(5, 5)
        self.h_init = nn.Parameter(torch.zeros(1, 5))

    def model(self, data, batch_size):
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0)) as index:
            batch = data[index]
            n = batch.size(0)
            there, total = torch.ones(n, 1), torch.zeros(n, 4)
            for t in range(2):
                there = pyro.sample(f"there_{t}", dist.Bernoulli(0.5 * there).to_event(1))
                what = pyro.sample(f"what_{t}", dist.Normal(torch.zeros(n, 2), 1.0).mask(there).to_event(1))
                total = total + self.decode(what) * there.view(-1, 1)
            pyro.sample("obs", dist.Normal(total, 0.3 * torch.ones(n, 4)).to_event(1), obs=batch)

    def guide(self, data, batch_size):
        pyro.module("rnn", self.rnn)
        pyro.module("head", self.head)
        pyro.param("h_init", self.h_init)
        with pyro.plate("data", data.size(0), subsample_size=batch_size) as index:
            batch = data[index]
            n = batch.size(0)
            state = (self.h_init.expand(n, 5), self.h_init.expand(n, 5))
            there, what = torch.ones(n, 1), torch.zeros(n, 2)
            for t in range(2):
                state = self.rnn(torch.cat([batch, what, there], -1), state)
                logit, loc, log_scale = self.head(state[0]).split([1, 2, 2], -1)
                there = pyro.sample(f"there_{t}", dist.Bernoulli(logit.sigmoid() * there).to_event(1))
                what = pyro.sample(f"what_{t}", dist.Normal(loc, log_scale.exp()).mask(there).to_event(1))


def presence() -> Case:
    network = built(Presence)
    values = [torch.zeros(1, 1), torch.ones(1, 1)]
    return Case(
        network.model, (draws(NUM, 4), 3), network.guide, choices={"there_0": values, "there_1": values}
    )  # fmt: skip


def auxiliary_observations_in_the_guide() -> Case:
    """A causal model: the guide predicts treatment and outcome for later, beside its own latent."""
    outcome, treat, encoder = (
        built(lambda sizes=sizes: nn.Linear(*sizes), seed) for seed, sizes in enumerate([(3, 1), (2, 1), (4, 4)])
    )

    def model(x, t, y, size=None):
        pyro.module("outcome", outcome)
        with pyro.plate("data", x.size(0) if size is None else size, subsample=x):
            z = pyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=z.sum(-1)), obs=t)
            logits = outcome(torch.cat([z, t.unsqueeze(-1)], -1)).squeeze(-1)
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    def guide(x, t, y, size=None):
        pyro.module("treat", treat)
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.size(0) if size is None else size, subsample=x):
            logits = treat(x).squeeze(-1)
            t = pyro.sample("t", dist.Bernoulli(logits=logits), obs=t, infer={"is_auxiliary": True})
            y = pyro.sample("y", dist.Bernoulli(logits=logits), obs=y, infer={"is_auxiliary": True})
            loc, log_scale = encoder(torch.cat([x, t.unsqueeze(-1), y.unsqueeze(-1)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, (draws(NUM, 2), bits(NUM), bits(NUM)), guide)


def topics() -> Case:
    """Counts of words from a softmax of topics through BatchNorm without weights; a total typed in from the data."""

    def make():
        network = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6, affine=False))
        network(torch.rand(32, 3))
        return network

    decoder = built(make)

    def model(docs):
        pyro.module("decoder", decoder)
        with pyro.plate("documents", docs.shape[0]):
            logits = pyro.sample("logits", dist.Normal(docs.new_zeros(docs.shape[0], 3), 1.0).to_event(1))
            words = decoder(logits.softmax(-1)).softmax(-1)
            pyro.sample("obs", dist.Multinomial(int(docs.sum(-1).max()), words), obs=docs)

    return Case(model, draws(NUM, 6).abs().mul(3).round())


def ratings() -> Case:
    """Item response: abilities of persons, items as parameters, unanswered questions masked."""

    def model(answers, asked):
        difficulty = pyro.param("difficulty", lambda: torch.linspace(-1, 1, answers.shape[1]))
        slope = pyro.param("slope", lambda: torch.ones(answers.shape[1]), constraint=constraints.positive)
        with pyro.plate("persons", answers.shape[0], dim=-2):
            ability = pyro.sample("ability", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("items", answers.shape[1], dim=-1), pyro.poutine.mask(mask=asked):
                pyro.sample("answers", dist.Bernoulli(logits=slope * (ability - difficulty)), obs=answers)

    return Case(model, (bits(NUM, 4), draws(NUM, 4, seed=3) > -0.5))


PUBLISHED = {
    "semi-supervised, labels": with_labels,
    "semi-supervised, no labels": without_labels,
    "auxiliary loss in the guide": with_labels_scaled_and_an_auxiliary_loss,
    "conditional image": conditional_image,
    "presence": presence,
    "auxiliary observations in the guide": auxiliary_observations_in_the_guide,
    "topics": topics,
    "ratings": ratings,
}
